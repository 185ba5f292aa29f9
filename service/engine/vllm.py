"""vLLM's AsyncLLM in this process's event loop; the model itself runs in processes of its own."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from adapters.base_model import Base
from adapters.tasks import Sampling
from adapters.tasks.classification import MAX_LABELS
from service.engine.base import Chunk, EngineDown, EngineRefused, Limits
from service.settings import Settings

SHUTDOWN_SECONDS = 15.0


class VllmEngine:
    """The engine that serves. vLLM is imported when it starts: that alone takes seconds."""

    def __init__(self, settings: Settings, base: Base) -> None:
        self.limits = Limits(settings.max_loras, settings.max_lora_rank, settings.max_model_len)
        self._settings, self._base = settings, base
        self._adapters: dict[str, Any] = {}
        self._adapter_ids = itertools.count(1)
        self._request_ids = itertools.count(1)
        self._llm: Any = None

    async def start(self) -> None:
        prepare_environment(self._settings)
        try:
            # In a thread, so that /livez and /readyz answer meanwhile.
            self._llm = await asyncio.to_thread(self._build)
        except Exception as error:
            raise EngineDown(f"vLLM did not start: {error}") from error
        # The first answer pays for what vLLM sets up lazily: nobody should wait for that in a request.
        for sampling in (Sampling(max_tokens=1, choices=(0, 1)), Sampling(max_tokens=2)):
            async for _ in self.generate([self._base.end_id] * 8, sampling, None):
                pass

    def _build(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        # vLLM 0.32's CPU kernels take the last slot for "no adapter" (index -1): a base-model request beside
        # adapter requests would get that adapter's weights. One slot more than we ever fill stays zero.
        slots = self.limits.max_loras + current_platform.is_cpu()
        arguments: dict[str, Any] = {}
        if self._settings.dtype != "auto":
            arguments["dtype"] = self._settings.dtype
        elif current_platform.is_cpu():
            # Not what is fastest on the CPU at hand: replicas on different machines must give the same answers.
            arguments["dtype"] = "float32"
        if current_platform.is_cpu():
            arguments["kv_cache_memory_bytes"] = int(self._settings.kv_cache_gib * 2**30)
        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(self._base.folder),
                served_model_name=[self._base.name],
                max_model_len=self.limits.max_model_len,
                max_num_seqs=self._settings.max_concurrency,
                enable_lora=True,
                max_loras=slots,
                max_cpu_loras=slots,
                max_lora_rank=self.limits.max_lora_rank,
                max_logprobs=MAX_LABELS,
                enable_prefix_caching=True,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                enable_log_requests=False,
                **arguments,
            )
        )

    async def stop(self) -> None:
        llm, self._llm = self._llm, None
        if llm is not None:
            # Not in a thread: vLLM's output task would see its dying process first, and log that as a crash.
            llm.shutdown(timeout=SHUTDOWN_SECONDS)
            # Its __del__ calls shutdown once more, and fails noisily if the interpreter is going down by then.
            llm.shutdown = lambda timeout=None: None

    @property
    def alive(self) -> bool:
        return self._llm is not None and not self._llm.errored

    async def load(self, name: str, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        if name in self._adapters:
            raise EngineRefused(f"{name} is resident")
        request = LoRARequest(name, next(self._adapter_ids), str(folder))
        try:
            loaded = await self._running().add_lora(request)
        except Exception as error:
            self._raise_if_dead(error)
            raise EngineRefused(f"vLLM could not load {name}: {error}") from error
        if not loaded:
            raise EngineRefused(f"vLLM would not load {name}")
        self._adapters[name] = request

    async def unload(self, name: str) -> None:
        request = self._adapters.pop(name, None)
        if request is not None:
            try:
                await self._running().remove_lora(request.lora_int_id)
            except Exception as error:
                self._raise_if_dead(error)
                raise

    async def generate(
        self, prompt: list[int], sampling: Sampling, adapter: str | None, *, stream: bool = False
    ) -> AsyncGenerator[Chunk]:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        llm = self._running()
        if adapter is not None and adapter not in self._adapters:
            raise EngineRefused(f"{adapter} is not resident")
        choices = list(sampling.choices)
        parameters = SamplingParams(
            temperature=0,
            max_tokens=sampling.max_tokens,
            logprob_token_ids=choices or None,
            detokenize=not choices,
            output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
        )
        request_id = f"hotswap-{next(self._request_ids)}"
        lora = self._adapters[adapter] if adapter is not None else None
        try:
            outputs = llm.generate(tokens_input(prompt), parameters, request_id, lora_request=lora)
            async with aclosing(outputs):
                async for output in outputs:
                    answer = output.outputs[0]
                    first = answer.logprobs[0] if answer.logprobs else {}
                    yield Chunk(
                        text=answer.text,
                        tokens=len(answer.token_ids),
                        finish_reason=answer.finish_reason,
                        logprobs={token: first[token].logprob for token in choices},
                    )
        except VLLMClientError as error:
            raise EngineRefused(str(error)) from error
        except Exception as error:
            self._raise_if_dead(error)
            raise

    def _running(self) -> Any:
        if not self.alive:
            raise EngineDown("the engine is not running")
        return self._llm

    def _raise_if_dead(self, error: Exception) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        if isinstance(error, EngineDeadError) or not self.alive:
            raise EngineDown("the engine has died") from error


def prepare_environment(settings: Settings) -> None:
    """Set what vLLM and its worker processes read from the environment, where the operator has not."""
    defaults = {
        # glibc hands large blocks back to the kernel after every layer, and takes page faults to get them again:
        # keeping them doubles prefill with adapters on a CPU (93 to 181-210 tokens/s, 64 texts of 50 tokens).
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
        # Warnings that vLLM's own libraries exchange at every start.
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # Below this, vLLM warns at every start of choices that are not the operator's.
        "VLLM_LOGGING_LEVEL": "DEBUG" if settings.log_level == "debug" else "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",  # the base is a folder by now: nothing may wait for a network
        "TOKENIZERS_PARALLELISM": "false",
    }
    if binding := omp_binding():
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = binding
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def omp_binding() -> str | None:
    """Return the CPUs for vLLM's threads, or None to leave the choice to vLLM.

    vLLM keeps one CPU for itself, half of a small machine, and does not see a container's quota.
    """
    cpus = sorted(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    wanted = min(len(cpus), quota or len(cpus))
    if wanted == len(cpus) and wanted > 4:
        return None
    return ",".join(map(str, cpus[:wanted]))


def _cgroup_quota() -> int | None:
    """Return the CPUs that cgroup v2 grants, rounded up, or None where it sets no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return None
