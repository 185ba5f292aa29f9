"""vLLM's own options: checked before anything starts, by what the installed vLLM has."""

from __future__ import annotations

import json

import pytest

from adapters.errors import HotswapError
from service.engine import options, source
from service.settings import Settings


def given(**values: object) -> Settings:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return Settings.read({f"HOTSWAP_{name.upper()}": text for name, text in texts.items()})


def test_settings_that_nobody_sets_are_left_to_vllm() -> None:
    options.check(Settings.read({}))
    assert options.arguments(Settings.read({})) == {}


def test_settings_become_what_vllm_calls_them() -> None:
    settings = given(
        tensor_parallel=2, quantization="fp8", kv_cache_dtype="fp8", eager=True, engine_args={"block_size": 64}
    )
    options.check(settings)
    assert options.arguments(settings) == {
        "tensor_parallel_size": 2,
        "quantization": "fp8",
        "kv_cache_dtype": "fp8",
        "enforce_eager": True,
        "block_size": 64,
    }


def test_what_vllm_has_is_known_without_importing_it() -> None:
    assert {"model", "max_loras", "enable_log_requests"} <= source.arguments().keys()
    assert {"LlamaForCausalLM", "Phi3ForCausalLM", "Gemma3ForConditionalGeneration"} <= source.architectures()


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ({"engine_args": "block_size=64"}, "HOTSWAP_ENGINE_ARGS is not JSON"),
        ({"engine_args": [1]}, "HOTSWAP_ENGINE_ARGS is no JSON object"),
        ({"engine_args": {"blok_size": 64}}, "vLLM has no blok_size; did you mean block_size"),
        ({"engine_args": {"swap-space-of-all": 64}}, "vLLM has no swap-space-of-all; "),
        ({"engine_args": {"_api_process_count": 2}}, "vLLM has no _api_process_count"),
        ({"engine_args": {"max_loras": 4}}, "max_loras is a setting of its own; set HOTSWAP_MAX_LORAS instead"),
        ({"engine_args": {"tensor_parallel_size": 2}}, "set HOTSWAP_TENSOR_PARALLEL instead"),
        ({"engine_args": {"model": "x"}}, "set HOTSWAP_BASE_MODEL instead"),
        ({"engine_args": {"enable_lora": False}}, "enable_lora cannot be set: adapters are what is served"),
        ({"engine_args": {"enable_prompt_embeds": False}}, "enable_prompt_embeds cannot be set"),
        ({"engine_args": {"seed": 1}}, "seed cannot be set: the same request gives the same answer"),
        ({"engine_args": {"logprobs_mode": "raw_logits"}}, "logprobs_mode cannot be set: scores are made of"),
        ({"engine_args": {"trust_remote_code": True}}, "trust_remote_code cannot be set: nothing .* is run"),
        ({"engine_args": {"block_size": "many"}}, 'block_size: it takes a whole number or null; not "many"'),
        ({"engine_args": {"block_size": True}}, "block_size: it takes a whole number or null; not true"),
        ({"engine_args": {"scheduling_policy": "lifo"}}, 'scheduling_policy: it takes fcfs, priority; not "lifo"'),
        ({"attention_backend": "FLASH"}, 'HOTSWAP_ATTENTION_BACKEND: it takes .*FLASH_ATTN.*; not "FLASH"'),
        ({"quantization": "q4"}, 'HOTSWAP_QUANTIZATION: it takes awq,.*; not "q4"'),
        ({"kv_cache_dtype": "int3"}, 'HOTSWAP_KV_CACHE_DTYPE: it takes auto,.*; not "int3"'),
        ({"speculative": "ngram"}, "HOTSWAP_SPECULATIVE is not JSON"),
        ({"tensor_parallel": 0}, "HOTSWAP_TENSOR_PARALLEL"),
        ({"gpu_memory_share": 1.5}, "HOTSWAP_GPU_MEMORY_SHARE"),
    ],
)
def test_a_mistake_is_refused_by_name_and_says_what_to_do(values: dict[str, object], advice: str) -> None:
    with pytest.raises(HotswapError, match=advice) as refused:
        options.check(given(**values))
    assert "\n" not in str(refused.value)


def test_every_option_that_is_refused_is_one_of_vllms() -> None:
    assert options.OURS.keys() | options.PROMISED.keys() <= source.arguments().keys()
    assert not options.OURS.keys() & options.PROMISED.keys()


def test_every_setting_that_is_named_instead_is_one_of_ours() -> None:
    assert {name.removeprefix("HOTSWAP_").lower() for name in options.OURS.values()} <= Settings.model_fields.keys()
