"""The dialect of a delimited text file: what divides its cells, and what quotation marks and backslashes mean in it."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import dropwhile, islice
from typing import Literal

from trainer.files import MAX_LINE_BYTES, Unreadable, with_old_ends

Quoting = Literal["quoted", "backslash", "escaped", "none"]
NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe", "\x01": "\\x01"}
USUAL = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|", ".txt": "\t"}
QUOTED_BY_CUSTOM = (",", ";")  # of the others, most writers know no quotation marks
NULL = "\\N"  # MySQL's, PostgreSQL's and Hive's
ESCAPES = {"0": "\0", "b": "\b", "n": "\n", "r": "\r", "t": "\t", "Z": "\x1a"}
SAMPLE_LINES, SAMPLE_CHARS = 200, 2**20
SEP_LINE = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)
AS_WRITTEN = "where they are part of the texts, set data.quoting: none"

Numbered = tuple[int, list[str]]  # the line a row begins on, and its cells
Header = list[str]
Lines = Callable[[], Iterator[str]]  # of a file, from its beginning


@dataclass(frozen=True)
class Dialect:
    separator: str
    quoting: Quoting = "quoted"
    blanks: bool = False  # behind separators, before quotation marks
    row_names: bool = False  # R writes one more cell in each row than in the header

    def __str__(self) -> str:
        name = NAMES.get(self.separator, f"'{self.separator}'")
        how = {
            "quoted": "quoted",
            "backslash": "quoted, with backslashes before quotation marks in cells",
            "escaped": "not quoted, with backslash escapes",
            "none": "not quoted",
        }[self.quoting]
        return f"{name}-separated, {how}" + (", with row names, which are left out" if self.row_names else "")


def blank(cells: Iterable[str]) -> bool:
    """Whether a row is none: empty, or nothing but separators (or the ^Z with which DOS ended files)."""
    return not any(cell.strip(" \t\r\n\v\f\x1a\xa0\ufeff") for cell in cells)


def rows(lines: Iterable[str], dialect: Dialect) -> Iterator[Numbered]:
    """Yield all rows that are not blank, the header first. Raises :class:`Unreadable` with the line at fault."""
    lines = with_old_ends(iter(lines))
    found = _escaped(lines, dialect.separator) if dialect.quoting == "escaped" else _by_csv(lines, dialect)
    for number, cells in found:
        if number == 1 and SEP_LINE.fullmatch(dialect.separator.join(cells)):
            continue
        if not blank(cells):
            yield number, cells


def header_of(cells: list[str]) -> Header:
    return [cell.strip().removeprefix("\ufeff").strip() for cell in cells]


def _by_csv(lines: Iterable[str], dialect: Dialect) -> Iterator[Numbered]:
    csv.field_size_limit(MAX_LINE_BYTES)
    quoted = dialect.quoting != "none"
    if dialect.quoting == "backslash":
        lines = (_doubled(line) for line in lines)
    reader = csv.reader(
        lines,
        delimiter=dialect.separator,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        skipinitialspace=dialect.blanks,
        strict=quoted,
    )
    begin = 1
    try:
        for cells in reader:
            yield begin, cells
            begin = reader.line_num + 1
    except csv.Error as error:
        raise Unreadable(_explained(str(error), begin, reader.line_num)) from None


def _explained(reason: str, begin: int, line: int) -> str:
    if "unexpected end" in reason:
        return f"line {begin} opens a quotation mark that is never closed; close it, or {AS_WRITTEN}"
    if "expected after" in reason:
        where = f"line {begin} opens a quotation mark that closes within a cell"
        where += f" of line {line}" if line > begin else ""
        return f"{where}; double the marks that are part of a text, or {AS_WRITTEN}"
    return f"line {begin}: {reason}; is a quotation mark never closed?"


def _doubled(line: str) -> str:
    """Write a quotation mark behind an odd number of backslashes as RFC 4180 does: twice, without them."""
    if "\\" not in line:
        return line
    return re.sub(r'(\\+)"', lambda m: m[1][: len(m[1]) // 2] + '"' * (1 + len(m[1]) % 2), line)


def _escaped(lines: Iterable[str], separator: str) -> Iterator[Numbered]:
    """MySQL's OUTFILE and PostgreSQL's COPY: a backslash stands before what would end a cell or a row."""
    begin, number, open_line = 1, 0, ""
    for line in lines:
        number += 1
        whole = open_line + line
        if _is_open(whole):
            if len(whole) > MAX_LINE_BYTES:
                raise Unreadable(f"line {begin}: the row is longer than {MAX_LINE_BYTES >> 20} MiB")
            open_line = whole
            continue
        yield begin, _unescaped(whole.rstrip("\r\n"), separator)
        begin, open_line = number + 1, ""
    if open_line:
        yield begin, _unescaped(open_line.rstrip("\r\n"), separator)


def _is_open(line: str) -> bool:
    end = line.rstrip("\r\n")
    return len(end) < len(line) and (len(end) - len(end.rstrip("\\"))) % 2 == 1


def _unescaped(line: str, separator: str) -> list[str]:
    if "\\" not in line:
        return line.split(separator)
    cells = [""]
    for part in re.split(f"(\\\\.|{re.escape(separator)})", line, flags=re.DOTALL):
        if part == separator:
            cells.append("")
        elif part == NULL:
            cells[-1] += NULL
        elif len(part) == 2 and part[0] == "\\":
            cells[-1] += ESCAPES.get(part[1], part[1])
        else:
            cells[-1] += part
    return cells


@dataclass
class Shape:
    """What a whole file looks like when it is read in one dialect."""

    header: Header
    fault: str = ""  # it cannot be read so
    wide: int | None = None  # the line of the first row with more filled cells than the header
    rows: int = 0
    narrow: int = 0  # rows with fewer
    begun: int = 0  # cells that begin with a quotation mark
    nulls: int = 0
    padded: int = 0  # cells that begin with blanks and a quotation mark
    odd: int = 0  # backslashes before what needs none
    open_cells: int = 0  # that end in a backslash
    named: bool = True  # each row has one cell more, the first of which counts or names it
    marks_without_need: bool = False
    swallowed: int | None = None  # the line of the first cell that holds what look like rows

    @property
    def fits(self) -> bool:
        return not self.fault and self.wide is None and self.rows > 0


def choose(again: Lines, suffix: str, columns: tuple[str, ...], told: Told) -> Dialect:
    """Return the dialect of a file, whose lines ``again`` gives from the beginning.

    Raises :class:`Unreadable` where it can be read in none. ``columns`` are those that the recipe names: the last one
    is the answer's.
    """
    first = list(_sample(again()))
    separator = told.separator or _separator(first, suffix, columns)
    if told.quoting is not None:
        return _with_row_names(Dialect(separator, told.quoting), again, columns)
    quoted = measured(again(), Dialect(separator), columns)
    if separator not in QUOTED_BY_CUSTOM:
        return _seldom_quoted(separator, quoted, again, columns)
    if quoted.swallowed is not None:
        raise Unreadable(
            f"line {quoted.swallowed} opens a quotation mark that takes in the next lines, and these look like rows; "
            f"close it, or {AS_WRITTEN}, or data.quoting: quoted where it is one text"
        )
    if quoted.fits:
        padded = quoted.padded and measured(again(), Dialect(separator, blanks=True), columns).fits
        return Dialect(separator, blanks=bool(padded))
    if _has_row_names(quoted):
        return Dialect(separator, row_names=True)
    others = [Dialect(separator, blanks=True), Dialect(separator, "backslash")]
    others += [] if quoted.fault else [Dialect(separator, "escaped")]
    for other in others:
        shape = measured(again(), other, columns)
        if shape.fits or _has_row_names(shape):
            return replace(other, row_names=not shape.fits)
    if quoted.fault:
        raise Unreadable(quoted.fault)
    return Dialect(separator)  # whose rows are too wide: that is said by the line


@dataclass(frozen=True)
class Told:
    """What the recipe says of the dialect itself."""

    separator: str | None = None
    quoting: Quoting | None = None


def _sample(lines: Iterable[str]) -> Iterator[str]:
    size = 0
    for line in islice(lines, SAMPLE_LINES):
        yield line
        size += len(line)
        if size > SAMPLE_CHARS:
            return


def _separator(first: list[str], suffix: str, columns: tuple[str, ...]) -> str:
    """Return what divides the header into the columns that the recipe names; where several or none do, what divides
    most rows into as many cells as the header, and then what is usual for such a file."""
    first = list(with_old_ends(iter(first)))
    if first and (told := SEP_LINE.fullmatch(first[0])):
        return told[1]

    def merit(separator: str) -> tuple[float, ...]:
        shapes = []
        for quoting in ("quoted", "none"):
            try:
                found = [cells for _, cells in _leniently(first, separator, quoting == "quoted")]
            except csv.Error:
                continue
            if found:
                header = header_of(found[0])
                alike = sum(len(cells) == len(header) for cells in found[1:]) / max(1, len(found) - 1)
                here = sum(column in header for column in set(columns))
                shapes.append((here, len(header) > 1, round(alike, 2)))
        return max(shapes, default=(0, False, 0.0))

    usual = USUAL.get(suffix, ",")
    return max(NAMES, key=lambda separator: (*merit(separator), separator == usual, -list(NAMES).index(separator)))


def _leniently(first: list[str], separator: str, quoted: bool) -> Iterator[Numbered]:
    csv.field_size_limit(MAX_LINE_BYTES)
    if quoted:
        reader = csv.reader(first, delimiter=separator, skipinitialspace=True)
    else:
        reader = csv.reader(first, delimiter=separator, quoting=csv.QUOTE_NONE)
    return ((reader.line_num, cells) for cells in reader if not blank(cells))


def _seldom_quoted(separator: str, quoted: Shape, again: Lines, columns: tuple[str, ...]) -> Dialect:
    """Of tabs and the like: quotation marks are part of the texts, unless they are put as a writer of quoted cells
    puts them."""
    plain = measured(again(), Dialect(separator, "none"), columns)
    named, whole = _has_row_names(plain), plain.fits or _has_row_names(plain)
    quotable = quoted.fits or _has_row_names(quoted)
    if plain.begun and quotable and not (whole and not plain.narrow and plain.marks_without_need):
        if quoted.swallowed is None:
            return Dialect(separator, row_names=not quoted.fits)
        raise Unreadable(
            f"line {quoted.swallowed} opens a quotation mark that takes in the next lines, and these look like rows; "
            f"{AS_WRITTEN}, or data.quoting: quoted where it is one text"
        )
    cut = plain.open_cells and (plain.wide or plain.narrow)
    if (plain.nulls or cut) and not plain.odd and measured(again(), Dialect(separator, "escaped"), columns).fits:
        return Dialect(separator, "escaped")
    if whole or not quoted.fault:
        return Dialect(separator, "none", row_names=named)
    if plain.wide and measured(again(), Dialect(separator, "backslash"), columns).fits:
        return Dialect(separator, "backslash")
    raise Unreadable(quoted.fault)


def _with_row_names(dialect: Dialect, again: Lines, columns: tuple[str, ...]) -> Dialect:
    return replace(dialect, row_names=_has_row_names(measured(again(), dialect, columns)))


def _has_row_names(shape: Shape) -> bool:
    return not shape.fault and shape.wide is not None and shape.named and shape.rows > 0


def measured(lines: Iterable[str], dialect: Dialect, columns: tuple[str, ...] = ()) -> Shape:
    """Read the whole file in one dialect, and say what that gives."""
    window = _Window(with_old_ends(iter(lines)))
    shape = Shape([])
    marks, evidence = _Marks(), _Evidence(dialect, columns)
    try:
        for number, cells in rows(window, dialect):
            raw = window.taken(dialect.separator)
            if not shape.header:
                shape.header = header_of(cells)
                evidence.header = shape.header
                continue
            _count(shape, number, cells, marks if dialect.quoting == "none" else None)
            if dialect.quoting == "quoted":
                evidence.see(number, cells, raw)
    except Unreadable as error:
        shape.fault = str(error)
    shape.marks_without_need = marks.without_need
    shape.swallowed = evidence.swallowed
    return shape


def _count(shape: Shape, number: int, cells: list[str], marks: _Marks | None) -> None:
    width = len(shape.header)
    shape.rows += 1
    filled = len(cells)
    while filled > width and not cells[filled - 1].strip():
        filled -= 1
    if filled > width and shape.wide is None:
        shape.wide = number
    shape.narrow += len(cells) < width
    shape.named = shape.named and len(cells) == width + 1 and cells[0].strip().strip('"').isdigit()
    shape.padded += any(cell[:1] == " " and cell.lstrip(" ")[:1] == '"' for cell in cells)
    if marks is not None:
        for position, cell in enumerate(cells):
            shape.nulls += cell == NULL
            shape.open_cells += cell.endswith("\\")
            if cell.startswith('"'):
                shape.begun += 1
            if "\\" in cell and cell != NULL:
                shape.odd += bool(re.search(r"\\[^0bnrtZN\\'\"]", cell.replace("\\\\", "")))
            marks.see(position, cell)


class _Marks:
    """How cells that begin with a quotation mark go on, where such marks are read as part of the texts."""

    def __init__(self) -> None:
        self.plain: set[int] = set()  # columns with cells that have no marks around them
        self.around: set[int] = set()  # and with cells that have, and no need of them
        self.unclosed = False

    def see(self, position: int, cell: str) -> None:
        if not cell.startswith('"'):
            if cell:
                self.plain.add(position)
        elif len(cell) < 2 or not cell.endswith('"') or '"' in cell[1:-1].replace('""', ""):
            self.unclosed = True
        elif len(cell) > 2 and '""' not in cell[1:-1]:
            self.around.add(position)

    @property
    def without_need(self) -> bool:
        return self.unclosed or bool(self.plain & self.around)


class _Evidence:
    """Whether a cell of several lines holds rows: each line as wide as the header, with an answer known elsewhere."""

    def __init__(self, dialect: Dialect, columns: tuple[str, ...]) -> None:
        self.separator, self.answer, self.header = dialect.separator, columns[-1] if columns else "", Header()
        self.answers: Counter[str] = Counter()
        self.suspects: list[tuple[int, set[str]]] = []

    def see(self, number: int, cells: list[str], raw: list[str]) -> None:
        if self.answer not in self.header:
            return
        place = self.header.index(self.answer)
        if len(raw) == 1:
            if place < len(cells) and len(self.answers) < 10_000:
                self.answers[cells[place].strip()] += 1
        elif len(self.suspects) < 1_000:
            parts = [line.rstrip("\r\n").split(self.separator) for line in raw]
            if all(len(part) == len(self.header) for part in parts):
                self.suspects.append((number, {part[place].strip() for part in parts}))

    @property
    def swallowed(self) -> int | None:
        return next((n for n, found in self.suspects if all(f and f in self.answers for f in found)), None)


class _Window:
    """Lines as they go by, and those that the last row was made of."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines, self.seen = iter(lines), list[str]()

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.seen.append(line)
            yield line

    def taken(self, separator: str) -> list[str]:
        seen, self.seen = self.seen, []
        return list(dropwhile(lambda line: blank(line.split(separator)), seen))
