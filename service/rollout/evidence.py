"""Is the canary worse than the stable version? Counts, and a sequential test that may be looked at at any time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from adapters.releases import Guard, Release

# Intervals that hold together: three shares for each of two versions, and the disagreement.
INTERVALS = 7


@dataclass
class Counts:
    """What is known of one version's answers since a release."""

    answers: int = 0
    failed: int = 0
    slow: int = 0
    judged: int = 0
    wrong: int = 0
    compared: int = 0
    differing: int = 0


@dataclass
class Tally:
    """Counts by version for the adapters that are watched, each since its release."""

    _watched: dict[str, tuple[float, defaultdict[int, Counts]]] = field(default_factory=dict)

    def watch(self, name: str, release: Release) -> None:
        """Count anew, for ``release``."""
        if release.guard is not None:
            self._watched[name] = release.guard.slow_seconds, defaultdict(Counts)

    def forget(self, name: str) -> None:
        self._watched.pop(name, None)

    def of(self, name: str, version: int) -> Counts:
        _, counts = self._watched.get(name, (0.0, defaultdict(Counts)))
        return counts[version]

    def answered(self, name: str, version: int, seconds: float, *, failed: bool) -> None:
        """Count a request that a channel, not a version number, brought to this version."""
        if name in self._watched:
            limit, counts = self._watched[name]
            counts[version].answers += 1
            counts[version].failed += failed
            counts[version].slow += seconds > limit

    def judged(self, name: str, version: int, *, right: bool) -> None:
        """Count feedback."""
        if name in self._watched:
            counts = self.of(name, version)
            counts.judged += 1
            counts.wrong += not right

    def compared(self, name: str, version: int, *, agree: bool) -> None:
        """Count a shadowed text."""
        if name in self._watched:
            counts = self.of(name, version)
            counts.compared += 1
            counts.differing += not agree


@dataclass(frozen=True)
class Verdict:
    """``worse`` is true, false, or none where neither is shown yet; ``why`` says what it rests on."""

    worse: bool | None
    why: str


def verdict(guard: Guard, stable: Counts, canary: Counts) -> Verdict:
    """Compare the canary with the stable version, over the same time.

    Each share has a confidence sequence, so that looking again and again does not make a false alarm more likely than
    ``1 - guard.confidence`` (:func:`interval`; Bonferroni over all of them).
    """
    alpha = (1 - guard.confidence) / INTERVALS
    slow = f"took over {guard.slow_seconds:g} s"
    compared = [
        ("failed", guard.errors, (canary.failed, canary.answers), (stable.failed, stable.answers)),
        (slow, guard.slow, (canary.slow, canary.answers), (stable.slow, stable.answers)),
        ("were wrong by feedback", guard.wrong, (canary.wrong, canary.judged), (stable.wrong, stable.judged)),
    ]
    shown = []
    for what, margin, ours, theirs in compared:
        (low, high), (least, most) = interval(*ours, alpha), interval(*theirs, alpha)
        if low - most > margin:
            return Verdict(True, f"{_share(ours)} of its answers {what}, of the stable version's {_share(theirs)}")
        shown.append(high - least < margin)
    if guard.disagreement is not None:
        low, high = interval(canary.differing, canary.compared, alpha)
        if low > guard.disagreement:
            differing = _share((canary.differing, canary.compared))
            return Verdict(True, f"{differing} of the shadowed texts were answered differently")
        shown.append(high < guard.disagreement)
    # Feedback comes late and to few: it can take a canary back, but is not waited for.
    enough = min(stable.answers, canary.answers) >= guard.samples and all(shown[:2] + shown[3:])
    return Verdict(
        False if enough else None, f"{canary.answers} answers, not worse than {stable.answers} of the stable"
    )


def interval(hits: int, trials: int, alpha: float) -> tuple[float, float]:
    """Return a confidence sequence for a share at ``trials``: with probability ``1 - alpha`` the truth is in it at
    every number of trials at once.

    The values p at which the mixture of likelihood ratios B(hits + 1, misses + 1) / (p^hits (1 - p)^misses), a
    nonnegative martingale under p, has stayed below 1 / alpha (Ville's inequality; Robbins 1970, "Statistical Methods
    Related to the Law of the Iterated Logarithm"; Howard et al. 2021, "Time-uniform, nonparametric, nonasymptotic
    confidence sequences").
    """
    misses = trials - hits
    mixture = math.lgamma(hits + 1) + math.lgamma(misses + 1) - math.lgamma(trials + 2)

    def excluded(p: float) -> bool:
        likelihood = (hits * math.log(p) if hits else 0.0) + (misses * math.log1p(-p) if misses else 0.0)
        return mixture - likelihood >= -math.log(alpha)

    share = hits / trials if trials else 0.5
    low = _edge(excluded, 0.0, share) if hits else 0.0
    high = _edge(excluded, 1.0, share) if misses else 1.0
    return low, high


def _edge(excluded: Callable[[float], bool], outside: float, inside: float) -> float:
    for _ in range(40):
        middle = (outside + inside) / 2
        if excluded(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _share(counted: tuple[int, int]) -> str:
    hits, trials = counted
    return f"{hits} of {trials}"
