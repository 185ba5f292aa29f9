"""The manifest: what a version says about itself, readable by today's and refused by yesterday's hotswap."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import InvalidAdapter
from adapters.manifest import Manifest, digest_of
from adapters.tasks import ClassificationTask, SummarizationTask

DIGEST = "sha256:" + "0" * 64


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "name": "mood",
        "version": 3,
        "task": {"kind": "summarization", "template": {"text": "Text: {text}\nSummary:"}},
        "base": {"name": "tiny", "digest": DIGEST},
        "rank": 8,
        "alpha": 16.0,
        "target_modules": ("q_proj",),
        "files": {"adapter_model.safetensors": {"bytes": 10, "digest": DIGEST}},
    } | changes


def stored(**changes: Any) -> bytes:
    return json.dumps(fields(**changes)).encode()


@settings(max_examples=40, deadline=None)
@given(
    name=st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", fullmatch=True),
    description=st.text(alphabet=st.characters(codec="utf-8"), max_size=2000),
    alpha=st.floats(0.001, 1e6),
    confidence=st.dictionaries(st.sampled_from([0.5, 0.9, 1.0]), st.floats(0, 1)),
    metrics=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False) | st.integers()),
)
def test_what_is_written_is_read_back(
    name: str, description: str, alpha: float, confidence: dict, metrics: dict
) -> None:
    profile = {"rows": 7, "labels": {"good": 0.5}, "confidence": confidence, "input_tokens": {8: 0.5}}
    about = {"description": description, "alpha": alpha, "metrics": metrics, "profile": profile}
    manifest = Manifest.model_validate(fields(name=name, lineage={"recipe": {"seed": 7}}, **about))
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert Manifest.from_bytes(manifest.to_bytes()).to_bytes() == manifest.to_bytes(), "so its digest is stable"


@pytest.mark.parametrize("kind", ["classification", "summarization"])
def test_the_task_comes_back_as_what_it_was(
    kind: str, sentiment_task: ClassificationTask, summary_task: SummarizationTask
) -> None:
    task = sentiment_task if kind == "classification" else summary_task
    manifest = Manifest.model_validate(fields(task=task))
    assert Manifest.from_bytes(manifest.to_bytes()).task == task


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (stored(rnak=8), "rnak: unknown key; did you mean 'rank'?"),
        (stored(base={"name": "x", "digset": DIGEST}), "base.digset: unknown key; did you mean 'digest'?"),
        (stored(schema_version=2), "has schema 2; this hotswap reads 1: upgrade"),
        (stored(schema_version=2, shape="unheard of"), "has schema 2; this hotswap reads 1: upgrade"),
        (stored(schema_version="1.0"), "schema_version: "),
        (stored()[:-20], "is not JSON: it is damaged"),
        (b"", "is not JSON: it is damaged"),
        (b"\xff\xfe\x00", "is not JSON: it is damaged"),
        (b"[" * 100_000, "is not JSON: it is damaged"),
        (b"[]", "manifest is invalid"),
        (b"null", "manifest is invalid"),
        (json.dumps({k: v for k, v in fields().items() if k != "task"}).encode(), "task: is required"),
        (stored(task={"kind": "translation"}), "task.kind: 'translation' is unknown"),
        (stored(method="ia3"), "method: "),
        (stored(rank=0), "a LoRA has a rank"),
        (stored(base={"name": "x", "digest": "md5:1"}), "base.digest: "),
        (stored(version=0), "version: "),
        (stored(target_modules=[]), "a LoRA has a rank, an alpha and target_modules"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(InvalidAdapter, match=reason) as refused:
        Manifest.from_bytes(content)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "file", ["../x", "a/b", "/etc/passwd", "..", ".", ".hidden", "", "a\\b", "a\nb", "x" * 102, "a\x00"]
)
def test_file_names_cannot_leave_the_folder(file: str) -> None:
    with pytest.raises(InvalidAdapter, match="files"):
        Manifest.from_bytes(stored(files={file: {"bytes": 1, "digest": DIGEST}}))


@pytest.mark.parametrize(
    "name", ["", "Mood", "mood/x", "../mood", "-mood", "mood-", ".mood", "mo od", "mood@3", "mood\n", "m" * 65, "ñ"]
)
def test_names_that_would_need_quoting_are_refused(name: str) -> None:
    with pytest.raises(InvalidAdapter, match="name: "):
        Manifest.from_bytes(stored(name=name))


@pytest.mark.parametrize("name", ["m", "0", "mood-2.1_b", "m" * 64])
def test_names_of_letters_digits_dots_and_dashes_are_taken(name: str) -> None:
    assert Manifest.from_bytes(stored(name=name)).name == name


def test_how_scores_were_computed_is_said_where_it_is_known() -> None:
    assert Manifest.from_bytes(stored()).computed is None
    read = Manifest.from_bytes(stored(computed={"dtype": "bfloat16", "device": "NVIDIA H100"}))
    assert Manifest.from_bytes(read.to_bytes()) == read
    assert read.computed is not None
    assert (read.computed.dtype, read.computed.device) == ("bfloat16", "NVIDIA H100")


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Manifest.model_validate(fields()).version = 4  # type: ignore[misc]


def test_the_digest_names_the_content() -> None:
    assert digest_of(b"abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
