"""Rows as people have them: which columns there must be, and what of a file cannot be read."""

from __future__ import annotations

import csv
import glob
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters.errors import HotswapError
from adapters.tasks import KINDS
from adapters.tasks.base import normalized
from trainer.personal import masked
from trainer.recipe import PAIRED, Data, Origin
from trainer.sources import fetch_rows

LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
MAX_LINE_BYTES, MAX_JSON_BYTES = 64 * 2**20, 512 * 2**20
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
class Columns:
    """Which columns there must be, and how texts are brought into shape before any are compared."""

    kind: str
    objective: str = "supervised"
    mask: bool = False
    normalize: bool = False

    def read(self, text: str) -> str:
        """Return a text as it is trained on: normalized and masked, where the recipe says so."""
        return self.said(normalized(text) if self.normalize else text)

    def said(self, answer: str) -> str:
        """Return an answer as it is learnt: masked, where the recipe says so."""
        return masked(answer.strip()) if self.mask else answer.strip()

    def answer(self, origin: Origin) -> str:
        return origin.answer or ("chosen" if self.objective in PAIRED else KINDS[self.kind].answer_key)


def as_compared(text: str) -> str:
    """Return what two texts share that are the same but for case and white space."""
    return " ".join(text.lower().split())


@dataclass(frozen=True)
class Table:
    """Records as they were written, and which of their columns matter."""

    records: Iterable[Mapping[str, Any]]
    shape: Columns
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
        text = self.shape.read(str(record[self.text]))
        return Row(
            text=text,
            answer=self.shape.said(str(record[self.answer])),
            group=str(record[self.group]) if self.group else as_compared(text),
            slices=tuple((c, "" if record[c] is None else str(record[c])) for c in self.slices),
            rejected=self.shape.said(str(record[self.rejected])) if self.rejected else "",
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
        columns,
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
    from pyarrow.parquet import read_metadata

    disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it would say is in the error
    place, path = str(cache / "datasets"), origin.path
    if path is not None:
        check_file(path)
        if (broken := next(broken_lines(path), None)) is not None:
            raise HotswapError(f"{path} could not be read: {broken}")
    try:
        if path is None:
            assert origin.dataset is not None, "the recipe's validator saw to it"
            name, _, split = origin.dataset.partition(":")
            return load_dataset(name, split=split or "train", cache_dir=place)
        loader = LOADERS[path.suffix.lower()]
        if loader == "parquet" and not read_metadata(path).num_rows:
            raise ValueError("it has no rows")
        options = _csv_options(path) if loader == "csv" else {}
        files = glob.escape(str(path))  # or a name such as "rows[1].csv" would be a pattern for others
        return load_dataset(loader, data_files=files, split="train", cache_dir=place, **options)
    except (DatasetGenerationError, DatasetNotFoundError, ValueError, ConnectionError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        if row := re.search(r"EOF inside string starting at row (\d+)", reason):
            reason = f"row {row[1]} opens a quotation mark that is never closed"
        raise HotswapError(f"{path or origin.dataset} could not be read: {reason}") from error


def _csv_options(path: Path) -> dict[str, Any]:
    """Read every cell as it is written: pandas would make 1 of "01", and nothing of "None", "NA" and "null"."""
    from datasets import Features, Value
    from pandas import read_csv

    separator = _separator(path)
    columns = read_csv(path, sep=separator, nrows=0).columns
    features = Features({column: Value("string") for column in columns})
    return {"sep": separator, "features": features, "keep_default_na": False, "na_values": [""]}


def _separator(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def check_file(path: Path) -> None:
    """Raise :class:`HotswapError` for a file whose lines need not be looked at: it is no table, or too large to be."""
    if path.suffix.lower() not in LOADERS:
        raise HotswapError(f"{path}: read are {', '.join(LOADERS)}; rename or convert the file.")
    if not path.is_file():
        raise HotswapError(
            f"data.path {path} {'is a folder; name a file in it' if path.is_dir() else 'does not exist'}."
        )
    if "::" in str(path):
        raise HotswapError(f"data.path {path}: '::' in a path means something else to the reader; rename it.")
    size = path.stat().st_size
    if not size:
        raise HotswapError(f"{path} is empty.")
    if path.suffix.lower() == ".parquet":
        return
    with path.open("rb") as file:
        start = file.read(4096)
    if start.count(0) > len(start) // 4 or start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise HotswapError(f"{path} is not UTF-8 but UTF-16, it seems; save it as UTF-8, or convert it with iconv.")
    if path.suffix.lower() != ".json":
        _check_line_lengths(path)
    elif size > MAX_JSON_BYTES:
        raise HotswapError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB; convert it to .jsonl, one row a line.")


def _check_line_lengths(path: Path) -> None:
    """A line that is a whole file by mistake would be read into memory several times over."""
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


def broken_lines(path: Path) -> Iterator[str]:
    """Say of a text file, which :func:`check_file` has passed, what of it cannot be read, by the line: pyarrow counts
    from zero in each of its blocks, pandas makes something of what it finds."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return
    undecodable = list(_undecodable(path))
    if undecodable:
        yield from undecodable
    elif kind == ".jsonl":
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            yield from _broken_json_lines(file)
    elif kind == ".json":
        yield from _broken_json(path.read_text(encoding="utf-8-sig"))
    else:
        yield from _broken_csv(path)


def _undecodable(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8-sig")
            except UnicodeDecodeError:
                yield f"line {number} is not UTF-8; save the file as UTF-8, or convert it with iconv"


def _broken_json_lines(lines: Iterable[str]) -> Iterator[str]:
    empty = True
    for number, line in enumerate(lines, start=1):
        if line.strip():
            empty = False
            if problem := _problem_of_object(line):
                yield f"line {number} {problem}"
    if empty:
        yield "it has no rows"


def _broken_json(text: str) -> Iterator[str]:
    """A list of objects, or objects line by line."""
    try:
        rows = json.loads(text)
    except RecursionError:
        yield "it is nested too deeply"
        return
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _broken_json_lines(text.split("\n"))
        else:
            yield f"line {error.lineno}: {error.msg}"
        return
    if not isinstance(rows, list):
        yield "it is no list of objects; write [{…}, {…}], or one object a line"
    elif not rows:
        yield "it has no rows"
    else:
        for number, row in enumerate(rows, start=1):
            if problem := _problem_of_object(json.dumps(row)):
                yield f"row {number} {problem}"


def _problem_of_object(text: str) -> str | None:
    try:
        row = json.loads(text, object_pairs_hook=_with_keys_once)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return r"has half a character (such as \ud83d alone); write it whole"
    except _Twice as twice:
        return f"has the key '{twice}' twice"
    except RecursionError:
        return "is nested too deeply"
    except ValueError:
        return "is not a JSON object"
    return None if isinstance(row, dict) else "is not a JSON object"


class _Twice(ValueError):
    pass


def _with_keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _Twice(key)
        made[key] = value
    return made


def _broken_csv(path: Path) -> Iterator[str]:
    """More fields than the header has, which would shift all of them by one, and headers that cannot be told apart."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=_separator(path))
        header = next((row for row in reader if row), [])
        if twice := next((name for name in header if name and header.count(name) > 1), None):
            yield f"there are two columns '{twice}'; rename one"
        empty = True
        for row in reader:
            empty = empty and not row
            if len(row) > len(header):
                yield (
                    f"line {reader.line_num} has {len(row)} fields and the header {len(header)}; put a text that holds "
                    "the separator into quotation marks"
                )
        if empty:
            yield "it has no rows"
