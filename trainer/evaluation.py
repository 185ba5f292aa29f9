"""What an evaluation found: ``evaluation.json``, and what of it the manifest, the gate, the card and the page use."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_serializer

from adapters.manifest import Computed, Reference
from adapters.profile import Profile


class Kept(BaseModel):
    """A part of a file. Keys that this version of the trainer does not know stay; those that an earlier one did not
    write have defaults, which are not written either."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)
    __pydantic_extra__: dict[str, JsonValue]

    def content(self) -> dict[str, Any]:
        """Return it as it is written into a file."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class PerClass(Kept):
    precision: float
    recall: float
    f1: float = Field(alias="f1-score")
    support: float


class Confusion(Kept):
    """``counts[i][j]``: rows of label ``i`` that were given label ``j``."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class Scores(Kept):
    """What the task measures, metric → value, is kept beside these fields: see :attr:`values`. ``intervals`` are of
    95 %: metric → (low, high)."""

    per_class: dict[str, PerClass] | None = None
    confusion: Confusion | None = None
    perplexity: float | None = None
    prefers_chosen: float | None = None
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        """Every metric that is one number, in the order of the table."""
        late = {"perplexity": self.perplexity, "prefers_chosen": self.prefers_chosen}
        return {name: v for name, v in {**self.__pydantic_extra__, **late}.items() if isinstance(v, int | float)}

    @model_serializer
    def _measured_first(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        return {**self.__pydantic_extra__, **fields}


class Both(Kept):
    base: Scores
    baseline: Scores | None = None
    adapter: Scores


class ByBase(Kept):
    """Mean merit of the candidate and of the base untrained, and how likely such a difference is by chance."""

    candidate: float
    base: float
    p_value: float


class ByBaseline(Kept):
    """The same with what a sensible person tries first: ``name`` says what that is."""

    name: str
    candidate: float
    baseline: float
    p_value: float


class ByReleased(Kept):
    candidate: float
    released: float
    p_value: float
    version: int


class Robustness(Kept):
    """Beside ``rows``, each way of writing these test rows → mean merit."""

    rows: int

    @property
    def merits(self) -> dict[str, float]:
        return {name: v for name, v in self.__pydantic_extra__.items() if isinstance(v, int | float)}


class Majority(Kept):
    label: str
    accuracy: float
    macro_f1: float


class Baselines(Kept):
    """Mean merit of the first ``rows`` test rows without training, and that of the ``adapter`` on them."""

    majority: Majority | None = None
    rows: int
    shots: int
    zero_shot: float
    few_shot: float | None = None
    adapter: float


class Forgetting(Kept):
    """Perplexity of so many tokens of general text."""

    tokens: int
    base: float
    adapter: float


class Share(Kept):
    rows: int
    score: float


class Slice(Kept):
    """The test rows apart by a column's ``values``; what differs most between them, where enough rows have them."""

    values: dict[str, Share]
    gap: float | None = None
    demographic_parity: float | None = None
    equal_opportunity: float | None = None


class ReliabilityBin(Kept):
    rows: int
    confidence: float
    right: float


class Example(Kept):
    text: str
    wanted: str
    answered: str
    merit: float
    confidence: float | None = None


class Examples(Kept):
    wrong: tuple[Example, ...] = ()
    right: tuple[Example, ...] = ()


class Evaluation(Kept):
    """``scores``: base and adapter, by test set; ``profile``: how the test rows look to the adapter; ``references``:
    what it answers to the texts that the service asks it before it is served; ``base``, ``baseline`` and
    ``released``: how it compares with the base untrained, with what does without a language model and with what is
    served now, on the test rows; ``computed``: in which numbers and on what; ``seconds``: what each part took."""

    scores: dict[str, Both]
    profile: Profile
    references: tuple[Reference, ...] = ()
    computed: Computed | None = None
    base: ByBase | None = None
    baseline: ByBaseline | None = None
    released: ByReleased | None = None
    robustness: Robustness | None = None
    baselines: Baselines | None = None
    forgetting: Forgetting | None = None
    slices: dict[str, Slice] = Field(default_factory=dict)
    reliability: tuple[ReliabilityBin, ...] = ()
    examples: Examples = Examples()
    seconds: dict[str, float] = Field(default_factory=dict)
