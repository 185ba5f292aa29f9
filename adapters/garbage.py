"""What lies in a store and can never be named again, so that its files may go.

A version that was retired is served to nobody, whether it is asked for by number, by a release or by a rollback; one
whose upload was killed never was a version. All else somebody may name: a release, a pin, a replica that is behind. A
number is never used again, so its place stays claimed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from adapters.errors import InvalidAdapter
from adapters.listing import MANIFEST, Listed
from adapters.store import CONFIG, Store, Stored, retired_path


@dataclass(frozen=True)
class Garbage:
    """A version whose files may go, and why; ``files`` are without the one that claims its number."""

    name: str
    version: int
    why: str
    files: tuple[Stored, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)


def find(store: Store, older_than: timedelta) -> Iterator[Garbage]:
    """Yield what was retired, or begun and never finished, longer ago than ``older_than``.

    Let that be longer than a replica may be behind: one that has not seen the retirement serves the version still.
    """
    before = datetime.now(UTC) - older_than
    for name, listed in sorted(store.listed().items()):
        if listed.fault:
            continue
        for version in sorted(_retired(store, name, listed)):
            if _said_at(store, name, version) < before and (files := _removable(store, name, version)):
                yield Garbage(name, version, "retired", files)
        for version in sorted(listed.claimed - listed.versions - listed.retired):
            files = _removable(store, name, version)
            if files and max(file.modified for file in store.files(name, version)) < before:
                yield Garbage(name, version, "never finished", files)


def collect(store: Store, garbage: Garbage) -> None:
    """Remove the files, the manifest first: what is left of it is no version then, however this ends."""
    for file in sorted(garbage.files, key=lambda file: not file.path.endswith(f"/{MANIFEST}")):
        store.remove(file.path)


def _retired(store: Store, name: str, listed: Listed) -> set[int]:
    """Return the retired versions; of a release and a retirement at the same moment the release wins."""
    try:
        release = store.released(name)
    except InvalidAdapter:  # it is damaged, and may name any
        return set()
    return listed.retired - set(release.versions if release else ())


def _said_at(store: Store, name: str, version: int) -> datetime:
    """Return when a version was retired; now, where its record does not say."""
    try:
        at = datetime.fromisoformat(json.loads(store.read(retired_path(name, version)) or b"")["at"])
    except (ValueError, KeyError, TypeError):
        return datetime.now(UTC)
    return at if at.tzinfo else datetime.now(UTC)


def _removable(store: Store, name: str, version: int) -> tuple[Stored, ...]:
    return tuple(file for file in store.files(name, version) if not file.path.endswith(f"/{CONFIG}"))
