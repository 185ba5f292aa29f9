"""Adapter folders that mean harm are refused in one line, unread where reading would be the harm."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from adapters.base_model import Base
from adapters.errors import InvalidAdapter
from adapters.intake import add_version
from adapters.lint import lint
from adapters.manifest import Manifest
from adapters.store import CONFIG, WEIGHTS, Store
from tests.conftest import MakeAdapter

TENSOR = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def safetensors(header: Any, body: bytes = b"\0" * 64, *, length: int | None = None) -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(head) if length is None else length).to_bytes(8, "little") + head + body


def tensor(begin: int, end: int, shape: list[int], kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "a header longer than the file": safetensors({}, length=1 << 40),
    "a header of 100 MB and more": safetensors(b" " * 16, length=100_000_001),
    "a negative length": safetensors({}, length=(1 << 64) - 1),
    "tensors that overlap": safetensors({TENSOR: tensor(0, 64, [4, 4]), TENSOR + "x": tensor(32, 64, [2, 4])}),
    "a hole": safetensors({TENSOR: tensor(0, 16, [4]), TENSOR + "x": tensor(48, 64, [4])}),
    "a tensor beyond the end": safetensors({TENSOR: tensor(0, 1 << 40, [1 << 38])}),
    "a tensor that ends before it begins": safetensors({TENSOR: tensor(64, 0, [4, 4])}),
    "a shape of more numbers than there are": safetensors({TENSOR: tensor(0, 64, [10**9, 10**9])}),
    "a shape that overflows": safetensors({TENSOR: tensor(0, 64, [1 << 63, 2])}),
    "a negative shape": safetensors({TENSOR: tensor(0, 64, [-4, -4])}),
    "a number of 5,000 digits": safetensors(f'{{"{TENSOR}": {{"shape": [{"9" * 5000}]}}}}'.encode()),
    "deep JSON": safetensors(b'{"a":' * 100_000),
    "a type of its own": safetensors({TENSOR: tensor(0, 64, [4, 4], "OBJECT")}),
    "100,000 tensors of nothing": safetensors({f"t{n}": tensor(0, 0, [0]) for n in range(100_000)}, b""),
    "metadata that is no text": safetensors({"__metadata__": {"a": [1]}, TENSOR: tensor(0, 64, [4, 4])}),
    "a pickle": pickle.dumps({"weights": [1.0] * 100}),
    "a script": b"#!/bin/sh\nexit 1\n" * 10,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", LIES.values(), ids=LIES.keys())
def test_weights_that_lie_about_themselves_are_refused(make_adapter: MakeAdapter, content: bytes) -> None:
    folder = make_adapter()
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(InvalidAdapter, match=f"{WEIGHTS} is damaged|and 99993 more") as refused:
        lint(folder)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(
    ("config", "key"),
    [({}, "x\nERROR forged"), ({}, "x\x1b[31m"), ({}, "x" * 100_000), ({"use_dora": "x" * 100_000}, TENSOR)],
    ids=["a new line", "a colour", "a long name", "a long value"],
)
def test_what_is_said_about_an_adapter_is_one_line_whatever_it_calls_its_parts(
    make_adapter: MakeAdapter, config: dict[str, str], key: str
) -> None:
    folder = make_adapter(config=config)
    (folder / WEIGHTS).write_bytes(safetensors({key: tensor(0, 64, [4, 4])}))
    with pytest.raises(InvalidAdapter) as refused:
        lint(folder)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 2000


def test_a_zip_under_another_name_is_refused(make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    with zipfile.ZipFile(folder / WEIGHTS, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(1))
    with pytest.raises(InvalidAdapter, match=f"{WEIGHTS} is damaged"):
        lint(folder)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS, "README.md", "task.json"])
def test_a_link_that_leads_out_of_the_folder_is_not_followed(
    store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task, tmp_path: Path, file: str
) -> None:
    folder, elsewhere = make_adapter(), make_adapter()
    (elsewhere / "README.md").write_text("private")
    (elsewhere / "task.json").write_text("private")
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to(elsewhere / file)
    with pytest.raises(InvalidAdapter, match=f"{file} leads out of the folder; copy it with cp -rL"):
        add_version(store, "mood", folder, sentiment_task, tiny)
    assert store.names() == []


def test_a_link_within_the_folder_and_to_the_folder_is_followed(
    store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task, tmp_path: Path
) -> None:
    folder = make_adapter()
    (folder / WEIGHTS).rename(folder / "real.safetensors")
    (folder / WEIGHTS).symlink_to("real.safetensors")
    (tmp_path / "latest").symlink_to(folder)
    assert add_version(store, "mood", tmp_path / "latest", sentiment_task, tiny).version == 1
    assert list(store.problems()) == []


@pytest.mark.parametrize("text", ["x\nERROR forged", "x\x1b[31m", "x\u202egnp.exe", "x\u2028y", "x\ud800y"])
def test_no_message_carries_what_would_act_on_who_shows_it(make_adapter: MakeAdapter, text: str) -> None:
    with pytest.raises(InvalidAdapter) as in_config:
        lint(make_adapter(config={"peft_type": text}))
    with pytest.raises(InvalidAdapter) as in_manifest:
        Manifest.from_bytes(json.dumps({text: 1, "task": {"kind": text}}).encode())
    for refused in (in_config, in_manifest):
        assert str(refused.value).isprintable()


def test_no_message_names_a_place_on_this_machine(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    folder = make_adapter(config={"r": 0})
    with pytest.raises(InvalidAdapter) as refused:
        lint(folder)
    assert str(tmp_path) not in str(refused.value)
    (folder / CONFIG).unlink()
    with pytest.raises(InvalidAdapter) as refused:
        lint(folder)
    assert str(tmp_path) not in str(refused.value)
