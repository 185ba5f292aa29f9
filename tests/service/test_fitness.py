"""A base that cannot be served here is told so before anything starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import HotswapError
from service.engine import fitness
from service.settings import Settings


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def configure(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ({"architectures": ["NoSuchForCausalLM"], "model_type": "no-such"}, "which vLLM .* cannot serve; upgrade vLLM"),
        ({"architectures": ["BertForSequenceClassification"]}, "writes no text; take a base such as"),
        ({"architectures": None}, "names no architectures"),
        (
            {"quantization_config": {"quant_method": "no-such"}},
            "quantized with no-such, which vLLM .* cannot read; it reads",
        ),
    ],
)
def test_a_base_that_vllm_lacks_is_refused(copy: Path, values: dict[str, Any], advice: str) -> None:
    configure(copy, **values)
    with pytest.raises(HotswapError, match=advice) as refused:
        fitness.check(Settings(), copy)
    assert "\n" not in str(refused.value)


INT8 = {"type": "int", "num_bits": 8}
ON_CPU: dict[str, tuple[dict[str, Any], str | None, str | None]] = {  # what is said of it in float32, and in bfloat16
    "GPTQ": ({"quant_method": "gptq"}, "set HOTSWAP_DTYPE=bfloat16", None),
    "AWQ": ({"quant_method": "awq"}, "set HOTSWAP_DTYPE=bfloat16", None),
    "W4A16": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"a": {"weights": INT8}}},
        "set HOTSWAP_DTYPE=bfloat16",
        None,
    ),
    "W8A8": (
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": INT8, "input_activations": INT8}}},
        "takes no adapters; take the base as it was",
        "takes no adapters; take the base as it was",
    ),
    "fp8": ({"quant_method": "fp8"}, "or a GPU", "or a GPU"),
}


@pytest.mark.parametrize("packed", ON_CPU)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_packed_base_that_a_cpu_cannot_compute_with_adapters_is_refused_with_what_to_set(
    copy: Path, packed: str, dtype: str
) -> None:
    packing, in_float32, in_bfloat16 = ON_CPU[packed]
    configure(copy, quantization_config=packing)
    settings, advice = Settings(dtype=dtype), in_float32 if dtype == "float32" else in_bfloat16
    if advice is None:
        fitness.check(settings, copy)
        return
    with pytest.raises(HotswapError, match=advice) as refused:
        fitness.check(settings, copy)
    assert "\n" not in str(refused.value)


def test_a_family_that_only_transformers_has_runs_by_its_code(copy: Path) -> None:
    configure(copy, architectures=["LlamaNextForCausalLM"], model_type="llama")
    fitness.check(Settings(), copy)


def test_a_length_that_the_base_was_not_made_for_is_refused_where_somebody_set_it(copy: Path) -> None:
    configure(copy, max_position_embeddings=1024)
    fitness.check(Settings(), copy)
    with pytest.raises(
        HotswapError, match=r"HOTSWAP_MAX_MODEL_LEN=2048 is more than copy was made for; set it to 1024"
    ):
        fitness.check(Settings.read({"HOTSWAP_MAX_MODEL_LEN": "2048"}), copy)


@pytest.mark.parametrize(
    ("setting", "value", "advice"),
    [
        ("ENGINE_ARGS", '{"blok_size": 1}', "did you mean block_size"),
        ("TENSOR_PARALLEL", "2", "HOTSWAP_TENSOR_PARALLEL, .* are for GPUs"),
        ("KV_CACHE_GIB", "16000", "this machine has .* take a smaller base"),
        ("MAX_MODEL_LEN", "4096", "set it to 2048 or less"),
        ("BASE_MODEL", "/no/such/base", "is neither a folder nor a model"),
    ],
)
def test_the_server_ends_with_one_line_before_anything_starts(
    tmp_path: Path, tiny_folder: Path, setting: str, value: str, advice: str
) -> None:
    given = {"PORT": "0", "STORE": tmp_path / "store", "CACHE": tmp_path / "cache", "BASE_MODEL": tiny_folder}
    environment = {f"HOTSWAP_{name}": str(each) for name, each in (given | {setting: value}).items()}
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if " INFO " not in line]
    assert (done.returncode, len(said)) == (1, 1)
    assert re.search(advice, said[0])
