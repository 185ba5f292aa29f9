"""For whoever keeps the service running."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.errors import EngineUnavailable, NotReady

router = APIRouter(tags=["operations"])


@router.get("/livez")
async def livez(request: Request) -> dict[str, str]:
    """503 once the engine has died: restart me."""
    if request.app.state.phase == "serving" and not request.app.state.engine.alive:
        raise EngineUnavailable("The engine has died; the process must be restarted.")
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """503 while starting or stopping, or with a dead engine: send me no traffic."""
    state = request.app.state
    if state.phase != "serving":
        raise NotReady(f"The service is {state.phase}.")
    if not state.engine.alive:
        raise EngineUnavailable("The engine has died.")
    body: dict[str, Any] = {"status": "ready", "model": state.base.name, "store": state.store.place}
    return JSONResponse(body)


def metrics(request: Request) -> Response:
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
