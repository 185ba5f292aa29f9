"""``python -m loadtests.scene``: a service's day in minutes, real in every part, and its dashboards as pictures."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from adapters import cli
from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.store import Store
from loadtests import dashboards
from loadtests.drift import NAME, Material, answered, load, profiled, shifts
from loadtests.serving import ready, say, service
from loadtests.traffic import connect

ROOT = Path(__file__).parents[1]
PORT, TELLS = 9190, 9193
# How much of the answers somebody judges; how many ask at once, and at the worst hour.
JUDGED, CALM, CROWD, SEED = 0.3, 2, 24, 0
Draw = Callable[[random.Random], tuple[str, str]]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.scene",
        description="Serve the shipped sentiment adapter by the real engine, watched by Prometheus with the shipped "
        "rules: film reviews; a version as canary and shadow; product reviews instead; a crowd; the new one for all. "
        "Three of ten answers are judged by their rows' labels. Then draw the three dashboards into docs/.",
        epilog="example: python -m loadtests.scene --minutes 24",
    )
    parser.add_argument("--minutes", type=float, default=24, help="in all (24)")
    parser.set_defaults(command=lambda options: asyncio.run(play(options.minutes)))
    return cli.run(parser)


async def play(minutes: float) -> None:
    material = load()
    with tempfile.TemporaryDirectory(prefix="hotswap-scene-") as made:
        scratch = Path(made)
        store = Store(scratch / "store")
        add_version(store, NAME, material.folder, material.manifest.task, material.base)
        store.release(NAME, NewRelease(stable=1))
        small = {
            "store": store.place,
            "feedback_database": scratch / "feedback.db",
            "max_concurrency": 4,
            "max_queue": 12,
        }
        with service(scratch / "service.log", **small) as (url, _):
            while not ready(url):
                await asyncio.sleep(0.5)
            async with connect(url) as client:
                say("answering the held-out rows, for the reference")
                profile = profiled(material, await answered(client, 1, material.reference))
                for _ in range(2):
                    add_version(store, NAME, material.folder, material.manifest.task, material.base, profile=profile)
                store.release(NAME, NewRelease(stable=2))
                with watched(url, scratch):
                    began = time.monotonic()
                    await acts(client, store, material, minutes * 60)
                    draw((time.monotonic() - began) / 60)


async def acts(client: aiohttp.ClientSession, store: Store, material: Material, seconds: float) -> None:
    products = shifts(material)["product reviews"]

    def films(dice: random.Random) -> tuple[str, str]:
        row = dice.choice(material.unshifted)
        return row.text, row.answer

    async def act(what: str, share: float, draw: Draw, asking: int, release: NewRelease | None = None) -> None:
        say(f"{what}: {share * seconds:.0f} s")
        if release:
            store.release(NAME, release)
        until, dice = time.monotonic() + share * seconds, random.Random(SEED)
        await asyncio.gather(*(ask(client, draw, dice, until) for _ in range(asking)))

    await act("film reviews", 0.2, films, CALM)
    tried = NewRelease.model_validate(
        {"stable": 2, "canary": {"version": 3, "percent": 30}, "shadow": {"version": 3, "percent": 50}}
    )
    await act("a canary and shadow", 0.2, films, CALM, tried)
    await act("product reviews", 0.3, products, CALM)
    await act("a crowd", 0.1, products, CROWD)
    await act("the canary for all", 0.2, products, CALM, NewRelease(stable=3))


async def ask(client: aiohttp.ClientSession, draw: Draw, dice: random.Random, until: float) -> None:
    while time.monotonic() < until:
        text, label = draw(dice)
        body = {"adapter": NAME, "input": text, "caller": f"reader-{dice.randrange(200)}"}
        async with client.post("/v1/predict", json=body) as response:
            told: dict[str, Any] = await response.json()
        if response.status == 200 and dice.random() < JUDGED:
            async with client.post("/v1/feedback", json={"id": told["id"], "label": label}) as response:
                response.raise_for_status()
        elif response.status == 429:
            await asyncio.sleep(0.2)


@contextmanager
def watched(url: str, scratch: Path) -> Iterator[None]:
    """Have Prometheus and Alertmanager look at the service every two seconds."""
    command = ["-m", "scripts.monitor", "--service", url, "--every", "2s", "--data", str(scratch / "monitor")]
    ports = ["--port", str(PORT), "--alertmanager-port", str(TELLS)]
    process = subprocess.Popen([sys.executable, *command, *ports], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def draw(minutes: float) -> None:
    """Draw the boards as they open into docs/; of drift, the version that was served when the texts changed."""
    source = dashboards.Prometheus(f"http://127.0.0.1:{PORT}", minutes)
    for name in ("service", "adapters", "drift"):
        board = json.loads((ROOT / "k8s" / "monitoring" / "dashboards" / f"{name}.json").read_text())
        chosen = dashboards.variables(board, source) | ({"version": "2"} if name == "drift" else {})
        dashboards.draw(board, chosen, source, ROOT / "docs" / f"dashboard-{name}.png")
        say(f"docs/dashboard-{name}.png")


if __name__ == "__main__":
    sys.exit(main())
