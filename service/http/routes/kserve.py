"""KServe's Open Inference Protocol, version 2: an adapter takes a BYTES tensor of texts, and gives tensors back.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol; binary data as Triton's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.errors import NotInStore
from adapters.manifest import Manifest
from adapters.reference import NAME, Reference
from adapters.tasks import KINDS
from adapters.validation import explain
from service.errors import BadRequest, InvalidRequest, NotReady, no_such_adapter
from service.http.body import parse
from service.http.routes.adapters import current
from service.http.routes.health import livez, readyz
from service.http.routes.predict import take
from service.http.schemas import MAX_INPUTS, Classification, Inputs, ItemError, Parameters, Prediction
from service.http.streams import unless_gone

ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": "see `error`", "content": {"application/json": {"schema": ERROR}}}
    for status in (400, 401, 403, 404, 413, 429, 503, 504)
}
router = APIRouter(tags=["Open Inference Protocol"], responses=ERRORS)
health = APIRouter(prefix="/v2/health", tags=["Open Inference Protocol"], responses={503: ERRORS[503]})
Name = Annotated[str, Path(pattern=f"^{NAME}(@(stable|canary|[0-9]+))?$", description="an adapter")]
Version = Annotated[str, Path(pattern="^(0|[1-9][0-9]{0,8})$")]
BINARY = "inference-header-content-length"


class Tensor(BaseModel):
    """Texts, in any shape: they are taken one after the other."""

    name: str
    shape: list[Annotated[int, Field(ge=0)]]
    datatype: Literal["BYTES"]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["A moving, well acted film."]}
                    ]
                }
            ]
        }
    )

    id: Annotated[str, Field(max_length=200)] | None = None
    parameters: dict[str, Any] = Field({}, description="those of /v1/predict, and `caller`")
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=1)]
    outputs: list[dict[str, Any]] = Field([], description="the tensors that are wanted, by `name`; default: all")


def _body() -> dict[str, Any]:
    """Describe a request's body in one piece: a reference would be looked for in the whole document."""
    schema = InferRequest.model_json_schema()
    schema["properties"]["inputs"]["items"] = schema.pop("$defs")["Tensor"]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@health.get("/live")
async def live(request: Request) -> dict[str, bool]:
    """Whether the process is to be left running."""
    await livez(request)
    return {"live": True}


@health.get("/ready")
async def ready(request: Request) -> dict[str, bool]:
    """Whether it answers."""
    await readyz(request)
    return {"ready": True}


@router.get("/v2")
async def server() -> dict[str, Any]:
    """What this is."""
    return {"name": "hotswap", "version": "0.1.0", "extensions": ["binary_tensor_data"]}


@router.get("/v2/models/{name}")
@router.get("/v2/models/{name}/versions/{version}")
async def model(request: Request, name: Name, version: Version | None = None) -> dict[str, Any]:
    """What an adapter takes and gives."""
    manifest = await _manifest(request, name, version)
    versions = request.app.state.routing.catalogue.get(manifest.name).versions
    return {
        "name": name,
        "versions": [str(number) for number in versions],
        "platform": f"hotswap_{manifest.task.kind}",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": output, "datatype": kind, "shape": shape} for output, kind, shape in _described(manifest.task)
        ],
    }


@router.get("/v2/models/{name}/ready")
@router.get("/v2/models/{name}/versions/{version}/ready")
async def model_ready(request: Request, name: Name, version: Version | None = None) -> dict[str, Any]:
    """Whether a version answers without being loaded first."""
    manifest = await _manifest(request, name, version)
    actual = (await request.app.state.actual([manifest.name]))[manifest.name]
    if actual.state(manifest.version)["state"] != "resident":
        raise NotReady(f"{manifest.name}@{manifest.version} is not loaded; the first request for it loads it.")
    return {"name": name, "ready": True}


@router.post("/v2/models/{name}/infer", openapi_extra=_body())
@router.post("/v2/models/{name}/versions/{version}/infer", openapi_extra=_body())
async def infer(request: Request, name: Name, version: Version | None = None) -> dict[str, Any]:
    """Ask an adapter about texts: `label`, `score` and `scores`, or `summary` or `answer`, of each."""
    asked, inputs = await _asked(request)
    await take(request, inputs)
    caller = request.state.caller
    prediction = await unless_gone(
        request, request.app.state.answering.predict("infer", inputs, _reference(name, version), caller, None)
    )
    wanted = {str(output.get("name")) for output in asked.outputs}
    tensors = [tensor for tensor in _tensors(prediction) if not wanted or tensor["name"] in wanted]
    if missing := wanted - {tensor["name"] for tensor in tensors}:
        raise InvalidRequest(f"There is no output {sorted(missing)[0]!r}; GET /v2/models/{name} names them.")
    used = prediction.adapter
    told = {"model_name": name, "model_version": str(used.version), "id": asked.id or prediction.id}
    return {**told, "parameters": {"digest": used.digest, "prediction": prediction.id}, "outputs": tensors}


def _reference(name: str, version: str | None) -> str:
    if version is not None and "@" in name:
        raise InvalidRequest("Give the version once.")
    return name if version is None else f"{name}@{version}"


async def _manifest(request: Request, name: str, version: str | None) -> Manifest:
    """Return what a name and version mean for the caller, as of now."""
    state, reference = request.app.state, Reference.parse(_reference(name, version))
    await current(request, reference.name)
    choice = state.routing.choose(reference, request.state.caller.name)
    try:
        manifest: Manifest = (await state.offload("manifest", state.store.manifest, choice.name, choice.version))[0]
    except NotInStore:
        raise no_such_adapter(name) from None
    return manifest


async def _asked(request: Request) -> tuple[InferRequest, Inputs]:
    body = await request.body()
    head, tail = body, b""
    if given := request.headers.get(BINARY):
        if not given.isdecimal() or int(given) > len(body):
            raise BadRequest(f"{BINARY} is no length of a part of the body.")
        head, tail = body[: int(given)], body[int(given) :]
    document = parse(head)
    if not isinstance(document, dict):
        raise BadRequest("The body must be a JSON object.")
    try:
        asked = InferRequest.model_validate(document)
        texts = _texts(asked.inputs[0], tail)
        more = {key: value for key, value in asked.parameters.items() if key in Parameters.model_fields}
        inputs = Inputs(inputs=texts, parameters=Parameters(**more), caller=asked.parameters.get("caller"))
    except ValidationError as error:
        raise InvalidRequest(explain(error.errors()[:3])) from None
    return asked, inputs


def _texts(tensor: Tensor, tail: bytes) -> list[str]:
    size = tensor.parameters.get("binary_data_size")
    if size is not None:
        if size != len(tail):
            raise InvalidRequest("'binary_data_size' is not the length of what follows the JSON.")
        texts = list(_unpacked(tail))
    else:
        texts = list(_flat(tensor.data or []))
    expected = 1
    for length in tensor.shape:
        expected *= length
    if not tensor.shape or len(texts) != expected:
        raise InvalidRequest(f"The tensor's shape {tensor.shape} is of {expected} texts, and it has {len(texts)}.")
    if not 1 <= len(texts) <= MAX_INPUTS:
        raise InvalidRequest(f"A request has 1 to {MAX_INPUTS} texts.")
    return texts


def _flat(data: list[Any]) -> Iterator[str]:
    for each in data:
        if isinstance(each, list):
            yield from _flat(each)
        elif isinstance(each, str):
            yield each
        else:
            raise InvalidRequest("Tensors of BYTES hold texts.")


def _unpacked(data: bytes) -> Iterator[str]:
    """Read texts, each behind its length in four bytes, little end first."""
    at = 0
    while at < len(data):
        try:
            (length,) = struct.unpack_from("<I", data, at)
            text = data[at + 4 : at + 4 + length]
            if len(text) < length:
                raise InvalidRequest("The binary data ends within a text.")
            yield text.decode()
        except struct.error:
            raise InvalidRequest("The binary data ends within a length.") from None
        except UnicodeDecodeError:
            raise InvalidRequest("A text is not UTF-8.") from None
        at += 4 + length


def _described(task: Any) -> list[tuple[str, str, list[int]]]:
    if not task.closed:
        return [(task.answer_key, "BYTES", [-1])]
    labels = len(task.labels)
    return [
        ("label", "BYTES", [-1]),
        ("score", "FP64", [-1]),
        ("scores", "FP64", [-1, labels]),
        ("labels", "BYTES", [labels]),
    ]


def _tensors(prediction: Prediction) -> list[dict[str, Any]]:
    """Return the answers as tensors. A text that cannot be answered has no place in them: then nothing is answered."""
    for index, output in enumerate(prediction.outputs):
        if isinstance(output, ItemError):
            raise InvalidRequest(f"text {index}: {output.error.detail or output.error.title}")
    answers: list[Any] = prediction.outputs
    count = len(answers)
    if not isinstance(answers[0], Classification):
        return [_tensor(KINDS[prediction.task].answer_key, "BYTES", [count], [answer.said for answer in answers])]
    labels = sorted(answers[0].scores)
    return [
        _tensor("label", "BYTES", [count], [answer.label for answer in answers]),
        _tensor("score", "FP64", [count], [answer.score for answer in answers]),
        _tensor(
            "scores", "FP64", [count, len(labels)], [answer.scores[label] for answer in answers for label in labels]
        ),
        _tensor("labels", "BYTES", [len(labels)], labels),
    ]


def _tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}
