"""Copies of traffic for a version that nobody is answered by yet: compared, counted, never returned."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from service.http.schemas import Classification, Inputs, Summary
from service.metrics import Metrics
from service.rollout.evidence import Tally
from service.serving.admission import Admission
from service.serving.registry import Lease, Registry

logger = logging.getLogger("hotswap")

# Texts that may be shadowed at once: what is copied must not become what is waited for.
MOST_TEXTS = 16


class Shadow:
    """Offers stable answers to the release's shadow; the first thing to be left out when there is load."""

    def __init__(
        self,
        registry: Registry,
        admission: Admission,
        metrics: Metrics,
        tally: Tally,
        answer: Callable[[Lease, Inputs], Awaitable[Sequence[Any]]],
    ) -> None:
        self._registry, self._admission, self._metrics, self._tally = registry, admission, metrics, tally
        self._answer = answer
        self._texts = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, lease: Lease, asked: Inputs, outputs: Sequence[Any]) -> None:
        """Copy a request that the stable version has answered, if it falls into the share and there is room."""
        name = lease.manifest.name
        release = self._registry.served(name)
        if lease.channel != "stable" or release is None or release.shadow is None:
            return
        if random.random() * 100 >= release.shadow.percent:  # noqa: S311 - a sample, not a secret
            return
        version = release.shadow.version
        if not self._admission.has_time or self._texts + len(outputs) > MOST_TEXTS:
            self._count(name, version, "shed", len(outputs))
            return
        self._texts += len(outputs)
        task = asyncio.create_task(self._compare(name, version, asked, outputs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare(self, name: str, version: int, asked: Inputs, outputs: Sequence[Any]) -> None:
        try:
            async with self._registry.lease(f"{name}@{version}", "shadow") as lease:
                answers = await self._answer(lease, asked)
        except Exception as error:
            logger.debug("a shadowed request failed: %s", error)
            self._count(name, version, "failed", len(outputs))
        else:
            for given, answer in zip(outputs, answers, strict=True):
                agree = _said(given) == _said(answer)
                self._count(name, version, "agree" if agree else "differ", 1)
                self._tally.compared(name, version, agree=agree)
        finally:
            self._texts -= len(outputs)

    def _count(self, name: str, version: int, outcome: str, texts: int) -> None:
        self._metrics.shadow.labels(*self._metrics.bounded("version", name, str(version)), outcome).inc(texts)


def _said(output: Any) -> str | None:
    match output:
        case Classification():
            return output.label
        case Summary():
            return output.summary
    return None
