"""The changes: versions are published, tried on a share of the callers, promoted, replaced and rolled back."""

from __future__ import annotations

import asyncio
import itertools
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import aiohttp

from adapters.base_model import Base, resolve_base
from adapters.errors import HotswapError
from adapters.intake import add_version
from adapters.releases import NewRelease, Release, Share
from adapters.store import Store
from adapters.tasks import ClassificationTask
from loadtests.swap_under_load.fleet import Adapter, Served, Version, Way

LOOK_SECONDS = 0.05
KEPT = 4  # of the newest versions, none is retired: requests for them may be on their way
SERVED_WITHIN_SECONDS = 30.0
CANARY_PERCENT = 30


class Publisher:
    """Adds versions from a process of its own, as trainers do: hashing would hold up who measures."""

    def __init__(self, place: Path, base: Base, task: ClassificationTask) -> None:
        self._place, self._task = str(place), task
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _remember_base, (str(base.folder),))

    async def publish(self, adapter: Adapter) -> int:
        """Store the adapter's next weights; return the version."""
        variant = adapter.variants[len(adapter.versions) % len(adapter.variants)]
        arguments = self._place, adapter.name, variant.folder, self._task
        version, digest = await asyncio.get_running_loop().run_in_executor(self._pool, _publish, *arguments)
        adapter.versions[version] = Version(variant, digest)
        return version

    def close(self) -> None:
        self._pool.shutdown()


_bases: list[Base] = []  # of the publishing process


def _remember_base(folder: str) -> None:
    _bases.append(resolve_base(folder))


def _publish(place: str, name: str, folder: Path, task: ClassificationTask) -> tuple[int, str]:
    store = Store(place)
    version = add_version(store, name, folder, task, _bases[0]).version
    return version, store.manifest(name, version)[1]


class Changes:
    """Changes one adapter after the other, over HTTP and in the store by turns, and sees each change served."""

    def __init__(self, client: aiohttp.ClientSession, store: Store, publisher: Publisher, fleet: list[Adapter]) -> None:
        self._client, self._store, self._publisher = client, store, publisher
        self._ways: itertools.cycle[Way] = itertools.cycle(("http", "store"))
        steps = (self.try_out, self.promote, self.replace, self.roll_back, self.retire)
        self._plan = itertools.cycle(itertools.product(steps, fleet))
        self.looked_at = fleet[0]
        self.published = self.retired = 0

    async def run(self, seconds: float, every: float) -> None:
        """Make a change every so many seconds. Raises :class:`HotswapError` for one that is not served."""
        loop = asyncio.get_running_loop()
        began = due = loop.time()
        while loop.time() < began + seconds:
            step, adapter = next(self._plan)
            await step(adapter)
            due = max(due + every, loop.time())
            await asyncio.sleep(due - loop.time())

    async def look(self) -> None:
        """See for ever what the replica serves of the adapter that is being changed."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            adapter = self.looked_at
            async with self._client.get(f"/v1/adapters/{adapter.name}") as response:
                told = await response.json()
            adapter.saw(told["served_generation"], asyncio.get_running_loop().time())

    async def begin(self, adapter: Adapter, versions: int, *, canary: bool) -> None:
        """Release in the store what the service starts with: the quiet phase has as many versions as the other."""
        *_, stable, newest = [await self._publisher.publish(adapter) for _ in range(versions)]
        tried = Share(version=newest, percent=CANARY_PERCENT) if canary else None
        await self._record(adapter, "first", "store", stable, tried)
        adapter.canary = canary

    async def try_out(self, adapter: Adapter) -> None:
        canary = Share(version=await self._publish(adapter), percent=CANARY_PERCENT)
        await self._release(adapter, "canary", stable=_stable(adapter), canary=canary)
        adapter.canary = True

    async def promote(self, adapter: Adapter) -> None:
        canary = adapter.releases[-1].release.canary
        adapter.canary = False
        while adapter.asking:  # nobody is to ask for a canary that is no more
            await asyncio.sleep(0.001)
        assert canary is not None
        await self._release(adapter, "promotion", stable=canary.version)

    async def replace(self, adapter: Adapter) -> None:
        await self._release(adapter, "release", stable=await self._publish(adapter))

    async def roll_back(self, adapter: Adapter) -> None:
        await self._release(adapter, "rollback")

    async def retire(self, adapter: Adapter) -> None:
        """Retire the oldest version that nobody asks for any more, and see it refused."""
        used = {version for served in adapter.releases[-2:] for version in served.release.versions}
        old = [v for v in sorted(adapter.versions)[:-KEPT] if v not in used | adapter.retired]
        if not old:
            return
        await asyncio.to_thread(self._store.retire, adapter.name, old[0])
        adapter.retired.add(old[0])
        self.retired += 1
        body = {"adapter": f"{adapter.name}@{old[0]}", "input": "Is this still answered?"}
        async with asyncio.timeout(SERVED_WITHIN_SECONDS):
            status = 200
            while status != 404:
                async with self._client.post("/v1/predict", json=body) as response:
                    status = response.status
                await asyncio.sleep(LOOK_SECONDS)

    async def _publish(self, adapter: Adapter) -> int:
        self.published += 1
        return await self._publisher.publish(adapter)

    async def _release(
        self, adapter: Adapter, kind: str, *, stable: int | None = None, canary: Share | None = None
    ) -> None:
        """Release, or roll back where no version is given, and wait until that is served."""
        served = await self._record(adapter, kind, next(self._ways), stable, canary)
        self.looked_at = adapter
        while served.seen == math.inf:
            if asyncio.get_running_loop().time() > served.created + SERVED_WITHIN_SECONDS:
                generation = served.release.generation
                raise HotswapError(f"{adapter.name}: generation {generation} was not served; see the server's log.")
            await asyncio.sleep(0.001)

    async def _record(
        self, adapter: Adapter, kind: str, way: Way, stable: int | None = None, canary: Share | None = None
    ) -> Served:
        loop = asyncio.get_running_loop()
        planned = _planned(adapter, stable, canary)
        # Known before it is asked for: the replica may serve it before we are told that it exists.
        served = Served(planned, kind, way, asked=loop.time(), created=loop.time())
        adapter.releases.append(served)
        if way == "http":
            await self._post(adapter.name, stable, canary)
        elif stable is None:
            await asyncio.to_thread(self._store.rollback, adapter.name)
        else:
            await asyncio.to_thread(self._store.release, adapter.name, NewRelease(stable=stable, canary=canary))
        served.created = loop.time()
        return served

    async def _post(self, name: str, stable: int | None, canary: Share | None) -> None:
        path = f"/v1/adapters/{name}/{'rollback' if stable is None else 'releases'}"
        body = {} if stable is None else {"stable": stable, "canary": canary and canary.model_dump()}
        async with self._client.post(path, json=body) as response:
            if response.status != 201:
                raise HotswapError(f"POST {path} was answered with {response.status}: {await response.text()}")


def _stable(adapter: Adapter) -> int:
    return adapter.releases[-1].release.stable


def _planned(adapter: Adapter, stable: int | None, canary: Share | None) -> Release:
    """Return the release as it will be: nobody else releases."""
    if stable is None:
        before = adapter.releases[-2].release
        stable, canary = before.stable, before.canary
    about = {"by": "us", "at": 0, "generation": len(adapter.releases) + 1}
    return Release.model_validate({"stable": stable, "canary": canary, **about})
