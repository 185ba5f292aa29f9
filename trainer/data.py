"""Rows: read, checked, freed of duplicates, split by group, fingerprinted."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import HotswapError
from adapters.tasks.classification import MAX_LABELS
from trainer.config import ClassificationRecipe, Data, Origin, Recipe
from trainer.sources import fetch_rows

LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Row:
    text: str
    answer: str
    group: str


@dataclass(frozen=True)
class Splits:
    train: list[Row]
    validation: list[Row]
    test: list[Row]
    extra_tests: dict[str, list[Row]]

    @property
    def fingerprint(self) -> str:
        """``sha256:…`` of every row and the split it is in: equal fingerprints, equal data."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test, **self.extra_tests}
        digest = hashlib.sha256()
        for name, rows in parts.items():
            digest.update(json.dumps([name, sorted([row.text, row.answer] for row in rows)]).encode())
        return "sha256:" + digest.hexdigest()

    def counts(self) -> dict[str, int]:
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            **{name: len(rows) for name, rows in self.extra_tests.items()},
        }


def load_splits(recipe: Recipe, cache: Path) -> Splits:
    """Return the recipe's rows, split. Raises :class:`HotswapError` where they cannot make an adapter."""
    data, kind = recipe.data, recipe.task.kind
    rows = read_rows(data, kind, cache)
    extra = {name: read_rows(origin, kind, cache) for name, origin in data.extra_tests.items()}
    train, validation, test = _split(rows, data, recipe.seed)
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        if not part:
            raise HotswapError(
                f"the {name} split is empty: {len(rows)} usable rows in {len({r.group for r in rows})} groups are "
                f"too few; add rows or change data.validation and data.test."
            )
    if isinstance(recipe.task, ClassificationRecipe):
        _check_labels(recipe.task.labels, train, [*validation, *test, *(r for part in extra.values() for r in part)])
    return Splits(train, validation, test, extra)


def labels_of(task: ClassificationRecipe, train: list[Row]) -> tuple[str, ...]:
    """Return the labels named by the recipe, else those of the training rows, sorted."""
    return task.labels or tuple(sorted({row.answer for row in train}))


def read_rows(origin: Origin, kind: str, cache: Path) -> list[Row]:
    """Return the usable, distinct rows of one origin, in its order."""
    table: Any
    answer = origin.answer or ("label" if kind == "classification" else "summary")
    if origin.source:
        table = fetch_rows(origin.source, cache)
        group: str | None = "group"
        columns = set(table[0]) if table else set()
    else:
        table, group = _load_table(origin, cache), origin.group
        columns = set(table.column_names)
    for column in (origin.text, answer, *([group] if group else [])):
        if column not in columns:
            raise HotswapError(f"the data has no column '{column}'; it has: {', '.join(sorted(columns))}.")
    if not origin.source and (names := getattr(table.features[answer], "names", None)):
        table = ({**record, answer: _label(names, record[answer])} for record in table)
    return _distinct(table, origin.text, answer, group)


def _label(names: list[str], number: int | None) -> str | None:
    """Return the name of a Hugging Face ClassLabel; -1 stands for none."""
    return names[number] if number is not None and number >= 0 else None


def _load_table(origin: Origin, cache: Path) -> Any:
    from datasets import disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it would say is in the error
    try:
        if origin.dataset:
            name, _, split = origin.dataset.partition(":")
            return load_dataset(name, split=split or "train", cache_dir=str(cache / "datasets"))
        assert origin.path is not None, "the recipe's validator saw to it"
        loader = LOADERS.get(origin.path.suffix.lower())
        if loader is None:
            raise HotswapError(f"{origin.path}: read are {', '.join(LOADERS)}; rename or convert the file.")
        if not origin.path.is_file():
            raise HotswapError(f"data.path {origin.path} does not exist.")
        if not origin.path.stat().st_size:
            raise HotswapError(f"{origin.path} is empty.")
        options = _csv_options(origin.path) if loader == "csv" else {}
        place = str(cache / "datasets")
        return load_dataset(loader, data_files=str(origin.path), split="train", cache_dir=place, **options)
    except (DatasetGenerationError, DatasetNotFoundError, ValueError, ConnectionError) as error:
        reason = _broken_line(origin.path) or " ".join(str(error.__cause__ or error).split())
        raise HotswapError(f"{origin.path or origin.dataset} could not be read: {reason}") from error


def _csv_options(path: Path) -> dict[str, Any]:
    """Read every cell as it is written: pandas would make 1 of "01", and nothing of "None", "NA" and "null"."""
    from datasets import Features, Value
    from pandas import read_csv

    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    columns = read_csv(path, sep=separator, nrows=0).columns
    features = Features({column: Value("string") for column in columns})
    return {"sep": separator, "features": features, "keep_default_na": False, "na_values": [""]}


def _broken_line(path: Path | None) -> str | None:
    """Return which line of a JSONL file is none: pyarrow counts from zero, in each of its blocks."""
    if path is None or path.suffix.lower() != ".jsonl":
        return None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                broken = bool(line.strip()) and not isinstance(json.loads(line), dict)
            except ValueError:
                broken = True
            if broken:
                return f"line {number} is not a JSON object"
    return None


def _distinct(table: Iterable[Mapping[str, Any]], text: str, answer: str, group: str | None) -> list[Row]:
    rows: dict[str, Row] = {}
    for number, record in enumerate(table, start=1):
        columns = (text, answer, group) if group else (text, answer)
        values = [record[column] for column in columns]
        for column, value in zip(columns, values, strict=True):
            if value is None or not str(value).strip() or value != value:
                raise HotswapError(f"row {number}: column '{column}' is empty; fill it in or remove the row.")
            if isinstance(value, list | dict):
                raise HotswapError(f"row {number}: column '{column}' holds several values; a row has one text.")
        said, answered = (str(value).strip() for value in values[:2])
        key = " ".join(said.lower().split())
        rows.setdefault(key, Row(said, answered, str(values[2]) if group else key))
    if not rows:
        raise HotswapError("the data has no rows.")
    return list(rows.values())


def _split(rows: list[Row], data: Data, seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Put each group where its hash falls, so that a row added later moves no other."""
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        point = int.from_bytes(hashlib.sha256(f"{seed}:{row.group}".encode()).digest()[:8], "big") / 2**64
        held_out = "test" if point < data.test else "validation" if point < data.test + data.validation else "train"
        parts[held_out].append(row)
    limits = {"train": data.train_rows, "validation": data.validation_rows, "test": data.test_rows}
    for name, part in parts.items():
        random.Random(seed).shuffle(part)  # noqa: S311  # reproducible, not secret
        del part[limits[name] or len(part) :]
    return parts["train"], parts["validation"], parts["test"]


def _check_labels(named: tuple[str, ...] | None, train: list[Row], held_out: list[Row]) -> None:
    seen = {row.answer for row in train}
    known = set(named) if named else seen
    if len(seen) < 2:
        raise HotswapError(f"the training rows have one label only ({', '.join(seen)}); a classifier needs two.")
    if len(known) > MAX_LABELS:
        raise HotswapError(
            f"the data has {len(known)} different labels and {MAX_LABELS} can be served; is 'answer' the right column?"
        )
    for row in [*train, *held_out]:
        if row.answer not in known:
            raise HotswapError(f"label '{row.answer}' is not among {sorted(known)}; list it in task.labels or mend it.")
