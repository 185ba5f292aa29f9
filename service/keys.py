"""API keys: who is asking. Scopes and per-adapter rights are not part of this yet."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from pathlib import Path

from adapters.errors import HotswapError
from service.errors import Unauthenticated


class Keys:
    """The keys of a file, one per line; ``#`` starts a comment. Without a file, nobody is asked for one."""

    def __init__(self, path: Path | None) -> None:
        self._digests: list[bytes] | None = None
        if path is not None:
            try:
                lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise HotswapError(f"HOTSWAP_API_KEYS: {path} cannot be read ({type(error).__name__}).") from error
            self._digests = [_digest(line) for line in lines if line]
            if any(not line.isascii() or len(line.split()) > 1 for line in lines):
                raise HotswapError(
                    f"HOTSWAP_API_KEYS: {path} holds a key that no header can carry; use ASCII, no blanks."
                )
            if not self._digests:
                raise HotswapError(f"HOTSWAP_API_KEYS: {path} holds no key; put one on a line of its own.")

    def caller(self, authorization: str | None) -> str:
        """Return a name for who holds the key (never the key). Raises :class:`Unauthenticated`."""
        if self._digests is None:
            return "anonymous"
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("Send 'Authorization: Bearer KEY'.")
        digest = _digest(key.strip())
        # Every key is compared, each in constant time: the answer's timing says nothing about them.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Unauthenticated("The API key is not valid.")
        return digest.hex()[:16]


def check_exposure(host: str, keys_file: Path | None) -> None:
    """Refuse to listen beyond this machine without keys. Raises :class:`HotswapError`."""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local and keys_file is None:
        raise HotswapError(
            f"HOTSWAP_HOST={host} would let anyone on the network in; set HOTSWAP_API_KEYS to a file with one key "
            "per line, or listen on 127.0.0.1."
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
