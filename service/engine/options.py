"""vLLM's options that an operator may set: by settings of ours, or by vLLM's own names in ``HOTSWAP_ENGINE_ARGS``."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any

from adapters.errors import HotswapError
from service.engine import source
from service.engine.plugin import is_cpu
from service.settings import PREFIX, Settings

# Settings that vLLM checks, and what it calls them.
NAMED = {
    "tensor_parallel": "tensor_parallel_size",
    "pipeline_parallel": "pipeline_parallel_size",
    "data_parallel": "data_parallel_size",
    "quantization": "quantization",
    "kv_cache_dtype": "kv_cache_dtype",
    "eager": "enforce_eager",
    "attention_backend": "attention_backend",
    "speculative": "speculative_config",
}
# What HOTSWAP_ENGINE_ARGS must not hold: the setting to use, or the promise that would break.
OURS = {theirs: PREFIX + ours.upper() for ours, theirs in NAMED.items()} | {
    "model": "HOTSWAP_BASE_MODEL",
    "revision": "HOTSWAP_REVISION",
    "dtype": "HOTSWAP_DTYPE",
    "gpu_memory_utilization": "HOTSWAP_GPU_MEMORY_SHARE",
    "kv_cache_memory_bytes": "HOTSWAP_KV_CACHE_GIB",
    "max_model_len": "HOTSWAP_MAX_MODEL_LEN",
    "max_num_seqs": "HOTSWAP_MAX_CONCURRENCY",
    "max_num_batched_tokens": "HOTSWAP_MAX_BATCHED_TOKENS",
    "max_num_queued_reqs": "HOTSWAP_MAX_QUEUE",
    "max_num_queued_tokens": "HOTSWAP_MAX_WAIT_SECONDS",
    "max_loras": "HOTSWAP_MAX_LORAS",
    "max_cpu_loras": "HOTSWAP_MAX_CPU_LORAS",
    "max_lora_rank": "HOTSWAP_MAX_LORA_RANK",
    "enable_chunked_prefill": "HOTSWAP_CHUNKED_PREFILL",
    "enable_prefix_caching": "HOTSWAP_PREFIX_CACHING",
    "disable_log_stats": "HOTSWAP_ENGINE_METRICS",
    "log_level": "HOTSWAP_LOG_LEVEL",
    "reasoning_parser": "HOTSWAP_REASONING_PARSER",
    "spec_method": "HOTSWAP_SPECULATIVE",
    "spec_model": "HOTSWAP_SPECULATIVE",
    "spec_tokens": "HOTSWAP_SPECULATIVE",
}
PROMISED = (
    dict.fromkeys(("enable_lora", "enable_prompt_embeds"), "adapters are what is served")
    | dict.fromkeys(("lora_target_modules", "default_mm_loras"), "an adapter is applied whole, where it is named")
    | dict.fromkeys(("seed", "logits_processors", "use_fp64_gumbel"), "the same request gives the same answer")
    | dict.fromkeys(("max_logprobs", "logprobs_mode"), "scores are made of the labels' log-probabilities")
    | dict.fromkeys(("tokenizer", "tokenizer_mode", "tokenizer_revision"), "texts are read as the base was trained to")
    | dict.fromkeys(("skip_tokenizer_init", "tokens_only"), "answers are texts")
    | dict.fromkeys(("runner", "convert", "pooler_config"), "answers are texts")
    | dict.fromkeys(("served_model_name", "show_hidden_metrics_for_version"), "clients and dashboards know its names")
    | dict.fromkeys(("enable_log_requests",), "texts are not written to the log")
    | dict.fromkeys(("trust_remote_code", "code_revision"), "nothing that comes with a base or an adapter is run")
    | dict.fromkeys(("weight_transfer_config", "model_weights"), "the base is frozen, and known by its digest")
    | dict.fromkeys(("watermark_config", "diffusion_config"), "an answer is the most likely one")
)


def check(settings: Settings) -> None:
    """Raise :class:`HotswapError` for an option that the installed vLLM does not have, or does not take so."""
    known = source.arguments()
    if not known:  # nothing to check with, and nothing to start: that is said in its place
        return
    for ours, theirs in NAMED.items():
        value = getattr(settings, ours)
        if ours in settings.model_fields_set and value is not None:
            _check_value(PREFIX + ours.upper(), value, theirs)
    for name, value in settings.engine_args.items():
        if name in OURS:
            raise HotswapError(f"HOTSWAP_ENGINE_ARGS: {name} is a setting of its own; set {OURS[name]} instead.")
        if name in PROMISED:
            raise HotswapError(f"HOTSWAP_ENGINE_ARGS: {name} cannot be set: {PROMISED[name]}; leave it out.")
        if name not in known:
            close = get_close_matches(name.replace("-", "_"), known.keys() - PROMISED.keys(), n=3)
            hint = (
                f"did you mean {', '.join(close)}?" if close else "vLLM's documentation of engine arguments lists all."
            )
            raise HotswapError(f"HOTSWAP_ENGINE_ARGS: vLLM has no {name}; {hint}")
        _check_value(f"HOTSWAP_ENGINE_ARGS: {name}", value, name)


def _check_value(place: str, value: object, theirs: str) -> None:
    annotation = source.arguments().get(theirs)
    if annotation is None:
        raise HotswapError(f"{place}: this vLLM has no {theirs}; leave it out.")
    if not source.fits(value, annotation) or (isinstance(value, str) and not _listed(value, theirs)):
        raise HotswapError(f"{place}: it takes {source.wanted(annotation)}; not {json.dumps(value)}")


def _listed(value: str, theirs: str) -> bool:
    # vLLM annotates it with any text, for plug-ins that bring further methods; none does here.
    return theirs != "quantization" or value in source.named("QuantizationMethods")


def in_float32(settings: Settings) -> bool:
    """Whether the engine calculates in float32."""
    # Not what is fastest on the CPU at hand: replicas on different machines must give the same answers.
    return settings.dtype == "float32" or (settings.dtype == "auto" and is_cpu())


def arguments(settings: Settings) -> dict[str, Any]:
    """Return what the settings of this page are to vLLM, as arguments of ``AsyncEngineArgs``."""
    named = {theirs: getattr(settings, ours) for ours, theirs in NAMED.items() if ours in settings.model_fields_set}
    return {name: value for name, value in named.items() if value is not None} | settings.engine_args
