"""Live answers of each version beside the held-out rows of its profile: counts by bin, and detectors."""

from __future__ import annotations

import math
from typing import Any

from adapters.manifest import Manifest
from adapters.profile import BOUNDS, FEEDBACK, LABEL, RIGHT, WRONG, bin_of, bins_of, unpacked, values_of
from adapters.tasks import ClassificationTask
from adapters.tasks.base import Prompt
from adapters.tokens import Tokenizer
from service.metrics import OTHER, Metrics
from service.monitoring.detector import Detector
from service.serving.residency import Held

# Answers of one version, on one replica, between two false alarms of any of its detectors.
FALSE_ALARM = 1e6
CLOSED, FREE = ("confidence", "input_tokens", "unknown_tokens"), tuple(name for name in BOUNDS if name != "confidence")


class Drift:
    """Counts what versions answer, from when they are loaded until their series are dropped."""

    def __init__(self, metrics: Metrics, tokenizer: Tokenizer) -> None:
        self._metrics, self._tokenizer = metrics, tokenizer
        self._live: dict[tuple[str, str], _Live] = {}
        metrics.forgetting.append(self._forget)

    def begin(self, manifest: Manifest) -> None:
        """Export a version's reference, and zeros for what has not been counted yet."""
        if self._metrics.unasked(manifest.name, str(manifest.version)) != (OTHER, OTHER):
            self._of(manifest)

    def observe(self, held: Held, text: str, prompt: Prompt, output: dict[str, Any]) -> None:
        """Count one answered text."""
        if live := self._of(held.manifest):
            live.count(values_of(held.manifest.task, text, prompt, output, self._tokenizer, live.known))

    def judged(self, manifest: Manifest, *, right: bool) -> None:
        """Count what somebody said of an answer."""
        if live := self._of(manifest):
            live.count({FEEDBACK: RIGHT if right else WRONG})

    def _of(self, manifest: Manifest) -> _Live | None:
        key = manifest.name, str(manifest.version)
        if self._metrics.version(*key) == (OTHER, OTHER):
            return None
        if key not in self._live:
            self._live[key] = _Live(self._metrics, manifest)
        return self._live[key]

    def _forget(self, name: str, version: str) -> None:
        self._live.pop((name, version), None)


class _Live:
    """One version's counts."""

    def __init__(self, metrics: Metrics, manifest: Manifest) -> None:
        version, profile = (manifest.name, str(manifest.version)), manifest.profile
        self.known = unpacked(profile.known_tokens) if profile else frozenset()
        self._counts: dict[str, dict[str, Any]] = {}
        self._detectors: dict[str, Detector] = {}
        features = _features(manifest)
        for feature, bins in features.items():
            self._counts[feature] = {name: metrics.drift_bin.labels(*version, feature, name) for name in bins}
            shares = profile.shares(feature) if profile else {}
            if (
                profile is None
                or not set(shares) <= set(bins)
                or not math.isclose(sum(shares.values()), 1, abs_tol=0.01)
            ):
                continue  # made before there was the feature, or by who knows whom
            for name in bins:
                metrics.drift_reference_share.labels(*version, feature, name).set(shares.get(name, 0.0))
            detector = Detector(shares, profile.rows, bins, FALSE_ALARM * len(features))
            metrics.drift_evidence.labels(*version, feature).set_function(_reader(detector))
            self._detectors[feature] = detector
        if profile is not None:
            metrics.drift_reference_rows.labels(*version).set(profile.rows)

    def count(self, values: dict[str, str | float]) -> None:
        for feature, value in values.items():
            if counts := self._counts.get(feature):
                name = bin_of(feature, value)
                counts[name].inc()
                if detector := self._detectors.get(feature):
                    detector.observe(name)


def _features(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Return feature → bins of what is counted of a version."""
    task = manifest.task
    features = {name: bins_of(name) for name in (CLOSED if task.closed else FREE)}
    if manifest.profile is None or not manifest.profile.known_tokens:
        del features["unknown_tokens"]
    if isinstance(task, ClassificationTask):
        features[LABEL] = tuple(label.name for label in task.labels)
        features[FEEDBACK] = (RIGHT, WRONG)
    return features


def _reader(detector: Detector) -> Any:
    return lambda: detector.evidence
