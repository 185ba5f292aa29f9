"""What every process that answers requests has, whether it decides what is served or follows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from adapters.base_model import Base
from adapters.manifest import Manifest
from adapters.store import Store
from service.engine.base import Engine
from service.metrics import Metrics
from service.monitoring.drift import Drift
from service.monitoring.feedback import Feedback
from service.offload import Offload
from service.processes.place import Place
from service.rollout.evidence import Tally
from service.rollout.shadow import Shadow
from service.serving.admission import Admission
from service.serving.answer_cache import AnswerCache
from service.serving.answering import Answering
from service.serving.conversing import Conversing
from service.serving.deciding import Deciding
from service.serving.residency import Residency
from service.serving.routing import Routing
from service.settings import Settings

# Questions to the store, and files that are fetched from it: each apart, for files take their time.
CALLS_AT_ONCE, FETCHES_AT_ONCE = 32, 64


@dataclass(frozen=True)
class Parts:
    """The use cases, and who learns from answers."""

    admission: Admission
    answering: Answering
    deciding: Deciding
    conversing: Conversing
    feedback: Feedback
    drift: Drift
    shadow: Shadow

    @classmethod
    def of(
        cls,
        settings: Settings,
        place: Place,
        engine: Engine,
        store: Store,
        offload: Offload,
        base: Base,
        routing: Routing,
        residency: Residency,
        find: Callable[[str], Awaitable[bool]],
        metrics: Metrics,
        tally: Tally,
    ) -> Parts:
        """Put them together. What the engine takes at once, and what may wait, is divided among the processes."""
        admission = Admission(
            place.of(settings.max_concurrency), place.of(settings.max_queue), settings.max_wait_seconds, metrics
        )
        metrics.batch_occupancy.set_function(lambda: admission.running / settings.max_concurrency)
        cache = AnswerCache(place.of(settings.answer_cache_bytes), metrics)
        answering = Answering(
            *(engine, routing, residency, admission, base, settings, metrics, tally, cache), find=find
        )

        async def manifest(name: str, version: int) -> Manifest:
            return (await offload(name, store.manifest, name, version))[0]

        drift = Drift(metrics, base.tokenizer)
        feedback = Feedback(settings, store.place, manifest, metrics, tally, drift)
        shadow = Shadow(answering, routing, admission, metrics, tally)
        answering.listeners += [feedback.remember, shadow.offer]
        answering.observers.append(drift.observe)
        return cls(
            admission,
            answering,
            Deciding(engine, answering, admission, base, metrics),
            Conversing(engine, answering, admission, (base.name, base.digest), metrics),
            feedback,
            drift,
            shadow,
        )

    async def close(self) -> None:
        """Write what waits to be written, for a moment."""
        await self.shadow.close()
        await self.feedback.close()
