"""The engine that the settings name."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from adapters.base_model import Base
from service.engine import failure
from service.engine.base import Engine, Limits
from service.settings import Settings, rank_above

logger = logging.getLogger("hotswap")


def made(settings: Settings, base: Base) -> Engine:
    """Return the engine, not started."""
    if settings.engine == "fake":
        from service.engine.fake import FakeEngine

        logger.warning("HOTSWAP_ENGINE=fake: answers are made up")
        rank = settings.max_lora_rank or rank_above(0)
        # Made-up answers are compared with nothing.
        limits = Limits(settings.max_resident, rank, settings.max_model_len, tolerance=math.inf)
        return FakeEngine(limits, base, _shared() if (settings.api_processes or 1) > 1 else None)
    from service.engine.vllm import VllmEngine

    return VllmEngine(settings, base)


def _shared() -> Path:
    folder = failure.folder() / "fake"
    folder.mkdir(exist_ok=True)
    return folder
