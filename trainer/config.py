"""A recipe: everything that decides what an adapter becomes, in one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.errors import HotswapError
from adapters.manifest import NAME_PATTERN
from adapters.validation import explain


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Origin(Strict):
    """Where rows come from: one of ``path``, ``dataset`` and ``source``, and what the columns are called."""

    path: Path | None = Field(default=None, description="a .jsonl, .json, .csv, .tsv or .parquet file")
    dataset: str | None = Field(default=None, description="a Hugging Face data set id, with ':split' behind it")
    source: str | None = Field(default=None, description="a data set this project knows how to fetch")
    text: str = Field(default="text", description="the column with the input")
    answer: str | None = Field(default=None, description="the column with the answer; default: label or summary")
    group: str | None = Field(default=None, description="rows that share this column's value stay in one split")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.path, self.dataset, self.source)) != 1:
            raise ValueError("give exactly one of path, dataset and source")
        return self


class Data(Origin):
    """Rows and how they are split. Shares are of groups, and stay stable when rows are added."""

    validation: float = Field(default=0.1, gt=0, lt=0.5)
    test: float = Field(default=0.1, gt=0, lt=0.5)
    train_rows: int | None = Field(default=None, ge=1, description="train on at most so many rows")
    validation_rows: int | None = Field(default=None, ge=1)
    test_rows: int | None = Field(default=None, ge=1)
    extra_tests: dict[str, Origin] = Field(default_factory=dict, description="further rows only ever tested on")


class ClassificationRecipe(Strict):
    kind: Literal["classification"]
    template: str = "Text: {text}\nLabel:"
    labels: tuple[str, ...] | None = Field(default=None, description="default: those in the data, sorted")
    max_input_tokens: int = Field(default=512, ge=8)


class SummarizationRecipe(Strict):
    kind: Literal["summarization"]
    template: str = "Text: {text}\n\nSummary:"
    max_input_tokens: int = Field(default=1024, ge=8)
    max_answer_tokens: int = Field(default=128, ge=1)


class Lora(Strict):
    """LoRA (Hu et al. 2021, arXiv:2106.09685). The update is ``alpha / rank * B @ A``."""

    rank: int = Field(default=8, ge=1, le=512)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class Training(Strict):
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps")
    epochs: float = Field(default=1, gt=0)
    batch_size: int = Field(default=16, ge=1)
    accumulate: int = Field(default=1, ge=1, description="batches per optimizer step")
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    evaluations: int = Field(default=5, ge=1, description="how often validation is scored, evenly spread")
    patience: int = Field(default=2, ge=1, description="stop after so many evaluations without improvement")


class Gate(Strict):
    """What a candidate must reach on held-out rows before it may be published: metric → least value."""

    test: dict[str, float] = Field(default_factory=dict)
    extra_tests: dict[str, dict[str, float]] = Field(default_factory=dict)


class Recipe(Strict):
    name: str = Field(pattern=NAME_PATTERN, description="the adapter's name in the store")
    description: str = Field(default="", max_length=2000)
    base: str | None = Field(default=None, description="default: HOTSWAP_BASE_MODEL")
    seed: int = Field(default=0, ge=0)
    output: Path | None = Field(default=None, description="default: runs/NAME")
    task: Annotated[ClassificationRecipe | SummarizationRecipe, Field(discriminator="kind")]
    data: Data
    lora: Lora = Lora()
    training: Training = Training()
    gate: Gate = Gate()

    @property
    def run_folder(self) -> Path:
        return self.output or Path("runs") / self.name


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, apply ``key.path=value`` overrides (values are YAML), and check it.

    Paths in it are taken relative to the recipe's own folder if they exist there. Raises
    :class:`HotswapError` with the key at fault and the likely intention.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HotswapError(f"cannot read the recipe {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HotswapError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise HotswapError(f"{path} is not a recipe: it must be a mapping with name, task and data.")
    for override in overrides:
        _override(content, override)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise HotswapError(f"{path}: {explain(error, Recipe)}") from error
    place = recipe.data.path
    if place is not None and not place.is_absolute() and (path.parent / place).exists():
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": path.parent / place})})
    return recipe


def _override(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    *parents, last = key.split(".")
    if not separator or not last:
        raise HotswapError(f"--set {override}: write it as key=value, for example --set training.epochs=2")
    for parent in parents:
        below = content.setdefault(parent, {})
        if not isinstance(below, dict):
            raise HotswapError(f"--set {override}: '{parent}' holds a value, not further keys")
        content = below
    try:
        content[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise HotswapError(f"--set {override}: the value is not valid YAML; quote it") from None
