"""Which version answers: from a reference to a choice. Pure: nothing is asked, nothing is loaded.

Here is decided who gets a canary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from adapters.catalogue import Catalogue, Entry
from adapters.reference import Reference
from adapters.releases import Release
from service.errors import AdapterNotFound, VersionNotFound, no_such_adapter

Channel = Literal["stable", "canary", "pinned"]
Key = tuple[str, int]


@dataclass(frozen=True)
class Choice:
    """The version that a request gets, and why. ``routed``: by the release alone, not by the caller's own wish."""

    name: str
    version: int
    channel: Channel
    routed: bool = False

    @property
    def key(self) -> Key:
        return self.name, self.version

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Routing:
    """What the store has (``catalogue``), and which release of it is served here: behind it while a version loads."""

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self._served: dict[str, Release] = {}

    @property
    def releases(self) -> Mapping[str, Release]:
        """What is served, by name."""
        return self._served

    def served(self, name: str) -> Release | None:
        return self._served.get(name)

    def follow(self, catalogue: Catalogue, releases: Mapping[str, Release]) -> None:
        """Serve what another process does."""
        self.catalogue, self._served = catalogue, dict(releases)

    def called(self, key: Key) -> list[str]:
        """Return what clients call a version now."""
        (name, version), release = key, self._served.get(key[0])
        names = [f"{name}@{version}"]
        if release is not None and release.stable == version:
            names.append(name)
        if release is not None and release.canary is not None and release.canary.version == version:
            names.append(f"{name}@canary")
        return names

    def learn(self, entry: Entry) -> None:
        """Take in one adapter that was looked at by itself."""
        self.catalogue = self.catalogue.updated([entry])

    def flip(self, name: str, release: Release) -> set[Key]:
        """Serve ``release`` to every request from now on; return the versions that no release names any more."""
        before = self._served.get(name)
        self._served[name] = release
        return {(name, version) for version in set(before.versions if before else ()) - set(release.versions)}

    def is_retired(self, name: str, version: int) -> bool:
        """Whether a version is to be served to nobody. What is still served here, for want of better, is not."""
        release = self._served.get(name)
        return version in self.catalogue.get(name).retired and not (release and version in release.versions)

    def choose(self, reference: Reference, caller: str) -> Choice:
        """Return the version that ``reference`` means for ``caller``.

        Raises :class:`AdapterNotFound`, :class:`VersionNotFound`: as far as the catalogue knows.
        """
        name, entry = reference.name, self.catalogue.get(reference.name)
        if reference.version is not None:
            return self._pinned(entry, reference.version)
        release = self._served.get(name) or entry.release
        if release is None:
            if not entry.versions:
                raise no_such_adapter(name)
            raise AdapterNotFound(
                f"No version of '{name}' is released; ask for {name}@{entry.versions[-1]}, or release it."
            )
        routed = reference.channel is None
        if reference.channel == "canary" and release.canary is None:
            raise VersionNotFound(f"'{name}' has no canary now.")
        if release.canary and (reference.channel == "canary" or (routed and _takes_canary(name, release, caller))):
            return Choice(name, release.canary.version, "canary", routed)
        return Choice(name, release.stable, "stable", routed)

    def _pinned(self, entry: Entry, version: int) -> Choice:
        name = entry.name
        if self.is_retired(name, version):
            raise VersionNotFound(f"'{name}@{version}' was retired; GET /v1/adapters/{name} shows what is served.")
        if version not in entry.versions:
            if not entry.versions:
                raise no_such_adapter(name)
            raise VersionNotFound(f"'{name}' has no version {version}; GET /v1/adapters/{name}.")
        return Choice(name, version, "pinned")


def _takes_canary(name: str, release: Release, caller: str) -> bool:
    """Put the same callers into a canary for as long as it runs, and others into the next one."""
    assert release.canary is not None
    seed = f"{name}@{release.canary.version}:{caller}".encode()
    return int.from_bytes(hashlib.sha256(seed).digest()[:8], "big") % 100 < release.canary.percent
