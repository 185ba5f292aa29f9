"""What is served under an adapter's name: one record of the store's append-only log."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, StrictInt, model_validator

from adapters.validation import Strict

# As many digits as a reference may have.
VersionNumber = Annotated[StrictInt, Field(ge=1, le=999_999_999)]
Percent = Annotated[StrictInt, Field(ge=1, le=100)]


class Share(Strict):
    """A version, and the share of the callers (a canary) or of their texts (a shadow) that it gets."""

    version: VersionNumber
    percent: Percent


class Guard(Strict):
    """When a canary is raised by itself, and when it is taken back; margins are differences of shares.

    The canary's share goes through ``steps`` and then to everyone. At each step it is compared with the stable
    version by sequential confidence intervals (:mod:`service.rollout.evidence`): it is raised when it is shown not
    to be worse by more than the margins, taken back when it is shown to be, and stays where neither is shown yet.
    """

    steps: Annotated[tuple[Percent, ...], Field(min_length=1, max_length=20)] = Field(
        (5, 25, 50), description="percentages; after the last one everyone gets it"
    )
    errors: float = Field(0.02, gt=0, lt=1, description="how many more answers may fail")
    slow: float = Field(0.1, gt=0, lt=1, description="how many more may take longer than `slow_seconds`")
    slow_seconds: float = Field(2.5, gt=0, le=3600, description="what is slow")
    wrong: float = Field(0.05, gt=0, lt=1, description="how many more may be wrong by feedback")
    disagreement: float | None = Field(
        None, gt=0, lt=1, description="how many shadowed texts may be answered differently"
    )
    confidence: float = Field(
        0.95, ge=0.5, lt=1, description="that a good version is not taken back, nor a bad one raised"
    )
    samples: StrictInt = Field(200, ge=1, le=10**9, description="answers of each version before a step is taken")
    seconds: float = Field(60, ge=0, le=10**7, description="least time at each step")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if any(later <= earlier for earlier, later in pairwise(self.steps)):
            raise ValueError("every step is above the one before")
        return self

    def after(self, percent: int) -> int | None:
        """Return the step above ``percent``, or none: then everyone gets the version."""
        return next((step for step in self.steps if step > percent), None)


class Serving(Strict):
    """Which versions are served under a name, and to whom."""

    stable: VersionNumber = Field(description="the version to serve under the bare name")
    canary: Share | None = Field(None, description="a version that a share of the callers gets instead")
    shadow: Share | None = Field(
        None, description="a version that gets copies of a share of the texts; its answers are compared, not returned"
    )
    guard: Guard | None = Field(None, description="raise the canary step by step, and take it back, by itself")

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.guard is not None and self.canary is None:
            raise ValueError("a guard watches a canary; name one")
        if self.guard is not None and self.guard.disagreement is not None and self.shadow is None:
            raise ValueError("disagreement is counted on shadowed texts; name a shadow")
        return self

    @property
    def versions(self) -> tuple[int, ...]:
        """What must be resident for it: the stable version first."""
        others = [share.version for share in (self.canary, self.shadow) if share]
        return tuple(dict.fromkeys((self.stable, *others)))

    @property
    def under_way(self) -> bool:
        """Whether something is being tried that another release would end."""
        return self.canary is not None or self.shadow is not None


class NewRelease(Serving):
    """What is to be served from now on, and who says so (default: the user of this process).

    Held to more than records that are read, so that every old one stays readable. ``step``: a server's guard goes on
    with a promotion that a person began; to a rollback all its steps are one release.
    """

    by: str | None = None
    why: str = ""
    step: bool = False

    @model_validator(mode="after")
    def _different(self) -> Self:
        for what, share in {"canary": self.canary, "shadow": self.shadow}.items():
            if share is not None and share.version == self.stable:
                raise ValueError(f"version {share.version} is the stable one; a {what} is another version")
        return self


class Release(Serving):
    """A record of the log: what is served under an adapter's name since ``at``."""

    by: str
    at: datetime
    why: str = ""
    step: bool = False
    generation: int = Field(default=0, exclude=True, description="the record's number: its file name")

    def again(self, *, by: str | None, why: str) -> NewRelease:
        """Return the same once more, for another log entry."""
        return NewRelease.model_construct(
            stable=self.stable, canary=self.canary, shadow=self.shadow, guard=self.guard, by=by, why=why, step=False
        )
