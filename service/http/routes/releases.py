"""What is served under a name changes here, on every replica: a release is a record in the store."""

from __future__ import annotations

import logging
from contextlib import suppress

from fastapi import APIRouter, Request
from pydantic import ValidationError

from adapters.errors import NotInStore, StoreUnavailable
from adapters.releases import NewRelease, Release, Serving
from adapters.validation import explain
from service.errors import InvalidRequest, NotReady, VersionNotFound, no_such_adapter
from service.http.body import JsonRoute
from service.http.keys import Caller
from service.http.routes.predict import ERRORS
from service.http.schemas import ReleaseRequest, ReleaseView, RollbackRequest

logger = logging.getLogger("hotswap")
# A volume that is not mounted looks like an empty folder.
LOST = "The adapter store lacks what it had a moment ago; is it mounted?"
router = APIRouter(
    route_class=JsonRoute,
    tags=["releases"],
    responses={status: ERRORS[status] for status in (400, 401, 403, 404, 409, 413, 422, 503)},
)


@router.post("/v1/adapters/{name}/releases", status_code=201, response_model_exclude_none=True)
async def release(request: Request, name: str, body: ReleaseRequest) -> ReleaseView:
    """Serve these versions from now on. Each is fetched, hashed and linted first; what fails is not released.

    With `expected_generation`, of two who release at once exactly one wins, and the other gets 409.
    """
    caller = _allowed(request, name)
    await _known(request, name)
    try:
        new = NewRelease(**dict(body.serving), by=caller.name, why=body.why)
    except ValidationError as error:
        raise InvalidRequest(explain(error, NewRelease)) from None
    await _servable(request, name, new)
    return await _written(request, name, new, body.expected_generation)


@router.post("/v1/adapters/{name}/rollback", status_code=201, response_model_exclude_none=True)
async def rollback(request: Request, name: str, body: RollbackRequest | None = None) -> ReleaseView:
    """Serve again what was served before the newest release, as a new generation. It is checked as a release is."""
    body, caller = body or RollbackRequest(), _allowed(request, name)
    state = request.app.state
    await _known(request, name)
    try:
        newest, previous = await state.offload(name, state.store.before, name)
    except NotInStore:
        if state.routing.catalogue.get(name).generation > 1:
            raise NotReady(LOST) from None
        raise VersionNotFound(f"'{name}' has no earlier release to go back to.") from None
    expected = newest if body.expected_generation is None else body.expected_generation
    if expected == newest:
        await _servable(request, name, previous)
    again = previous.again(by=caller.name, why=body.why or f"rollback of generation {newest}")
    return await _written(request, name, again, expected)


def _allowed(request: Request, name: str) -> Caller:
    caller: Caller = request.state.caller
    caller.need_adapter(name)
    return caller


async def _known(request: Request, name: str) -> None:
    state = request.app.state
    if not state.routing.catalogue.get(name).versions:
        await state.reconciler.find(name)
    if not state.routing.catalogue.get(name).versions:
        raise no_such_adapter(name)


async def _servable(request: Request, name: str, release: Serving) -> None:
    for version in release.versions:
        try:
            await request.app.state.residency.check(name, version)
        except NotInStore:
            if version in request.app.state.routing.catalogue.get(name).versions:
                raise NotReady(LOST) from None
            raise VersionNotFound(f"'{name}' has no version {version}; GET /v1/adapters/{name}.") from None


async def _written(request: Request, name: str, new: NewRelease, expected: int | None) -> ReleaseView:
    """Append the record and have this replica look at once; the others do within their polling interval."""
    state = request.app.state
    try:
        record: Release = await state.offload(name, state.store.release, name, new, expected_generation=expected)
    except NotInStore as error:  # it is there: it was retired
        raise VersionNotFound(str(error)) from None
    with suppress(StoreUnavailable):
        await state.reconciler.refresh(name)
    state.reconciler.wake()
    logger.info("%s: generation %d, stable %d, by %s", name, record.generation, record.stable, record.by)
    return ReleaseView(name=name, generation=record.generation, **record.model_dump(exclude={"step"}))
