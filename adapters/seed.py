"""A store's first adapters: those that the project ships."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal

from adapters.errors import StoreUnavailable
from adapters.objects import reachable
from adapters.packages import cache_folder, move_into_place
from adapters.reference import is_name
from adapters.signing import TrustedKeys
from adapters.store import Store

STARTER = Path(__file__).parent / "starter"
DEFAULT_STORE = Path(__file__).parents[1] / "var" / "store"
SEEDING = ".seeding-"


def open_store(
    place: str | None = None, *, seed: Literal["default", "empty"] = "default", trusted: TrustedKeys | None = None
) -> Store:
    """Return the store at ``place``, or the project's own (``var/store``), which starts with the shipped adapters.

    ``seed="empty"`` puts them into any other empty folder too, but for one that held adapters before: raises
    :class:`StoreUnavailable`.
    """
    folder = Path(place).expanduser() if place and "://" not in place else None
    default = not place or (folder is not None and folder.resolve() == DEFAULT_STORE)
    target = DEFAULT_STORE if default else folder
    if target is not None and (default or seed == "empty"):
        with reachable(str(target)):
            if not default and _mark(target).exists() and not _holds_adapters(target):
                raise StoreUnavailable(
                    f"the store {target} is empty and held adapters before: is it mounted? "
                    f"To begin anew, remove {_mark(target)}."
                )
            _seed(target)
            if not default:
                with suppress(OSError):
                    _mark(target).parent.mkdir(parents=True, exist_ok=True)
                    _mark(target).write_text(f"{target.resolve()}\n")
    return Store(target or place or DEFAULT_STORE, trusted=trusted)


def of_store(store: str) -> str:
    """Return a name for what belongs to the store at a place, and to no other."""
    whole = store if "://" in store else str(Path(store).expanduser().resolve())
    name = Path(whole).name or "store"
    return f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _seed(folder: Path) -> None:
    """Copy the starter adapters into ``folder`` if it has no adapters, or if a seeding of it was not finished.

    Each adapter is renamed into place when it is complete, and the scratch folder is removed last: what a
    kill leaves half done is finished the next time. It is inside ``folder``, which may be a mounted volume.
    """
    present = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    starters = [path for path in STARTER.iterdir() if path.is_dir()] if STARTER.is_dir() else []
    missing = [starter for starter in starters if starter.name not in present]
    unfinished = any(name.startswith(SEEDING) for name in present)
    if not missing or (any(map(is_name, present)) and not unfinished):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SEEDING, dir=folder) as scratch:
        for starter in missing:
            shutil.copytree(starter, Path(scratch, starter.name))
            move_into_place(Path(scratch, starter.name), folder / starter.name)


def _mark(folder: Path) -> Path:
    """Return the file that says that ``folder`` held adapters. A volume that is not mounted looks like an empty
    folder: what was served would be replaced by the starters."""
    return cache_folder() / "stores" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _holds_adapters(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() and is_name(path.name) for path in folder.iterdir())
