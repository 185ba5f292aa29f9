"""``python -m loadtests.drift``: how soon the service hears that its traffic has changed, and how often for nothing."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import yaml

from adapters import cli
from adapters.base_model import Base, resolve_base
from adapters.intake import add_version
from adapters.manifest import Manifest
from adapters.packages import cache_folder, fetch_package
from adapters.profile import BOUNDS, Profile, bin_of, values_of
from adapters.releases import NewRelease
from adapters.seed import STARTER
from adapters.store import Store
from loadtests.serving import ready, say, service
from loadtests.traffic import connect
from service.metrics import Metrics
from service.monitoring.drift import Drift
from trainer.data import load_splits
from trainer.loading import load_recipe
from trainer.rows import Row
from trainer.sources import LICENSEDCODE, fetch_rows

RESULTS = Path(__file__).parent / "results" / "drift.json"
RECIPE = Path(__file__).parents[1] / "trainer" / "recipes" / "sentiment.yaml"
NAME, AT_A_TIME, SEED = "sentiment", 10, 0
EVIDENCE = re.compile(r'hotswap_drift_evidence\{adapter="sentiment",feature="(\w+)",version="(\d+)"\} (\S+)')
PSI_WINDOW, PSI_ALARMS = 200, (0.1, 0.25)

Texts = list[str]


@dataclass(frozen=True)
class Material:
    """What is replayed: rows like the held-out ones that are in no split of the version, and what may come instead."""

    base: Base
    folder: Path
    manifest: Manifest
    known: frozenset[int]
    reference: list[Row]
    unshifted: list[Row]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.drift",
        description="Serve the shipped sentiment adapter, replay movie reviews like those it was tested on and then "
        "other texts, and count the requests until a detector is heard. Writes loadtests/results/drift.json.",
        epilog="example: python -m loadtests.drift --most 1000",
    )
    parser.add_argument("--before", type=int, default=300, help="unshifted requests before each shift (300)")
    parser.add_argument("--most", type=int, default=1500, help="requests until a shift counts as not found (1500)")
    parser.add_argument("--unshifted", type=int, default=50_000, help="recorded answers without a shift (50000)")
    parser.set_defaults(command=command)
    return cli.run(parser)


def command(options: argparse.Namespace) -> int:
    material = load()
    with tempfile.TemporaryDirectory(prefix="hotswap-drift-") as scratch:
        told = asyncio.run(measure(material, Path(scratch), options))
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    print(table(told))
    return 0


def load() -> Material:
    """Return the shipped adapter and rows: of the test split, half make the reference and half are replayed."""
    base, recipe = resolve_base(None), load_recipe(RECIPE)
    splits = load_splits(recipe, cache_folder())
    store = Store(STARTER)
    manifest, _ = store.manifest(NAME, store.versions(NAME)[-1])
    rows = list(splits.tests["test"])
    random.Random(SEED).shuffle(rows)
    task, half = manifest.task, len(rows) // 2
    known = frozenset(token for row in splits.train for token in task.prompt(row.text, base.tokenizer).ids)
    folder = store.fetch(NAME, manifest.version, cache_folder())
    return Material(base, folder, manifest, known, rows[:half], rows[half:])


def shifts(material: Material) -> dict[str, Callable[[random.Random], tuple[str, str]]]:
    """Return shift → what draws a text and its right label ('' where it has none)."""
    cache = cache_folder()

    def of(rows: list[dict[str, str]]) -> Callable[[random.Random], tuple[str, str]]:
        return lambda dice: _text_and_label(dice.choice(rows))

    movies = [{"text": row.text, "label": row.answer} for row in material.unshifted]
    negative = [row for row in movies if row["label"] == "negative"]
    foreign = [{"text": text, "label": ""} for text in other_languages()]

    def balance(dice: random.Random) -> tuple[str, str]:
        return _text_and_label(dice.choice(negative if dice.random() < 0.9 else movies))

    def length(dice: random.Random) -> tuple[str, str]:
        return " ".join(dice.choice(movies)["text"] for _ in range(4)), ""

    def broken(dice: random.Random) -> tuple[str, str]:
        text = dice.choice(movies)["text"]
        return json.dumps({"body": base64.b64encode(text.encode()).decode(), "kind": "review"}), ""

    def flipped(dice: random.Random) -> tuple[str, str]:
        row = dice.choice(movies)
        right = row["label"]
        wrong = {"positive": "negative", "negative": "positive"}[right]
        return row["text"], wrong if dice.random() < 0.3 else right

    return {
        "product reviews": of(fetch_rows("vader-amazon", cache)),
        "tweets": of(fetch_rows("vader-tweets", cache)),
        "news": of(fetch_rows("vader-news", cache)),
        "nine of ten negative": balance,
        "four reviews in one": length,
        "other languages": of(foreign),
        "a caller that sends base64": broken,
        "three of ten answers wrong": flipped,
    }


def _text_and_label(row: dict[str, str]) -> tuple[str, str]:
    return row["text"], row["label"]


def other_languages() -> Texts:
    """Return sentences of licences in French, German, Portuguese and Dutch."""
    texts = []
    with zipfile.ZipFile(fetch_package(*LICENSEDCODE, cache_folder())) as wheel:
        for name in sorted(wheel.namelist()):
            if not re.fullmatch(r"licensedcode/data/licenses/[^/]+\.LICENSE", name):
                continue
            parts = re.fullmatch(r"---\n(.*?)\n---\n?(.*)", wheel.read(name).decode(), re.DOTALL)
            if parts and yaml.safe_load(parts[1]).get("language") in ("fr", "de", "pt", "nl"):
                sentences = re.split(r"(?<=[.;:])\s+", re.sub(r"\s+", " ", parts[2]))
                texts += [sentence for sentence in sentences if 8 <= len(sentence.split()) <= 40]
    return texts


async def measure(material: Material, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was heard of each shift, and of none."""
    store = Store(scratch / "store")
    task, base = material.manifest.task, material.base
    add_version(store, NAME, material.folder, task, base)
    store.release(NAME, NewRelease(stable=1))
    settings = {"store": store.place, "poll_seconds": 0.2}
    with service(scratch / "service.log", **settings) as (url, _):
        while not ready(url):
            await asyncio.sleep(0.5)
        async with connect(url) as client:
            say("answering the held-out rows, for the reference")
            reference = await answered(client, 1, material.reference)
            profile = profiled(material, reference)
            recorded = await answered(client, 1, material.unshifted)
            found = {}
            for version, (shift, draw) in enumerate(shifts(material).items(), start=2):
                add_version(store, NAME, material.folder, task, base, profile=profile)
                found[shift] = await _replay(client, version, draw, material, options)
                say(f"{shift}: {found[shift]}")
    return {
        "reference rows": len(reference),
        "shifts": found,
        "unshifted": unshifted(material, profile, recorded, options.unshifted),
    }


Answer = tuple[Row, dict[str, Any]]


async def answered(client: aiohttp.ClientSession, version: int, rows: list[Row]) -> list[Answer]:
    """Return rows with the service's answers."""
    answers: list[Answer] = []
    for start in range(0, len(rows), AT_A_TIME):
        part = rows[start : start + AT_A_TIME]
        outputs, _ = await _predict(client, version, [row.text for row in part])
        answers += zip(part, outputs, strict=True)
    return answers


async def _predict(client: aiohttp.ClientSession, version: int, texts: Texts) -> tuple[list[dict[str, Any]], str]:
    body = {"adapter": f"{NAME}@{version}", "inputs": texts}
    async with client.post("/v1/predict", json=body) as response:
        response.raise_for_status()
        told = await response.json()
        return told["outputs"], told["id"]


def profiled(material: Material, answers: list[Answer]) -> Profile:
    values = [_values(material, row, output) for row, output in answers]
    right = sum(output["label"] == row.answer for row, output in answers) / len(answers)
    return Profile.of(values, material.known, right)


def _values(material: Material, row: Row, output: dict[str, Any]) -> dict[str, Any]:
    task, tokenizer = material.manifest.task, material.base.tokenizer
    return values_of(task, row.text, task.prompt(row.text, tokenizer), output, tokenizer, material.known)


async def _replay(
    client: aiohttp.ClientSession,
    version: int,
    draw: Callable[[random.Random], tuple[str, str]],
    material: Material,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return detector → requests until it was heard after the shift, of the first ``most``; before it, none may be."""
    dice, heard = random.Random(SEED), {}
    movies = material.unshifted
    for _ in range(0, options.before, AT_A_TIME):
        rows = [dice.choice(movies) for _ in range(AT_A_TIME)]
        await _ask(client, version, [(row.text, row.answer) for row in rows])
    early = [name for name, value in (await _evidence(client, version)).items() if value >= 1]
    for sent in range(AT_A_TIME, options.most + 1, AT_A_TIME):
        await _ask(client, version, [draw(dice) for _ in range(AT_A_TIME)])
        for name, value in (await _evidence(client, version)).items():
            if value >= 1:
                heard.setdefault(name, sent)
        if heard and sent >= min(heard.values()) + options.most // 3:
            break
    return {"before": early, "after": heard}


async def _ask(client: aiohttp.ClientSession, version: int, asked: list[tuple[str, str]]) -> None:
    """Have texts answered, and say which label was right where it is known."""
    outputs, prediction = await _predict(client, version, [text for text, _ in asked])
    for index, ((_, label), output) in enumerate(zip(asked, outputs, strict=True)):
        if label and "label" in output:
            judged = {"id": prediction, "index": index, "label": label}
            async with client.post("/v1/feedback", json=judged) as response:
                response.raise_for_status()


async def _evidence(client: aiohttp.ClientSession, version: int) -> dict[str, float]:
    async with client.get("/metrics") as response:
        found = EVIDENCE.findall(await response.text())
    return {feature: float(value) for feature, which, value in found if which == str(version)}


def unshifted(material: Material, profile: Profile, recorded: list[Answer], count: int) -> dict[str, Any]:
    """Return the alarms on recorded answers drawn again and again, by detector and by fixed thresholds of PSI."""
    dice, tokenizer = random.Random(SEED), material.base.tokenizer
    manifest = material.manifest.model_copy(update={"profile": profile})
    metrics = Metrics()
    drift, held, alarms, most = Drift(metrics, tokenizer), SimpleNamespace(manifest=manifest), {}, {}
    prompts = [manifest.task.prompt(row.text, tokenizer) for row, _ in recorded]
    for n in range(count):
        at = dice.randrange(len(recorded))
        row, output = recorded[at]
        drift.observe(held, row.text, prompts[at], output)  # type: ignore[arg-type]
        drift.judged(manifest, right=output["label"] == row.answer)
        if n % AT_A_TIME == 0:
            for name, value in _gauges(metrics):
                most[name] = max(most.get(name, 0.0), value)
                if value >= 1:
                    alarms.setdefault(name, n)
    drawn = [dice.choice(recorded) for _ in range(count)]
    return {"answers": count, "alarms": alarms, "most evidence": most, "PSI": _by_psi(material, profile, drawn)}


def _gauges(metrics: Metrics) -> Iterator[tuple[str, float]]:
    for family in metrics.drift_evidence.collect():
        for sample in family.samples:
            yield sample.labels["feature"], sample.value


def _by_psi(material: Material, profile: Profile, answers: list[Answer]) -> dict[str, float]:
    """Return which share of windows has a PSI above the usual thresholds in some feature, though nothing has changed:
    what a rule without regard to the number of answers would report."""
    windows = [answers[start : start + PSI_WINDOW] for start in range(0, len(answers), PSI_WINDOW)]
    most = []
    for window in windows:
        values = [_values(material, row, output) for row, output in window]
        psi = []
        for feature in ("label", *BOUNDS):
            if shares := profile.shares(feature):
                counts = np.array([sum(bin_of(feature, v[feature]) == name for v in values) for name in shares])
                live, ours = (counts + 0.5) / (counts.sum() + 0.5 * len(counts)), np.array(list(shares.values()))
                ours = (ours * profile.rows + 0.5) / (profile.rows + 0.5 * len(ours))
                psi.append(float(((live - ours) * np.log(live / ours)).sum()))
        most.append(max(psi))
    return {f"above {limit} in {PSI_WINDOW} answers": float(np.mean(np.array(most) > limit)) for limit in PSI_ALARMS}


def table(told: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    names = sorted({name for found in told["shifts"].values() for name in found["after"]})
    lines = [f"| shift | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for shift, found in told["shifts"].items():
        lines.append(f"| {shift} | {' | '.join(str(found['after'].get(name, '–')) for name in names)} |")
    return "\n".join([*lines, "", json.dumps(told["unshifted"])])


if __name__ == "__main__":
    sys.exit(main())
