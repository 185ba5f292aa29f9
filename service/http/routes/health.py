"""For whoever keeps the service running."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client.exposition import choose_encoder

from service.errors import EngineUnavailable, NotReady, Unauthenticated
from service.http.keys import STRANGER

router = APIRouter(tags=["operations"])


@router.head("/livez", include_in_schema=False)
@router.get("/livez")
async def livez(request: Request) -> dict[str, str]:
    """503 once the engine has died too often: restart me."""
    if request.app.state.supervisor.phase == "failed":
        raise EngineUnavailable("The engine cannot be kept running; the process ends.")
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """503 while starting, stopping, or starting the engine again: send me no traffic."""
    state = request.app.state
    if state.supervisor.phase != "serving":
        raise NotReady(f"The service is {state.supervisor.phase}.")
    if not state.engine.alive:
        raise EngineUnavailable("The engine has died.")
    if not _may_know(request):
        return JSONResponse({"status": "ready"})
    # Without its store a replica serves what it has: taking it out of rotation would help nobody.
    reachable = state.reconciler.store_reachable
    body = {"status": "ready", "model": state.base.name, "store": state.store.place, "store_reachable": reachable}
    return JSONResponse(body)


def _may_know(request: Request) -> bool:
    """Whether who asks is one of ours; a probe has no key."""
    try:
        return request.app.state.keys.caller(request.headers) is not STRANGER
    except Unauthenticated:
        return False


async def metrics(request: Request) -> Response:
    """Where keys are set, for a key with the scope ``metrics``: labels name every tenant's adapters."""
    keys = request.app.state.keys
    if keys.required:
        keys.caller(request.headers).need("metrics")
    # With OpenMetrics come exemplars; what a scraper asks for and we cannot (protobuf) is answered with text.
    encode, kind = choose_encoder(request.headers.get("accept", ""))
    # In a thread: thousands of series take their time.
    return Response(await asyncio.to_thread(encode, await request.app.state.scrape()), media_type=kind)
