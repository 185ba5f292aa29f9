"""Do answers still come as the held-out rows did? A sequential test that may be looked at after every answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

# The reference is a sample, and no traffic is distributed just as it is. Distributions are taken for the reference's
# own that are nearer to it (Kullback-Leibler divergence, nats) than this, and what its size leaves open besides.
FLOOR = 0.02
REFERENCE_CONFIDENCE = 0.999
# What the alternative is learnt from: about the last so many answers, and so many imagined ones of the reference.
MEMORY, PRIOR = 250, 50
# How often the alternative is learnt anew; in between an observation costs one multiplication.
EVERY = 16
UNSEEN = 0.01
STEPS = 8  # of Newton's method
FORGETS = 0.5 ** (1 / 100)  # with every answer that is as it should be again
MOST = 10.0


class Detector:
    """An e-detector of the Shiryaev-Roberts kind over one categorical feature (Shin, Ramdas, Rinaldo 2022,
    arXiv:2203.03532).

    While the answers are the reference's, ``evidence`` first reaches 1 after ``false_alarm`` answers or more on
    average, however often it is looked at. Every answer x multiplies the evidence by q(x) / p(x): q is the recent
    distribution, of earlier answers only, and p the distribution that is nearest to q of all that may be the
    reference's, which makes the ratio an e-value for each of them (reverse information projection; Larsson, Ramdas,
    Ruf 2024, arXiv:2402.18810). While q is itself one of these, nothing is bet, and old evidence fades.
    """

    def __init__(self, shares: Mapping[str, float], rows: int, bins: Sequence[str], false_alarm: float) -> None:
        """``shares`` of ``rows`` held-out rows; ``bins`` are all that an answer may be in."""
        self._at = {name: place for place, name in enumerate(bins)}
        found = np.array([shares.get(name, 0.0) for name in bins])
        self._reference = found / found.sum()
        self._radius = FLOOR + _quantile(max(1, int((found > 0).sum()) - 1)) / (2 * rows)
        self._prior = PRIOR * ((1 - UNSEEN) * self._reference + UNSEEN / len(bins))
        self._recent, self._new = np.zeros(len(bins)), np.zeros(len(bins))
        self._ratios: list[float] | None = None
        self._limit, self._value, self._left = false_alarm, 0.0, EVERY

    @property
    def evidence(self) -> float:
        """On a logarithmic scale, 0 for none; 1 and more is an alarm."""
        return math.log1p(self._value) / math.log1p(self._limit)

    def observe(self, name: str) -> None:
        """Take in one answer, by the bin it is in."""
        place = self._at[name]
        if self._ratios is None:
            self._value *= FORGETS
        else:
            self._value = min((self._value + 1) * self._ratios[place], MOST * self._limit)
        self._new[place] += 1
        self._left -= 1
        if self._left == 0:
            self._learn()

    def _learn(self) -> None:
        self._recent = self._recent * (1 - 1 / MEMORY) ** EVERY + self._new
        self._new, self._left = np.zeros_like(self._new), EVERY
        live = self._recent + self._prior
        live /= live.sum()
        near = _nearest(self._reference, live, self._radius)
        self._ratios = None if near is None else (live / near).tolist()


def _nearest(reference: np.ndarray, live: np.ndarray, radius: float) -> np.ndarray | None:
    """Return the distribution p with KL(reference, p) <= radius that is nearest to ``live``, in KL(live, p); none where
    that is ``live``.

    The Lagrangian's gradient vanishes on the line between the two: p = (1 - t) live + t reference. Along it the
    distance falls and is convex, so that Newton's steps from t = 0 come nearer and never pass.
    """
    held = reference > 0
    ours, theirs, t = reference[held], live[held], 0.0
    for _ in range(STEPS):
        mixed = theirs + t * (ours - theirs)
        over = float(ours @ np.log(ours / mixed)) - radius
        if over <= 0:
            break
        t += over / float(ours @ ((ours - theirs) / mixed))
    return None if t == 0 else (1 - t) * live + t * reference


def _quantile(degrees: int) -> float:
    """Return the quantile of chi-squared at REFERENCE_CONFIDENCE: twice the rows times KL(sample, truth) is below it
    (Wilks; the quantile after Wilson and Hilferty 1931)."""
    part = 2 / (9 * degrees)
    return degrees * (1 - part + NormalDist().inv_cdf(REFERENCE_CONFIDENCE) * math.sqrt(part)) ** 3
