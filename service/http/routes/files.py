"""Files to be learnt from, as OpenAI's clients hand them in: streamed to a disk, looked at line by line."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from adapters.jobs.rows import check
from adapters.text import escaped
from service.errors import ClientClosed, InvalidRequest, StorageFull
from service.http import fine_tuning
from service.http.keys import Caller
from service.http.routes.openai import ERRORS

MOST_LISTED = 10_000
Record = dict[str, Any]
FIELDS = {"file", "purpose"}
FULL: dict[int | str, Record] = {507: {**ERRORS[503], "description": "server_error; no room for the file"}}
router = APIRouter(tags=["OpenAI's API"], responses={**ERRORS, **FULL})
FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["fine-tune"]},
    },
}


@router.post(
    "/v1/files", openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}}
)
async def create(request: Request) -> Record:
    """Keep a JSON Lines file of chats, prompts and completions, texts and labels, summaries or answers, or pairs."""
    desk, caller = request.app.state.desk, request.state.caller
    await desk.files(caller.name, lambda _: None)  # where it cannot be kept, it is not read
    try:
        async with request.form(max_files=1, max_fields=3) as form:
            upload = _upload(form)
            row = await desk.files(caller.name, _kept, upload, caller, desk.settings.files_bytes)
    except ClientDisconnect:
        raise ClientClosed from None
    except OSError:
        raise StorageFull("The server has no room for the file.") from None
    return fine_tuning.file(row)


@router.get("/v1/files")
async def listed(
    request: Request,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = MOST_LISTED,
    after: Annotated[str | None, Query(max_length=64)] = None,
    order: Literal["asc", "desc"] = "desc",
) -> Record:
    """The key's files, the newest first."""
    desk, caller = request.app.state.desk, request.state.caller
    oldest = order == "asc"
    ask = {"after": known(after), "limit": limit, "oldest": oldest}
    rows, more = await desk.files(caller.name, lambda files: files.listed(owner(caller), **ask))
    if purpose not in (None, "fine-tune"):
        rows, more = [], False
    return fine_tuning.page(list(map(fine_tuning.file, rows)), more)


@router.get("/v1/files/{file_id}")
async def retrieve(request: Request, file_id: str) -> Record:
    """One file: its name, its size."""
    desk, caller = request.app.state.desk, request.state.caller
    row = await desk.files(caller.name, lambda files: files.get(known(file_id), owner(caller)))
    return fine_tuning.file(row)


@router.get("/v1/files/{file_id}/content", response_class=FileResponse)
async def content(request: Request, file_id: str) -> FileResponse:
    """What is in a file, as it was handed in."""
    desk, caller = request.app.state.desk, request.state.caller

    def found(files: Any) -> Any:
        return files.path(files.get(known(file_id), owner(caller))["id"])

    return FileResponse(await desk.files(caller.name, found), media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}")
async def delete(request: Request, file_id: str) -> Record:
    """Delete a file that no unfinished job needs."""
    desk, caller = request.app.state.desk, request.state.caller
    await desk.files(caller.name, lambda files: files.delete(known(file_id), owner(caller)))
    return {"id": file_id, "object": "file", "deleted": True}


def owner(caller: Caller) -> str | None:
    """Return whose files and jobs a caller sees; an admin sees all."""
    return None if caller.may("admin") else caller.name


def known(id: str | None) -> str | None:
    """Return an id as a database can be asked for it; of what can be none, one that nothing has."""
    return id if id is None or (id.isascii() and id.isprintable()) else "none"


def _upload(form: FormData) -> UploadFile:
    """Return the file of a form. Raises :class:`InvalidRequest`."""
    if unknown := set(form) - FIELDS:
        raise InvalidRequest(f"{escaped(min(unknown))[:64]}: is not taken here.", param=escaped(min(unknown))[:64])
    if form.get("purpose") != "fine-tune":
        raise InvalidRequest("purpose: is 'fine-tune' here.", param="purpose")
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise InvalidRequest("file: is required.", param="file")
    return upload


def _kept(files: Any, upload: UploadFile, caller: Caller, most_bytes: int) -> Record:
    """Return the file, kept if its lines are rows. Raises :class:`InvalidRequest` with what is wrong on which line."""
    part = files.take(upload.file)
    try:
        checked = check(part)
        if checked.problems:
            raise InvalidRequest("; ".join(checked.problems), param="file")
        name = escaped(PurePosixPath(upload.filename or "").name)[-255:] or "file"
        row: Record = files.add(part, caller.name, name, checked, most_bytes)
    finally:
        part.unlink(missing_ok=True)
    return row
