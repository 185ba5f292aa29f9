"""Copies of traffic for a version that nobody is answered by yet: compared, counted, never returned."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any

from service.group import Group
from service.http.schemas import Inputs
from service.metrics import Metrics
from service.rollout.evidence import Tally
from service.serving.admission import Admission
from service.serving.answering import Answered, Answering
from service.serving.routing import Choice, Routing

logger = logging.getLogger("hotswap")

# Texts that may be shadowed at once: what is copied must not become what is waited for.
MOST_TEXTS = 16


class Shadow:
    """Offers stable answers to the release's shadow; the first thing to be left out when there is load."""

    def __init__(
        self, answering: Answering, routing: Routing, admission: Admission, metrics: Metrics, tally: Tally
    ) -> None:
        self._answering, self._routing, self._admission = answering, routing, admission
        self._metrics, self._tally = metrics, tally
        self._texts = 0
        self._tasks = Group()

    def offer(self, answered: Answered) -> None:
        """Copy a request that the stable version has answered, if it falls into the share and there is room."""
        choice, outputs = answered.held.choice, answered.outputs
        release = self._routing.served(choice.name)
        if choice.channel != "stable" or release is None or release.shadow is None:
            return
        if random.random() * 100 >= release.shadow.percent:  # noqa: S311 - a sample, not a secret
            return
        shadow = Choice(choice.name, release.shadow.version, "pinned")
        if not self._admission.has_time or self._texts + len(outputs) > MOST_TEXTS:
            self._count(shadow, "shed", len(outputs))
            return
        self._texts += len(outputs)
        self._tasks.start(self._compare(shadow, answered.inputs, outputs))

    async def close(self) -> None:
        await self._tasks.close()

    async def _compare(self, shadow: Choice, inputs: Inputs, outputs: Sequence[Any]) -> None:
        try:
            answers = await self._answering.shadow(shadow, inputs)
        except Exception as error:
            logger.debug("a shadowed request failed: %s", error)
            self._count(shadow, "failed", len(outputs))
        else:
            for output, answer in zip(outputs, answers, strict=True):
                agree = getattr(output, "said", None) == getattr(answer, "said", None)
                self._count(shadow, "agree" if agree else "differ", 1)
                self._tally.compared(shadow.name, shadow.version, agree=agree)
        finally:
            self._texts -= len(outputs)

    def _count(self, shadow: Choice, outcome: str, texts: int) -> None:
        name, version = self._metrics.version(shadow.name, str(shadow.version))
        self._metrics.shadow.labels(name, version, outcome).inc(texts)
