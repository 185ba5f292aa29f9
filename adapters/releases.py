"""What is served under an adapter's name: one record of the store's append-only log."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Self

from pydantic import Field, model_validator

from adapters.manifest import Strict

# Who releases the steps of a guarded promotion but the first.
GUARD = "guard"


class Share(Strict):
    """A version, and the share of the callers (a canary) or of their texts (a shadow) that it gets."""

    version: int = Field(ge=1)
    percent: int = Field(ge=1, le=100)


class Guard(Strict):
    """How a canary is raised by itself, and when it is taken back.

    The canary's share goes through ``steps`` and then to everyone. At each step it is compared with the stable
    version by sequential confidence intervals (:mod:`service.rollout.evidence`): it is raised when it is shown not
    to be worse by more than the margins, taken back when it is shown to be, and stays where neither is shown yet.
    Margins are absolute differences of shares: ``errors`` of answers that failed, ``slow`` of answers that took
    longer than ``slow_seconds``, ``wrong`` of feedback; ``disagreement`` is the share of shadowed texts that may be
    answered differently.
    """

    steps: tuple[int, ...] = (5, 25, 50)
    errors: float = Field(default=0.02, gt=0, lt=1)
    slow: float = Field(default=0.1, gt=0, lt=1)
    slow_seconds: float = Field(default=2.5, gt=0, le=3600)
    wrong: float = Field(default=0.05, gt=0, lt=1)
    disagreement: float | None = Field(default=None, gt=0, lt=1)
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    samples: int = Field(default=200, ge=1, le=10**9, description="answers of each version before a step is taken")
    seconds: float = Field(default=60, ge=0, le=10**7, description="least time at each step")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not self.steps or any(not 1 <= step <= 100 for step in self.steps):
            raise ValueError("steps are percentages from 1 to 100")
        if any(later <= earlier for earlier, later in pairwise(self.steps)):
            raise ValueError("every step is above the one before")
        return self

    def after(self, percent: int) -> int | None:
        """Return the step above ``percent``, or none: then everyone gets the version."""
        return next((step for step in self.steps if step > percent), None)


class Release(Strict):
    """What is served under an adapter's name since ``at``."""

    stable: int = Field(ge=1)
    canary: Share | None = None
    shadow: Share | None = None
    guard: Guard | None = None
    by: str
    at: datetime
    why: str = ""
    generation: int = Field(default=0, exclude=True, description="the record's number: its file name")

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


class NewRelease(Release):
    """A record about to be written: held to more than those that are read, so that every old one stays readable."""

    @model_validator(mode="after")
    def _different(self) -> Self:
        for what, share in {"canary": self.canary, "shadow": self.shadow}.items():
            if share is not None and share.version == self.stable:
                raise ValueError(f"version {share.version} is the stable one; a {what} is another version")
        return self
