"""What is served under a name changes here, on every replica: a release is a record in the store."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from fastapi import APIRouter, Request
from pydantic import ValidationError

from adapters.errors import NotInStore
from adapters.releases import NewRelease, Release
from adapters.validation import explain
from service.errors import InvalidRequest, VersionNotFound, no_such_adapter
from service.http.body import JsonRoute
from service.http.keys import Caller
from service.http.routes.predict import ERRORS
from service.http.schemas import ReleaseRequest, ReleaseView, RollbackRequest

logger = logging.getLogger("hotswap")
router = APIRouter(
    route_class=JsonRoute,
    tags=["releases"],
    responses={status: ERRORS[status] for status in (400, 401, 403, 404, 409, 413, 422, 503)},
)


@router.post("/v1/adapters/{name}/releases", status_code=201, response_model_exclude_none=True)
async def release(request: Request, name: str, asked: ReleaseRequest) -> ReleaseView:
    """Serve these versions from now on. Each is fetched, hashed and linted first; what fails is not released.

    With `expected_generation`, of two who release at once exactly one wins, and the other gets 409.
    """
    state, caller = request.app.state, _allowed(request, name)
    wanted = asked.model_dump(exclude={"expected_generation"})
    await _known(request, name)
    try:
        # As a record first: what it names is then said in one place.
        wished = NewRelease(**wanted, by=caller.name, at=datetime.now(UTC))
    except ValidationError as error:
        raise InvalidRequest(explain(error, NewRelease)) from None
    await _servable(request, name, wished)
    try:
        record = await asyncio.to_thread(
            state.store.release,
            name,
            wished.stable,
            wished.canary,
            shadow=wished.shadow,
            guard=wished.guard,
            expected_generation=asked.expected_generation,
            by=caller.name,
            why=asked.why,
        )
    except NotInStore as error:  # it is there: it was retired
        raise VersionNotFound(str(error)) from None
    return _told(request, name, record)


@router.post("/v1/adapters/{name}/rollback", status_code=201, response_model_exclude_none=True)
async def rollback(request: Request, name: str, asked: RollbackRequest | None = None) -> ReleaseView:
    """Serve again what was served before the newest release, as a new generation. It is checked as a release is."""
    asked, caller = asked or RollbackRequest(), _allowed(request, name)
    store = request.app.state.store
    await _known(request, name)
    try:
        newest, previous = await asyncio.to_thread(store.before, name)
    except NotInStore:
        raise VersionNotFound(f"'{name}' has no earlier release to go back to.") from None
    if asked.expected_generation in (None, newest):
        await _servable(request, name, previous)
    try:
        record = await asyncio.to_thread(
            store.rollback,
            name,
            expected_generation=newest if asked.expected_generation is None else asked.expected_generation,
            by=caller.name,
            why=asked.why,
        )
    except NotInStore as error:  # a version of it was retired, and the message says which
        raise VersionNotFound(str(error)) from None
    return _told(request, name, record)


def _allowed(request: Request, name: str) -> Caller:
    caller: Caller = request.state.caller
    caller.need_adapter(name)
    return caller


async def _known(request: Request, name: str) -> None:
    try:
        versions = await asyncio.to_thread(request.app.state.store.versions, name)
    except NotInStore:  # not even a name
        versions = []
    if not versions:
        raise no_such_adapter(name)


async def _servable(request: Request, name: str, release: Release) -> None:
    for version in release.versions:
        try:
            await request.app.state.registry.check(name, version)
        except NotInStore:
            raise VersionNotFound(f"'{name}' has no version {version}; GET /v1/adapters/{name}.") from None


def _told(request: Request, name: str, record: Release) -> ReleaseView:
    """Have this replica look at once; the others do within their polling interval."""
    request.app.state.reconciler.wake()
    logger.info("%s: generation %d, stable %d, by %s", name, record.generation, record.stable, record.by)
    return ReleaseView(name=name, generation=record.generation, **record.model_dump())
