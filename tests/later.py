"""``python -m tests.later MODULE …``: the next version of hotswap, whose manifests and releases have a field more."""

from __future__ import annotations

import runpy
import sys
from typing import Literal

from adapters import manifest, releases

KNOWN = manifest.SCHEMA_VERSION
LATER = KNOWN + 1


class Manifest(manifest.Manifest):
    schema_version: Literal[KNOWN, LATER] = LATER  # type: ignore[valid-type,assignment]
    origin: str = "the later version"


class NewRelease(releases.NewRelease):
    ticket: str = "unknown"


class Release(releases.Release):
    ticket: str = "unknown"


if __name__ == "__main__":
    # Before anybody else imports them.
    manifest.SCHEMA_VERSION = LATER
    for module, changed in ((manifest, Manifest), (releases, NewRelease), (releases, Release)):
        setattr(module, changed.__name__, changed)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
