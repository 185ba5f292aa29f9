"""The card a version carries: what it is, what it was made for, and the hash of every file."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from adapters.errors import InvalidAdapter
from adapters.profile import Profile
from adapters.reference import NAME
from adapters.tasks import Task
from adapters.tasks.base import SCORED_AT_ONCE
from adapters.validation import NEWER, Strict, by_a_newer_version, explain

NAME_PATTERN = rf"^{NAME}$"
# A file of a version is a plain name: a manifest must not be able to point outside its own folder.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,100}$")]
SCHEMA_VERSION = 1


class File(Strict):
    """A file's length in bytes and its digest, ``sha256:…``."""

    bytes: int = Field(ge=0)
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")


class BaseReference(Strict):
    """The frozen model an adapter was made for; ``digest`` is :attr:`adapters.base_model.Base.digest`."""

    name: str
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")


class Reference(Strict):
    """What the version answered in evaluation: natural-log probabilities of some tokens at the answer slot."""

    text: str = Field(min_length=1, max_length=2000)
    logprobs: dict[Annotated[int, Field(ge=0)], float] = Field(min_length=2, max_length=SCORED_AT_ONCE)


class Computed(Strict):
    """In which numbers, and on what, scores were computed: elsewhere they differ in the last places."""

    dtype: str = Field(examples=["float32", "bfloat16"])
    device: str = Field(examples=["cpu", "NVIDIA H100 80GB HBM3"])


class Manifest(Strict):
    """One immutable version of one adapter. Its presence in the store is the commit of the version."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    description: str = Field(default="", max_length=2000)
    task: Task
    base: BaseReference
    method: Literal["lora", "soft_prompt"] = Field(default="lora", description="how it is served")
    rank: int = Field(ge=0, description="0 for a soft prompt")
    alpha: float = Field(ge=0)
    target_modules: tuple[str, ...]
    virtual_tokens: int = Field(default=0, ge=0, description="vectors that stand in front of the prompt")
    files: dict[FileName, File]
    metrics: dict[str, Any] = Field(default_factory=dict, description="held-out scores, by test set")
    computed: Computed | None = Field(default=None, description="how the scores were; not known of old versions")
    profile: Profile | None = None
    references: tuple[Reference, ...] = Field(default=(), max_length=8)
    lineage: dict[str, Any] = Field(default_factory=dict, description="recipe, data, seed, library versions")

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        if self.method == "lora" and not (self.rank and self.alpha and self.target_modules and not self.virtual_tokens):
            raise ValueError("a LoRA has a rank, an alpha and target_modules")
        if self.method == "soft_prompt" and not (self.virtual_tokens and not self.rank):
            raise ValueError("a soft prompt has virtual_tokens, and rank 0")
        return self

    def to_bytes(self) -> bytes:
        """Return the manifest as it is stored."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """Read a stored manifest. Raises :class:`InvalidAdapter` for one this version cannot read."""
        with suppress(ValidationError):
            return cls.model_validate_json(content)
        try:  # again, to say what is wrong
            raw = json.loads(content)
            written = raw.get("schema_version") if isinstance(raw, dict) else None
            if isinstance(written, int) and written > SCHEMA_VERSION:
                raise InvalidAdapter(
                    f"the manifest has schema {written}; this hotswap reads {SCHEMA_VERSION}: upgrade."
                )
            return cls.model_validate(raw)
        except ValidationError as error:
            newer = NEWER if by_a_newer_version(error) else ""
            raise InvalidAdapter(f"the manifest is invalid: {explain(error, cls)}{newer}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidAdapter("the manifest is not JSON: it is damaged; publish the version again.") from error


def digest_of(content: bytes) -> str:
    """Return ``sha256:…`` of ``content``. A manifest's digest names the version: it covers every file's."""
    return "sha256:" + hashlib.sha256(content).hexdigest()
