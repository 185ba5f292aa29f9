"""What every request passes before a route sees it, from the outside in."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from service.http import docs, problems
from service.http.access import Access
from service.http.direct import Direct
from service.http.keys import Keys
from service.http.middleware import BodyLimit, RequestId
from service.http.quota import Quota
from service.http.routes import predict
from service.metrics import Metrics
from service.settings import Settings

# What a form puts around a file; how long one may take to arrive.
FORM_BYTES, UPLOAD_SECONDS = 16_384, 600.0


def install(app: FastAPI, settings: Settings, keys: Keys, quota: Quota, metrics: Metrics) -> None:
    """Put the edge around ``app``: an id, the origins that may call, who asks, the size of bodies, errors' form."""
    app.include_router(docs.router)
    problems.install(app)
    # What is added last is outermost.
    app.add_middleware(Direct, addresses=predict.ADDRESSES)
    uploads = {"/v1/files": (settings.max_file_bytes + FORM_BYTES, UPLOAD_SECONDS)} if settings.jobs != "off" else {}
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, seconds=settings.body_seconds, uploads=uploads)
    app.add_middleware(Access, keys=keys, quota=quota, origins=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=[
                *("X-Request-Id", "Retry-After", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
            ],
        )
    app.add_middleware(RequestId, metrics=metrics)
