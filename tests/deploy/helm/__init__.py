"""Helm 4 itself: lints a chart, and installs it into a cluster that keeps nothing."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(os.environ.get("HOTSWAP_CACHE", "~/.cache/hotswap")).expanduser() / "helm"
# What the cluster knows; Helm asks for it.
KINDS = {
    "v1": "ServiceAccount ConfigMap Secret Service PersistentVolumeClaim",
    "apps/v1": "Deployment",
    "batch/v1": "Job CronJob",
    "policy/v1": "PodDisruptionBudget",
    "networking.k8s.io/v1": "NetworkPolicy",
    "rbac.authorization.k8s.io/v1": "Role RoleBinding",
    "autoscaling/v2": "HorizontalPodAutoscaler",
    "keda.sh/v1alpha1": "ScaledObject",
    "gateway.networking.k8s.io/v1": "HTTPRoute",
    "inference.networking.k8s.io/v1": "InferencePool",
    "monitoring.coreos.com/v1": "PodMonitor PrometheusRule",
    "external-secrets.io/v1": "ExternalSecret",
}


class Refused(Exception):
    """What Helm has against it."""


class Helm:
    """A release ``hotswap`` in the namespace ``models``."""

    def __init__(self, configuration: Any, package: Any) -> None:
        self._configuration, self._package = configuration, package

    def lint(self, chart: Path) -> list[dict[str, Any]]:
        """Return what is worse than a hint."""
        result = self._run(self._package.Lint(self._configuration).run(str(chart)))
        assert result["TotalChartsLinted"] == 1
        return [*(result["Errors"] or []), *(each for each in result["Messages"] or [] if each["Severity"] > 1)]

    def pack(self, chart: Path, folder: Path) -> Path:
        return Path(self._run(self._package.Package(self._configuration).run(str(chart), str(folder))))

    def install(self, chart: Path, values: dict[str, Any], name: str = "hotswap") -> tuple[list[dict], str]:
        """Return the resources and the notes. Raises :class:`Refused`."""
        action = self._package.Install(self._configuration).run(name, str(chart), values, wait=False)
        release = self._run(action)
        return [each for each in yaml.safe_load_all(release["manifest"]) if each], release["info"]["notes"]

    def _run(self, action: Any) -> Any:
        try:
            return asyncio.run(action)
        except self._package.HelmError as error:
            raise Refused(str(error)) from None


@contextmanager
def helm() -> Iterator[Helm]:
    package = _package()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Cluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cluster = {"name": "none", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    context = {"name": "none", "context": {"cluster": "none", "user": "none"}}
    users = [{"name": "none", "user": {}}]
    known = {"clusters": [cluster], "contexts": [context], "users": users, "current-context": "none"}
    configuration = yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **known})
    try:
        yield Helm(package.Configuration(namespace="models", kubeconfig=configuration), package)
    finally:
        server.shutdown()
        server.server_close()


@cache
def _package() -> Any:
    if not (FOLDER / "helm_sdkpy").is_dir():
        raise RuntimeError(f"Helm is not in {FOLDER}: make setup brings it")
    sys.path.append(str(FOLDER))
    import helm_sdkpy

    return helm_sdkpy


class _Cluster(BaseHTTPRequestHandler):
    """Kubernetes' API, as far as Helm goes: knows the kinds, has nothing, and takes everything."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: Helm's client would wait for the second

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        groups = [group for group in KINDS if "/" in group]
        if path == "/version":
            self._say(200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"})
        elif path == "/api":
            self._say(200, {"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            versions = [{"groupVersion": group, "version": group.partition("/")[2]} for group in groups]
            listed = [{"name": each["groupVersion"].partition("/")[0], "versions": [each]} for each in versions]
            self._say(200, {"kind": "APIGroupList", "groups": listed})
        elif (group := path.removeprefix("/apis/").removeprefix("/api/")) in KINDS:
            kinds = [{"name": _plural(kind.lower()), "kind": kind, "namespaced": True} for kind in KINDS[group].split()]
            self._say(200, {"kind": "APIResourceList", "groupVersion": group, "resources": kinds})
        elif path.endswith("/secrets"):
            self._say(200, {"kind": "SecretList", "apiVersion": "v1", "items": []})
        else:
            self._say(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(201, self.headers["Content-Type"], body)

    do_PUT = do_PATCH = do_POST

    def _say(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _plural(kind: str) -> str:
    return f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
