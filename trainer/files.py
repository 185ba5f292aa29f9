"""Files as bytes and lines: which kinds are read, unpacked within bounds, decoded, and the line that is at fault."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from adapters.errors import HotswapError

MAX_LINE_BYTES, MAX_JSON_BYTES = 64 * 2**20, 512 * 2**20
# A packed file may unfold to so much; one that unfolds to more than FREE bytes, to so many times its size.
MAX_UNPACKED_BYTES, FREE_BYTES, MAX_RATIO = 16 * 2**30, 128 * 2**20, 250
KINDS = {
    ".jsonl": "lines",
    ".json": "json",
    ".csv": "delimited",
    ".tsv": "delimited",
    ".parquet": "parquet",
    ".ndjson": "lines",
    ".tab": "delimited",
    ".psv": "delimited",
    ".txt": "delimited",
}
PACKED = (".gz", ".bz2", ".xz", ".zst")
READ = f"{', '.join(KINDS)}, all but .parquet also as {', '.join(PACKED)}"
ADVICE = {
    (".xlsx", ".xls", ".xlsm", ".ods", ".numbers"): "save the sheet as 'CSV UTF-8' and name that file",
    (".zip", ".tar", ".tgz", ".7z"): "unpack it and name the file in it",
    (".arrow", ".feather", ".pkl", ".pickle", ".rds", ".sav", ".dta"): "write it as .parquet or .csv",
    (".sql", ".db", ".sqlite", ".xml", ".html", ".yaml", ".yml"): "write its rows as .jsonl or .csv",
}
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError)


class Unreadable(Exception):
    """What is wrong with a file, and on which line."""


def kind_of(path: Path) -> str:
    """Return ``lines``, ``json``, ``delimited`` or ``parquet``. Raises :class:`HotswapError` for what is not read."""
    suffix = suffix_of(path)
    kind = KINDS.get(suffix)
    if kind is None or (kind == "parquet" and path.suffix.lower() in PACKED):
        advice = next((advice for ends, advice in ADVICE.items() if suffix in ends), "rename or convert the file")
        raise HotswapError(f"{path}: read are {READ}; {advice}.")
    return kind


def suffix_of(path: Path) -> str:
    """Return what says what is in the file: of ``rows.csv.gz``, ``.csv``."""
    packed = path.suffix.lower() in PACKED
    return (Path(path.stem) if packed else path).suffix.lower()


def check_file(path: Path, encoding: str | None = None) -> None:
    """Raise :class:`HotswapError` for a file whose lines need not be looked at: it is no table, or too large to be."""
    kind = kind_of(path)
    if not path.is_file():
        raise HotswapError(
            f"data.path {path} {'is a folder; name a file in it' if path.is_dir() else 'does not exist'}."
        )
    if not path.stat().st_size:
        if suffix_of(path) == ".txt":
            raise HotswapError(f"{path} is empty; read are {READ}.")
        raise HotswapError(f"{path} is empty.")
    if kind == "parquet":
        return
    try:
        with opened(path) as file:
            start = file.read(4096)
            while path.suffix.lower() in PACKED and file.read(2**20):
                pass  # to the end, so that a bomb is known before its rows are looked at one by one
    except (Unreadable, *BROKEN) as error:
        raise HotswapError(f"{path} could not be read: {_reason(error)}") from error
    if encoding is None and _looks_wide(start):
        raise HotswapError(
            f"{path} is not UTF-8 but UTF-16, it seems; save it as UTF-8, or set data.encoding: utf-16 "
            "(utf-16-le or utf-16-be where it has no byte order mark)."
        )
    if kind == "json" and path.stat().st_size > MAX_JSON_BYTES:
        raise HotswapError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB; convert it to .jsonl, one row a line.")


def _looks_wide(start: bytes) -> bool:
    return start.count(0) > len(start) // 4 or start.startswith((b"\xff\xfe", b"\xfe\xff"))


class Bounded(io.RawIOBase):
    """An unpacked stream that ends in :class:`Unreadable` where a small file unfolds to more than any text would."""

    def __init__(self, stream: Any, packed_bytes: int) -> None:
        self.stream, self.seen = stream, 0
        self.limit = min(MAX_UNPACKED_BYTES, max(FREE_BYTES, MAX_RATIO * packed_bytes))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self.stream.read(len(buffer))
        self.seen += len(block)
        if self.seen > self.limit:
            raise Unreadable(f"it unpacks to more than {self.limit >> 20} MiB; unpack it yourself, if it is right")
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self.stream.close()
        super().close()


def opened(path: Path) -> IO[bytes]:
    """Return the file's bytes, unpacked as they are read."""
    how = path.suffix.lower()
    if how not in PACKED:
        return path.open("rb")
    return io.BufferedReader(Bounded(_UNPACKERS[how](path), path.stat().st_size), 2**20)


def _zst(path: Path) -> Any:
    from pyarrow import CompressedInputStream, OSFile

    return CompressedInputStream(OSFile(str(path)), "zstd")


_UNPACKERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zst}


def content(path: Path, encoding: str | None) -> str:
    """Return a whole text file. Raises :class:`Unreadable`."""
    try:
        with opened(path) as file:
            found = file.read(MAX_JSON_BYTES + 1)
    except BROKEN as error:
        raise Unreadable(_reason(error)) from error
    if len(found) > MAX_JSON_BYTES:
        raise Unreadable(f"it is larger than {MAX_JSON_BYTES >> 20} MiB; convert it to .jsonl, one row a line")
    try:
        return found.decode(encoding or "utf-8-sig").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise Unreadable(_undecodable(1 + found.count(b"\n", 0, error.start), encoding)) from None


def lines(path: Path, encoding: str | None) -> Iterator[str]:
    """Yield the lines of a text file with their ends, as csv wants them: ``\\n``, ``\\r\\n`` or a Mac's old ``\\r``.

    Raises :class:`Unreadable` with the number of a line that is too long or cannot be decoded.
    """
    try:
        with opened(path) as file:
            wide = encoding is not None and codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
            found = _wide_lines(file, encoding or "") if wide else _decoded(_narrow_lines(file), encoding)
            yield from found
    except BROKEN as error:
        raise Unreadable(_reason(error)) from error


def undecodable(path: Path) -> Iterator[str]:
    """Say of every line that is not UTF-8 which it is."""
    with opened(path) as file:
        for number, line in enumerate(_narrow_lines(file), start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                yield _undecodable(number, None)


def _narrow_lines(file: IO[bytes]) -> Iterator[bytes]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise Unreadable(f"line {number} is longer than {MAX_LINE_BYTES >> 20} MiB; is each row a line?")
        yield line


def _decoded(found: Iterator[bytes], encoding: str | None) -> Iterator[str]:
    for number, line in enumerate(found, start=1):
        try:
            text = line.decode(encoding or "utf-8")
        except UnicodeDecodeError:
            raise Unreadable(_undecodable(number, encoding)) from None
        yield text.removeprefix("\ufeff") if number == 1 else text


def _wide_lines(file: IO[bytes], encoding: str) -> Iterator[str]:
    text = io.TextIOWrapper(file, encoding=encoding, newline="\n")
    number = 0
    try:
        while line := text.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise Unreadable(f"line {number} is longer than {MAX_LINE_BYTES >> 20} MiB; is each row a line?")
            yield line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError:
        raise Unreadable(_undecodable(number + 1, encoding)) from None


def with_old_ends(found: Iterator[str]) -> Iterator[str]:
    """Divide lines at a ``\\r`` within them too: csv takes it for an end, and wants to be told so."""
    for line in found:
        if "\r" in line[:-2] or line.endswith("\r\r\n"):
            yield from io.StringIO(line, newline="")
        else:
            yield line


def _undecodable(number: int, encoding: str | None) -> str:
    if encoding is not None:
        return f"line {number} is not {encoding}; set data.encoding to what the file was saved as"
    return (
        f"line {number} is not UTF-8; save the file as UTF-8, or convert it with iconv, or set data.encoding to what "
        "it was saved as (Windows in Western Europe and America: cp1252)"
    )


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) if isinstance(error, Unreadable) else f"it is not whole ({error})"
