"""Every way a request can fail. Each error carries its status, its stable code, and whether to come back.

``detail`` is written for the caller and never contains an exception's text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters.errors import (
    DatabaseAway,
    GenerationConflict,
    HotswapError,
    InputTooLong,
    InvalidAdapter,
    NotInStore,
    NotKept,
    QuotaSpent,
    StoreUnavailable,
    Untimely,
)
from adapters.text import public
from service.engine.base import EngineDown, EngineRefused
from service.engine.openai import Refused


class ServiceError(Exception):
    """Base of the tree. An error with ``retry_after`` (seconds) is worth repeating; ``param`` is the field at fault."""

    status = 500
    code = "internal"
    title = "Something failed inside the service"
    retry_after: int | None = None

    def __init__(
        self,
        detail: str = "",
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail, self.param = detail, param
        if retry_after is not None:
            self.retry_after = retry_after
        self.headers = {**(headers or {}), **({"Retry-After": str(self.retry_after)} if self.retry_after else {})}

    def problem(self) -> dict[str, Any]:
        """Return the error as problem+json (RFC 9457)."""
        body = {"type": "about:blank", "title": self.title, "status": self.status, "code": self.code}
        return body | ({"detail": public(self.detail)} if self.detail else {})


class BadRequest(ServiceError):
    status, code, title = 400, "bad_request", "The request could not be read"


class Unauthenticated(ServiceError):
    status, code, title = 401, "unauthenticated", "An API key is needed"


class Forbidden(ServiceError):
    status, code, title = 403, "forbidden", "The API key does not allow this"


class NotFound(ServiceError):
    status, code, title = 404, "not_found", "There is nothing at this address"


class AdapterNotFound(ServiceError):
    status, code, title = 404, "adapter_not_found", "There is no such adapter"


class VersionNotFound(ServiceError):
    status, code, title = 404, "version_not_found", "The adapter has no such version"


class PredictionNotFound(ServiceError):
    status, code, title = 404, "prediction_not_found", "The prediction is not known"


def no_such_adapter(name: str) -> AdapterNotFound:
    """Return the same for what does not exist and for what a key may not know of."""
    if "@" in name:
        return AdapterNotFound("Here a name is given without a version: all of its versions are shown.")
    return AdapterNotFound(f"No adapter is called '{name}'; GET /v1/adapters lists them.")


class NoSuchObject(ServiceError):
    status, code, title = 404, "not_found", "There is no such file or job"


class JobsOff(ServiceError):
    status, code, title = 404, "fine_tuning_off", "This server takes no fine-tuning jobs"


class WrongState(ServiceError):
    """400, as at OpenAI: its clients repeat a 409 by themselves."""

    status, code, title = 400, "wrong_state", "It is too late for this, or too early"


class QuotaExceeded(ServiceError):
    status, code, title = 400, "quota_exceeded", "The API key has as many as it may have"


class MethodNotAllowed(ServiceError):
    status, code, title = 405, "method_not_allowed", "This address takes another method"


class Conflict(ServiceError):
    status, code, title = 409, "generation_conflict", "Someone else released first"


class BodyTooLarge(ServiceError):
    status, code, title = 413, "body_too_large", "The request body is too large"


class InvalidRequest(ServiceError):
    status, code, title = 422, "invalid_request", "The request is not valid"


class TaskMismatch(ServiceError):
    status, code, title = 422, "task_mismatch", "The adapter does other work"


class TooLong(ServiceError):
    status, code, title = 422, "input_too_long", "The text is too long"


class AdapterInvalid(ServiceError):
    status, code, title = 422, "invalid_adapter", "The adapter or task cannot be served"


class HeadTooLarge(ServiceError):
    status, code, title = 431, "head_too_large", "The request's headers are too many or too long"


class Overloaded(ServiceError):
    status, code, title, retry_after = 429, "overloaded", "The service is at its limit", 1


class RateLimited(ServiceError):
    status, code, title = 429, "rate_limited", "The API key has had its share for now"


class ClientClosed(ServiceError):
    """Logged and counted; nobody is left to send it to."""

    status, code, title = 499, "client_closed", "The client went away"


class NotReady(ServiceError):
    status, code, title, retry_after = 503, "not_ready", "The service is starting or stopping", 5


class FeedbackUnavailable(ServiceError):
    status, code, title, retry_after = 503, "feedback_unavailable", "The feedback database cannot be reached", 10


class JobsUnavailable(ServiceError):
    status, code, title, retry_after = 503, "jobs_unavailable", "The jobs database cannot be reached", 10


class StorageFull(ServiceError):
    status, code, title = 507, "storage_full", "The file could not be kept"


class TooManyConnections(ServiceError):
    status, code, title, retry_after = 503, "too_many_connections", "All connections of the service are taken", 5


class AdapterFailed(ServiceError):
    status, code, title, retry_after = 503, "adapter_failed", "The adapter could not be loaded", 30


class EngineUnavailable(ServiceError):
    status, code, title, retry_after = 503, "engine_down", "The engine is not running", 10


class DeadlineExceeded(ServiceError):
    status, code, title = 504, "deadline_exceeded", "The answer took too long"


def from_lower(error: Exception) -> ServiceError:
    """Return what an error of the layers below means to a caller. Unknown ones reveal nothing."""
    match error:
        case ServiceError():
            return error
        case InputTooLong():
            return TooLong(str(error))
        case InvalidAdapter():
            return AdapterInvalid(str(error))
        case NotInStore():
            return AdapterNotFound(str(error))
        case GenerationConflict():
            return Conflict(str(error))
        case NotKept():
            return NoSuchObject(str(error))
        case Untimely():
            return WrongState(str(error))
        case QuotaSpent():
            return QuotaExceeded(str(error))
        case DatabaseAway():
            return JobsUnavailable("Retry shortly.")
        case StoreUnavailable():
            return NotReady("The adapter store cannot be reached; retry shortly.")
        case EngineDown():
            return EngineUnavailable("Retry shortly; the service restarts it or is restarted.")
        case Refused():
            return InvalidRequest(str(error), param=error.param)
        case EngineRefused():
            return InvalidRequest("The engine refused this input; shorten it, or report it with its X-Request-Id.")
        case HotswapError():
            return InvalidRequest(str(error))
        case TimeoutError():
            return DeadlineExceeded("Send fewer or shorter texts, or raise HOTSWAP_DEADLINE_SECONDS.")
    return ServiceError()
