"""What is in the store, loaded or not."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.datastructures import State

from adapters.catalogue import Entry
from adapters.errors import InvalidAdapter, NotInStore, StoreUnavailable
from adapters.manifest import Manifest
from adapters.store import Store
from service.errors import no_such_adapter
from service.http.body import JsonRoute
from service.http.routes.predict import ERRORS
from service.http.schemas import AdapterList, AdapterView, ServerView, VersionView
from service.serving.residency import Actual

# A manifest and its digest, or why there is none.
Described = tuple[Manifest, str] | Exception

router = APIRouter(
    route_class=JsonRoute, tags=["adapters"], responses={status: ERRORS[status] for status in (401, 403, 404, 422, 503)}
)


@router.get("/v1/adapters", response_model=None, responses={200: {"model": AdapterList}})
async def list_adapters(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000, description="adapters in a page")] = 100,
    after: Annotated[str, Query(max_length=100, description="`next` of the page before")] = "",
) -> Response:
    """The adapters by name, a page at a time: versions, what is released, and what this replica has loaded."""
    state, caller = request.app.state, request.state.caller
    limits = state.engine.limits
    server = ServerView(
        base=state.base.name,
        base_digest=state.base.digest,
        max_lora_rank=limits.max_lora_rank,
        max_model_len=limits.max_model_len,
        max_resident=limits.max_resident,
    )
    entries = [entry for entry in state.routing.catalogue if entry.name > after and caller.may_use(entry.name)]
    page = [entry for entry in entries[:limit] if entry.versions]
    following = entries[limit - 1].name if len(entries) > limit else None
    listed = AdapterList(server=server, adapters=await _views(state, page), next=following)
    # Written once: FastAPI would validate a page of megabytes again, and everybody would wait.
    return Response(listed.model_dump_json(exclude_none=True), media_type="application/json")


@router.get("/v1/adapters/{name}", response_model_exclude_none=True)
async def show_adapter(request: Request, name: str) -> AdapterView:
    """One adapter, with the scores of each version."""
    (view,) = await _views(request.app.state, [await current(request, name)])
    return view


async def current(request: Request, name: str) -> Entry:
    """Return an adapter that the caller may know of, as of now; as it was, where the store cannot be reached.

    Raises :class:`AdapterNotFound`, :class:`StoreUnavailable` where nothing is known of it.
    """
    state = request.app.state
    request.state.caller.need_adapter(name)
    try:
        await state.reconciler.refresh(name)  # what was just added or released is shown
    except StoreUnavailable:
        if not state.routing.catalogue.get(name).versions:
            raise
    entry: Entry = state.routing.catalogue.get(name)
    if not entry.versions:
        raise no_such_adapter(name)
    return entry


async def _views(state: State, entries: list[Entry]) -> list[AdapterView]:
    """Read the manifests that are not known yet, then show all as they are at one moment."""
    manifests = await state.offload("manifests", _manifests, state.store, entries)
    actual = await state.actual(manifests)
    return [_view(actual[entry.name], entry, manifests[entry.name]) for entry in entries]


def _manifests(store: Store, entries: list[Entry]) -> dict[str, dict[int, Described]]:
    described: dict[str, dict[int, Described]] = {entry.name: {} for entry in entries}
    store.read_manifests((entry.name, version) for entry in entries for version in entry.versions)
    for entry in entries:
        for version in entry.versions:
            try:
                described[entry.name][version] = store.manifest(entry.name, version)
            except (InvalidAdapter, NotInStore) as error:
                described[entry.name][version] = error
    return described


def _view(actual: Actual, entry: Entry, manifests: dict[int, Described]) -> AdapterView:
    release, versions = entry.release, []
    about: dict[str, Any] = {}
    for version, described in manifests.items():
        view: dict[str, Any] = {"version": version, **actual.state(version)}
        if version in entry.retired:
            view["state"] = "retired"
        if isinstance(described, Exception):
            view |= {"state": "failed", "reason": str(described)}
        else:
            manifest, digest = described
            labels = [label.name for label in getattr(manifest.task, "labels", ())] or None
            about = {"description": manifest.description, "task": manifest.task.kind, "labels": labels}
            view |= {"digest": digest, "created_at": manifest.created_at.isoformat(), "rank": manifest.rank}
            view |= {"base": manifest.base.name, "metrics": manifest.metrics}
        versions.append(VersionView(**view))
    return AdapterView(
        name=entry.name,
        stable=release.stable if release else None,
        canary=release.canary if release else None,
        shadow=release.shadow if release else None,
        generation=entry.generation,
        served_generation=actual.generation,
        versions=versions,
        **about,
    )
