"""What was published and released, when, and by what right a version may answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from adapters.releases import Release
from loadtests.swap_under_load.fingerprints import TOLERANCE, Variant, distance
from loadtests.traffic import Outcome

Way = Literal["http", "store"]


@dataclass
class Version:
    variant: Variant
    digest: str


@dataclass
class Served:
    """A release and its times, in seconds of the event loop's clock: before it was asked for, when the record was
    there, and when this replica was first seen to serve it (or a later one)."""

    release: Release
    kind: str
    way: Way
    asked: float
    created: float
    seen: float = math.inf

    def gives(self, version: int, channel: str) -> bool:
        canary = self.release.canary.version if self.release.canary else None
        return (version, channel) in ((self.release.stable, "stable"), (canary, "canary"))


@dataclass
class Adapter:
    """``canary`` tells whether ``name@canary`` may be asked for; ``asking`` counts the requests that did."""

    name: str
    variants: list[Variant]
    versions: dict[int, Version] = field(default_factory=dict)
    releases: list[Served] = field(default_factory=list)
    retired: set[int] = field(default_factory=set)
    canary: bool = False
    asking: int = 0

    def saw(self, generation: int, now: float) -> None:
        """Take note that the replica was serving ``generation`` at ``now``."""
        for served in self.releases:
            if served.release.generation <= generation:
                served.seen = min(served.seen, now)

    def could_serve(self, version: int, channel: str, began: float, ended: float) -> bool:
        """Whether some moment between sending and answer allowed for this version.

        A release may be served from when it was asked for until its successor was seen: an exact bound, without
        anything added for propagation.
        """
        gone = [later.seen for later in self.releases[1:]] + [math.inf]
        return any(
            served.gives(version, channel) and served.asked <= ended and began <= until
            for served, until in zip(self.releases, gone, strict=True)
        )


def fault(outcome: Outcome, adapter: Adapter) -> str | None:
    """Return what is wrong with an answer, if anything."""
    used, (output,) = outcome.body["adapter"], outcome.body["outputs"]
    name, version, channel = used["name"], used["version"], used["channel"]
    which = outcome.reference.partition("@")[2]
    known = adapter.versions.get(version)
    if name != adapter.name or known is None:
        return f"{outcome.reference} was answered by {name}@{version}"
    if which.isdecimal():
        if (version, channel) != (int(which), "pinned"):
            return f"{outcome.reference} was answered by version {version}, {channel}"
    elif which and channel != which:
        return f"{outcome.reference} was answered by the {channel} channel"
    elif not adapter.could_serve(version, channel, outcome.began, outcome.ended):
        return f"{outcome.reference} was answered by version {version}, {channel}, which was not released then"
    if used["digest"] != known.digest:
        return f"{name}@{version} came with another version's digest"
    if (apart := distance(output["scores"], known.variant.scores[outcome.text])) > TOLERANCE:
        return f"{name}@{version} has other scores than its weights, by {apart:.4f}, for text {outcome.text}"
    return None
