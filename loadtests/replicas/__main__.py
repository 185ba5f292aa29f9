"""``python -m loadtests.replicas``: faults in replicas under constant load, while versions are released."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from adapters import cli
from adapters.intake import add_version
from adapters.store import Store
from loadtests.bench.small_base import make_variants
from loadtests.replicas.fleet import ROUTERS, Replica, Router, Wire, free_port
from loadtests.serving import say
from loadtests.traffic import Ask, Outcome, connect, offer_while

RESULTS = Path(__file__).parents[1] / "results" / "replicas.json"
REPLICAS, ADAPTERS, VERSIONS = 3, 12, 2
RELEASE_SECONDS = 2.0
# Two sound computations of a score differ by less, and two of our adapters by far more.
TOLERANCE = 1e-3
SLOW_SECONDS = 2.0
BUCKET = "adapters"

Fault = Callable[["Fleet", float], Awaitable[None]]


@dataclass
class Released:
    """A version, and when (by the loop's clock) its release was about to be asked for, and when it was there."""

    version: int
    asked: float
    created: float = float("inf")


@dataclass
class Fleet:
    """The running parts, and what has been released when."""

    replicas: list[Replica]
    router: Router
    store: Store
    texts: list[str]
    released: dict[str, list[Released]] = field(default_factory=dict)
    scores: dict[tuple[str, int, int], dict[str, float]] = field(default_factory=dict)

    @property
    def one(self) -> Replica:
        return self.replicas[0]


async def nothing(fleet: Fleet, seconds: float) -> None:
    """To compare with."""


async def killed(fleet: Fleet, seconds: float) -> None:
    fleet.one.kill()
    await asyncio.sleep(seconds / 4)
    fleet.one.start()


async def hung(fleet: Fleet, seconds: float) -> None:
    fleet.one.hang()
    await asyncio.sleep(seconds / 2)
    fleet.one.go_on()


async def cut_off(fleet: Fleet, seconds: float) -> None:
    """From the store: it serves what it has, and catches up."""
    assert fleet.one.wire is not None
    fleet.one.wire.sever()
    await asyncio.sleep(seconds / 2)
    fleet.one.wire.cut = False


async def upgraded(fleet: Fleet, seconds: float) -> None:
    """All of them, one after the other, as a rolling update does."""
    for replica in fleet.replicas:
        await asyncio.to_thread(replica.stop)
        replica.start()
        await replica.ready()


FAULTS: dict[str, Fault] = {each.__name__: each for each in (nothing, killed, hung, cut_off, upgraded)}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.replicas",
        description=f"{REPLICAS} services over one store behind a router; one is killed, hung, cut off from the store, "
        "all are upgraded, under constant load while versions are released. Writes loadtests/results/replicas.json.",
        epilog="example: python -m loadtests.replicas --store s3 --engine fake --rate 20",
    )
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}; default: all")
    parser.add_argument("--store", choices=("s3", "folder"), default="s3", help="moto's S3, or a shared folder (s3)")
    parser.add_argument("--engine", choices=("vllm", "fake"), default="vllm", help="vLLM over a two-layer base (vllm)")
    parser.add_argument("--router", choices=tuple(ROUTERS), default="envoy", help="in front (envoy)")
    parser.add_argument("--rate", type=float, default=10, help="requests a second (10)")
    parser.add_argument("--seconds", type=float, default=20, help="of load from the fault on (20)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE")
    parser.set_defaults(command=command)
    return cli.run(parser)


def command(options: argparse.Namespace) -> int:
    faults = options.faults or [name for name in FAULTS if options.store == "s3" or name != "cut_off"]
    with tempfile.TemporaryDirectory(prefix="hotswap-replicas-") as scratch:
        table = asyncio.run(
            measure(
                Path(scratch),
                faults,
                options.store,
                options.engine,
                rate=options.rate,
                seconds=options.seconds,
                router=options.router,
            )
        )
    options.output.write_text(json.dumps(table, indent=1) + "\n")
    print(markdown(table))
    return 1 if any(row["lost"] or row["wrong"] for row in table) else 0


async def measure(
    folder: Path, faults: list[str], store: str, engine: str, *, rate: float, seconds: float, router: str = "envoy"
) -> list[dict[str, Any]]:
    """Return a row for each fault: what was asked, lost and wrong, and how long it took, ``seconds`` long."""
    async with started(folder, store, engine, router) as fleet:
        await learn_scores(fleet)
        rows = []
        for name in faults:
            say(f"{name}: {rate:g} requests a second")
            row = {
                "fault": name,
                "store": store,
                "engine": engine,
                "router": router,
                **await under_load(fleet, FAULTS[name], rate, seconds),
            }
            rows.append(row)
            say(json.dumps(row))
            for replica in fleet.replicas:
                await replica.ready()
        return rows


@asynccontextmanager
async def started(folder: Path, kind: str, engine: str, in_front: str) -> AsyncIterator[Fleet]:
    base, task, variants, texts = make_variants(folder / "material", ADAPTERS * VERSIONS)
    settings = {"BASE_MODEL": str(base.folder), "ENGINE": engine, "MAX_MODEL_LEN": "256", "MAX_LORAS": "4"}
    settings |= {"MAX_CPU_LORAS": "32", "KV_CACHE_GIB": "0.1", "POLL_SECONDS": "0.5"}
    bucket, wires, moto = None, [None] * REPLICAS, None
    if kind == "s3":
        port = free_port()
        command = [sys.executable, "-m", "moto.server", "-p", str(port)]
        quiet = asyncio.subprocess.DEVNULL
        moto = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
        wires = [Wire(port) for _ in range(REPLICAS)]
        for wire in wires:
            await wire.start()
        bucket = await asyncio.to_thread(make_bucket, port)
    store = bucket or Store(folder / "store")
    settings["STORE"] = store.place
    for place, variant in enumerate(variants):
        name = f"mood-{place % ADAPTERS}"
        await asyncio.to_thread(add_version, store, name, variant, task, base)
    for number in range(ADAPTERS):
        store.release(f"mood-{number}", 1)
    replicas = [Replica(number, folder, settings, wire) for number, wire in enumerate(wires)]
    router = ROUTERS[in_front]([each.port for each in replicas], folder)
    try:
        for replica in replicas:
            replica.start()
        for replica in replicas:
            await replica.ready()
        await router.ready()
        fleet = Fleet(replicas, router, store, texts)
        now = asyncio.get_running_loop().time()
        fleet.released = {f"mood-{number}": [Released(1, now, now)] for number in range(ADAPTERS)}
        yield fleet
    finally:
        router.stop()
        for replica in replicas:
            await asyncio.to_thread(replica.stop)
        if moto:
            moto.kill()
            await moto.wait()


def make_bucket(port: int) -> Store:
    """Wait for moto, make a bucket in it, and return the store there."""
    address = f"http://127.0.0.1:{port}"
    os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    end = time.monotonic() + 60
    while True:
        try:
            httpx.put(f"{address}/{BUCKET}", trust_env=False).raise_for_status()
            return Store(f"s3://{BUCKET}/store")
        except httpx.HTTPError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


async def learn_scores(fleet: Fleet) -> None:
    """Ask a replica for every version's scores of every text: what is to be answered later."""
    async with connect(fleet.one.url) as client:
        for number, version in itertools.product(range(ADAPTERS), range(1, VERSIONS + 1)):
            body = {"adapter": f"mood-{number}@{version}", "inputs": fleet.texts}
            async with client.post("/v1/predict", json=body) as response:
                told = await response.json()
            assert "outputs" in told, told
            for place, output in enumerate(told["outputs"]):
                fleet.scores[f"mood-{number}", version, place] = output["scores"]


async def under_load(fleet: Fleet, fault: Fault, rate: float, seconds: float) -> dict[str, Any]:
    """Offer ``rate`` requests a second while versions change, and have ``fault`` happen; return what came of it."""
    dice, loop = random.Random(0), asyncio.get_running_loop()

    def choose() -> Ask:
        name, text = f"mood-{dice.randrange(ADAPTERS)}", dice.randrange(len(fleet.texts))
        return Ask(name, text, {"model": name, "input": fleet.texts[text], "caller": "replicas"})

    changes = asyncio.create_task(release_on(fleet, dice))
    moment = loop.time() + seconds / 4

    async def happen() -> None:
        await asyncio.sleep(seconds / 4)
        await fault(fleet, seconds)

    happening = asyncio.create_task(happen())
    try:
        async with connect(fleet.router.url) as client:
            going_on = lambda: loop.time() < moment + seconds or not happening.done()  # noqa: E731
            outcomes = await offer_while(client, rate, going_on, choose, seed=1)
        await happening
    finally:
        changes.cancel()
        await asyncio.gather(changes, return_exceptions=True)
    return judged(fleet, outcomes, moment)


async def release_on(fleet: Fleet, dice: random.Random) -> None:
    """Release the other version of one adapter after the other."""
    loop = asyncio.get_running_loop()
    for number in itertools.cycle(range(ADAPTERS)):
        await asyncio.sleep(RELEASE_SECONDS * dice.uniform(0.5, 1.5))
        name = f"mood-{number}"
        next_one = Released(3 - fleet.released[name][-1].version, loop.time())
        fleet.released[name].append(next_one)
        await asyncio.to_thread(fleet.store.release, name, next_one.version)
        next_one.created = loop.time()


def judged(fleet: Fleet, outcomes: list[Outcome], moment: float) -> dict[str, Any]:
    answered = [outcome for outcome in outcomes if outcome.status == 200]
    lost = [outcome for outcome in outcomes if outcome.status != 200]
    wrong = [outcome for outcome in answered if is_wrong(fleet, outcome)]
    troubled = [each.ended for each in outcomes if each.due >= moment and (each in lost or each.seconds > SLOW_SECONDS)]
    after = [outcome.seconds for outcome in answered if outcome.due >= moment]
    return {
        "asked": len(outcomes),
        "lost": len(lost),
        "lost_for": sorted({str(outcome.body)[:120] for outcome in lost})[:5],
        "wrong": len(wrong),
        "p50_seconds": round(float(np.quantile(after, 0.5)), 3),
        "p95_seconds": round(float(np.quantile(after, 0.95)), 3),
        "longest_seconds": round(max(after), 3),
        "recovered_seconds": round(max(troubled, default=moment) - moment, 1),
        "stale_seconds": round(max(stale(fleet, outcome) for outcome in answered), 1),
    }


def is_wrong(fleet: Fleet, outcome: Outcome) -> bool:
    """Whether an answer is not that of the version that it names."""
    used, (output,) = outcome.body["adapter"], outcome.body["outputs"]
    known = fleet.scores.get((outcome.reference, used["version"], outcome.text))
    if used["name"] != outcome.reference or known is None or "scores" not in output:
        return True
    return max(abs(output["scores"][label] - score) for label, score in known.items()) > TOLERANCE


def stale(fleet: Fleet, outcome: Outcome) -> float:
    """Return for how long the answer's version had not been released any more when it was asked; 0 where it was."""
    releases = fleet.released[outcome.reference]
    ends = [each.created for each in releases[1:]] + [float("inf")]
    version = outcome.body["adapter"]["version"]
    gone = [
        end for each, end in zip(releases, ends, strict=True) if each.version == version and each.asked <= outcome.ended
    ]
    return max(0.0, outcome.began - max(gone)) if gone else 0.0


def markdown(table: list[dict[str, Any]]) -> str:
    columns = ("fault", "store", "asked", "lost", "wrong", "p50_seconds", "p95_seconds", "longest_seconds")
    columns += ("recovered_seconds", "stale_seconds")
    lines = [f"| {' | '.join(column.replace('_', ' ') for column in columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(str(row[column]) for column in columns)} |" for row in table)])


if __name__ == "__main__":
    sys.exit(main())
