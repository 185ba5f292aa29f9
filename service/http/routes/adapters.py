"""What is in the store, loaded or not."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from adapters.errors import InvalidAdapter
from adapters.store import Store
from service.errors import no_such_adapter
from service.http.body import JsonRoute
from service.http.keys import Caller
from service.http.routes.predict import ERRORS
from service.http.schemas import AdapterList, AdapterView, ServerView, VersionView
from service.serving.registry import Registry

router = APIRouter(
    route_class=JsonRoute, tags=["adapters"], responses={status: ERRORS[status] for status in (401, 403, 404, 503)}
)


@router.get("/v1/adapters", response_model_exclude_none=True)
async def list_adapters(request: Request) -> AdapterList:
    """Every adapter: versions, what is released, and what this replica has loaded."""
    state, caller = request.app.state, request.state.caller
    limits = state.engine.limits
    server = ServerView(
        base=state.base.name,
        base_digest=state.base.digest,
        max_lora_rank=limits.max_lora_rank,
        max_model_len=limits.max_model_len,
        max_resident=limits.max_resident,
    )
    return AdapterList(server=server, adapters=await asyncio.to_thread(_all, state.store, state.registry, caller))


@router.get("/v1/adapters/{name}", response_model_exclude_none=True)
async def show_adapter(request: Request, name: str) -> AdapterView:
    """One adapter, with the scores of each version."""
    store, registry = request.app.state.store, request.app.state.registry
    request.state.caller.need_adapter(name)
    view = await asyncio.to_thread(_view, store, registry, name)
    if not view.versions:
        raise no_such_adapter(name)
    return view


def _all(store: Store, registry: Registry, caller: Caller) -> list[AdapterView]:
    return [_view(store, registry, name) for name in store.names() if caller.may_use(name)]


def _view(store: Store, registry: Registry, name: str) -> AdapterView:
    served, versions = registry.served(name), []
    try:
        release = store.released(name)
    except InvalidAdapter:
        release = None
    about: dict[str, Any] = {}
    retired = store.retired(name) - set(release.versions if release else ())
    for version in store.versions(name):
        view: dict[str, Any] = {"version": version, **registry.state(name, version)}
        if version in retired:
            view["state"] = "retired"
        try:
            manifest, digest = store.manifest(name, version)
        except InvalidAdapter as error:
            view |= {"state": "failed", "reason": str(error)}
        else:
            labels = [label.name for label in getattr(manifest.task, "labels", ())] or None
            about = {"description": manifest.description, "task": manifest.task.kind, "labels": labels}
            view |= {"digest": digest, "created_at": manifest.created_at.isoformat(), "rank": manifest.rank}
            view |= {"base": manifest.base.name, "metrics": manifest.metrics}
        versions.append(VersionView(**view))
    return AdapterView(
        name=name,
        stable=release.stable if release else None,
        canary=release.canary.model_dump() if release and release.canary else None,
        shadow=release.shadow.model_dump() if release and release.shadow else None,
        generation=release.generation if release else 0,
        served_generation=served.generation if served else 0,
        versions=versions,
        **about,
    )
