"""What is in the engine and who holds it, whatever happens in whatever order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adapters.catalogue import Entry
from adapters.errors import InvalidAdapter
from adapters.releases import Release, Share
from service.engine.base import EngineDown, EngineRefused
from service.metrics import Metrics
from service.serving.loader import Loaded
from service.serving.residency import Residency
from service.serving.routing import Channel, Choice, Key, Routing
from tests.properties import quick

MOST = 2
WARM = ("a", 3)
KEYS = [(name, version) for name in ("a", "b") for version in (1, 2, 3)]
keys = st.sampled_from(KEYS)


@dataclass(eq=False)
class Load:
    key: Key
    done: asyncio.Future[None]


@dataclass
class Engine:
    """In the loader's place: a load takes until the test ends it, well or badly."""

    resident: list[Loaded] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    held: list[tuple[object, Loaded]] = field(default_factory=list)  # who holds what

    async def fetch(self, name: str, version: int) -> Key:
        return name, version

    async def load(self, key: Key) -> Loaded:
        assert len(self.resident) < MOST, "loaded where there is no room"
        load = Load(key, asyncio.get_running_loop().create_future())
        self.loads.append(load)
        try:
            await load.done
        finally:
            self.loads.remove(load)
        loaded = Loaded(*key, f"{key}")  # type: ignore[arg-type]
        self.resident.append(loaded)
        return loaded

    async def unload(self, loaded: Loaded) -> None:
        await asyncio.sleep(0)
        assert not any(loaded is one for _, one in self.held), "unloaded while a request uses it"
        self.resident = [one for one in self.resident if one is not loaded]

    def die(self) -> None:
        self.resident.clear()
        self.held.clear()


@dataclass(eq=False)
class Request:
    key: Key
    over: asyncio.Event
    task: asyncio.Task[None]


class ResidencyInAnyOrder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.engine, self.routing = Engine(), Routing()
        self.residency = self.run(self._residency())
        self.requests: list[Request] = []
        self.generation = 0
        self.leaving: set[Key] = set()  # superseded, and not asked for since
        self.pinned: set[Key] = set()

    async def _residency(self) -> Residency:
        return Residency(self.engine, self.routing, Metrics(), MOST, [f"{WARM[0]}@{WARM[1]}"])  # type: ignore[arg-type]

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def settle(self, work: Callable[[], Any] = lambda: None) -> None:
        """Do ``work`` in the event loop, and let every task go on as far as it can."""

        async def turns() -> None:
            work()
            for _ in range(40):
                await asyncio.sleep(0)

        self.run(turns())

    @rule(key=keys, channel=st.sampled_from(["stable", "pinned"]))
    def ask(self, key: Key, channel: Channel) -> None:
        over = asyncio.Event()

        async def request() -> None:
            async with self.residency.hold(Choice(*key, channel)) as held:
                self.engine.held.append((request, held.loaded))
                try:
                    await over.wait()
                finally:
                    self.engine.held = [one for one in self.engine.held if one[0] is not request]

        self.requests.append(Request(key, over, self.loop.create_task(request())))
        self.leaving.discard(key)
        if channel == "pinned":
            self.pinned.add(key)
        self.settle()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.requests)).over.set()
        self.settle()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A client goes, or a deadline passes."""
        data.draw(st.sampled_from(self.requests)).task.cancel()
        self.settle()

    @precondition(lambda self: self.engine.loads)
    @rule(error=st.sampled_from([None, None, InvalidAdapter("no"), EngineRefused("no"), TimeoutError(), OSError("x")]))
    def end_a_load(self, error: Exception | None) -> None:
        done = self.engine.loads[0].done
        done.set_exception(error) if error else done.set_result(None)
        self.settle()

    @rule(name=st.sampled_from(["a", "b"]), stable=st.integers(1, 3), canary=st.none() | st.integers(1, 3))
    def release(self, name: str, stable: int, canary: int | None) -> None:
        self.generation += 1
        share = Share(version=canary, percent=10) if canary else None
        new = Release(stable=stable, canary=share, by="ann", at=datetime.now(UTC), generation=self.generation)

        def flip() -> None:
            self.residency.give_another_chance(name, new)
            for key in self.routing.flip(name, new):
                self.residency.supersede(key)
                if key not in self.pinned:
                    self.leaving.add(key)

        self.settle(flip)
        for version in new.versions:
            self.leaving.discard((name, version))
            self.loop.create_task(self._prepare(name, version))
        self.settle()

    async def _prepare(self, name: str, version: int) -> None:
        try:
            await self.residency.prepare(name, version)
        except Exception as error:
            assert not isinstance(error, AssertionError)  # noqa: PT017 - the engine's own

    @rule(key=keys)
    def retire(self, key: Key) -> None:
        name, version = key
        entry = self.routing.catalogue.get(name)
        self.routing.learn(Entry(name, (1, 2, 3), retired=entry.retired | {version}))
        if self.routing.is_retired(name, version):
            self.leaving.add(key)
        self.settle(self.residency.supersede_retired)

    @rule()
    def engine_dies(self) -> None:
        self.engine.die()
        for load in self.engine.loads:
            load.done.set_exception(EngineDown("dead"))
        self.run(self.residency.forget())
        self.engine.die()
        self.settle()

    @invariant()
    def nobody_is_unloaded_while_held_and_there_is_never_too_much(self) -> None:
        assert len(self.engine.resident) <= MOST
        for request in self.requests:
            if request.task.done() and not request.task.cancelled():
                assert not isinstance(request.task.exception(), AssertionError)
        self.requests = [request for request in self.requests if not request.task.done()]

    @invariant()
    def at_rest_the_books_agree_with_the_engine(self) -> None:
        if self.engine.loads or any(self.residency.state(*key)["state"] == "loading" for key in KEYS):
            return
        resident = {(loaded.manifest, loaded.digest) for loaded in self.engine.resident}
        assert resident == {key for key in KEYS if self.residency.is_resident(*key)}
        in_use = {request.key for request in self.requests}
        assert resident.isdisjoint(self.leaving - in_use - {WARM}), "superseded, and still there"

    def teardown(self) -> None:
        """Whoever waits is answered when the engine goes on, and nothing is left half done."""
        for request in self.requests:
            request.over.set()
        self.settle()
        rounds = 0
        while self.engine.loads:
            self.engine.loads[0].done.set_result(None)
            self.settle()
            rounds += 1
            assert rounds < 100, "loads without end"
        assert all(request.task.done() for request in self.requests), "somebody waits for ever"
        assert not self.engine.held
        self.at_rest_the_books_agree_with_the_engine()
        assert all(self.residency.state(*key)["state"] in ("available", "resident", "failed") for key in KEYS)
        self.run(self.residency.close())
        self.loop.close()


TestResidencyInAnyOrder = ResidencyInAnyOrder.TestCase
TestResidencyInAnyOrder.settings = settings(quick, max_examples=100)
