"""A store copied to another place: a backup, and the way back.

Everything is copied in the order in which it was written: a version's files before its manifest, versions before the
releases that name them. So the copy is a whole store at every moment, and one that was interrupted is gone on with.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from adapters.errors import HotswapError, InvalidAdapter
from adapters.listing import MANIFEST, Listed
from adapters.signing import SIGNATURE
from adapters.store import CONFIG, Store, release_path, retired_path, version_path


@dataclass
class Copied:
    """How many records were missing in the target, and what could not be copied."""

    versions: int = 0
    retirements: int = 0
    releases: int = 0
    problems: list[str] = field(default_factory=list)


def mirror(source: Store, target: Store) -> Copied:
    """Copy what ``target`` lacks; pass over, and say, what is damaged or not signed by a key that ``source`` trusts.

    Raises :class:`HotswapError` where the target has something else in a place: it is no copy of this store. It is left
    as it is. So for a target in the store itself, which would go with it.
    """
    if _is_in(source, target):
        raise HotswapError(
            f"{target.place} is in the store {source.place}, and would be lost with it: name another place."
        )
    copied = Copied()
    # Listed once, before anything is read: a release in it names versions in it.
    wanted, there = source.listed(), target.listed()
    if there and not wanted:
        raise HotswapError(f"the store {source.place} is empty, and {target.place} is not: is it mounted?")
    for name in sorted(wanted.keys() & there.keys()):
        for path in _common(name, wanted[name], there[name]):
            if source.read(path) != target.read(path):
                raise HotswapError(
                    f"{target.place} has another {path}: it is no copy of this store; name an empty place."
                )
    for name, listed in sorted(wanted.items()):
        if listed.fault:
            copied.problems.append(listed.fault)
            continue
        has = there.get(name, Listed())
        for version in sorted(listed.claimed - has.versions):
            try:
                copied.versions += _copy_version(source, target, name, version, listed)
            except InvalidAdapter as error:
                copied.problems.append(str(error))
        for version in sorted(listed.retired - has.retired):
            copied.retirements += _copy(source, target, retired_path(name, version))
        for generation in sorted(listed.releases - has.releases):
            copied.releases += _copy(source, target, release_path(name, generation))
    target.beat()
    return copied


def _is_in(source: Store, target: Store) -> bool:
    inside, outside = (str(store.folder or store.place).rstrip("/") + "/" for store in (target, source))
    return inside.startswith(outside)


def _common(name: str, one: Listed, other: Listed) -> list[str]:
    """Return what two stores both have of an adapter, and must be the same."""
    return [
        *(version_path(name, version, CONFIG) for version in one.claimed & other.claimed),
        *(version_path(name, version, MANIFEST) for version in one.versions & other.versions),
        *(release_path(name, generation) for generation in one.releases & other.releases),
    ]


def _copy_version(source: Store, target: Store, name: str, version: int, listed: Listed) -> bool:
    """Copy a version's files, its manifest last; of a number that was only claimed, the claim."""
    if version not in listed.versions:
        _copy(source, target, version_path(name, version, CONFIG))
        return False
    manifest, _ = source.manifest(name, version)
    with tempfile.TemporaryDirectory() as scratch:
        folder = source.fetch(name, version, Path(scratch))
        _copy(source, target, version_path(name, version, CONFIG))
        for file in manifest.files:
            if file != CONFIG:
                target.write(version_path(name, version, file), folder / file)
    _copy(source, target, version_path(name, version, SIGNATURE))
    return _copy(source, target, version_path(name, version, MANIFEST))


def _copy(source: Store, target: Store, path: str) -> bool:
    """Copy one record; return whether the target has it by this call. What the source does not have is none."""
    content = source.read(path)
    return content is not None and target.create(path, content)
