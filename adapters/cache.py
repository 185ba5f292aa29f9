"""Files fetched from a store, kept until the room is needed."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

# What was fetched a moment ago is being read, by this process or another that shares the cache.
IN_USE_SECONDS = 600.0


def touch(folder: Path) -> None:
    """Say that a version's files are used now. A cache that may only be read keeps no order."""
    with suppress(OSError):
        os.utime(folder)


def trim(folder: Path, most_bytes: int) -> None:
    """Remove the versions in ``folder`` that were used longest ago, until the others have ``most_bytes`` at most."""
    kept = 0
    for used, size, version in sorted(_versions(folder), reverse=True):
        kept += size
        if kept > most_bytes and time.time() - used > IN_USE_SECONDS:
            shutil.rmtree(version, ignore_errors=True)
            kept -= size


def _versions(folder: Path) -> list[tuple[float, int, Path]]:
    versions = []
    with suppress(OSError):
        for version in folder.iterdir():
            with suppress(OSError):
                size = sum(file.stat().st_size for file in version.iterdir())
                versions.append((version.stat().st_mtime, size, version))
    return versions
