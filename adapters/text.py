"""Text from users, files and stores, on its way to a terminal, a log or an answer."""

from __future__ import annotations

import re

# A folder of this machine: an absolute path but for its last part. Addresses of the service are none.
FOLDER = re.compile(r"(?<![\w./])/(?!v[12]/)(?:[\w.@+~-]{1,255}/){1,64}(?=[\w.@+~-])")


def escaped(text: str, keep: str = "") -> str:
    """Return ``text`` with escapes for what begins a line, moves a cursor or turns writing around."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def public(text: str, longest: int = 1000) -> str:
    """Return ``text`` as strangers may read it: escaped, without this machine's folders, of sane length."""
    text = FOLDER.sub("", escaped(text[: 10 * longest]))
    return text if len(text) <= longest else text[: longest - 1] + "…"
