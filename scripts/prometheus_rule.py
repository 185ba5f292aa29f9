"""Write the rules of k8s/monitoring as the Prometheus Operator takes them.   python -m scripts.prometheus_rule"""

from __future__ import annotations

from pathlib import Path

K8S = Path(__file__).parents[1] / "k8s"
RULES, RESOURCE = K8S / "monitoring" / "rules", K8S / "components" / "operator" / "rules.yaml"
HEAD = """# Written by make docs, from k8s/monitoring/rules.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: hotswap
spec:
  groups:
"""


def resource() -> str:
    """Return all rule files as one resource, with what their comments say."""
    groups = [path.read_text().partition("\ngroups:\n")[2] for path in sorted(RULES.glob("*.yaml"))]
    lines = "".join(groups).splitlines()
    return HEAD + "\n".join(f"  {line}" if line else "" for line in lines) + "\n"


if __name__ == "__main__":
    RESOURCE.write_text(resource())
