"""API keys: who is asking, and what they may do. The file holds hashes, so reading it lets nobody in."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from limits import RateLimitItem

from adapters.errors import HotswapError
from service.errors import Forbidden, Unauthenticated, no_such_adapter
from service.http.quota import read_rate
from service.settings import Settings

logger = logging.getLogger("hotswap")

Scope = Literal["predict", "feedback", "admin", "metrics", "train"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
HASHED = re.compile(r"sha256:[0-9a-f]{64}")
ATTRIBUTE = re.compile(r"(name|scopes|adapters|rate|cache)=(\S+)")
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Caller:
    """Who is asking. ``name`` is in release records and keeps canary choices; it is never the key. ``cache``: whether
    answers may be kept for whoever asks the same, and be such."""

    name: str
    scopes: frozenset[Scope] = frozenset({"predict", "feedback", "admin"})
    adapters: tuple[str, ...] = ("*",)
    rate: RateLimitItem | None = None
    cache: bool = True

    def need(self, scope: Scope) -> None:
        """Raise :class:`Forbidden` without ``scope``."""
        if not self.may(scope):
            raise Forbidden(f"This needs a key with the scope '{scope}'.")

    def may(self, scope: Scope) -> bool:
        """Whether the key has ``scope``. Who may release may also judge answers, read the metrics and train."""
        return scope in self.scopes or (scope in ("feedback", "metrics", "train") and "admin" in self.scopes)

    def need_adapter(self, adapter: str) -> None:
        """Raise :class:`AdapterNotFound`, as for one that does not exist, unless this caller may know of it."""
        if not self.may_use(adapter):
            raise no_such_adapter(adapter)

    def may_use(self, adapter: str) -> bool:
        return any(fnmatchcase(adapter, pattern) for pattern in self.adapters)


# Without keys, who is not at this machine may ask, and change nothing.
STRANGER = Caller("anonymous", frozenset({"predict"}))


class Keys:
    """The keys of a file, which is read again when it changes. Without a file, everyone is ``anonymous``.

    A line is a key's hash, ``sha256:…`` (or the key itself, which is warned about), followed by any of
    ``name=team-a``, ``scopes=predict,feedback,admin,metrics,train`` (default: predict), ``adapters=legal-*,sentiment``
    (default: all), ``rate=600/minute`` (texts; default: no limit) and ``cache=no`` (out of the answer cache).
    Raises :class:`HotswapError` where the file cannot be used at the start; later the last good one stays.
    """

    def __init__(self, path: Path | None, anonymous: Caller) -> None:
        self._path, self._anonymous = path, anonymous
        self._callers: dict[bytes, Caller] = {}
        self._seen: tuple[int, ...] = ()
        if path is not None:
            self._seen, self._callers = _look(path), _read(path)
            if not self._callers:
                raise HotswapError(f"HOTSWAP_API_KEYS: {path} holds no key; make one: python -m service --new-key.")

    @classmethod
    def of(cls, settings: Settings) -> Keys:
        """Return the keys that the settings name. Raises :class:`HotswapError` as above."""
        return cls(settings.api_keys, anonymous(settings.host, settings.api_keys, settings.allow_anonymous))

    @property
    def required(self) -> bool:
        return self._path is not None

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Return who is asking, by a request's ``headers`` (names in lower case). Raises :class:`Unauthenticated`."""
        if self._path is None:
            return STRANGER if from_elsewhere(headers) else self._anonymous
        self._refresh(self._path)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("Send 'Authorization: Bearer KEY'.")
        digest = _digest(key.strip())
        # Every key is compared, each in constant time: the answer's timing says nothing about them.
        matches = [caller for known, caller in self._callers.items() if hmac.compare_digest(digest, known)]
        if not matches:
            raise Unauthenticated("The API key is not valid.")
        return matches[0]

    def _refresh(self, path: Path) -> None:
        seen = _look(path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._callers = _read(path)
            logger.info("API keys read again: %d", len(self._callers))
        except HotswapError as error:
            logger.error("%s The keys read before stay valid.", error)


def new_key(attributes: str) -> tuple[str, str]:
    """Return a random key, and the line for the file. Raises :class:`HotswapError` for unknown attributes."""
    key = f"hs_{secrets.token_urlsafe(32)}"
    line = f"sha256:{_digest(key).hex()} {attributes}".strip()
    _parse(line, "--new-key")
    return key, line


def from_elsewhere(headers: Mapping[str, str]) -> bool:
    """Whether a request to a server on loopback speaks for somebody else: a proxy on this machine passed it on, or a
    web page had its own name resolve to 127.0.0.1 (DNS rebinding)."""
    if any(name in headers for name in ("forwarded", "x-forwarded-for", "x-real-ip", "via")):
        return True
    host = headers.get("host", "").rsplit(":", 1)[0] if not headers.get("host", "").endswith("]") else headers["host"]
    return not is_loopback(host.strip("[]"))


@lru_cache(64)
def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def anonymous(host: str, keys_file: Path | None, allowed: bool) -> Caller:
    """Return who asks without a key: on this machine the operator, from elsewhere somebody who may only ask.

    Raises :class:`HotswapError` where the server would listen beyond this machine without keys, unless told to.
    """
    if is_loopback(host) or keys_file is not None:
        return Caller("anonymous")
    if not allowed:
        raise HotswapError(
            f"HOTSWAP_HOST={host} would let anyone on the network in; set HOTSWAP_API_KEYS to a file with keys, listen "
            "on 127.0.0.1, or set HOTSWAP_ALLOW_ANONYMOUS=true if the network itself keeps strangers out."
        )
    logger.warning("HOTSWAP_ALLOW_ANONYMOUS: anyone who reaches %s may ask any adapter; releasing needs a key", host)
    return STRANGER


def _look(path: Path) -> tuple[int, ...]:
    """Return what changes when the file does; a mounted secret is replaced by way of a link."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> dict[bytes, Caller]:
    try:
        lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise HotswapError(f"HOTSWAP_API_KEYS: {path} cannot be read ({type(error).__name__}).") from error
    return dict(_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line)


def _parse(line: str, where: str) -> tuple[bytes, Caller]:
    """Return a line's digest and holder. What is wrong is said without repeating the line: it may hold a key."""
    key, *attributes = line.split()
    matches = [ATTRIBUTE.fullmatch(attribute) for attribute in attributes]
    if not all(matches) or len({match[1] for match in matches if match}) < len(matches):
        raise HotswapError(
            f"HOTSWAP_API_KEYS: {where}: after the key come name=…, scopes=…, adapters=…, rate=… and cache=…, each at "
            "most once."
        )
    given = {match[1]: match[2] for match in matches if match}
    if not key.isascii():
        raise HotswapError(f"HOTSWAP_API_KEYS: {where}: no header can carry this key; use ASCII.")
    if HASHED.fullmatch(key):
        digest = bytes.fromhex(key.removeprefix("sha256:"))
    else:
        digest = _digest(key)
        logger.warning("%s: a key in plain text; put sha256:… there (python -m service --new-key)", where)
    scopes = given.get("scopes", "predict").split(",")
    if unknown := set(scopes) - set(SCOPES):
        raise HotswapError(f"HOTSWAP_API_KEYS: {where}: scopes are {', '.join(SCOPES)}, not {', '.join(unknown)}.")
    name = given.get("name", digest.hex()[:16])
    if not NAME.fullmatch(name):
        raise HotswapError(f"HOTSWAP_API_KEYS: {where}: a name is made of letters, digits, '.', '_' and '-'.")
    try:
        rate = read_rate(given["rate"]) if "rate" in given else None
    except HotswapError as error:
        raise HotswapError(f"HOTSWAP_API_KEYS: {where}: {error}") from None
    if (cache := given.get("cache", "yes")) not in ("yes", "no"):
        raise HotswapError(f"HOTSWAP_API_KEYS: {where}: cache is yes or no.")
    allowed = frozenset(scope for scope in SCOPES if scope in scopes)
    return digest, Caller(name, allowed, tuple(given.get("adapters", "*").split(",")), rate, cache == "yes")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
