"""Rows: read, checked, freed of duplicates, split by group, fingerprinted."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from adapters.errors import HotswapError
from adapters.tasks.classification import MAX_LABELS
from trainer.config import PAIRED, ClassificationRecipe, Data, Keep, Origin, Recipe
from trainer.duplicates import near_duplicates
from trainer.label_noise import out_of_fold
from trainer.personal import masked
from trainer.sources import fetch_rows

LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
MAX_LINE_BYTES = 64 * 2**20
YES, NO = ("true", "1", "yes", "good", "up"), ("false", "0", "no", "bad", "down")


@dataclass(frozen=True)
class Row:
    text: str
    answer: str
    group: str
    slices: tuple[tuple[str, str], ...] = ()
    rejected: str = ""  # a worse answer, where the objective compares
    good: bool = True


@dataclass(frozen=True)
class Splits:
    train: list[Row]
    validation: list[Row]
    test: list[Row]
    extra_tests: dict[str, list[Row]]
    mixed: dict[str, Splits] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """``sha256:…`` of every row and the split it is in: equal fingerprints, equal data."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test, **self.extra_tests}
        digest = hashlib.sha256("".join(f"{n} {s.fingerprint}" for n, s in self.mixed.items()).encode())
        for name, rows in parts.items():
            digest.update(json.dumps([name, sorted(_as_fingerprinted(row) for row in rows)]).encode())
        return "sha256:" + digest.hexdigest()

    @property
    def tests(self) -> dict[str, list[Row]]:
        """The held-out rows whose answers are right: what was found bad says nothing about what would have been."""
        parts = {"test": self.test, **self.extra_tests}
        return {name: [row for row in rows if row.good] for name, rows in parts.items()}

    def counts(self) -> dict[str, int]:
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            **{name: len(rows) for name, rows in self.extra_tests.items()},
            **{f"of {name}": len(part.train) for name, part in self.mixed.items()},
        }


def _as_fingerprinted(row: Row) -> list[str]:
    return [row.text, row.answer, *([row.rejected] if row.rejected else []), *([] if row.good else ["bad"])]


def load_splits(recipe: Recipe, cache: Path) -> Splits:
    """Return the recipe's rows, split. Raises :class:`HotswapError` where they cannot make an adapter."""
    data, columns = recipe.data, Columns(recipe.task.kind, recipe.objective)
    rows = read_rows(data, columns, cache)
    extra = {name: read_rows(origin, columns, cache) for name, origin in data.extra_tests.items()}
    if data.mask:
        rows = _masked(rows)
        extra = {name: _masked(part) for name, part in extra.items()}
    if data.near_duplicates == "group":
        rows = _grouped(rows)
    train, validation, test = _split(rows, data, recipe.seed)
    if data.keep:
        train = kept(train, data.keep, recipe.task.kind, recipe.seed)
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        if not part:
            raise HotswapError(
                f"the {name} split is empty: {len(rows)} usable rows in {len({r.group for r in rows})} groups are "
                f"too few; add rows or change data.validation and data.test."
            )
    if isinstance(recipe.task, ClassificationRecipe):
        _check_labels(recipe.task.labels, train, [*validation, *test, *(r for part in extra.values() for r in part)])
    if not any(row.good for row in test):
        raise HotswapError("the test split has no good answers to compare with; add rows or change data.test.")
    if recipe.objective == "kto" and len({row.good for row in train}) < 2:
        raise HotswapError(f"objective kto needs good answers and bad ones; '{data.good}' says the same of all.")
    return Splits(train, validation, test, extra, {name: _mixed(recipe, name, cache) for name in recipe.mix})


def _mixed(recipe: Recipe, name: str, cache: Path) -> Splits:
    try:
        return load_splits(recipe.part(name), cache)
    except HotswapError as error:
        raise HotswapError(f"mix.{name}: {error}") from error


def labels_of(task: ClassificationRecipe, train: list[Row]) -> tuple[str, ...]:
    """Return the labels named by the recipe, else those of the training rows, sorted."""
    return task.labels or tuple(sorted({row.answer for row in train}))


def read_rows(origin: Origin, columns: Columns, cache: Path) -> list[Row]:
    """Return the usable, distinct rows of one origin, in its order."""
    return _distinct(open_table(origin, columns, cache))


@dataclass(frozen=True)
class Columns:
    """Which columns there must be: they depend on what is trained to do what."""

    kind: str
    objective: str = "supervised"

    def answer(self, origin: Origin) -> str:
        if origin.answer:
            return origin.answer
        return "chosen" if self.objective in PAIRED else "label" if self.kind == "classification" else "summary"


@dataclass(frozen=True)
class Table:
    """Records as they were written, and which of their columns matter."""

    records: Iterable[Mapping[str, Any]]
    text: str
    answer: str
    group: str | None = None
    rejected: str | None = None
    good: str | None = None
    slices: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that no row may leave empty."""
        return tuple(filter(None, (self.text, self.answer, self.group, self.rejected, self.good)))

    def rows(self) -> Iterator[tuple[int, Row | None, str]]:
        """Yield each record's number from 1 on, with its row, or none and what is wrong with it."""
        for number, record in enumerate(self.records, start=1):
            problem = next(filter(None, (_problem(column, record[column]) for column in self.columns)), "")
            row = None if problem else self._row(record)
            if self.good and row is not None and as_compared(str(record[self.good])) not in YES + NO:
                row, problem = None, f"column '{self.good}' is neither true nor false; it is '{record[self.good]}'."
            if row is not None and row.rejected == row.answer:
                row, problem = None, f"columns '{self.answer}' and '{self.rejected}' are the same; remove the row."
            yield number, row, problem

    def _row(self, record: Mapping[str, Any]) -> Row:
        text = str(record[self.text]).strip()
        return Row(
            text=text,
            answer=str(record[self.answer]).strip(),
            group=str(record[self.group]) if self.group else as_compared(text),
            slices=tuple((c, "" if record[c] is None else str(record[c])) for c in self.slices),
            rejected=str(record[self.rejected]).strip() if self.rejected else "",
            good=as_compared(str(record[self.good])) in YES if self.good else True,
        )


def open_table(origin: Origin, columns: Columns, cache: Path) -> Table:
    """Return one origin's records. Raises :class:`HotswapError` where they cannot be read, or lack a column."""
    table: Any
    if origin.source:
        table = fetch_rows(origin.source, cache)
        group: str | None = "group"
        there = set(table[0]) if table else set()
    else:
        table, group = _load_table(origin, cache), origin.group
        there = set(table.column_names)
    found = Table(
        table,
        origin.text,
        columns.answer(origin),
        group,
        rejected=origin.rejected if columns.objective in PAIRED else None,
        good=origin.good if columns.objective == "kto" else None,
        slices=origin.slices if isinstance(origin, Data) else (),
    )
    for column in (*found.columns, *found.slices):
        if column not in there:
            raise HotswapError(f"the data has no column '{column}'; it has: {', '.join(sorted(there))}.")
    if not origin.source and (names := getattr(table.features[found.answer], "names", None)):
        named = ({**record, found.answer: _label(names, record[found.answer])} for record in table)
        return replace(found, records=named)
    return found


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
    compared = table.rejected or table.good  # then a text has as many rows as answers were judged
    for number, row, problem in table.rows():
        if row is None:
            raise HotswapError(f"row {number}: {problem}")
        said = (row.text, row.answer, row.rejected) if compared else (row.text,)
        rows.setdefault("\0".join(map(as_compared, said)), row)
    if not rows:
        raise HotswapError("the data has no rows.")
    return list(rows.values())


def as_compared(text: str) -> str:
    """Return what two texts share that are the same but for case and white space."""
    return " ".join(text.lower().split())


def _masked(rows: list[Row]) -> list[Row]:
    return [
        replace(row, text=masked(row.text), answer=masked(row.answer), rejected=masked(row.rejected)) for row in rows
    ]


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
    point = _point(group, seed)
    return "test" if point < data.test else "validation" if point < data.test + data.validation else "train"


def _point(group: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") / 2**64


def _stratified(rows: list[Row], data: Data, seed: int) -> dict[str, str]:
    """Return each group's split, so that of the groups of every answer the same shares are in each."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        answers[row.group][row.answer] += 1
    strata: dict[str, list[str]] = defaultdict(list)
    for group in sorted(answers, key=lambda group: _point(group, seed)):
        strata[answers[group].most_common(1)[0][0]].append(group)
    where = {}
    for groups in strata.values():
        tested = round(len(groups) * data.test)
        validated = tested + round(len(groups) * data.validation)
        for rank, group in enumerate(groups):
            where[group] = "test" if rank < tested else "validation" if rank < validated else "train"
    return where


def placed(rows: list[Row], data: Data, seed: int) -> dict[str, str]:
    """Return the split that each group of the rows is in."""
    return _stratified(rows, data, seed) if data.stratified else {r.group: split_of(r.group, data, seed) for r in rows}


def _split(rows: list[Row], data: Data, seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    where = placed(rows, data, seed)
    for row in rows:
        parts[where[row.group]].append(row)
    limits = {"train": data.train_rows, "validation": data.validation_rows, "test": data.test_rows}
    for name, part in parts.items():
        random.Random(seed).shuffle(part)  # noqa: S311  # reproducible, not secret
        del part[limits[name] or len(part) :]
    return parts["train"], parts["validation"], parts["test"]


def kept(rows: list[Row], keep: Keep, kind: str, seed: int) -> list[Row]:
    """Return the share of the training rows that is to be kept, in their order.

    ``hard`` keeps those whose label is least expected by a word model that did not see them, ``easy`` the opposite,
    ``middle`` what is between the two (as in Marion et al. 2023, arXiv:2309.04564). Raises :class:`HotswapError`
    where there is nothing to choose by.
    """
    count = max(1, round(len(rows) * keep.share))
    if keep.by == "random":
        return rows[:count]  # they are shuffled
    scores = None
    if kind == "classification":
        scores = out_of_fold([row.text for row in rows], [row.answer for row in rows], seed)
    if scores is None:
        raise HotswapError(f"data.keep.by: {keep.by} needs labels, at least 100 rows and 5 of each; use random.")
    names = sorted({row.answer for row in rows})
    ranked = sorted(range(len(rows)), key=lambda i: scores[i][names.index(rows[i].answer)])
    first = {"hard": 0, "easy": len(rows) - count, "middle": (len(rows) - count) // 2}[keep.by]
    chosen = set(ranked[first : first + count])
    return [row for position, row in enumerate(rows) if position in chosen]


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
