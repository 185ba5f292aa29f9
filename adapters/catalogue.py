"""The store as it was at one moment: which adapters there are, their versions, and what of them is released.

Immutable: whoever needs a newer one asks the store, which lists everything once and reads only what changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from adapters.releases import Release


@dataclass(frozen=True)
class Entry:
    """One adapter. ``versions`` are committed, oldest first; ``generation`` is the number of the newest release (0:
    none), ``release`` its record; where that cannot be read ``fault`` says why, and ``release`` is the newest before it
    that can. ``retired`` are served to nobody: of a release and a retirement at the same moment the release wins."""

    name: str
    versions: tuple[int, ...] = ()
    generation: int = 0
    release: Release | None = None
    retired: frozenset[int] = frozenset()
    fault: str | None = None


@dataclass(frozen=True)
class Catalogue:
    """Adapters by name, in order; ``odd`` is what lies in the store's folder and can be none."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    odd: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, name: str) -> Entry:
        """Return an adapter; of an unknown one, an entry without versions."""
        return self.entries.get(name) or Entry(name)

    def updated(self, entries: Iterable[Entry]) -> Catalogue:
        """Return this with ``entries`` in the place of those of their names, or beside the others."""
        newer = {entry.name: entry for entry in entries}
        return replace(self, entries=dict(sorted({**self.entries, **newer}.items())))
