"""Fine-tuning jobs, as OpenAI's clients ask for them: a file becomes a published adapter."""

from __future__ import annotations

import json
import re
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from adapters.errors import NotKept
from adapters.jobs.ids import name_of, new_id
from adapters.reference import InvalidReference, Reference, is_name
from service.errors import AdapterNotFound, InvalidRequest
from service.http import fine_tuning
from service.http.body import JsonRoute
from service.http.fine_tuning import JobRequest
from service.http.keys import Caller
from service.http.routes.files import known, owner
from service.http.routes.openai import ERRORS

LEAST_ROWS = 10
FILTER = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)
JOBS = "/v1/fine_tuning/jobs"
router = APIRouter(route_class=JsonRoute, tags=["OpenAI's API"], responses=ERRORS)
Record = dict[str, Any]
After = Annotated[str | None, Query(max_length=64)]
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.post(JOBS)
async def create(request: Request, body: JobRequest) -> Record:
    """Have an adapter trained from a file. It can be asked by the name in `fine_tuned_model` once it is published."""
    state, caller = request.app.state, request.state.caller
    desk = state.desk
    await desk.queue(caller.name, lambda _: None)
    start = await _start(request, body.model)
    for param in ("training_file", "validation_file"):
        await _check_file(desk, caller, body, param)
    id = new_id("ftjob")
    row = {
        "id": id,
        **{"owner": caller.name, "model": body.model, "base": state.base.digest, "start_from": start},
        **{"training_file": body.training_file, "validation_file": body.validation_file},
        **{"method": body.told, "labels": body.metadata, "release": desk.settings.auto_release},
        "seed": secrets.randbelow(2**31) if body.seed is None else body.seed,
        "adapter": _name(body.suffix, id, caller),
    }
    return fine_tuning.job(await desk.queue(caller.name, lambda queue: queue.add(row, desk.settings.max_jobs)))


@router.get(JOBS)
async def listed(request: Request, after: After = None, limit: Limit = 20) -> Record:
    """The key's jobs, the newest first; `metadata[key]=value` asks for those that carry it."""
    desk, caller = request.app.state.desk, request.state.caller
    labels = {match[1]: value for key, value in request.query_params.items() if (match := FILTER.fullmatch(key))}
    if any("\0" in text for pair in labels.items() for text in pair):
        raise InvalidRequest("metadata: holds no NUL.", param="metadata")
    ask = {"after": known(after), "limit": limit, "labels": labels}
    rows, more = await desk.queue(caller.name, lambda queue: queue.listed(owner(caller), **ask))
    return fine_tuning.page(list(map(fine_tuning.job, rows)), more)


@router.get(f"{JOBS}/{{job_id}}")
async def retrieve(request: Request, job_id: str) -> Record:
    """One job, and what became of it."""
    return fine_tuning.job(await _job(request, job_id))


@router.post(f"{JOBS}/{{job_id}}/cancel")
async def cancel(request: Request, job_id: str) -> Record:
    """End a job that is not being published yet."""
    return await _turned(request, job_id, "cancel")


@router.post(f"{JOBS}/{{job_id}}/pause")
async def pause(request: Request, job_id: str) -> Record:
    """Have a job wait, with what it has learnt."""
    return await _turned(request, job_id, "pause")


@router.post(f"{JOBS}/{{job_id}}/resume")
async def resume(request: Request, job_id: str) -> Record:
    """Have a paused job go on from its checkpoint."""
    return await _turned(request, job_id, "resume")


@router.get(f"{JOBS}/{{job_id}}/events")
async def events(request: Request, job_id: str, after: After = None, limit: Limit = 20) -> Record:
    """What was told of a job, the newest first: steps, losses, scores."""
    desk, caller = request.app.state.desk, request.state.caller
    await _job(request, job_id)
    ask = {"after": known(after), "limit": limit}
    rows, more = await desk.queue(caller.name, lambda queue: queue.events(job_id, **ask))
    return fine_tuning.page(list(map(fine_tuning.event, rows)), more)


@router.get(f"{JOBS}/{{job_id}}/checkpoints")
async def checkpoints(request: Request, job_id: str, after: After = None, limit: Limit = 10) -> Record:
    """The checkpoint that can be asked: the published one."""
    rows = fine_tuning.checkpoints(await _job(request, job_id))
    return fine_tuning.page([] if after else rows[:limit], False)


async def _job(request: Request, job_id: str) -> Record:
    desk, caller = request.app.state.desk, request.state.caller
    row: Record = await desk.queue(caller.name, lambda queue: queue.get(known(job_id), owner(caller)))
    return row


async def _turned(request: Request, job_id: str, how: str) -> Record:
    desk, caller = request.app.state.desk, request.state.caller
    turn = await desk.queue(caller.name, lambda queue: getattr(queue, how)(known(job_id), owner(caller)))
    return fine_tuning.job(turn)


async def _start(request: Request, model: str) -> str | None:
    """Return the version to go on from; none where ``model`` is the base. Raises :class:`ServiceError`."""
    state, caller = request.app.state, request.state.caller
    if model == state.base.name:
        return None
    try:
        reference = Reference.parse(model)
        caller.need_adapter(reference.name)
        await state.reconciler.refresh(reference.name)
        choice = state.routing.choose(reference, caller.name)
    except InvalidReference:
        told = f"No model is called '{model[:100]}'; the base here is {state.base.name}."
        raise AdapterNotFound(told, param="model") from None
    except AdapterNotFound as error:
        raise AdapterNotFound(f"{error.detail} The base here is {state.base.name}.", param="model") from None
    return f"{choice.name}@{choice.version}"


async def _check_file(desk: Any, caller: Caller, body: JobRequest, param: str) -> None:
    """Raise :class:`InvalidRequest` for a file that is not there, or cannot be what it is given for."""
    if (id := getattr(body, param)) is None:
        return
    try:
        row = await desk.files(caller.name, lambda files: files.get(known(id), owner(caller)))
    except NotKept as error:
        raise InvalidRequest(f"{param}: {error}", param=param) from None
    kind = body.told["type"]
    if row["paired"] != (kind == "dpo"):
        wanted = "two answers, preferred and non-preferred" if kind == "dpo" else "one answer"
        raise InvalidRequest(f"{param}: method {kind} takes rows with {wanted}.", param=param)
    if param == "training_file" and row["rows"] < LEAST_ROWS:
        raise InvalidRequest(f"{param}: has {row['rows']} rows; {LEAST_ROWS} are the least.", param=param)


def _name(suffix: str | None, id: str, caller: Caller) -> str:
    """Return what the adapter is called. Raises :class:`InvalidRequest` for a name that is none, or not the key's."""
    name = name_of(id) if suffix is None else suffix
    if not is_name(name):
        raise InvalidRequest(
            f"suffix: {json.dumps(name)} cannot name an adapter: small letters, digits, '.', '_' and '-', with a "
            "letter or digit at both ends.",
            param="suffix",
        )
    if not caller.may_use(name):
        allowed = ", ".join(caller.adapters)
        raise InvalidRequest(f"suffix: this key's adapters are {allowed}; choose one of those names.", param="suffix")
    return name
