"""JSON and Parquet as records: what was written, with nothing made of it that was text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.files import BROKEN, Unreadable

Record = Mapping[str, Any]
NO_ROWS = "it has no rows"


class Doubled(dict[str, Any]):
    """An object that has a key twice."""

    twice = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            made = Doubled(made)
            made.twice = key
        made[key] = value
    return made


def _constant(text: str) -> str | None:
    return None if text == "NaN" else text


# Numbers keep the text they have: 1.0, 1e3 and 12345678901234567890.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=str, parse_float=str, parse_constant=_constant)


LIST = "begins a list, and JSON Lines hold an object each; give a file with a list the name .json"


def json_lines(lines: Iterable[str]) -> Iterator[tuple[int, Record | None, str]]:
    """Yield for each line that is not blank its number and its object, or none and what is wrong with it."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found = _DECODER.decode(line.strip())
            except RecursionError:
                yield number, None, "is nested too deeply"
                continue
            except ValueError:
                yield number, None, LIST if line.lstrip().startswith("[") else "is not a JSON object"
                continue
            problem = LIST if isinstance(found, list) else _problem(found)
            yield number, None if problem else found, problem


def _problem(found: Any) -> str:
    if not isinstance(found, dict):
        return "is not a JSON object"
    if isinstance(found, Doubled):
        return f"has the key '{found.twice}' twice"
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return r"has half a character (such as \ud83d alone); write it whole"
    except RecursionError:
        return "is nested too deeply"
    return ""


def json_document(text: str) -> Iterator[tuple[int, Record | None, str]]:
    """Yield the same of a list of objects, of what pandas makes of a table, or of objects line by line.

    Raises :class:`Unreadable` for anything else.
    """
    try:
        found = _DECODER.decode(text.strip())
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            for number, record, problem in json_lines(text.split("\n")):
                yield number, record, f"line {number} {problem}" if problem else ""
            return
        before = text[: len(text) - len(text.lstrip())].count("\n")
        raise Unreadable(f"line {before + error.lineno}: {error.msg}") from None
    for number, row in enumerate(_listed(found), start=1):
        problem = _problem(row)
        yield number, None if problem else row, f"row {number} {problem}" if problem else ""


def _listed(found: Any) -> list[Any]:
    if isinstance(found, dict):
        columns, data = found.get("columns"), found.get("data")
        if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
            return [dict(zip(map(str, columns), row, strict=False)) for row in data]  # orient="split"
        if len(found) > 1 and all(isinstance(column, dict) for column in found.values()):  # orient="columns"
            keys = list(next(iter(found.values())))
            if all(list(column) == keys for column in found.values()):
                return [{name: column[key] for name, column in found.items()} for key in keys]
        inner = [value for value in found.values() if isinstance(value, list)]
        objects = len(inner) == 1 and inner[0] and all(isinstance(row, dict) for row in inner[0])
        if objects and not {*found} & {"messages", "conversations"}:
            return inner[0]  # {"data": [{…}, {…}]}, {"schema": …, "data": […]}
    if not isinstance(found, list):
        raise Unreadable("it is no list of objects; write [{…}, {…}], or one object a line")
    return found


def parquet_columns(path: Path) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Return a Parquet file's columns, and of those that hold numbers of Hugging Face's ClassLabels the names.

    Raises :class:`Unreadable` where it is none, or has no rows.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (ArrowException, *BROKEN) as error:
        raise Unreadable(" ".join(str(error).split())) from error
    if not rows:
        raise Unreadable(NO_ROWS)
    if twice := next((name for name in schema.names if schema.names.count(name) > 1), None):
        raise Unreadable(f"there are two columns '{twice}'; rename one")
    return tuple(schema.names), _class_labels((schema.metadata or {}).get(b"huggingface", b"{}"))


def _class_labels(metadata: bytes) -> dict[str, list[str]]:
    try:
        features = json.loads(metadata)["info"]["features"]
        return {name: f["names"] for name, f in features.items() if f.get("_type") == "ClassLabel" and f.get("names")}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def parquet_records(path: Path) -> Iterator[Record]:
    """Yield a Parquet file's rows, a thousand of them in memory at a time."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    names = parquet_columns(path)[1]
    try:
        with ParquetFile(path) as file:
            short = [f.name for f in file.schema_arrow if str(f.type) in ("float", "halffloat")]
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    for column in short:
                        row[column] = _shortest(row[column])
                    for column, labels in names.items():
                        row[column] = class_label(labels, row[column])
                    yield row
    except (ArrowException, *BROKEN) as error:
        raise Unreadable(" ".join(str(error).split())) from error


def _shortest(value: float | None) -> str | None:
    """32 bits of 0.1 are 0.10000000149011612 as Python reads them."""
    import numpy as np

    return None if value is None or value != value else str(np.float32(value))


def class_label(names: list[str], number: int | None) -> str | None:
    """Return the name of a Hugging Face ClassLabel; -1 stands for none."""
    return names[number] if number is not None and number >= 0 else None


def text_of(value: Any) -> str | None:
    """Return a cell as text: as it was written, or, of what was never text, as JSON and SQL write it.

    Raises :class:`ValueError` for bytes that are no text.
    """
    if value is None or value != value:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode()
    return format(value, "f") if type(value).__name__ == "Decimal" else str(value)
