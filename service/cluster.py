"""The service on Ray Serve: each replica is a whole ``python -m service``, and requests for an adapter go where it is.

    HOTSWAP_STORE=s3://… HOTSWAP_API_KEYS=FILE serve run service.cluster:build replicas=2
    serve deploy k8s/ray/serve.yaml

Ray starts, watches, replaces and counts the replicas. Which versions are loaded and served is decided in each of them,
from the store, as everywhere: ``serve.multiplexed`` would load by its own rules beside ours.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

START_SECONDS, STOP_SECONDS, ANSWER_SECONDS = 1200, 60, 310
# A prediction is asked again elsewhere where its replica is gone; a release is not.
AGAIN = re.compile(r"v1/(predict|classify|summarize|chat/completions|completions|responses|decisions)")
# Until Ray knows that a replica is gone, it goes on choosing it.
AGAIN_SECONDS, PAUSE_SECONDS = 20.0, 0.2
NAME = re.compile(rb'"(?:adapter|model)"\s*:\s*"([^"@]{1,64})')
# Of this connection alone, not of the answer.
HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"host"}
BY_RAY = {b"x-request-id"}  # which it has given the request, too
# Texts that wait in a replica's queue: more, and another replica is started.
WAITING = 8.0
WAITING_METRIC = re.compile(r"^vllm:num_requests_waiting (\S+)$", re.MULTILINE)
ingress = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


class Cluster(BaseModel):
    """What ``serve run service.cluster:build`` takes. With ``max_replicas``, as many as keep queues short."""

    model_config = ConfigDict(extra="forbid")

    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    cpus: float = Field(2, ge=0, description="of each replica")
    gpus: float = Field(0, ge=0, description="of each replica")
    ongoing: int = Field(64, ge=1, description="requests that a replica has at once; the next replica gets the others")
    environment: dict[str, str] = Field(default_factory=dict, description="HOTSWAP_… of every replica")


class Gone(Exception):
    """A replica's server does not answer any more, or not yet."""


@serve.deployment(health_check_period_s=2, health_check_timeout_s=10, graceful_shutdown_timeout_s=STOP_SECONDS)
class Replica:
    """A server in a process of its own, as it is tested: with its engine, its supervisor and its way to end."""

    def __init__(self, environment: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            port, metrics_port = one.getsockname()[1], other.getsockname()[1]
        self._id = serve.get_replica_context().replica_tag
        # Not loopback: whoever comes by Ray's proxies would pass for somebody at this machine, who needs no key.
        own = {"HOTSWAP_HOST": "0.0.0.0", "HOTSWAP_PORT": str(port), "HOTSWAP_METRICS_PORT": str(metrics_port)}  # noqa: S104
        command = [sys.executable, "-m", "service"]
        self._server = subprocess.Popen(command, env=os.environ | environment | own, start_new_session=True)
        self._url, self._metrics = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics"
        self._client = httpx.AsyncClient(base_url=self._url, timeout=ANSWER_SECONDS, trust_env=False)
        self._wait()

    def _wait(self) -> None:
        """Return when it can answer. Raises :class:`Gone`."""
        end = time.monotonic() + START_SECONDS
        with httpx.Client(base_url=self._url, timeout=5, trust_env=False) as client:
            while self._server.poll() is None and time.monotonic() < end:
                try:
                    if client.get("/readyz").status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                time.sleep(0.2)
        self._end()
        raise Gone("the server did not start; its log says why")

    async def forward(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> AsyncIterator[tuple[int, list[tuple[bytes, bytes]]] | bytes]:
        """Yield the answer's status and headers, and then its body, as it comes. Raises :class:`Gone`."""
        request = self._client.build_request(method, path, headers=headers, content=body)
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            raise Gone(str(error)) from None
        async with aclosing(response):
            kept = [(name, value) for name, value in response.headers.raw if name.lower() not in HOP | BY_RAY]
            yield response.status_code, [*kept, (b"x-hotswap-replica", self._id.encode())]
            async for piece in response.aiter_raw():
                yield piece

    async def check_health(self) -> None:
        """Raise :class:`Gone` where Ray is to start another one."""
        try:
            if (await self._client.get("/livez", timeout=5)).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        raise Gone("the server is gone, or hangs")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell the autoscaler how many texts wait here."""
        found = WAITING_METRIC.search((await self._client.get(self._metrics, timeout=5)).text)
        if found is None:
            raise Gone("the server shows no metrics")
        return {"waiting": float(found[1])}

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        """End the server as an orchestrator does, and with it what it started."""
        if self._server.poll() is None:
            self._server.send_signal(signal.SIGTERM)
            try:
                self._server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self._server.pid, signal.SIGKILL)


# Ray copies the Ingress, and what it names, when it is defined: this has to be there before.
def adapter_in(body: bytes) -> str | None:
    """Return the name that chooses a replica; of one that is none, its beginning will do."""
    found = NAME.search(body)
    return found[1].decode(errors="replace") if found else None


@serve.deployment(num_replicas=1, max_ongoing_requests=1000)
@serve.ingress(ingress)
class Ingress:
    """Reads an adapter's name from a request and passes it on; by consistent hashing it goes to the same replica."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas.options(stream=True, method_name="forward")

    @ingress.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
    async def pass_on(self, request: Request, path: str) -> Response:
        body = await request.body()
        name = adapter_in(body) if AGAIN.fullmatch(path) else None
        where = quote(f"/{path}") + (f"?{request.url.query}" if request.url.query else "")
        headers = [(key, value) for key, value in request.headers.raw if key.lower() not in HOP]
        handle = self._replicas.options(session_id=name) if name else self._replicas
        until = time.monotonic() + (AGAIN_SECONDS if AGAIN.fullmatch(path) else 0)
        while True:
            pieces = handle.remote(request.method, where, headers, body)
            try:
                status, told = await anext(aiter(pieces))
            except (Gone, RayError):
                if time.monotonic() > until:
                    break
                handle = self._replicas  # the one that has the adapter is gone: any will do
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            response = StreamingResponse(pieces, status)
            response.raw_headers = told
            return response
        problem = {"title": "Service Unavailable", "status": 503, "code": "not_ready", "type": "about:blank"}
        return JSONResponse(problem, 503, {"Retry-After": "5"}, media_type="application/problem+json")


def by_queue(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Return how many replicas there are to be: so many that ``WAITING`` texts wait in each, fewer when none do."""
    waiting = sum((context.aggregated_metrics or {}).get("waiting", {}).values())
    now = context.current_num_replicas
    wanted = max(now, math.ceil(waiting / WAITING))
    if waiting == 0 and context.total_num_requests < now - 1:
        wanted = now - 1
    return max(context.capacity_adjusted_min_replicas, min(wanted, context.capacity_adjusted_max_replicas)), {}


def build(given: Cluster) -> serve.Application:
    """Return the application that ``serve run`` and ``serve deploy`` start."""
    router = RequestRouterConfig(
        request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",
        request_router_kwargs={"num_fallback_replicas": 2},
    )
    scaling: dict[str, Any] = {"num_replicas": given.replicas}
    if given.max_replicas is not None:
        policy = AutoscalingPolicy(policy_function=by_queue)
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=given.replicas, max_replicas=given.max_replicas, policy=policy
            )
        }
    replica = Replica.options(  # type: ignore[attr-defined]
        max_ongoing_requests=given.ongoing,
        request_router_config=router,
        ray_actor_options={"num_cpus": given.cpus, "num_gpus": given.gpus},
        **scaling,
    )
    return Ingress.bind(  # type: ignore[attr-defined]
        replica.bind(given.environment)
    )
