"""How much is tried where a test states a property: the same examples every time, within seconds."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

quick = settings(
    max_examples=200, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
