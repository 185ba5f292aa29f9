"""Where a recipe's rows come from, and how they are split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from trainer.strict import Strict

PART = r"^[A-Za-z0-9][\w.-]{0,63}$"  # what a further test, or a mixed task, may be called
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "\\x01": "\x01"}


class Origin(Strict):
    """Where rows come from: one of ``path``, ``dataset`` and ``source``, and what the columns are called."""

    path: Path | None = Field(default=None, description="a .jsonl, .json, .csv, .tsv or .parquet file; packed ones too")
    dataset: str | None = Field(default=None, description="a Hugging Face data set id, with ':split' behind it")
    source: str | None = Field(default=None, description="a data set this project knows how to fetch")
    text: str = Field(default="text", description="the column with the input")
    answer: str | None = Field(
        default=None,
        description="the column with the answer; default: label, summary or answer; chosen for dpo, reward",
    )
    group: str | None = Field(default=None, description="rows that share this column's value stay in one split")
    rejected: str = Field(default="rejected", description="objectives dpo and reward: the column with the worse answer")
    good: str = Field(default="good", description="objective kto: the column that says whether the answer was good")
    json_schema: str | None = Field(
        default=None, description="the column with the JSON schema that a row's answer keeps to, where each has its own"
    )
    separator: str | None = Field(
        default=None, description="of a .csv and the like: ',', ';', tab …; default: found out"
    )
    quoting: Literal["quoted", "backslash", "escaped", "none"] | None = Field(
        default=None,
        description="of a .csv and the like: what quotation marks and backslashes mean; default: found out",
    )
    encoding: str | None = Field(default=None, description="of a text file: utf-16, cp1252 …; default: UTF-8")

    @field_validator("separator")
    @classmethod
    def _one_character(cls, separator: str | None) -> str | None:
        found = SEPARATORS.get(separator or "", separator)
        if found is not None and (len(found) != 1 or found in '"\r\n\\ '):
            raise ValueError(f"one character, or {', '.join(SEPARATORS)}")
        return found

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str | None) -> str | None:
        try:
            "a".encode(encoding or "utf-8").decode(encoding or "utf-8")
        except (LookupError, ValueError):
            raise ValueError(f"'{encoding}' is none that Python knows: utf-16, cp1252, latin-1, shift_jis …") from None
        return encoding

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.path, self.dataset, self.source)) != 1:
            raise ValueError("give exactly one of path, dataset and source")
        return self


class Keep(Strict):
    """Data pruning: the share of the training rows that is kept, and by what it is chosen."""

    share: float = Field(gt=0, lt=1)
    by: Literal["random", "hard", "easy", "middle"] = "random"


Disturbance = Literal["typos", "lower case", "upper case", "distractor"]


class Data(Origin):
    """Rows and how they are split. Shares are of groups, and stay stable when rows are added."""

    validation: float = Field(default=0.1, gt=0, lt=0.5)
    test: float = Field(default=0.1, gt=0, lt=0.5)
    train_rows: int | None = Field(default=None, ge=1, description="train on at most so many rows")
    validation_rows: int | None = Field(default=None, ge=1)
    test_rows: int | None = Field(default=None, ge=1)
    near_duplicates: Literal["ignore", "group"] = Field(
        default="ignore", description="group: texts that are nearly the same stay in one split"
    )
    slices: tuple[str, ...] = Field(
        default=(), description="columns by whose values the test rows are scored apart: source, language, sex …"
    )
    mask: bool = Field(default=False, description="put <EMAIL_ADDRESS> and the like in the place of personal data")
    stratified: bool = Field(
        default=False, description="give every split the same shares of the labels; a new row may then move others"
    )
    keep: Keep | None = Field(default=None, description="train on a part of the rows, chosen")
    disturb: dict[Disturbance, Annotated[float, Field(gt=0, le=1)]] = Field(
        default_factory=dict, description="shares of the training rows to write otherwise, as {typos: 0.2}"
    )
    fold_labels: bool = Field(
        default=True,
        description="take labels for one that differ in case, blanks or Unicode form only, or as 1 and 1.0",
    )
    extra_tests: dict[str, Origin] = Field(default_factory=dict, description="further rows only ever tested on")
    extra_train: dict[str, Origin] = Field(
        default_factory=dict,
        description="further rows only ever trained on, such as judged answers; where another row has the same text, "
        "theirs counts",
    )

    @field_validator("disturb")
    @classmethod
    def _at_most_all(cls, disturb: dict[Disturbance, float]) -> dict[Disturbance, float]:
        if sum(disturb.values()) > 1 + 1e-9:
            raise ValueError("the shares of all together are above 1")
        return disturb

    @field_validator("slices")
    @classmethod
    def _not_length(cls, slices: tuple[str, ...]) -> tuple[str, ...]:
        if "length" in slices:
            raise ValueError("the rows are scored apart by their length anyway; give the column another name")
        return slices

    @field_validator("extra_tests", "extra_train")
    @classmethod
    def _names_of_their_own(cls, extra: dict[str, Origin]) -> dict[str, Origin]:
        check_names(extra)
        return extra


def origins_in(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what says where rows come from, in a recipe as JSON has it."""
    for data in (content["data"], *(mixed["data"] for mixed in content.get("mix", {}).values())):
        yield data
        for parts in ("extra_tests", "extra_train"):
            yield from data.get(parts, {}).values()


def check_names(parts: Iterable[str]) -> None:
    """Raise ``ValueError`` for what no further test, or mixed task, may be called."""
    for name in parts:
        if name in ("train", "validation", "test"):
            raise ValueError(f"'{name}' is what one of the recipe's own splits is called; choose another name")
        if not re.fullmatch(PART, name):
            raise ValueError(f"'{name}' is no name; use letters, digits, '.', '_' and '-'")
