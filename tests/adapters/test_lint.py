"""Lint: what the engine would refuse, or serve wrongly without a word, is refused before it is stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapters.base_model import Base
from adapters.errors import InvalidAdapter
from adapters.intake import add_version
from adapters.lint import Facts, lint
from adapters.modules import base_shapes
from adapters.store import CONFIG, WEIGHTS, Store
from adapters.tasks import ClassificationTask
from tests.conftest import HIDDEN, MakeAdapter, write_prompt

LAYER = "base_model.model.model.layers.0.self_attn"
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def shapes(tiny_folder: Path) -> dict[str, tuple[int, ...]]:
    return base_shapes(tiny_folder)


@pytest.fixture
def refused(shapes: dict[str, tuple[int, ...]]) -> Callable[..., str]:
    """Lint a folder that must be refused; return the one line that says why."""

    def message(folder: Path, **limits: Any) -> str:
        with pytest.raises(InvalidAdapter) as error:
            lint(folder, shapes=shapes, **limits)
        text = str(error.value)
        assert "\n" not in text
        return text

    return message


def edit(folder: Path, change: Callable[[Tensors], None]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder


def stored_as(folder: Path, kind: str, spoil: Callable[[np.ndarray], None] = lambda bits: None) -> Path:
    """Write the weights in the given safetensors dtype, byte by byte: numpy has no bfloat16."""
    tensors = load_file(folder / WEIGHTS)
    header: dict[str, Any] = {}
    body = b""
    for name, tensor in tensors.items():
        if kind == "BF16":
            bits = (tensor.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        else:
            bits = tensor.astype({"F32": np.float32, "F16": np.float16, "F64": np.float64}[kind])
            bits = bits.view({"F32": np.uint32, "F16": np.uint16, "F64": np.uint64}[kind])
        spoil(bits)
        begin = len(body)
        body += bits.tobytes()
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, len(body)]}
    head = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(head).to_bytes(8, "little") + head + body)
    return folder


class TestASoundAdapter:
    def test_is_described(self, make_adapter: MakeAdapter, shapes: dict[str, tuple[int, ...]]) -> None:
        assert lint(make_adapter(rank=4), shapes=shapes, max_rank=4) == Facts(4, 8.0, ("q_proj", "v_proj"), 2.0)

    @pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
    def test_may_be_stored_in_any_precision_that_is_served(
        self, make_adapter: MakeAdapter, shapes: dict[str, tuple[int, ...]], kind: str
    ) -> None:
        assert lint(stored_as(make_adapter(), kind), shapes=shapes).rank == 4

    def test_may_be_checked_without_a_base(self, make_adapter: MakeAdapter) -> None:
        assert lint(make_adapter()).rank == 4

    def test_may_scale_by_the_root_of_its_rank(self, make_adapter: MakeAdapter) -> None:
        assert lint(make_adapter(rank=4, config={"use_rslora": True})).scaling == 8 / 4**0.5

    @pytest.mark.parametrize(
        "config",
        [
            {"use_dora": False, "modules_to_save": None, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}},
            {"modules_to_save": [], "layer_replication": None, "trainable_token_indices": None},
            {"init_lora_weights": True},
            {"init_lora_weights": "gaussian"},
            {"init_lora_weights": "lora_ga"},
            {"init_lora_weights": "mica"},
            {"fan_in_fan_out": True},
            {"layer_replication": [], "trainable_token_indices": [], "use_bdlora": None, "velora_config": {"a": 1}},
            {"r": 4.0, "lora_alpha": 8.0},
            {"alpha_pattern": {r".*\.layers\.1\..*": 8, "v_proj": 3}},
            {"rank_pattern": {"k_proj": 64}},
            {"target_modules": "all-linear"},
            {"lora_alpha": 0.5},
            {"revision": None, "inference_mode": True, "peft_version": "0.21.0", "something_new": 1},
        ],
    )
    def test_may_say_so_in_many_ways(self, make_adapter: MakeAdapter, config: dict[str, Any]) -> None:
        assert lint(make_adapter(config=config)).rank == 4

    def test_may_have_other_harmless_files_beside_it(self, make_adapter: MakeAdapter) -> None:
        folder = make_adapter()
        (folder / "README.md").write_text("# mine")
        (folder / "tokenizer.json").write_text("{}")
        assert lint(folder).rank == 4

    def test_as_peft_saves_it_passes(
        self, tiny_folder: Path, tmp_path: Path, shapes: dict[str, tuple[int, ...]]
    ) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(tiny_folder)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(tmp_path)
        assert lint(tmp_path, shapes=shapes).target_modules == tuple(sorted(targets))


class TestTheConfig:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"{", "is not a JSON object"),
            (b"", "is not a JSON object"),
            (b"[]", "is not a JSON object"),
            (b"\xff\xfe", "is not a JSON object"),
            (b"[" * 200_000, "is not a JSON object"),
            (b" " * (1 << 20) + b"{}", "of sane size"),
            (b"\xef\xbb\xbf{}", "begins with a byte order mark, which the engine cannot read"),
            ("{}".encode("utf-16"), "begins with a byte order mark"),
            ("{}".encode("utf-16-le"), "is not a JSON object"),
            ('{"peft_type": "LÖRA"}'.encode("latin-1"), "is not a JSON object"),
            (b'{"r": 4, "r": 8}', "says r twice"),
            (b'{"peft_type": "LORA", "eva_config": {"rho": 1, "rho": 2}}', "says rho twice"),
        ],
    )
    def test_that_is_no_json_object_is_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str], content: bytes, reason: str
    ) -> None:
        folder = make_adapter()
        (folder / CONFIG).write_bytes(content)
        assert reason in refused(folder)

    def test_that_is_missing_is_named(self, tmp_path: Path, refused: Callable[..., str]) -> None:
        assert "is not a PEFT adapter: adapter_config.json is missing" in refused(tmp_path)

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            ({"use_dora": True}, "use_dora=True cannot be served"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head'] cannot be served"),
            ({"bias": "all"}, "bias='all' cannot be served"),
            ({"bias": "lora_only"}, "bias='lora_only' cannot be served"),
            ({"lora_bias": True}, "lora_bias=True cannot be served"),
            ({"rank_pattern": {"q_proj": 8}}, "(128, 4) do not have rank 8"),
            ({"rank_pattern": {"q_proj": 0}}, "rank_pattern gives q_proj 0, which is none"),
            ({"rank_pattern": [8]}, "rank_pattern is [8], not a rank or an alpha by module"),
            ({"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern gives q_proj '8', which is none"),
            ({"alpha_pattern": {"(q_proj": 8}}, "alpha_pattern has '(q_proj', which is no pattern"),
            ({"alpha_pattern": {"(a*)*b": 8}}, "takes too long to match"),
            ({"alpha_pattern": {".*.*.*.*x": 8}}, "takes too long to match"),
            ({"alpha_pattern": {"a" * 301: 8}}, "takes too long to match"),
            ({"lora_alpha": 1e6, "rank_pattern": {"[qv]_proj": 4}, "r": 1}, "lora_alpha would be 4e+06 at one rank"),
            ({"arrow_config": {"top_k": 2}}, "arrow_config={'top_k': 2} cannot be served"),
            ({"kasa_config": {"beta": 1}}, "kasa_config={'beta': 1} cannot be served"),
            ({"use_something_new": True}, "use_something_new=True is nothing that this version knows how to serve"),
            ({"lora_dropout": float("nan")}, "holds NaN or Infinity, which is not JSON"),
            ({"trainable_token_indices": [1, 2]}, "trainable_token_indices=[1, 2] cannot be served"),
            ({"layer_replication": [[0, 2]]}, "layer_replication=[[0, 2]] cannot be served"),
            ({"use_qalora": True}, "use_qalora=True cannot be served"),
            ({"target_parameters": ["experts.w1"]}, "target_parameters=['experts.w1'] cannot be served"),
            ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens=[5] cannot be served"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' cannot be served"),
            ({"init_lora_weights": "olora"}, "init_lora_weights='olora' cannot be served"),
            ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights='pissa_niter_16' cannot be served"),
            ({"init_lora_weights": "loftq"}, "convert it with PEFT's path_initial_model_for_weight_conversion"),
            ({"peft_type": "IA3"}, "peft_type is 'IA3', served are 'LORA', 'PROMPT_TUNING', 'P_TUNING'; convert it"),
            ({"peft_type": None}, "peft_type is None"),
            ({"r": 0}, "r is 0, not a rank"),
            ({"r": "4"}, "r is '4', not a rank"),
            ({"r": True}, "r is True, not a rank"),
            ({"r": 4.5}, "r is 4.5, not a rank"),
            ({"r": float("nan")}, "r is nan, not a rank"),
            ({"lora_alpha": 0}, "lora_alpha is 0, not a positive number"),
            ({"lora_alpha": None}, "lora_alpha is None, not a positive number"),
            ({"lora_alpha": float("inf")}, "lora_alpha is inf, not a positive number"),
            ({"lora_alpha": float("nan")}, "lora_alpha is nan, not a positive number"),
            ({"lora_alpha": 10**400}, "not a positive number"),
            ({"target_modules": None}, "target_modules is missing"),
            ({"target_modules": []}, "target_modules is missing"),
        ],
    )
    def test_that_asks_for_what_is_not_served_is_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str], config: dict[str, Any], reason: str
    ) -> None:
        assert reason in refused(make_adapter(config=config))

    def test_with_several_faults_is_told_all_of_them(
        self, make_adapter: MakeAdapter, refused: Callable[..., str]
    ) -> None:
        text = refused(make_adapter(config={"use_dora": True, "bias": "all", "r": -1}))
        assert all(fault in text for fault in ("use_dora", "bias", "r is -1"))

    def test_with_a_rank_above_the_server_s_limit_is_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str]
    ) -> None:
        text = refused(make_adapter(rank=17), max_rank=16)
        assert "rank 17 is above the server's limit of 16; raise HOTSWAP_MAX_LORA_RANK" in text

    def test_of_another_rank_than_the_weights_is_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str]
    ) -> None:
        assert "do not have rank 8" in refused(make_adapter(rank=4, config={"r": 8}))


class TestTheFiles:
    @pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
    def test_weights_that_are_a_pickle_are_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str], name: str
    ) -> None:
        folder = make_adapter()
        (folder / WEIGHTS).rename(folder / name)
        assert f"{name}: pickles can run code and are refused" in refused(folder)

    @pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x04\x95"])
    def test_a_pickle_under_the_name_of_weights_is_called_one(
        self, make_adapter: MakeAdapter, refused: Callable[..., str], start: bytes
    ) -> None:
        folder = make_adapter()
        (folder / WEIGHTS).write_bytes(start + b"\xff" * 64)
        assert "it is a pickle under another name" in refused(folder)

    def test_in_several_pieces_are_refused(self, make_adapter: MakeAdapter, refused: Callable[..., str]) -> None:
        folder = make_adapter()
        (folder / WEIGHTS).rename(folder / "adapter_model-00001-of-00002.safetensors")
        assert "its weights are in several files" in refused(folder)

    def test_missing_weights_are_named(self, make_adapter: MakeAdapter, refused: Callable[..., str]) -> None:
        folder = make_adapter()
        (folder / WEIGHTS).unlink()
        assert "adapter_model.safetensors is missing; save with PEFT's" in refused(folder)

    @pytest.mark.parametrize("kept", [0, 4, 100, -1])
    def test_truncated_weights_are_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str], kept: int
    ) -> None:
        folder = make_adapter()
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:kept])
        assert "adapter_model.safetensors is damaged" in refused(folder)

    @pytest.mark.parametrize("content", [b"\xff" * 64, (1 << 62).to_bytes(8, "little") + b"{}", b"PK\x03\x04 a zip"])
    def test_weights_that_are_no_safetensors_are_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str], content: bytes
    ) -> None:
        folder = make_adapter()
        (folder / WEIGHTS).write_bytes(content)
        assert "adapter_model.safetensors is damaged" in refused(folder)

    def test_weights_over_the_limit_are_refused_unread(
        self, make_adapter: MakeAdapter, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("adapters.lint.MAX_BYTES", 100)
        assert "bytes; the limit is 100" in refused(make_adapter())


class TestTheTensors:
    @pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    def test_that_hold_nan_or_infinity_are_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str], kind: str, value: str
    ) -> None:
        bits32 = int(np.float32(value).view(np.uint32))
        bits = {"F32": bits32, "F16": int(np.float16(value).view(np.uint16)), "BF16": bits32 >> 16}[kind]

        def spoil(tensor: np.ndarray) -> None:
            tensor.flat[-1] = bits

        assert "holds NaN or infinity; train again" in refused(stored_as(make_adapter(), kind, spoil))

    @pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
    def test_that_were_never_trained_are_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str], kind: str
    ) -> None:
        assert "it was never trained" in refused(stored_as(make_adapter(), kind, lambda bits: bits.fill(0)))

    @pytest.mark.parametrize("factor", [1e6, 1e25, 1e37])
    @pytest.mark.parametrize("side", ["lora_A", "lora_B"])
    def test_that_would_overflow_are_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str], side: str, factor: float
    ) -> None:
        def enlarge(tensors: Tensors) -> None:
            tensors[f"{LAYER}.q_proj.{side}.weight"] *= np.float32(factor)

        assert "layers.0.self_attn.q_proj: its numbers are so large" in refused(edit(make_adapter(), enlarge))

    @pytest.mark.parametrize("kind", ["F32", "BF16"])
    def test_of_the_largest_numbers_there_are_are_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str], kind: str
    ) -> None:
        largest = {"F32": 0x7F7FFFFF, "BF16": 0x7F7F}[kind]
        assert "answers would overflow" in refused(stored_as(make_adapter(), kind, lambda bits: bits.fill(largest)))

    def test_may_be_large_on_one_side_and_small_on_the_other(self, make_adapter: MakeAdapter) -> None:
        def shift(tensors: Tensors) -> None:
            for key, tensor in tensors.items():
                tensor *= np.float32(1e6 if "lora_A" in key else 1e-6)

        assert lint(edit(make_adapter(), shift)).rank == 4

    def test_of_another_type_are_refused(self, make_adapter: MakeAdapter, refused: Callable[..., str]) -> None:
        assert "is F64; F32, F16 or BF16 can be served" in refused(stored_as(make_adapter(), "F64"))

    def test_for_another_width_are_refused(self, make_adapter: MakeAdapter, refused: Callable[..., str]) -> None:
        def widen(tensors: Tensors) -> None:
            tensors[f"{LAYER}.q_proj.lora_A.weight"] = np.zeros((4, HIDDEN + 1), np.float32)

        text = refused(edit(make_adapter(), widen))
        assert f"layers.0.self_attn.q_proj: the adapter is for (128, {HIDDEN + 1}), the base has (128, 128)" in text

    def test_of_another_rank_are_refused(self, make_adapter: MakeAdapter, refused: Callable[..., str]) -> None:
        def thin(tensors: Tensors) -> None:
            tensors[f"{LAYER}.q_proj.lora_B.weight"] = np.zeros((HIDDEN, 3), np.float32)

        assert "lora_A (4, 128) and lora_B (128, 3) do not have rank 4" in refused(edit(make_adapter(), thin))

    def test_that_are_no_matrices_are_refused(self, make_adapter: MakeAdapter, refused: Callable[..., str]) -> None:
        def flatten(tensors: Tensors) -> None:
            tensors[f"{LAYER}.q_proj.lora_A.weight"] = np.zeros(4, np.float32)

        assert "do not have rank 4" in refused(edit(make_adapter(), flatten))

    @pytest.mark.parametrize("side", ["A", "B"])
    def test_without_their_other_half_are_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str], side: str
    ) -> None:
        def halve(tensors: Tensors) -> None:
            del tensors[f"{LAYER}.v_proj.lora_{side}.weight"]

        assert "layers.0.self_attn.v_proj has only one of lora_A and lora_B" in refused(edit(make_adapter(), halve))

    def test_of_a_module_that_the_base_lacks_are_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str]
    ) -> None:
        def elsewhere(tensors: Tensors) -> None:
            for name in [name for name in tensors if "layers.1" in name]:
                tensors[name.replace("layers.1", "layers.2")] = tensors.pop(name)

        assert "model.layers.2.self_attn.q_proj is not a module of the base model" in refused(
            edit(make_adapter(), elsewhere)
        )

    @pytest.mark.parametrize(
        ("extra", "reason"),
        [
            ("base_model.model.lm_head.weight", "is no LoRA weight, and the engine refuses it"),
            (f"{LAYER}.q_proj.lora_magnitude_vector", "is no LoRA weight"),
            (f"{LAYER}.q_proj.lora_B.bias", "is no LoRA weight"),
            (f"{LAYER}.q_proj.lora_A.default.weight", "has more than one lora_A"),
            ("base_model.model.model.embed_tokens.lora_embedding_A", "has only one of lora_A and lora_B"),
            ("model.layers.0.self_attn.k_proj.lora_A.weight", "has only one of lora_A and lora_B"),
            ("base_model.model.model.embed_tokens.base_layer.weight", "a base with another vocabulary"),
        ],
    )
    def test_that_belong_to_no_lora_are_refused(
        self, make_adapter: MakeAdapter, refused: Callable[..., str], extra: str, reason: str
    ) -> None:
        folder = edit(make_adapter(), lambda tensors: tensors.update({extra: np.zeros((4, 4), np.float32)}))
        assert reason in refused(folder)

    def test_must_be_there_at_all(self, make_adapter: MakeAdapter, refused: Callable[..., str]) -> None:
        assert "holds no LoRA weights" in refused(edit(make_adapter(), lambda tensors: tensors.clear()))


@pytest.mark.parametrize("fault", [{"use_dora": True}, {"r": 5}, {"peft_type": "IA3"}])
def test_a_refused_adapter_leaves_no_trace_in_the_store(
    store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task: ClassificationTask, fault: dict[str, Any]
) -> None:
    with pytest.raises(InvalidAdapter):
        add_version(store, "mood", make_adapter(config=fault), sentiment_task, tiny)
    assert store.names() == []
    assert store.versions("mood") == []


def test_shapes_of_the_base_are_read_from_every_shard(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(tensors)
    (tmp_path / "model.safetensors").unlink()
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"model-{number}.safetensors")
    assert base_shapes(tmp_path) == base_shapes(tiny_folder)
    assert base_shapes(tiny_folder)["model.layers.0.self_attn.v_proj"] == (64, 128)


class TestALearntPrompt:
    def test_that_is_sound_says_how_many_vectors_it_has(self, tmp_path: Path, shapes: Any) -> None:
        facts = lint(write_prompt(tmp_path / "p", tokens=5), shapes=shapes)
        assert (facts.virtual_tokens, facts.rank, facts.target_modules) == (5, 0, ())

    @pytest.mark.parametrize(
        ("made", "said"),
        [
            ({"tokens": 300}, "served are 1 to 256 vectors"),
            ({"tokens": 3, "num_virtual_tokens": 4}, "num_virtual_tokens is 4 and there are 3 vectors"),
            ({"width": 64}, f"the vectors have 64 numbers, those of the base {HIDDEN}: it was made for another base"),
            ({"peft_type": "PREFIX_TUNING"}, "train with prompt_tuning, p_tuning or lora"),
        ],
    )
    def test_that_cannot_be_served_is_refused(
        self, tmp_path: Path, refused: Callable[..., str], made: dict[str, Any], said: str
    ) -> None:
        assert said in refused(write_prompt(tmp_path / "p", **made))

    def test_that_holds_nan_or_other_tensors_or_nothing_is_refused(
        self, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        folder = write_prompt(tmp_path / "p")
        assert "NaN" in refused(edit(folder, lambda tensors: tensors["prompt_embeddings"].fill(np.nan)))
        assert "never trained" in refused(edit(folder, lambda tensors: tensors["prompt_embeddings"].fill(0)))
        assert "one tensor" in refused(edit(folder, lambda tensors: tensors.update(more=np.ones(2, np.float16))))

    def test_is_stored_as_what_it_is(
        self, tmp_path: Path, store: Store, tiny: Base, sentiment_task: ClassificationTask
    ) -> None:
        manifest = add_version(store, "mood", write_prompt(tmp_path / "p", tokens=5), sentiment_task, tiny)
        assert (manifest.method, manifest.virtual_tokens, manifest.rank) == ("soft_prompt", 5, 0)
        assert store.manifest("mood", 1)[0] == manifest
