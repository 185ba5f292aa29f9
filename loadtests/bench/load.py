"""So many requests in flight over HTTP, until all are answered. Answers are read when the clock has stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import httpx

from loadtests.bench.process import Failed

TIMEOUT_SECONDS = 600.0


def drive(url: str, calls: Sequence[tuple[str, dict]], in_flight: int) -> tuple[float, list[float], list[Any]]:
    """Post ``calls``; return the seconds for all, for each, and the answers. Raises :class:`Failed`."""
    return asyncio.run(_drive(url, calls, in_flight))


async def _drive(url: str, calls: Sequence[tuple[str, dict]], in_flight: int) -> tuple[float, list[float], list[Any]]:
    latencies = [0.0] * len(calls)
    contents = [b""] * len(calls)
    waiting = iter(range(len(calls)))
    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS, limits=limits, trust_env=False) as client:
        requests = [client.build_request("POST", path, json=body) for path, body in calls]

        async def work() -> None:
            for number in waiting:
                began = time.perf_counter()
                response = await client.send(requests[number])
                latencies[number] = time.perf_counter() - began
                if response.status_code != 200:
                    raise Failed(f"status {response.status_code}: {response.text[:300]}")
                contents[number] = response.content

        began = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(in_flight, len(calls))):
                    group.create_task(work())
        except* (httpx.HTTPError, Failed) as failed:
            raise Failed(f"{failed.exceptions[0]!r}"[:300]) from None
        seconds = time.perf_counter() - began
    return (
        seconds,
        latencies,
        [httpx.Response(200, content=content).json() if content else None for content in contents],
    )
