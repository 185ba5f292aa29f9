"""Why vLLM did not start, in one line: the cause often stands in another process, which only logs it."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

from pydantic import ValidationError

RAISED = re.compile(r"^(?P<kind>[\w.]*(?:Error|Exception)): (?P<text>.+)$", re.MULTILINE)
PLACE = re.compile(r'File "([^"]+)", line \d+')
# Where vLLM looks whether its memory suffices: what is raised there is about nothing else.
MEMORY_FILES = ("v1/core/kv_cache_utils.py", "v1/worker/utils.py", "v1/worker/gpu_worker.py")
MEMORY_KINDS = ("OutOfMemoryError", "MemoryError")
LOWER = "lower HOTSWAP_MAX_MODEL_LEN, HOTSWAP_MAX_LORAS, HOTSWAP_MAX_BATCHED_TOKENS or HOTSWAP_MAX_CONCURRENCY"
ON_GPU = f"{LOWER}, or raise HOTSWAP_GPU_MEMORY_SHARE or HOTSWAP_TENSOR_PARALLEL"
ON_CPU = f"{LOWER}, or set another HOTSWAP_KV_CACHE_GIB"
MOST_CHARS = 400


@cache
def folder() -> Path:
    """Return a folder for as long as this process lives: vLLM's processes read it whenever they start."""
    folder = Path(tempfile.mkdtemp(prefix="hotswap-engine-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def log() -> Path:
    """Return the file that vLLM's processes write their errors to, beside the log."""
    return folder() / "errors.log"


def log_config(level: str) -> dict[str, str]:
    """Begin the file anew; return what tells vLLM of it, in the environment."""
    log().unlink(missing_ok=True)
    handlers = {
        "console": {"class": "logging.StreamHandler", "formatter": "plain", "level": level},
        "file": {"class": "logging.FileHandler", "filename": str(log()), "delay": True, "level": "ERROR"},
    }
    about = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(levelname)s %(asctime)s vllm: %(message)s", "datefmt": "%H:%M:%S"}},
        "handlers": handlers,
        "loggers": {"vllm": {"handlers": [*handlers], "level": level, "propagate": False}},
    }
    config = folder() / "logging.json"
    config.write_text(json.dumps(about))
    return {"VLLM_LOGGING_CONFIG_PATH": str(config)}


def explained(error: Exception, logged: str, *, on_cpu: bool) -> str:
    """Return in one line why a start ended with ``error``, when vLLM's processes had ``logged`` errors; and what to
    lower, if it was memory."""
    kind, text, file = type(error).__name__, str(error), ""
    raised = list(RAISED.finditer(logged))
    if isinstance(error, ValidationError):
        text = "; ".join(str(detail["msg"]).removeprefix("Value error, ") for detail in error.errors())
        text += f" ({raised[-1][0]})" if raised else ""
    elif raised:  # others followed from the first
        kind, text = raised[0]["kind"], raised[0]["text"]
        file = (PLACE.findall(logged[: raised[0].start()]) or [""])[-1]
    text = " ".join(text.split())
    said = f"vLLM did not start: {text if len(text) <= MOST_CHARS else text[:MOST_CHARS] + ' …'}"
    if kind.endswith(MEMORY_KINDS) or file.endswith(MEMORY_FILES):
        return f"out of memory: {ON_CPU if on_cpu else ON_GPU} ({said})"
    return said


def read() -> str:
    """Return what was logged since :func:`log_config`."""
    return log().read_text(errors="replace") if log().is_file() else ""
