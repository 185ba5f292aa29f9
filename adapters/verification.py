"""What must be true of a version before it is released or loaded: it is whole, sound, and signed where that counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapters.errors import InvalidAdapter
from adapters.lint import lint
from adapters.manifest import Manifest
from adapters.store import Store


@dataclass(frozen=True)
class Verified:
    """A version's manifest, that manifest's digest, and a local folder with its files."""

    manifest: Manifest
    digest: str
    folder: Path


def verify(
    store: Store,
    name: str,
    version: int,
    cache: Path,
    *,
    shapes: dict[str, tuple[int, ...]] | None = None,
    max_rank: int | None = None,
) -> Verified:
    """Fetch, hash and lint a version; ``shapes`` and ``max_rank`` are the base's and the server's, as for
    :func:`adapters.lint.lint`.

    Raises :class:`InvalidAdapter`, :class:`NotInStore`, :class:`StoreUnavailable`.
    """
    manifest, digest = store.manifest(name, version)
    folder = store.fetch(name, version, cache)
    try:
        lint(folder, shapes=shapes, max_rank=max_rank, stored=True)
    except InvalidAdapter as error:
        raise InvalidAdapter(f"{name}@{version}: {str(error).removeprefix(f'{folder.name}: ')}") from error
    return Verified(manifest, digest, folder)
