"""In what form texts are kept (HOTSWAP_FEEDBACK_TEXTS): those of requests, and summaries, which are made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

from adapters import personal
from adapters.errors import HotswapError

Form = Literal["off", "hashed", "redacted", "plain"]
# Forms in which a text can be trained on.
READABLE = ("redacted", "plain")


def _hashed(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


_FORMS: dict[str, Callable[[str], str]] = {
    "off": lambda _: "",
    "hashed": _hashed,
    "redacted": personal.masked,
    "plain": str,
}


def kept(form: str, text: str) -> str:
    """Return what is kept of ``text``. NUL, which PostgreSQL has no place for, becomes U+FFFD."""
    return _FORMS[form](text).replace("\0", "\ufffd")


def check(form: Form) -> None:
    """Raise :class:`HotswapError` where a package is missing that ``form`` needs."""
    if form == "redacted":
        try:
            personal.masked("ann@example.com, +1 212 555 0100")  # what it reads at the first find takes half a second
        except ImportError as error:
            raise HotswapError(
                f"HOTSWAP_FEEDBACK_TEXTS=redacted needs {error.name}: pip install 'hotswap[redacted]'."
            ) from None
