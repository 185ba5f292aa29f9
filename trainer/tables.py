"""Files as tables: their columns, their records one after the other, what of them cannot be read, and how it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from itertools import islice

from adapters.errors import HotswapError
from trainer.dialect import NULL, Dialect, Lines, Told, choose, header_of, rows
from trainer.files import Unreadable, check_file, content, kind_of, lines, suffix_of, undecodable
from trainer.origin import Origin
from trainer.records import NO_ROWS, Record, json_document, json_lines, parquet_columns, parquet_records

MOST_PROBLEMS = 1000


class FileTable:
    """The records of a local file, read anew whenever they are gone through: nothing is kept on a disk or in memory.

    ``wanted`` are the columns that the recipe names, the answer's last: they tell a separator from a comma in a text.
    Raises :class:`HotswapError` for a file that is no table.
    """

    def __init__(self, origin: Origin, wanted: Iterable[str]) -> None:
        assert origin.path is not None, "the caller saw to it"
        self.path, self.origin, self.wanted = origin.path, origin, tuple(wanted)
        check_file(self.path, origin.encoding)
        self.kind = kind_of(self.path)
        self.notes: list[str] = []

    @cached_property
    def problems(self) -> list[str]:
        """What of the file cannot be read, by the line."""
        return self._looked_through[0]

    @property
    def column_names(self) -> tuple[str, ...]:
        return self._looked_through[1]

    @cached_property
    def _looked_through(self) -> tuple[list[str], tuple[str, ...]]:
        columns: dict[str, None] = {}
        problems: list[str] = []
        try:
            problems += islice(self._look(columns), MOST_PROBLEMS)
        except Unreadable as error:
            if "is not UTF-8" in str(error):
                problems += islice(undecodable(self.path), MOST_PROBLEMS)
            problems += [] if problems else [str(error)]
        return problems, tuple(columns)

    def _look(self, columns: dict[str, None]) -> Iterator[str]:
        """Go through the file once: say what is wrong with it, and gather its columns."""
        if self.kind == "parquet":
            columns.update(dict.fromkeys(parquet_columns(self.path)[0]))
            return
        if self.kind == "delimited":
            yield from self._look_at_cells(columns)
            return
        empty = True
        for _, record, problem in self._objects():
            empty = False
            if problem:
                yield problem
            elif record is not None:
                columns.update(dict.fromkeys(record))
        if empty:
            yield NO_ROWS

    def _look_at_cells(self, columns: dict[str, None]) -> Iterator[str]:
        """More cells than the header has, and columns that cannot be told apart."""
        found = rows(self._lines(), self.dialect)
        _, cells = next(found, (0, []))
        header, repeated, empty = header_of(cells), 0, True
        if suffix_of(self.path) == ".txt" and not {*header} & {*self.wanted}:
            raise HotswapError(
                f"{self.path}: a .txt file is read where its first line names the columns; it has no column "
                f"{' or '.join(repr(name) for name in self.wanted)}."
            )
        if twice := next((name for name in header if name and header.count(name) > 1), None):
            yield f"there are two columns '{twice}'; rename one"
        columns.update(dict.fromkeys(filter(None, header)))
        for number, cells in found:
            empty = False
            cells = cells[self.dialect.row_names :]
            repeated += header_of(cells) == header
            if any(cell.strip() for cell in cells[len(header) :]):
                yield (
                    f"line {number} has {len(cells)} fields and the header {len(header)}; put a text that holds "
                    "the separator into quotation marks, or, where the first field is a row's name, give it a header"
                )
        if empty:
            yield NO_ROWS
        self.notes.append(f"dialect: {self.dialect}; data.separator and data.quoting would change it")
        if repeated:
            self.notes.append(f"{repeated} rows repeat the header and are left out")

    def __iter__(self) -> Iterator[Record | None]:
        """Yield the records; none for a row that repeats the header, which counts all the same.

        Raises :class:`HotswapError` where the file turns out to be damaged.
        """
        try:
            if self.kind == "parquet":
                yield from parquet_records(self.path)
            elif self.kind == "delimited":
                yield from self._records_of_cells()
            else:
                yield from (record for _, record, _ in self._objects() if record is not None)
        except Unreadable as error:
            raise HotswapError(f"{self.path} could not be read: {error}") from error

    def _records_of_cells(self) -> Iterator[Record | None]:
        found = rows(self._lines(), self.dialect)
        header = header_of(next(found, (0, []))[1])
        for _, cells in found:
            cells = cells[self.dialect.row_names :]
            cells += [""] * (len(header) - len(cells))
            if header_of(cells) == header:
                yield None
                continue
            yield {name: None if cell == NULL else cell for name, cell in zip(header, cells, strict=False) if name}

    @cached_property
    def dialect(self) -> Dialect:
        return choose(self._lines, suffix_of(self.path), self.wanted, Told(self.origin.separator, self.origin.quoting))

    @property
    def _lines(self) -> Lines:
        return partial(lines, self.path, self.origin.encoding)

    def _objects(self) -> Iterator[tuple[int, Record | None, str]]:
        if self.kind == "json":
            yield from json_document(content(self.path, self.origin.encoding))
            return
        for number, record, problem in json_lines(self._lines()):
            yield number, record, f"line {number} {problem}" if problem else ""
