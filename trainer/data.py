"""Rows: read, checked, freed of duplicates, split by group, fingerprinted."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from adapters.errors import HotswapError
from adapters.tasks.classification import MAX_LABELS
from trainer.config import ClassificationRecipe, Data, Origin, Recipe
from trainer.duplicates import near_duplicates
from trainer.personal import masked
from trainer.sources import fetch_rows

LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
MAX_LINE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Row:
    text: str
    answer: str
    group: str
    slices: tuple[tuple[str, str], ...] = ()


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
    if data.mask:
        rows = _masked(rows)
        extra = {name: _masked(part) for name, part in extra.items()}
    if data.near_duplicates == "group":
        rows = _grouped(rows)
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
    return _distinct(open_table(origin, kind, cache))


@dataclass(frozen=True)
class Table:
    """Records as they were written, and which of their columns matter."""

    records: Iterable[Mapping[str, Any]]
    text: str
    answer: str
    group: str | None
    slices: tuple[str, ...] = ()

    def values(self) -> Iterator[tuple[int, tuple[Any, ...], str | None]]:
        """Yield each record's number from 1 on, its text, answer, group if there is one, and slices; and what is wrong
        with it. A slice may be empty."""
        columns = (self.text, self.answer, self.group) if self.group else (self.text, self.answer)
        for number, record in enumerate(self.records, start=1):
            values = tuple(record[column] for column in (*columns, *self.slices))
            problems = (_problem(column, value) for column, value in zip(columns, values, strict=False))
            yield number, values, next(filter(None, problems), None)


def open_table(origin: Origin, kind: str, cache: Path) -> Table:
    """Return one origin's records. Raises :class:`HotswapError` where they cannot be read, or lack a column."""
    table: Any
    answer = origin.answer or ("label" if kind == "classification" else "summary")
    if origin.source:
        table = fetch_rows(origin.source, cache)
        group: str | None = "group"
        columns = set(table[0]) if table else set()
    else:
        table, group = _load_table(origin, cache), origin.group
        columns = set(table.column_names)
    for column in (origin.text, answer, *([group] if group else []), *origin.slices):
        if column not in columns:
            raise HotswapError(f"the data has no column '{column}'; it has: {', '.join(sorted(columns))}.")
    if not origin.source and (names := getattr(table.features[answer], "names", None)):
        table = ({**record, answer: _label(names, record[answer])} for record in table)
    return Table(table, origin.text, answer, group, origin.slices)


def _problem(column: str, value: Any) -> str | None:
    if value is None or not str(value).strip() or value != value:
        return f"column '{column}' is empty; fill it in or remove the row."
    if isinstance(value, list | dict):
        return f"column '{column}' holds several values; a row has one text."
    return None


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
        _check_line_lengths(origin.path, loader)
        options = _csv_options(origin.path) if loader == "csv" else {}
        place = str(cache / "datasets")
        return load_dataset(loader, data_files=str(origin.path), split="train", cache_dir=place, **options)
    except (DatasetGenerationError, DatasetNotFoundError, ValueError, ConnectionError) as error:
        reason = next(broken_lines(origin.path), None) or " ".join(str(error.__cause__ or error).split())
        raise HotswapError(f"{origin.path or origin.dataset} could not be read: {reason}") from error


def _csv_options(path: Path) -> dict[str, Any]:
    """Read every cell as it is written: pandas would make 1 of "01", and nothing of "None", "NA" and "null"."""
    from datasets import Features, Value
    from pandas import read_csv

    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    columns = read_csv(path, sep=separator, nrows=0).columns
    features = Features({column: Value("string") for column in columns})
    return {"sep": separator, "features": features, "keep_default_na": False, "na_values": [""]}


def broken_lines(path: Path | None) -> Iterator[str]:
    """Say which lines of a text file cannot be read: pyarrow counts from zero, in each of its blocks."""
    if path is None or LOADERS.get(path.suffix.lower()) not in ("json", "csv"):
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                content = line.decode("utf-8-sig")
            except UnicodeDecodeError:
                yield f"line {number} is not UTF-8; save the file as UTF-8, or convert it with iconv"
                continue
            if path.suffix.lower() == ".jsonl" and content.strip():
                try:
                    broken = not isinstance(json.loads(content), dict)
                except ValueError:
                    broken = True
                if broken:
                    yield f"line {number} is not a JSON object"


def _check_line_lengths(path: Path, loader: str) -> None:
    """A line that is a whole file by mistake would be read into memory several times over."""
    if path.suffix.lower() == ".json" or loader == "parquet":
        return
    number, length = 1, 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            for end in block.splitlines(keepends=True):
                length += len(end)
                if length > MAX_LINE_BYTES:
                    raise HotswapError(
                        f"{path}: line {number} is longer than {MAX_LINE_BYTES >> 20} MiB; is each row a line?"
                    )
                if end.endswith((b"\n", b"\r")):
                    number, length = number + 1, 0


def _distinct(table: Table) -> list[Row]:
    rows: dict[str, Row] = {}
    for number, values, problem in table.values():
        if problem:
            raise HotswapError(f"row {number}: {problem}")
        said, answered = (str(value).strip() for value in values[:2])
        key = as_compared(said)
        about = zip(table.slices, values[len(values) - len(table.slices) :], strict=True)
        slices = tuple((column, "" if value is None else str(value)) for column, value in about)
        rows.setdefault(key, Row(said, answered, str(values[2]) if table.group else key, slices))
    if not rows:
        raise HotswapError("the data has no rows.")
    return list(rows.values())


def as_compared(text: str) -> str:
    """Return what two texts share that are the same but for case and white space."""
    return " ".join(text.lower().split())


def _masked(rows: list[Row]) -> list[Row]:
    return [replace(row, text=masked(row.text), answer=masked(row.answer)) for row in rows]


def _grouped(rows: list[Row]) -> list[Row]:
    """Make one group of all groups that share texts which are nearly the same."""
    into = {row.group: row.group for row in rows}

    def root(group: str) -> str:
        while into[group] != group:
            group = into[group]
        return group

    for first, *others in near_duplicates([row.text for row in rows]):
        for other in others:
            into[root(rows[other].group)] = root(rows[first].group)
    return [replace(row, group=root(row.group)) for row in rows]


def split_of(group: str, data: Data, seed: int) -> Literal["train", "validation", "test"]:
    """Return where a group's hash falls, so that a row added later moves no other."""
    point = int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") / 2**64
    return "test" if point < data.test else "validation" if point < data.test + data.validation else "train"


def _split(rows: list[Row], data: Data, seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        parts[split_of(row.group, data, seed)].append(row)
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
