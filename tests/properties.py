"""How much is tried where a test states a property: the same examples every time, within seconds."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

# Without Phase.shrink a failure is seen at once, and its example is longer than need be: add it to read one.
quick = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
