"""Write docs/metrics.md from the declarations in service/metrics.py.   python -m scripts.metrics"""

from __future__ import annotations

from pathlib import Path

from prometheus_client import Histogram
from prometheus_client.metrics import MetricWrapperBase

from service.metrics import ADAPTERS_CAP, CAP, Metrics

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
# A metric ends with its unit; all else is a number of things.
UNITS = {"seconds", "tokens", "share", "rows"}
HEAD = f"""# Metrics

What `GET /metrics` shows, made from [service/metrics.py](../service/metrics.py) by `make docs`. A counter ends in
`_total`; a histogram has `_bucket`, `_sum` and `_count`. Beyond {CAP} adapter versions in use, or labels of one, the
rest is `other`; adapters beyond {ADAPTERS_CAP:,} have no generations here. A version's series go when it is retired.

| metric | type | labels | unit | meaning |
|---|---|---|---|---|
"""


def declared(metrics: Metrics) -> dict[str, MetricWrapperBase]:
    """Return the metrics by the attribute that holds them."""
    return {name: metric for name, metric in vars(metrics).items() if isinstance(metric, MetricWrapperBase)}


def page() -> str:
    return HEAD + "".join(sorted(row(metric) for metric in declared(Metrics()).values()))


def row(metric: MetricWrapperBase) -> str:
    (family,) = metric.describe()
    name = family.name + ("_total" if family.type == "counter" else "")
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)
    unit = family.name.rpartition("_")[2]
    meaning = family.documentation
    if isinstance(metric, Histogram):
        meaning += f" Buckets: {', '.join(f'{bound:g}' for bound in metric._upper_bounds[:-1])}."
    return f"| `{name}` | {family.type} | {labels} | {unit if unit in UNITS else ''} | {meaning} |\n"


if __name__ == "__main__":
    PAGE.write_text(page())
