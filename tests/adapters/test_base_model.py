"""The frozen base: one digest for one model, however its files are named, and clear words where pieces are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.numpy import load_file, save_file

import adapters.base_model
from adapters.base_model import base_digest, resolve_base
from adapters.errors import HotswapError

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class TestTheDigest:
    def test_is_that_of_weights_and_vocabulary(self, tiny_folder: Path, copy: Path) -> None:
        assert base_digest(copy) == base_digest(tiny_folder)
        assert base_digest(copy).startswith("sha256:")

    def test_does_not_depend_on_file_names(self, tiny_folder: Path, copy: Path) -> None:
        (copy / WEIGHTS).rename(copy / "pytorch_model-00001.safetensors")
        assert base_digest(copy) == base_digest(tiny_folder)

    def test_does_not_depend_on_shards_or_their_order(self, tiny_folder: Path, copy: Path) -> None:
        tensors = load_file(copy / WEIGHTS)
        (copy / WEIGHTS).unlink()
        for number, name in enumerate(sorted(tensors, reverse=True)):
            save_file({name: tensors[name]}, copy / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
        assert base_digest(copy) == base_digest(tiny_folder)

    def test_does_not_depend_on_formatting(self, tiny_folder: Path, copy: Path) -> None:
        path = copy / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()), indent=7, ensure_ascii=True, sort_keys=True))
        assert base_digest(copy) == base_digest(tiny_folder)

    def test_changes_with_one_weight(self, tiny_folder: Path, copy: Path) -> None:
        tensors = load_file(copy / WEIGHTS)
        norm = tensors["model.norm.weight"]
        norm[-1] = np.nextafter(norm[-1], np.float32(9), dtype=np.float32)
        save_file(tensors, copy / WEIGHTS)
        assert base_digest(copy) != base_digest(tiny_folder)

    def test_changes_with_a_tensor_s_name_or_shape_or_type(self, tiny_folder: Path, copy: Path) -> None:
        digests = {base_digest(tiny_folder)}
        norm = load_file(copy / WEIGHTS)["model.norm.weight"]
        for name, tensor in (
            ("model.norm.scale", norm),
            ("model.norm.weight", norm.reshape(1, -1)),
            ("model.norm.weight", norm.view(np.int32)),
        ):
            tensors = load_file(tiny_folder / WEIGHTS)
            del tensors["model.norm.weight"]
            save_file(tensors | {name: tensor}, copy / WEIGHTS)
            digests.add(base_digest(copy))
        assert len(digests) == 4

    def test_changes_with_the_vocabulary(self, tiny_folder: Path, copy: Path) -> None:
        path = copy / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        path.write_text(json.dumps(tokenizer))
        assert base_digest(copy) != base_digest(tiny_folder)

    def test_is_computed_once_per_state_of_the_files(
        self, copy: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = resolve_base(str(copy), cache).digest

        def recomputed(_: Path) -> str:
            raise AssertionError("hashed again")

        with monkeypatch.context() as patch:
            patch.setattr(adapters.base_model, "base_digest", recomputed)
            assert resolve_base(str(copy), cache).digest == first
        tensors = load_file(copy / WEIGHTS)
        save_file(tensors | {"one.more": np.ones(3, np.float32)}, copy / WEIGHTS)
        assert resolve_base(str(copy), cache).digest == base_digest(copy) != first


class TestABase:
    def test_is_opened_from_a_folder(self, copy: Path, cache: Path) -> None:
        base = resolve_base(str(copy), cache)
        assert (base.name, base.folder, base.end_id) == ("copy", copy.resolve(), 2)
        assert base.tokenizer.decode(base.tokenizer.encode("dull")) == "dull"

    def test_may_list_several_ends_and_the_first_is_taken(self, copy: Path, cache: Path) -> None:
        configure(copy, eos_token_id=[5, 6])
        assert resolve_base(str(copy), cache).end_id == 5

    @pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
    def test_that_lacks_a_file_is_told_which(self, copy: Path, cache: Path, missing: str) -> None:
        (copy / missing).unlink()
        with pytest.raises(HotswapError, match=f"is not a base model: {missing} is missing"):
            resolve_base(str(copy), cache)

    def test_with_pickled_weights_only_is_refused(self, copy: Path, cache: Path) -> None:
        (copy / WEIGHTS).rename(copy / "pytorch_model.bin")
        with pytest.raises(HotswapError, match=r"has no \*\.safetensors; hotswap reads no pickled weights"):
            resolve_base(str(copy), cache)

    @pytest.mark.parametrize("end", [None, [], "2", "absent"])
    def test_without_an_end_token_is_refused(self, copy: Path, cache: Path, end: object) -> None:
        configure(copy, eos_token_id=end)
        for also in ("generation_config.json", "tokenizer_config.json"):
            (copy / also).unlink()
        with pytest.raises(HotswapError, match=r"config\.json names no eos_token_id; add it"):
            resolve_base(str(copy), cache)

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("generation_config.json", {"eos_token_id": [1, 2]}),
            ("tokenizer_config.json", {"eos_token": "<|im_start|>"}),
            ("tokenizer_config.json", {"eos_token": {"content": "<|im_start|>"}}),
        ],
    )
    def test_may_name_its_end_in_another_file(self, copy: Path, cache: Path, file: str, content: object) -> None:
        configure(copy, eos_token_id="absent")
        for also in ("generation_config.json", "tokenizer_config.json"):
            (copy / also).unlink()
        (copy / file).write_text(json.dumps(content))
        assert resolve_base(str(copy), cache).end_id == 1

    def test_beside_a_vision_tower_has_its_settings_nested(self, copy: Path, cache: Path) -> None:
        config = json.loads((copy / "config.json").read_text())
        nested = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": config}
        (copy / "config.json").write_text(json.dumps(nested))
        assert resolve_base(str(copy), cache).end_id == 2

    def test_in_shards_is_what_its_index_names(self, tiny_folder: Path, copy: Path, cache: Path) -> None:
        shards = in_shards(copy)
        shutil.copy(copy / shards[0], copy / "consolidated.safetensors")  # Mistral's repositories have both
        assert resolve_base(str(copy), cache).digest == base_digest(tiny_folder)
        (copy / shards[1]).unlink()
        with pytest.raises(HotswapError, match=f"lacks {shards[1]}, which its index names; fetch the model again"):
            resolve_base(str(copy), cache)

    @pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": []}'])
    def test_with_a_damaged_index_is_refused(self, copy: Path, cache: Path, index: str) -> None:
        (copy / "model.safetensors.index.json").write_text(index)
        with pytest.raises(HotswapError, match="is no index of weights"):
            resolve_base(str(copy), cache)

    @pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
    def test_with_a_damaged_config_is_refused(self, copy: Path, cache: Path, content: bytes) -> None:
        (copy / "config.json").write_bytes(content)
        with pytest.raises(HotswapError, match=r"config\.json is not a JSON object"):
            resolve_base(str(copy), cache)

    @pytest.mark.parametrize("content", [b"{", b"{}", b"", b"[1]"])
    def test_with_a_damaged_tokenizer_is_refused(self, copy: Path, cache: Path, content: bytes) -> None:
        (copy / "tokenizer.json").write_bytes(content)
        with pytest.raises(HotswapError, match=r"tokenizer\.json is no tokenizer"):
            resolve_base(str(copy), cache)

    @pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100, (9).to_bytes(8, "little") + b"{not json"])
    def test_with_damaged_weights_is_refused(self, copy: Path, cache: Path, content: bytes) -> None:
        (copy / WEIGHTS).write_bytes(content)
        with pytest.raises(HotswapError, match=r"model\.safetensors is no safetensors file, or damaged"):
            resolve_base(str(copy), cache)

    def test_with_truncated_weights_is_refused_and_not_remembered(self, copy: Path, cache: Path) -> None:
        (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-1])
        for _ in range(2):
            with pytest.raises(HotswapError, match="is shorter than its header says; fetch the base model again"):
                resolve_base(str(copy), cache)

    @pytest.mark.parametrize("reference", ["nobody/no-such-model", "no-such-model", "/no/such/folder", "a b c/!"])
    def test_that_is_neither_here_nor_to_be_had_is_refused(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch, reference: str
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # HF_HUB_OFFLINE=1, read at import
        with pytest.raises(HotswapError) as refused:
            resolve_base(reference, cache)
        assert f"HOTSWAP_BASE_MODEL '{reference}' is neither a folder nor a model" in str(refused.value)
        assert "\n" not in str(refused.value)


def hub_refuses(error: type[Exception]) -> Any:
    """A stand-in for Hugging Face that refuses every download so."""

    def refuse(*_: object, **__: object) -> str:
        raise error("refused", response=httpx.Response(403, request=httpx.Request("GET", "https://hub.test")))

    return refuse


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (GatedRepoError, "is gated: accept its terms .* and set HF_TOKEN"),
        (RevisionNotFoundError, "HOTSWAP_REVISION: 'team/model' has no 'v9'; name one"),
        (RepositoryNotFoundError, "neither a folder nor a model .* set HF_TOKEN if it is private"),
    ],
)
def test_what_the_hub_refuses_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], advice: str
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub_refuses(error))
    with pytest.raises(HotswapError, match=advice):
        resolve_base("team/model", tmp_path, "v9")


def test_the_revision_is_that_of_the_base_that_the_environment_names(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, *, revision: str | None, **_: object) -> str:
        asked.append((repository, revision))
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setenv("HOTSWAP_BASE_MODEL", "team/model")
    monkeypatch.setenv("HOTSWAP_REVISION", "v2")
    for reference in ("team/model", "team/other"):
        resolve_base(reference, tmp_path)
    assert asked == [("team/model", "v2"), ("team/other", None)]


def in_shards(folder: Path) -> list[str]:
    """Divide a checkpoint's weights among two files and an index, as large ones are."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: files[number % 2] for number, name in enumerate(tensors)}
    for file in files:
        part = {name: tensors[name] for name in tensors if where[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return files


def configure(folder: Path, eos_token_id: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["eos_token_id"] = eos_token_id
    if eos_token_id == "absent":
        del config["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
