"""How much of everything the machine at hand has room for: pure arithmetic over facts of device, base and store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from adapters.architecture import Architecture
from adapters.base_model import weight_files
from adapters.errors import HotswapError
from adapters.modules import base_shapes, numbers_of
from adapters.tensors import read_header
from service.engine.device import Device
from service.engine.launch import cpus
from service.settings import Settings, rank_above

GIB = 2**30
LAYER = re.compile(r"\.(?:layers|h|blocks)\.\d+\.")
# What a GPU holds beside weights, slots and KV cache: CUDA's context, activations, CUDA graphs.
WORKSPACE = 3 * GIB
SLOTS_SHARE, MOST_SLOTS = 0.1, 32  # every kernel call goes through all slots, filled or not
RESIDENT_SHARE, MOST_RESIDENT = 0.1, 1024
LONGEST_AT_ONCE = 4  # requests of the longest kind that the KV cache holds
TOKENS_OF_A_TEXT, MOST_TEXTS, LEAST_TEXTS = 512, 256, 8
STEP_TOKENS = ((64 * GIB, 8192), (24 * GIB, 4096), (0, 2048))
LENGTH_STEP = 64
CORES_OF_A_PROCESS, MOST_PROCESSES = 4, 4  # vLLM's own processes, and one for each GPU, need cores as well
WHOLE = "what the base was made for"


@dataclass(frozen=True)
class Model:
    """A base in numbers: ``weights`` bytes on disk, ``numbers`` of them, and how many an adapter has per rank."""

    weights: int
    numbers: int
    a_rank: int
    architecture: Architecture

    @classmethod
    def of(cls, folder: Path) -> Model:
        """Measure a checkpoint. Raises :class:`HotswapError`."""
        tensors = [tensor for path in weight_files(folder) for tensor in read_header(path).values()]
        adapted = (shape for name, shape in base_shapes(folder).items() if LAYER.search(f".{name}."))
        return cls(
            weights=sum(tensor.end - tensor.begin for tensor in tensors),
            numbers=numbers_of(folder),
            a_rank=sum(sum(shape) for shape in adapted),
            architecture=Architecture.of(folder),
        )

    def bytes_of(self, *, float32: bool) -> int:
        """Return what the weights take in memory: as they are on disk, or all in float32."""
        return self.numbers * 4 if float32 and self.architecture.quantized is None else self.weights


def check_count(settings: Settings, device: Device) -> None:
    """Raise :class:`HotswapError` where more devices are asked for than there are."""
    wanted = settings.tensor_parallel * settings.pipeline_parallel * settings.data_parallel
    if device.kind == "cpu" and wanted > 1:
        names = "HOTSWAP_TENSOR_PARALLEL, HOTSWAP_PIPELINE_PARALLEL and HOTSWAP_DATA_PARALLEL"
        raise HotswapError(f"{names} are for GPUs, and vLLM computes on {device.name} here; leave them at 1.")
    if device.kind == "gpu" and wanted > device.count:
        what = " x ".join(
            f"HOTSWAP_{name.upper()}={count}"
            for name in ("tensor_parallel", "pipeline_parallel", "data_parallel")
            if (count := getattr(settings, name)) > 1
        )
        asked = f"{what} needs {wanted} GPUs" if what else "the engine needs a GPU"
        raise HotswapError(
            f"{asked}, and {device.count or 'none'} can be seen here; lower it, or show more (CUDA_VISIBLE_DEVICES)."
        )


def check_size(settings: Settings, device: Device, model: Model, *, float32: bool) -> None:
    """Raise :class:`HotswapError` for a base whose weights alone do not fit."""
    need = model.bytes_of(float32=float32)
    if device.kind == "cpu":
        need += int(settings.kv_cache_gib * GIB)
        if need > device.host:
            raise HotswapError(
                f"the base and HOTSWAP_KV_CACHE_GIB need {_gib(need)}, and this machine has {_gib(device.host)}; "
                "take a smaller base, or HOTSWAP_DTYPE=bfloat16 if it is float32 now."
            )
        return
    need = need // (settings.tensor_parallel * settings.pipeline_parallel) + WORKSPACE
    given = int(device.memory * settings.gpu_memory_share)
    if need > given:
        raise HotswapError(
            f"the base needs {_gib(need)} on each GPU, and {_gib(given)} may be used there; "
            "raise HOTSWAP_TENSOR_PARALLEL or HOTSWAP_GPU_MEMORY_SHARE, quantize it "
            "(HOTSWAP_QUANTIZATION=fp8), or take a smaller base."
        )


def sized(settings: Settings, device: Device, model: Model, *, float32: bool) -> tuple[Settings, list[str]]:
    """Return the settings with what nobody has set chosen for a GPU, and a line for each choice that says why.

    On a CPU all is as it was set, but for a base that reads less than the default length.
    """
    if device.kind == "cpu":
        longest = model.architecture.longest or settings.max_model_len
        if "max_model_len" in settings.model_fields_set or longest >= settings.max_model_len:
            return settings, []
        return _with(settings, {"max_model_len": (longest, WHOLE)})
    width, rank = (4 if float32 else 2), settings.max_lora_rank or rank_above(0)
    shards = settings.tensor_parallel * settings.pipeline_parallel
    room = int(device.memory * settings.gpu_memory_share) - model.bytes_of(float32=float32) // shards - WORKSPACE
    an_adapter = max(1, model.a_rank * rank * width)
    slots = _within(1, SLOTS_SHARE * room * shards / an_adapter, settings.max_cpu_loras or MOST_SLOTS, MOST_SLOTS)
    slots = settings.max_loras if "max_loras" in settings.model_fields_set else slots
    held = _within(max(slots, len(settings.warm) + 1), RESIDENT_SHARE * device.host / an_adapter, MOST_RESIDENT)
    tokens = _cached_tokens(settings, model, room * shards - slots * an_adapter, width)
    length, why_length = _length(model, tokens)
    length = settings.max_model_len if "max_model_len" in settings.model_fields_set else length
    texts = _within(LEAST_TEXTS, tokens / TOKENS_OF_A_TEXT, MOST_TEXTS)
    texts = settings.max_concurrency if "max_concurrency" in settings.model_fields_set else texts
    step = next(tokens for least, tokens in STEP_TOKENS if device.memory >= least)
    step = max(step, texts, 0 if settings.chunked_prefill else length)
    chosen = {
        "max_loras": (slots, f"slots of {_gib(an_adapter)} at rank {rank}"),
        "max_cpu_loras": (held, f"{RESIDENT_SHARE:.0%} of {_gib(device.host)} main memory, at most {MOST_RESIDENT}"),
        "max_model_len": (length, why_length),
        "max_concurrency": (texts, f"the KV cache holds about {tokens:,} tokens"),
        "max_batched_tokens": (step, f"by the GPU's {_gib(device.memory)}"),
        "api_processes": _processes(settings, texts),
    }
    return _with(settings, {name: choice for name, choice in chosen.items() if name not in settings.model_fields_set})


def _processes(settings: Settings, texts: int) -> tuple[int, str]:
    """Return how many processes answer: they are the limit of short answers long before a GPU is."""
    if settings.data_parallel > 1:
        return 1, "HOTSWAP_DATA_PARALLEL is above 1"
    cores = cpus()
    return _within(1, cores // CORES_OF_A_PROCESS, MOST_PROCESSES, texts), f"by {cores} cores"


def _with(settings: Settings, chosen: dict[str, tuple[int, str]]) -> tuple[Settings, list[str]]:
    values = {name: value for name, (value, _) in chosen.items()}
    lines = [f"HOTSWAP_{name.upper()}={value}: {why}" for name, (value, why) in chosen.items()]
    return Settings.model_validate(settings.model_dump(exclude_unset=True) | values), lines


def _cached_tokens(settings: Settings, model: Model, room: int, width: int) -> int:
    """Return how many tokens' keys and values fit into so many bytes."""
    numbers = model.architecture.cached_numbers(1) or 2 * (model.architecture.hidden or 4096) * 64
    one = numbers * (1 if settings.kv_cache_dtype.startswith("fp8") else width)
    return max(0, room) // one


def _length(model: Model, tokens: int) -> tuple[int, str]:
    longest = model.architecture.longest or 2048
    if longest <= tokens // LONGEST_AT_ONCE:
        return longest, WHOLE
    fits = max(LENGTH_STEP, tokens // LONGEST_AT_ONCE // LENGTH_STEP * LENGTH_STEP)
    return min(longest, fits), f"the base could read {longest}, and {LONGEST_AT_ONCE} such texts must fit into memory"


def _within(least: int, value: float, *most: int) -> int:
    return max(least, min(int(value), *most))


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
