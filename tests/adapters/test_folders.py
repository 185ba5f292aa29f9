"""Folders as trainers, hubs and caches leave them are taken in; of what is none, the message says which is meant."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapters.base_model import Base
from adapters.errors import InvalidAdapter
from adapters.intake import add_version
from adapters.lint import is_another_model, lint
from adapters.store import CONFIG, WEIGHTS, Store
from adapters.tasks import ClassificationTask
from tests.conftest import MakeAdapter

TRAINER_FILES = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "x.ckpt")


def add(store: Store, folder: Path, task: ClassificationTask, base: Base) -> set[str]:
    """Take a folder in; return the files that the version has."""
    manifest = add_version(store, "mood", folder, task, base)
    return set(manifest.files)


def in_a_cache(folder: Path, cache: Path) -> Path:
    """Lay an adapter out as huggingface_hub does: links into blobs."""
    model = cache / "models--me--mood"
    snapshot, blobs = model / "snapshots" / "0a1b2c", model / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / f"blob{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob{number}")
    return snapshot


class TestWhatIsNotRead:
    def test_is_neither_refused_nor_copied(
        self, store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task: ClassificationTask
    ) -> None:
        folder = make_adapter()
        for name in TRAINER_FILES:
            (folder / name).write_bytes(b"PK\x03\x04 a pickle")
        shutil.copytree(folder, folder / "checkpoint-500")
        (folder / "adapter_model.bin").write_bytes(b"\x80\x04")  # beside the weights, which are no pickle
        (folder / "dangling.pt").symlink_to("/nowhere/at/all")
        (folder / "loop").symlink_to("loop")
        (folder / "passwd").symlink_to("/etc/passwd")
        (folder / os.fsdecode(b"caf\xe9.txt")).write_text("a name in another encoding")
        assert add(store, folder, sentiment_task, tiny) == {CONFIG, WEIGHTS}
        assert {path.name for path in store.fetch("mood", 1, folder.parent).iterdir()} == {CONFIG, WEIGHTS}

    def test_of_the_files_that_are_read_a_dangling_link_or_a_loop_is_a_missing_one(
        self, make_adapter: MakeAdapter
    ) -> None:
        folder = make_adapter()
        (folder / "README.md").symlink_to("README.md")
        (folder / "task.json").symlink_to("/nowhere/at/all")
        assert lint(folder).rank == 4
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).symlink_to(WEIGHTS)
        with pytest.raises(InvalidAdapter, match=f"{WEIGHTS} is missing"):
            lint(folder)


class TestAHubCache:
    def test_is_taken_in_through_its_links(
        self, store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task: ClassificationTask, tmp_path: Path
    ) -> None:
        folder = make_adapter()
        (folder / "README.md").write_text("# mine")
        snapshot = in_a_cache(folder, tmp_path)
        (tmp_path / "latest").symlink_to(snapshot)
        assert add(store, snapshot, sentiment_task, tiny) == {CONFIG, WEIGHTS, "README.md"}
        assert add(store, tmp_path / "latest", sentiment_task, tiny) == {CONFIG, WEIGHTS, "README.md"}

    @pytest.mark.parametrize("way", ["another model's blobs", "elsewhere", "blobs that are a link"])
    def test_may_not_lead_out_of_its_own_model(self, make_adapter: MakeAdapter, tmp_path: Path, way: str) -> None:
        secret, snapshot = make_adapter(), in_a_cache(make_adapter(), tmp_path)
        blobs = snapshot.parent.parent / "blobs"
        (snapshot / CONFIG).unlink()
        match way:
            case "another model's blobs":
                (tmp_path / "models--you--yours" / "blobs").mkdir(parents=True)
                shutil.copy(secret / CONFIG, tmp_path / "models--you--yours" / "blobs" / "b")
                (snapshot / CONFIG).symlink_to("../../../models--you--yours/blobs/b")
            case "elsewhere":
                (snapshot / CONFIG).symlink_to(secret / CONFIG)
            case _:
                shutil.rmtree(blobs)
                blobs.symlink_to(secret)
                (snapshot / CONFIG).symlink_to(f"../../blobs/{CONFIG}")
        with pytest.raises(InvalidAdapter, match=f"{CONFIG} leads out of the folder"):
            lint(snapshot)


class TestAFolderThatIsNone:
    @pytest.mark.parametrize("inside", [["checkpoint-500", "checkpoint-1000"], ["default"]])
    def test_of_one_that_holds_some_says_which_to_name(self, make_adapter: MakeAdapter, inside: list[str]) -> None:
        folder = make_adapter()
        outer = folder.parent / "run"
        for name in inside:
            shutil.copytree(folder, outer / name)
        with pytest.raises(InvalidAdapter, match=f"it holds {', '.join(inside)}: name that folder instead"):
            lint(outer)

    def test_of_mlx_is_named(self, make_adapter: MakeAdapter) -> None:
        folder = make_adapter(config={"fine_tune_type": "lora", "peft_type": None})
        (folder / WEIGHTS).rename(folder / "adapters.safetensors")
        with pytest.raises(InvalidAdapter, match="it is an MLX adapter, whose format is another"):
            lint(folder)

    def test_of_a_whole_model_is_named(self, tiny_folder: Path) -> None:
        with pytest.raises(InvalidAdapter, match="is missing; it looks like a whole model"):
            lint(tiny_folder)


class TestTheModelItWasTrainedOn:
    @pytest.mark.parametrize(
        ("trained_on", "base", "another"),
        [
            ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct", False),
            ("unsloth/SmolLM2-135M-Instruct-bnb-4bit", "SmolLM2-135M-Instruct", False),
            ("/workspace/models/smollm2", "SmolLM2-135M-Instruct", False),
            ("/home/me/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct", False),
            ("./SmolLM2-135M-Instruct-merged/", "SmolLM2-135M-Instruct", False),
            ("meta-llama/Llama-3.2-1B", "base", False),
            ("", "SmolLM2-135M-Instruct", False),
            ("HuggingFaceTB/SmolLM2-135M", "SmolLM2-135M-Instruct", True),
            ("meta-llama/Llama-3.2-1B", "SmolLM2-135M-Instruct", True),
            ("/workspace/models/Llama-3.2-1B", "SmolLM2-135M-Instruct", True),
            (r"C:\models\Llama-3.2-1B", "SmolLM2-135M-Instruct", True),
            ("openai/gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ],
    )
    def test_is_another_where_the_names_say_so(self, trained_on: str, base: str, another: bool) -> None:
        assert is_another_model(trained_on, base) is another

    def test_is_worth_a_warning_and_no_refusal(
        self, make_adapter: MakeAdapter, tiny_folder: Path, tmp_path: Path
    ) -> None:
        base = tmp_path / "tiny-1b"
        shutil.copytree(tiny_folder, base)
        folder = make_adapter(config={"base_model_name_or_path": "meta/Other\x1b[31m-7B"})
        add = ["add", str(folder), "mood", "--task", "summarization", "--store", str(tmp_path / "store")]
        for command in (["lint", str(folder)], add):
            done = run(*command, "--base", str(base))
            assert done.returncode == 0, done.stderr
            assert "warning: it was trained on meta/Other?[31m-7B, and is taken for tiny-1b" in done.stderr


class TestOtherForms:
    """What they mean is held against PEFT, on the engine, in ``tests/service/test_adapter_forms.py``."""

    def test_are_stored_as_plain_lora(
        self, store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task: ClassificationTask, tmp_path: Path
    ) -> None:
        folder = make_adapter(rank=4, config={"alpha_pattern": {"v_proj": 4}, "rank_pattern": {"k_proj": 64}})
        given = load_file(folder / WEIGHTS)
        save_file({key.removeprefix("base_model.model."): value for key, value in given.items()}, folder / WEIGHTS)
        manifest = add_version(store, "mood", folder, sentiment_task, tiny)
        stored = store.fetch("mood", 1, tmp_path)
        weights, config = load_file(stored / WEIGHTS), json.loads((stored / CONFIG).read_bytes())
        assert (manifest.rank, manifest.alpha, config["r"], config["lora_alpha"]) == (4, 8, 4, 8)
        assert config["rank_pattern"] == config["alpha_pattern"] == {}
        assert weights.keys() == given.keys()
        for key, value in given.items():
            expected = value / 2 if "v_proj.lora_B" in key else value
            np.testing.assert_array_equal(weights[key], expected)
        assert lint(stored, stored=True).rank == 4

    def test_are_not_served_from_a_store_that_somebody_else_filled(self, make_adapter: MakeAdapter) -> None:
        with pytest.raises(InvalidAdapter, match="it is not the plain LoRA that python -m adapters add makes"):
            lint(make_adapter(config={"alpha_pattern": {"v_proj": 3}}), stored=True)

    def test_of_several_adapters_in_one_file_are_refused(self, make_adapter: MakeAdapter) -> None:
        folder = make_adapter()
        tensors = load_file(folder / WEIGHTS)
        named = {
            key.replace(".weight", f".{'one' if 'q_proj' in key else 'two'}.weight"): tensors[key] for key in tensors
        }
        save_file(named, folder / WEIGHTS)
        with pytest.raises(InvalidAdapter, match="it holds several adapters in one file \\(one, two\\)"):
            lint(folder)

    def test_that_tie_adapted_embeddings_are_refused(self, make_adapter: MakeAdapter) -> None:
        def embedded(**config: Any) -> Path:
            folder = make_adapter(config=config)
            tensors = load_file(folder / WEIGHTS)
            tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = np.ones((4, 600), np.float32)
            tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = np.ones((128, 4), np.float32)
            save_file(tensors, folder / WEIGHTS)
            return folder

        assert lint(embedded()).rank == 4
        with pytest.raises(InvalidAdapter, match="ensure_weight_tying=True cannot be served"):
            lint(embedded(ensure_weight_tying=True))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adapters", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
