"""Who asks, found out before a byte of the body is read; and what a web page may have a browser send."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Forbidden, ServiceError
from service.http import problems
from service.http.keys import Keys
from service.http.quota import Quota

# Neither asks for a key: whoever may know what is decided where it is answered.
OPEN = ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/v2/health/")
READING = ("GET", "HEAD", "OPTIONS")
# What answers a question and changes nothing, whoever asks.
ASKING = (
    *("/v1/predict", "/v1/classify", "/v1/summarize"),
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/decisions", "/v2/models/"),
)


class Access:
    """Refuse who has no valid key (401), has had its rate (429), or is another web page's browser (403)."""

    def __init__(self, app: ASGIApp, keys: Keys, quota: Quota, origins: tuple[str, ...]) -> None:
        self._app, self._keys, self._quota, self._origins = app, keys, quota, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(OPEN):
            try:
                await self._admit(scope)
            except ServiceError as error:
                await problems.response(error, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        # Of those that come twice the first counts.
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        if not self._keys.required and scope["method"] not in READING:
            refuse_pages(headers, self._origins)
            if not scope["path"].startswith(ASKING) and not _is_upload(scope, headers):
                refuse_forms(headers)
        caller = self._keys.caller(headers)
        if scope["path"].startswith(ASKING):
            # Where nothing is left, nothing is read, parsed or explained either.
            await self._quota.check(caller.name, caller.rate)
        scope.setdefault("state", {})["caller"] = caller


def _is_upload(scope: Scope, headers: Mapping[str, str]) -> bool:
    """Whether a program sends a file: a form on a page cannot send this header without asking first."""
    return scope["path"] == "/v1/files" and (scope["method"] != "POST" or "authorization" in headers)


def refuse_pages(headers: Mapping[str, str], origins: tuple[str, ...]) -> None:
    """Raise :class:`Forbidden` for what a browser sends for a page that is not this server's own, nor allowed.

    Without keys, any page that somebody at this machine looks at could otherwise act in their name.
    """
    origin = headers.get("origin")
    if origin in origins:
        return
    foreign = origin is not None and origin.partition("://")[2] != headers.get("host")  # "null" has no host
    if foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Forbidden("A web page of another origin sent this; allow it by HOTSWAP_CORS_ORIGINS, or set keys.")


def refuse_forms(headers: Mapping[str, str]) -> None:
    """Raise :class:`Forbidden` for what a form could send: any page may post one anywhere without being asked."""
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    length = headers.get("content-length", "0").strip("0")
    if kind != "application/json" and (kind or length or "transfer-encoding" in headers):
        raise Forbidden("Without API keys this takes JSON only: send Content-Type: application/json.")
