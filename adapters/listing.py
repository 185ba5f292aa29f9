"""What lies in a store, by its paths alone: which versions are committed, how many releases there are, what is retired.

A bucket is listed flat, in one go. A folder is walked as far as a store goes and no further: a link that leads in a
circle, a name in another encoding or a folder that may not be read is skipped, or concerns its own adapter alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore

from adapters.errors import StoreUnavailable
from adapters.reference import NAME, is_name

# No more digits than a reference may have.
NUMBER = re.compile(r"[1-9][0-9]{0,8}")
RECORD = re.compile(r"([1-9][0-9]{0,8})\.json")
MANIFEST = "manifest.json"
_PATH = re.compile(
    rf"(?P<name>{NAME})/(?P<kind>versions|releases|retired)/(?P<number>[1-9][0-9]{{0,8}})(?P<rest>/.+|\.json)"
)


@dataclass
class Listed:
    """One adapter's numbers. ``claimed`` are versions that were begun, ``versions`` those that are committed."""

    claimed: set[int] = field(default_factory=set)
    versions: set[int] = field(default_factory=set)
    releases: set[int] = field(default_factory=set)
    retired: set[int] = field(default_factory=set)
    fault: str | None = None

    def take(self, kind: str, number: int, rest: str) -> None:
        """Count one path: ``kind/number`` and what follows it."""
        if kind == "versions" and rest != ".json":
            self.claimed.add(number)
            if rest == f"/{MANIFEST}":
                self.versions.add(number)
        elif kind != "versions" and rest == ".json":
            getattr(self, kind).add(number)


def list_adapter(objects: Any, folder: Path | None, name: str) -> Listed:
    """Return what there is of one adapter; nothing for an unknown one."""
    if folder is None:
        return _flat(objects, f"{name}/").get(name, Listed())
    listed = _walk(folder / name)
    if listed.fault:
        raise StoreUnavailable(f"the store {folder} cannot be used: {listed.fault}")
    return listed


def list_all(objects: Any, folder: Path | None) -> tuple[dict[str, Listed], list[str]]:
    """Return what there is by adapter's name, and what lies at the top of a folder and can be no adapter."""
    if folder is None:
        return _flat(objects, None), []
    if not folder.is_dir():
        raise StoreUnavailable(f"the store {folder} is gone: there is no such folder.")
    listed, odd = {}, []
    for entry in _entries(folder):
        if is_name(entry.name):
            if entry.is_dir():
                listed[entry.name] = _walk(Path(entry.path))
        elif not entry.name.startswith("."):
            odd.append(ascii(entry.name))
    return listed, odd


def _flat(objects: Any, prefix: str | None) -> dict[str, Listed]:
    listed: dict[str, Listed] = {}
    for chunk in obstore.list(objects, prefix=prefix, chunk_size=1000):
        for entry in chunk:
            if match := _PATH.fullmatch(entry["path"]):
                listed.setdefault(match["name"], Listed()).take(match["kind"], int(match["number"]), match["rest"])
    return listed


def _walk(folder: Path) -> Listed:
    listed = Listed()
    try:
        for entry in _entries(folder / "versions"):
            if NUMBER.fullmatch(entry.name):
                listed.claimed.add(int(entry.name))
                if os.path.isfile(f"{entry.path}/{MANIFEST}"):
                    listed.versions.add(int(entry.name))
        for kind, numbers in (("releases", listed.releases), ("retired", listed.retired)):
            for entry in _entries(folder / kind):
                if (match := RECORD.fullmatch(entry.name)) and entry.is_file():
                    numbers.add(int(match[1]))
    except OSError as error:
        listed.fault = f"{folder.name}: {error.strerror or 'its folder cannot be read'}"
    return listed


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
