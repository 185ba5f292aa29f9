"""What NetworkPolicies let through, as Kubernetes says it: between pods by their labels, port by port."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pod:
    """Who sends or is sent to; ``namespace`` are the labels of its own, none: that of the policies."""

    labels: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    namespace: dict[str, str] | None = None


def pods(templates: list[dict]) -> dict[str, Pod]:
    """Return the pods of templates, by the name of their first container and their labels' component or name."""
    found = {}
    for template in templates:
        labels = template["metadata"]["labels"]
        ports = {p["name"]: p["containerPort"] for c in template["spec"]["containers"] for p in c.get("ports", [])}
        name = labels.get("app.kubernetes.io/component") or labels["app.kubernetes.io/name"].rpartition("-")[2]
        found[name] = Pod(labels, ports)
    return found


def passes(policies: list[dict], sender: Pod, receiver: Pod, port: int, protocol: str = "TCP") -> bool:
    """Whether a packet passes the policies of both."""
    return all(
        _lets(policies, pod, peer, receiver, port, protocol, direction)
        for pod, peer, direction in ((sender, receiver, "Egress"), (receiver, sender, "Ingress"))
    )


def _lets(policies: list[dict], pod: Pod, peer: Pod, receiver: Pod, port: int, protocol: str, direction: str) -> bool:
    specs = [policy["spec"] for policy in policies]
    over = [spec for spec in specs if direction in spec["policyTypes"] and _selects(spec["podSelector"], pod.labels)]
    if pod.namespace is not None or not over:
        return True
    side = {"Egress": "to", "Ingress": "from"}[direction]
    return any(
        (side not in rule or any(_is(each, peer) for each in rule[side]))
        and ("ports" not in rule or any(_at(each, receiver, port, protocol) for each in rule["ports"]))
        for spec in over
        for rule in spec.get(direction.lower(), [])
    )


def _selects(selector: dict, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}, "more than this file knows"
    return selector.get("matchLabels", {}).items() <= labels.items()


def _is(peer: dict, pod: Pod) -> bool:
    if "namespaceSelector" in peer:
        inside = pod.namespace is not None and _selects(peer["namespaceSelector"], pod.namespace)
    else:
        inside = pod.namespace is None
    return inside and _selects(peer.get("podSelector", {}), pod.labels)


def _at(given: dict, receiver: Pod, port: int, protocol: str) -> bool:
    wanted = receiver.ports.get(given["port"]) if isinstance(given["port"], str) else given["port"]
    return given.get("protocol", "TCP") == protocol and wanted == port
