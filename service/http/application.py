"""The routes, and what is around them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import Depends, FastAPI, Request, Security
from fastapi.security import HTTPBearer

from service.http import edge
from service.http.keys import Scope
from service.http.routes import adapters, feedback, files, fine_tuning, health, kserve, openai, predict, releases
from service.parts import Parts
from service.settings import Settings


def assembled(
    settings: Settings,
    parts: Parts,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    **state: Any,
) -> FastAPI:
    """Return what answers HTTP with ``parts``; the routes find all that is named in ``state`` there."""
    keys = state["keys"]

    def scope(needed: Scope) -> list[Any]:
        async def authenticate(request: Request) -> None:
            if not hasattr(request.state, "caller"):  # Access has seen to it, but for what is open to all
                request.state.caller = keys.caller(request.headers)
            request.state.caller.need(needed)

        # The document asks for a key where the service does.
        return [Depends(authenticate), *([Security(HTTPBearer(auto_error=False))] if settings.api_keys else [])]

    app = FastAPI(
        title="hotswap",
        version="0.1.0",
        description="One frozen base model, many LoRA adapters: each request names the one it wants.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would echo the caller's Host header
    )
    app.state.answering, app.state.deciding, app.state.conversing = parts.answering, parts.deciding, parts.conversing
    app.state.feedback = parts.feedback
    for name, value in state.items():
        setattr(app.state, name, value)
    app.include_router(predict.router, dependencies=scope("predict"))
    app.include_router(openai.router, dependencies=scope("predict"))
    app.include_router(files.router, dependencies=scope("train"))
    app.include_router(fine_tuning.router, dependencies=scope("train"))
    app.include_router(kserve.router, dependencies=scope("predict"))
    app.include_router(kserve.health)
    app.include_router(feedback.router, dependencies=scope("predict"))
    app.include_router(adapters.router, dependencies=scope("predict"))
    app.include_router(releases.router, dependencies=scope("admin"))
    app.include_router(health.router)
    if settings.metrics_port is None:
        app.add_api_route("/metrics", health.metrics, tags=["operations"], include_in_schema=False)
    edge.install(app, settings, keys, state["quota"], state["metrics"])
    return app
