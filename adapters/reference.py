"""How adapters are named in requests, commands and settings: ``name``, ``name@4``, ``name@stable``, ``name@canary``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from adapters.errors import HotswapError

# Also a path segment, a metric label and part of the name the engine sees: nothing that needs quoting.
NAME = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
_REFERENCE = re.compile(rf"(?P<name>{NAME})(?:@(?:(?P<version>0|[1-9][0-9]{{0,8}})|(?P<channel>stable|canary)))?")


class InvalidReference(HotswapError):
    """A text that names no adapter."""


@dataclass(frozen=True)
class Reference:
    """An adapter's ``name``, and which of its versions is meant; with neither of the others, what the release says."""

    name: str
    version: int | None = None
    channel: Literal["stable", "canary"] | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return what ``text`` means. Raises :class:`InvalidReference`."""
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise InvalidReference(f"{text[:100]!r} is no adapter: write sentiment, sentiment@3 or sentiment@canary.")
        version = match["version"]
        channel: Literal["stable", "canary"] | None = match["channel"]  # type: ignore[assignment]
        return cls(match["name"], None if version is None else int(version), channel)

    def __str__(self) -> str:
        which = self.channel if self.version is None else self.version
        return self.name if which is None else f"{self.name}@{which}"


def is_name(text: str) -> bool:
    """Whether an adapter can be called ``text``."""
    return re.fullmatch(NAME, text) is not None
