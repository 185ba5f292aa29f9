"""What must stand in the environment before vLLM's processes start: libraries to preload, threads, allocation."""

from __future__ import annotations

import ctypes.util
import math
import os
import socket
import stat
import sys
import threading
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from adapters.base_model import resolve_base
from adapters.errors import HotswapError
from service.engine import caches, failure
from service.engine.plugin import SWITCH, is_cpu
from service.settings import Settings

# Set for the process that relaunch() starts: the libraries in LD_PRELOAD are really in it.
PRELOADED = "_HOTSWAP_PRELOADED"
BINDING = "VLLM_CPU_OMP_THREADS_BIND"
# Of this process, before Intel's OpenMP binds the thread that runs its first loop, which may be the main one.
CPUS = frozenset(os.sched_getaffinity(0))


def prepare(settings: Settings, base_digest: str | None = None) -> None:
    """Set what vLLM and its processes read from the environment, where the operator has not; with the base's digest,
    where they keep what they compile for it."""
    variables = _defaults(settings)
    if base_digest:
        variables |= caches.environment(settings.cache, base_digest)
        variables |= failure.log_config(variables["VLLM_LOGGING_LEVEL"])
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    if is_cpu():
        os.environ[SWITCH] = settings.cpu_lora
        if libraries := _libraries():
            given = os.environ.get("LD_PRELOAD", "").split(":")
            os.environ["LD_PRELOAD"] = ":".join(dict.fromkeys([*filter(None, given), *libraries]))


def relaunch(settings: Settings) -> None:
    """Start this program again with its libraries preloaded. Returns where that is of no use, or was done.

    The base is fetched before: what unpacks it computes, and there would bind the main thread to one CPU for good.

    A library can only be preloaded by the program that starts another. With Intel's OpenMP in it, this process can
    then fork vLLM's engine off, which has all its imports done: half the time to start.
    """
    if not is_cpu() or PRELOADED in os.environ or sys.platform != "linux":
        return
    resolve_base(settings.base_model, settings.cache, settings.revision)
    prepare(settings)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, PRELOADED: "1"})  # noqa: S606


def keep_from_forks() -> None:
    """Make what is forked from this process close its port and connections, and end when this process does,
    however that ends.

    Otherwise an engine whose server was killed would live on, and hold connections that nobody answers.
    """
    life, ours = os.pipe()

    def follow() -> None:
        os.read(life, 1)  # nothing is ever written: it returns when the last writer, our parent, is gone
        os._exit(1)

    def in_child() -> None:
        _close_network_sockets()
        os.close(ours)
        threading.Thread(target=follow, daemon=True).start()

    os.register_at_fork(after_in_child=in_child)


def _close_network_sockets() -> None:
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                inherited = socket.socket(fileno=fd)
                if inherited.family in (socket.AF_INET, socket.AF_INET6):
                    inherited.close()
                else:
                    inherited.detach()  # vLLM's own


def threads_are_set() -> bool:
    """Whether the engine's OpenMP threads are configured by the environment."""
    return "OMP_NUM_THREADS" in os.environ


def may_fork() -> bool:
    """Whether OpenMP survives a fork of this process. GNU's does not: its first parallel loop would hang."""
    return PRELOADED in os.environ and "libiomp5" in os.environ.get("LD_PRELOAD", "")


def _defaults(settings: Settings) -> dict[str, str]:
    defaults = {
        # Warnings that vLLM's own libraries exchange at every start.
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # Below this, vLLM warns at every start of choices that are not the operator's.
        "VLLM_LOGGING_LEVEL": "DEBUG" if settings.log_level == "debug" else "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",  # the base is a folder by now: nothing may wait for a network
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not is_cpu():
        return defaults
    # glibc hands large blocks back to the kernel after every layer, and takes page faults to get them again:
    # keeping them doubles prefill with stock LoRA (93 to 181-210 tokens/s, 64 texts of 50 tokens).
    defaults |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
    # With LoRA on a CPU vLLM compiles nothing but a helper that counts ranks, when a label is first scored: where there
    # is no C++ compiler, as on laptops and in images, the engine dies of it.
    defaults["TORCHDYNAMO_DISABLE"] = "1"
    return defaults | threads(os.environ.get(BINDING))


def threads(binding: str | None) -> dict[str, str]:
    """Return how the engine's OpenMP threads are counted and bound, where the operator has said ``binding`` or nothing.

    On more than four CPUs vLLM knows better.

    vLLM keeps one CPU for itself, half of a small machine, and does not see a container's quota.
    """
    allowed, quota = sorted(CPUS), _cgroup_quota()
    if binding is None:
        # Under a quota all containers of a machine see its first CPUs: bound, they would share those.
        limited = quota is not None and quota < len(allowed)
        binding = "nobind" if limited else ",".join(map(str, allowed)) if len(allowed) <= 4 else "auto"
    if binding == "auto" or "|" in binding:
        return {BINDING: binding}
    count = min(quota or len(allowed), len(allowed)) if binding == "nobind" else len(_ids(binding))
    chosen = {
        BINDING: binding,
        "OMP_NUM_THREADS": str(count),
        # Threads that wait for work spin this many milliseconds, on CPUs that the API needs as well.
        "KMP_BLOCKTIME": "1",
        "KMP_TPAUSE": "0",
    }
    if binding != "nobind" and _intel_openmp():
        chosen["KMP_AFFINITY"] = f"granularity=fine,explicit,proclist=[{binding}]"
    elif binding != "nobind":
        chosen["GOMP_CPU_AFFINITY"] = binding.replace(",", " ")
    return chosen


def cpus() -> int:
    """Return how many CPUs this process may use, by its affinity and by its container's quota."""
    return min(_cgroup_quota() or len(CPUS), len(CPUS))


def _ids(binding: str) -> list[int]:
    """Read a list of CPUs such as ``0,2-5``. Raises :class:`HotswapError`."""
    ids: list[int] = []
    try:
        for part in binding.split(","):
            first, dash, last = part.partition("-")
            ids.extend(range(int(first), int(last if dash else first) + 1) or [-1])
    except ValueError:
        ids = []
    if not ids or len(set(ids)) < len(ids) or not set(ids) <= CPUS:
        there = ",".join(map(str, sorted(CPUS)))
        raise HotswapError(
            f"{BINDING}={binding}: give some of the CPUs {there}, each once, as in 0-3 or 0,2; or nobind, or auto."
        )
    return ids


def _libraries() -> list[str]:
    """Return what to preload, of what is there: Intel's OpenMP comes with vLLM's CPU build, tcmalloc with the OS."""
    tcmalloc = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    return [library for library in (_intel_openmp(), tcmalloc) if library]


def _intel_openmp() -> str | None:
    try:
        files = distribution("intel-openmp").files or []
    except PackageNotFoundError:
        return None
    return next((str(Path(str(file.locate())).resolve()) for file in files if file.name == "libiomp5.so"), None)


def _cgroup_quota() -> int | None:
    """Return the CPUs that cgroup v2 grants, rounded up, or None where it sets no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return None
