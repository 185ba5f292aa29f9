"""Rows as they are trained on: which columns there must be, and what of a record makes no row."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapters.chat import Turn
from adapters.errors import HotswapError
from adapters.personal import masked
from adapters.tasks import KINDS
from adapters.tasks.base import SLOT, normalized
from adapters.tasks.shapes import checked_schema
from trainer.chats import LeftOut, NotARow, Shape, shape_of, turns_of
from trainer.origin import Data, Origin
from trainer.recipe import PAIRED
from trainer.records import class_label, text_of
from trainer.sources import fetch_rows
from trainer.tables import FileTable

BEFORE = "before"  # the column with what was said before a text, as a list of turns
YES, NO = ("true", "1", "yes", "good", "up"), ("false", "0", "no", "bad", "down")


@dataclass(frozen=True)
class Row:
    text: str
    answer: str
    group: str
    slices: tuple[tuple[str, str], ...] = ()
    rejected: str = ""  # a worse answer, where the objective compares
    good: bool = True
    before: tuple[Turn, ...] = ()  # what was said before the text, where that is a turn of a conversation
    schema: str = ""  # that the answer keeps to, as JSON, where the row has its own
    number: int = field(default=0, compare=False)  # in its file, from 1 on

    @property
    def asked(self) -> str:
        """All that the answer is an answer to."""
        return "\n".join([*(said for _, said in self.before), self.text])


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

    @property
    def conversational(self) -> bool:
        return KINDS[self.kind].conversational

    def answer(self, origin: Origin) -> str:
        return origin.answer or ("chosen" if self.objective in PAIRED else KINDS[self.kind].answer_key)


def as_compared(text: str) -> str:
    """Return what two texts share that are the same but for case and white space."""
    return " ".join(text.lower().split())


@dataclass
class Table:
    """Records as they were written, and which of their columns matter."""

    records: Iterable[Mapping[str, Any] | None]  # none: a record that counts and is left out
    shape: Columns
    text: str
    answer: str
    group: str | None = None
    rejected: str | None = None
    good: str | None = None
    slices: tuple[str, ...] = ()
    json_schema: str | None = None
    chat: Shape | None = None
    whole: bool = False  # take all turns of a chat for the text
    keep_system: bool = False  # and what the system said, in front of it
    system: str | None = None  # what it said in the rows before
    place: str = ""
    notes: list[str] = field(default_factory=list)  # how the file was read
    left_out: int = 0  # records that annotators set aside, once all were gone through

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that no row may leave empty."""
        return tuple(filter(None, (self.text, self.answer, self.group, self.rejected, self.good)))

    def rows(self) -> Iterator[tuple[int, Row | None, str]]:
        """Yield each record's number from 1 on, with its row, or none and what is wrong with it."""
        self.left_out, self.system = 0, None
        for number, record in enumerate(self.records, start=1):
            if record is None:
                continue
            try:
                plain = self._plain(record)
                cells = self._cells(plain)
                row = self._row(plain, cells, number)
            except LeftOut:
                self.left_out += 1
                continue
            except ValueError as error:
                yield number, None, str(error)
                continue
            if self.good and as_compared(cells[self.good] or "") not in YES + NO:
                yield number, None, f"column '{self.good}' is neither true nor false; it is '{cells[self.good]}'."
            elif row.rejected == row.answer:
                yield number, None, f"columns '{self.answer}' and '{self.rejected}' are the same; remove the row."
            else:
                yield number, row, ""

    def cells(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Return the texts of the columns that matter. Raises :class:`ValueError` with what is wrong with one."""
        return self._cells(self._plain(record))

    def _cells(self, record: Mapping[str, Any]) -> dict[str, str]:
        cells = {column: _cell(column, record.get(column), column == self.answer) for column in self.columns}
        slices = {column: text_of(record.get(column)) or "" for column in self.slices}
        return slices | cells

    def _plain(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.chat is None:
            return record
        try:
            if self.shape.conversational and not self.whole:
                made = self.chat(record, "turns")
                own = {self.text: made["text"], self.answer: made["answer"], BEFORE: made.get(BEFORE, ())}
                return {**record, **own}
            made = self.chat(record, "whole" if self.whole else "one")
        except NotARow as error:
            how = f"; {convert_command(self.place)} makes one text of it" if error.convertible else ""
            raise ValueError(f"{error}{how}.") from None
        system = made.get("system", "")
        if self.keep_system:
            made["text"] = f"{system}\n\n{made['text']}" if system else made["text"]
        elif self.system not in (None, system):
            how = convert_command(self.place, " --keep-system")
            raise ValueError(f"has another system turn than the rows before, which would be left out; {how} keeps it.")
        self.system = system
        return {**record, self.text: made["text"], self.answer: made["answer"]}

    def _row(self, record: Mapping[str, Any], cells: Mapping[str, str], number: int) -> Row:
        row = Row(
            text=self.shape.read(cells[self.text]),
            answer=self.shape.said(cells[self.answer]),
            group=cells[self.group] if self.group else "",
            slices=tuple((column, cells[column]) for column in self.slices),
            rejected=self.shape.said(cells[self.rejected]) if self.rejected else "",
            good=as_compared(cells[self.good]) in YES if self.good else True,
            before=self._before(record),
            schema=self._schema(record),
            number=number,
        )
        return row if row.group else replace(row, group=as_compared(row.asked))

    def _before(self, record: Mapping[str, Any]) -> tuple[Turn, ...]:
        said = record.get(BEFORE) if self.shape.conversational else None
        if not said:
            return ()
        turns = said if isinstance(said, tuple) else turns_of(said)
        if any(SLOT in text for _, text in turns):
            raise ValueError(f"says {SLOT} before the last turn, where it would stand for the text.")
        return tuple((role, self.shape.read(text)) for role, text in turns)

    def _schema(self, record: Mapping[str, Any]) -> str:
        given = record.get(self.json_schema) if self.json_schema else None
        if given in (None, ""):
            return ""
        try:
            schema = json.loads(given) if isinstance(given, str) else given
            if not isinstance(schema, dict):
                raise ValueError("it is no JSON schema: an object is one")
            return json.dumps(checked_schema(schema), sort_keys=True)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"column '{self.json_schema}': {error}.") from None


def convert_command(place: str, more: str = "") -> str:
    return f"`python -m trainer data convert {shlex.quote(place)} --out rows.jsonl{more}`"


def open_table(origin: Origin, columns: Columns, cache: Path) -> Table:
    """Return one origin's records. Raises :class:`HotswapError` where they cannot be read, or lack a column."""
    table = found_table(origin, columns, cache)
    if isinstance(table.records, FileTable) and table.records.problems:
        raise HotswapError(f"{origin.path} could not be read: {table.records.problems[0]}")
    return _with_columns(table, origin)


def found_table(origin: Origin, columns: Columns, cache: Path) -> Table:
    """Return one origin's records before it is known whether they can be read."""
    records: Any
    group = origin.group
    answer = columns.answer(origin)
    if origin.source:
        records, group = fetch_rows(origin.source, cache), "group"
    elif origin.path is not None:
        records = FileTable(origin, (origin.text, answer))
    else:
        records = _from_hub(origin, cache)
    return Table(
        records,
        columns,
        origin.text,
        answer,
        group,
        rejected=origin.rejected if columns.objective in PAIRED else None,
        good=origin.good if columns.objective == "kto" else None,
        slices=origin.slices if isinstance(origin, Data) else (),
        json_schema=origin.json_schema,
        place=str(origin.path or origin.dataset),
    )


def _with_columns(table: Table, origin: Origin) -> Table:
    """Return the table, read as a chat where it has no columns of its own. Raises where it lacks one."""
    records: Any = table.records
    there = set(next(iter(records), None) or ()) if origin.source else set(records.column_names)
    further = (*table.slices, *filter(None, [table.json_schema]))
    missing = [column for column in (*table.columns, *further) if column not in there]
    usual = origin.text == "text" and origin.answer is None and table.shape.objective == "supervised"
    if usual and not origin.source and (found := shape_of(there)):
        name, shape = found
        if {table.text, table.answer} & {*missing} or name == "Prodigy's":
            table.chat = shape
            rest = "the turns before stand before it" if table.shape.conversational else "system turns are left out"
            table.notes.append(f"format: {name} rows; the last turn or label is the answer, {rest}")
            missing = [column for column in missing if column not in (table.text, table.answer)]
    if missing:
        hint = ""
        if (found := shape_of(there)) and not origin.source:
            hint = f" It looks like {found[0]} rows: {convert_command(table.place)} makes text and answer of them."
        raise HotswapError(
            f"the data has no column '{missing[0]}'; it has: {', '.join(sorted(map(str, there)))}.{hint}"
        )
    if isinstance(table.records, FileTable):
        table.notes += table.records.notes
    elif names := getattr(getattr(table.records, "features", {}).get(table.answer), "names", None):
        records, answer = table.records, table.answer
        table.records = ({**record, answer: class_label(names, record[answer])} for record in records if record)
    return table


@dataclass(frozen=True)
class Converted:
    """What ``data convert`` made of a file: rows with one text and one answer, and of the rest why not."""

    rows: list[dict[str, str]]
    problems: list[str]
    notes: list[str]
    left_out: int


def converted(origin: Origin, columns: Columns, cache: Path, keep_system: bool = False) -> Converted:
    """Return text and answer of each record of a chat, a labelling tool or a table, its other plain columns beside
    them. Of several turns all but the last answer are the text. Raises :class:`HotswapError` for a file that has none.
    """
    table = open_table(origin, columns, cache)
    table.whole, table.keep_system = True, keep_system
    usual = Columns(columns.kind).answer(Origin(path=origin.path))
    rows: list[dict[str, str]] = []
    problems: list[str] = []
    numbered = 0
    for numbered, record in enumerate(table.records, start=1):
        if record is None:
            continue
        try:
            cells = table.cells(record)
        except LeftOut:
            continue
        except ValueError as error:
            problems.append(f"row {numbered}: {error}")
            continue
        own = (table.text, table.answer, "text", usual)
        others = {k: v for k, v in record.items() if k not in own and isinstance(v, str) and not k.startswith("_")}
        rows.append({"text": cells[table.text], usual: cells[table.answer], **others})
    notes = [note for note in table.notes if not note.startswith("format")]
    return Converted(rows, problems, notes, numbered - len(rows) - len(problems))


def _cell(column: str, value: Any, answer: bool) -> str:
    if answer and isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]  # what tools write that would take several labels
    if isinstance(value, list | dict) and value:
        several = "a row has one label." if answer else "a row has one text."
        raise ValueError(f"column '{column}' holds several values; {several}")
    try:
        text = text_of(value) if not isinstance(value, list | dict) else None
    except UnicodeDecodeError:
        raise ValueError(f"column '{column}' holds bytes that are not UTF-8; decode them first.") from None
    if text is None or not text.strip():
        raise ValueError(f"column '{column}' is empty; fill it in or remove the row.")
    return text


def _from_hub(origin: Origin, cache: Path) -> Any:
    from datasets import disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it would say is in the error
    assert origin.dataset is not None, "the recipe's validator saw to it"
    name, _, split = origin.dataset.partition(":")
    try:
        return load_dataset(name, split=split or "train", cache_dir=str(cache / "datasets"))
    except (DatasetGenerationError, DatasetNotFoundError, ValueError, ConnectionError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise HotswapError(f"{origin.dataset} could not be read: {reason}") from error
