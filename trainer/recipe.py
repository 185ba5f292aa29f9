"""A recipe: everything that decides what an adapter becomes, in one YAML file."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from adapters.manifest import NAME_PATTERN
from adapters.reference import is_name
from adapters.tasks import BaseTask
from trainer.origin import Data, check_names, origins_in
from trainer.space import SWEPT, Range, Space
from trainer.strict import Strict
from trainer.task_recipe import TaskRecipe

VERSION_PATTERN = NAME_PATTERN.removesuffix("$") + r"@[1-9][0-9]{0,8}$"
DEFAULTS = 4  # counts the changes of what a recipe does that says nothing: an older run is another run
IDENTITY = "run-identity"  # the file in a run's folder that holds :meth:`Recipe.run_identity`

# How a method's result is served: as the LoRA it is, as a LoRA made of it, as vectors in front of the prompt (of which
# a prefix cannot be served: it is in every layer).
LOW_RANK = ("lora", "qlora")
CONVERTED = ("dora", "adalora", "ia3", "full")
PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning")
Method = Literal["lora", "qlora", "dora", "adalora", "ia3", "full", "prompt_tuning", "p_tuning", "prefix_tuning"]


class Lora(Strict):
    """LoRA (Hu et al. 2021, arXiv:2106.09685), and what is built on it: QLoRA, DoRA, AdaLoRA.

    The update is ``alpha / rank * B @ A``; with ``rslora`` it is divided by the root of the rank (Kalajdzievski 2023,
    arXiv:2312.03732). ``plus`` is LoRA+ (Hayou et al. 2024, arXiv:2402.12354).
    """

    rank: int = Field(default=8, ge=1, le=512)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = Field(default=None, description="default: every linear layer")
    rslora: bool = False
    plus: float | None = Field(default=None, ge=1, description="how much faster B learns than A; 16 is the paper's")


class SoftPrompt(Strict):
    """Vectors learnt in front of the prompt: prompt tuning, P-tuning and prefix tuning."""

    tokens: int = Field(default=20, ge=1, le=256)
    start: str | None = Field(
        default=None, description="prompt_tuning: words to begin with, repeated to fill; default: the template's own"
    )
    encoder_width: int = Field(default=256, ge=8, le=8192, description="p_tuning: of the network that makes them")


# What the weights are trained to do: give the answers of the rows; prefer one of two answers; tell good answers from
# bad ones; score answers as the rows do; earn a reward.
Objective = Literal["supervised", "dpo", "kto", "reward", "grpo"]
PAIRED = ("dpo", "reward")


class Preference(Strict):
    """DPO (Rafailov et al. 2023, arXiv:2305.18290) and KTO (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    beta: float = Field(default=0.1, gt=0, description="how much a step away from the beginning costs")


RewardRule = Literal["rougeL", "supported", "brief"]


class Mixed(Strict):
    """Another task that is learnt along with the recipe's own."""

    task: TaskRecipe
    data: Data
    weight: float = Field(default=1.0, gt=0, le=100, description="how many of its rows to one of the recipe's own")


class Reinforce(Strict):
    """GRPO (Shao et al. 2024, arXiv:2402.03300): of several answers to a text, those above their mean are learnt."""

    rewards: dict[RewardRule, Annotated[float, Field(gt=0)]] = Field(
        default={"rougeL": 1.0}, description="rule → weight; {} for none"
    )
    reward_model: Path | None = Field(default=None, description="the run folder of a recipe with objective reward")
    reward_weight: float = Field(default=1.0, gt=0)
    max_words: int = Field(default=20, ge=1, description="of the rule brief")
    generations: int = Field(default=4, ge=2, le=64, description="answers to each text; they share a batch")
    temperature: float = Field(default=1.0, gt=0)
    beta: float = Field(default=0.02, ge=0, description="what a step away from the beginning costs")

    @model_validator(mode="after")
    def _some_reward(self) -> Self:
        if not self.rewards and self.reward_model is None:
            raise ValueError("without rewards and reward_model there is nothing to earn")
        return self


class Conversion(Strict):
    """How a change that vLLM cannot load becomes a LoRA: the smallest rank that loses at most ``error`` of it (of its
    squared size, over all matrices together), up to ``max_rank``."""

    error: float = Field(default=0.05, ge=0, lt=1)
    max_rank: int = Field(default=64, ge=1, le=512)


# As many passes as make so many optimizer steps: what it takes to learn a format, and each of its labels.
STEPS, STEPS_OF_A_LABEL = 150, 10
LEAST_PASSES, MOST_PASSES = 2, 12
BUDGET = r"(auto|(?P<number>\d+(\.\d+)?) ?(?P<unit>passe?s?|min(utes?)?))"


class Training(Strict):
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps")
    budget: str = Field(
        default="auto",
        pattern=f"^{BUDGET}$",
        description="the most that it may take, as '30 min' or '3 passes'; auto: 2 passes, or up to 12 of few rows",
    )
    epochs: float | None = Field(default=None, gt=0, le=1000, description="the same as a budget of so many passes")
    batch_size: int = Field(default=16, ge=1)
    accumulate: int = Field(default=1, ge=1, description="batches per optimizer step")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where GPU or CPU are faster with it"
    )
    gradient_checkpointing: bool | None = Field(
        default=None,
        description="compute activations again instead of keeping them: less memory, more time; default: where a row "
        "would not fit into a GPU otherwise",
    )
    report_to: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        default=("tensorboard",), description="where the curves go; TensorBoard's are in the run's folder"
    )
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    shrink: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(), description="classification: shares of the update to try; the smallest that is good enough is kept"
    )
    evaluations: int = Field(default=8, ge=1, description="how often validation is scored, evenly spread")
    patience: int = Field(default=3, ge=1, description="stop after so many evaluations without improvement")

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.epochs is not None and self.budget != "auto":
            raise ValueError("budget and epochs say the same thing; give one of them")
        if (given := re.fullmatch(BUDGET, self.budget)) and given["number"] and not 0 < float(given["number"]) <= 1e5:
            raise ValueError("budget: give a number above 0")
        return self

    @property
    def minutes(self) -> float | None:
        """How long training may take; none where passes are counted."""
        given = re.fullmatch(BUDGET, self.budget)
        return float(given["number"]) if given and (given["unit"] or "").startswith("min") else None

    def passes(self, rows: int, labels: int = 0) -> float:
        """Return how often ``rows`` rows with so many different labels are gone through at most."""
        if self.epochs is not None:
            return self.epochs
        given = re.fullmatch(BUDGET, self.budget)
        if given and (given["unit"] or "").startswith("pass"):
            return float(given["number"])
        steps = STEPS + STEPS_OF_A_LABEL * labels
        return min(MOST_PASSES, max(LEAST_PASSES, math.ceil(steps * self.batch_size * self.accumulate / rows)))


Threshold = Annotated[float, Field(ge=0, le=1)]
Standing = Literal["any", "not_worse", "better"]


class EvaluationRecipe(Strict):
    similarity: bool = Field(default=True, description="free text: also by a sentence encoder, fetched once (83 MB)")
    general_text: Path | None = Field(
        default=None, description="text to measure forgetting on; default: Python's own documentation"
    )


class Card(Strict):
    """What only the author knows, for the card of the version."""

    language: str = Field(default="en", pattern=r"^[a-z]{2,3}$")
    licence: str = Field(default="", description="of the adapter, as an SPDX or Hugging Face identifier")
    intended_use: str = ""
    limits: str = ""
    data_licence: str = Field(default="", description="what the rows may be used for, and by whose leave")
    consent: str = Field(default="", description="whether those whose texts these are know and agree")


class Gate(Strict):
    """What a candidate must reach on held-out rows before it may be published: metric → least value."""

    test: dict[str, Threshold] = Field(default_factory=dict)
    base: Standing = Field(
        default="not_worse", description="against the base untrained, on the test rows; at the 5 % level"
    )
    baseline: Standing = Field(
        default="not_worse",
        description="against TF-IDF with logistic regression, the lead of the text, or the nearest row's answer",
    )
    released: Standing = Field(
        default="not_worse",
        description="against what is served now, on the test rows; worse and better are so at the 5 % level",
    )
    extra_tests: dict[str, dict[str, Threshold]] = Field(default_factory=dict)


class Recipe(Strict):
    name: str = Field(description="the adapter's name in the store")
    description: str = Field(default="", max_length=2000)
    base: str | None = Field(default=None, description="default: HOTSWAP_BASE_MODEL")
    seed: int = Field(default=0, ge=0, lt=2**31)
    output: Path | None = Field(default=None, description="default: runs/NAME")
    task: TaskRecipe
    data: Data
    mix: dict[str, Mixed] = Field(
        default_factory=dict, description="further tasks to learn in the same weights: name → {task, data, weight}"
    )
    method: Method = "lora"
    objective: Objective = "supervised"
    start_from: str | None = Field(default=None, description="NAME@VERSION in the store, whose LoRA is trained further")
    last_layers: int | None = Field(default=None, ge=1, description="adapt so many of the last layers; default: all")
    lora: Lora = Lora()
    soft_prompt: SoftPrompt = SoftPrompt()
    preference: Preference = Preference()
    reinforce: Reinforce = Reinforce()
    convert: Conversion = Conversion()
    training: Training = Training()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    card: Card = Card()
    gate: Gate = Gate()
    sweep: dict[str, Space] = Field(
        default={"training.learning_rate": Range(low=1e-4, high=5e-3, log=True)},
        min_length=1,
        description="what `trainer sweep` tries: key → {low, high, log, whole}, or a list",
    )

    @model_validator(mode="after")
    def _gate_can_open(self) -> Self:
        """Refuse a misspelt gate now, not when the training that it judges is over."""
        for test, thresholds in self.gate.extra_tests.items():
            if test not in (*self.data.extra_tests, *self.mix):
                raise ValueError(f"gate.extra_tests.{test}: data.extra_tests has no test of this name, nor has mix")
            makes = self.mix[test].task.makes if test in self.mix else self.task.makes
            embedded = self.evaluation.similarity and test not in self.mix
            self._check_metrics(f"gate.extra_tests.{test}", thresholds, makes, embedded)
        self._check_metrics("gate.test", self.gate.test, self.task.makes, self.evaluation.similarity)
        check_names(self.mix)
        for name, mixed in self.mix.items():
            if name in self.data.extra_tests:
                raise ValueError(f"mix.{name}: one of the recipe's own tests has this name; choose another")
            if mixed.data.extra_tests:
                raise ValueError(f"mix.{name}.data.extra_tests: only the recipe's own data has further tests")
            if mixed.data.extra_train:
                raise ValueError(f"mix.{name}.data.extra_train: only the recipe's own data has further rows")
        if self.training.shrink and not self.task.makes.closed:
            raise ValueError("training.shrink: it compares accuracies, so it is for classification only")
        return self

    @field_validator("name")
    @classmethod
    def _a_name(cls, name: str) -> str:
        if not is_name(name):
            raise ValueError("up to 64 small letters, digits, '.', '_' and '-', with a letter or digit at both ends")
        return name

    @field_validator("sweep")
    @classmethod
    def _comparable(cls, sweep: dict[str, Any]) -> dict[str, Any]:
        for key in sweep:
            if not SWEPT.fullmatch(key):
                raise ValueError(
                    f"{key}: trials with other rows, prompts or objectives have losses that cannot be compared; sweep "
                    "training, lora, soft_prompt, method, last_layers, data.keep, data.train_rows or a mix's weight"
                )
        return sweep

    @field_validator("start_from")
    @classmethod
    def _a_version(cls, start: str | None) -> str | None:
        if start is not None and not re.fullmatch(VERSION_PATTERN, start):
            raise ValueError("write it as NAME@VERSION, for example sentiment@2")
        return start

    @model_validator(mode="after")
    def _settings_of_the_method(self) -> Self:
        """Refuse a setting that the method would pass over."""
        for setting, given, methods in (
            ("training.shrink", self.training.shrink, LOW_RANK),
            ("lora.plus", self.lora.plus, ("lora", "qlora", "dora")),
            ("lora.rslora", self.lora.rslora, ("lora", "qlora", "dora")),
            ("last_layers", self.last_layers, (*LOW_RANK, *CONVERTED)),
            (
                "training.gradient_checkpointing",
                self.training.gradient_checkpointing,
                (*LOW_RANK, *CONVERTED, "prompt_tuning", "p_tuning"),
            ),
        ):
            if given and self.method not in methods:
                raise ValueError(f"{setting}: method {self.method} does not use it; {', '.join(methods)} would")
        if self.method == "adalora" and self.training.minutes is not None:
            raise ValueError("training.budget: adalora shares its ranks out over all steps; say how many passes")
        return self

    @model_validator(mode="after")
    def _settings_of_the_objective(self) -> Self:
        if self.objective == "supervised":
            return self
        if self.mix or self.data.disturb:
            raise ValueError(f"mix and data.disturb: objective {self.objective} learns one task, and rows as they are")
        if self.method not in LOW_RANK:
            raise ValueError(f"objective {self.objective} trains {' and '.join(LOW_RANK)}, not {self.method}")
        if self.lora.plus or self.training.shrink:
            raise ValueError(f"lora.plus and training.shrink: objective {self.objective} does not use them")
        if self.objective == "reward" and self.start_from:
            raise ValueError("start_from: a reward model gives scores and no text; it begins with the base")
        if self.objective == "grpo":
            if self.task.makes.closed:
                raise ValueError("objective grpo rewards free text: it is not for classification")
            if self.training.batch_size % self.reinforce.generations:
                raise ValueError("training.batch_size counts answers here: a multiple of reinforce.generations")
        if self.objective == "kto" and self.training.batch_size < 2:
            raise ValueError("training.batch_size: objective kto compares the answers of a batch; 2 or more")
        return self

    def _check_metrics(self, where: str, thresholds: dict[str, float], makes: type[BaseTask], embedded: bool) -> None:
        known = makes.gate_metrics
        if self.objective == "dpo":
            known = (*known, "prefers_chosen")
        if not embedded:
            known = tuple(metric for metric in known if metric != "similarity")
        for metric in thresholds:
            if metric not in known:
                raise ValueError(f"{where}.{metric}: unknown metric; a gate knows {', '.join(known)}")

    @property
    def unserved(self) -> str | None:
        """Why no version can be made of what this recipe trains; none where one can."""
        if self.objective == "reward":
            return "a reward model answers nothing: it is for reinforce.reward_model, not for the store."
        if self.method == "prefix_tuning":
            return (
                "a prefix cannot be served: vLLM has no way to put keys and values into every layer; train with "
                "prompt_tuning, p_tuning or lora."
            )
        return None

    @property
    def run_folder(self) -> Path:
        return self.output or Path("runs") / self.name

    def part(self, name: str) -> Recipe:
        """Return the recipe of one of the tasks of ``mix``."""
        mixed = self.mix[name]
        return self.model_copy(update={"task": mixed.task, "data": mixed.data, "mix": {}})

    def run_identity(self, data: str, base: str) -> str:
        """Return a digest of all that decides the weights: this recipe, the rows' fingerprint, the base's digest.

        Where the rows lie does not decide anything: a recipe named by another path is the same recipe.
        """
        aside: Any = {
            "gate": True,
            "evaluation": True,
            "card": True,
            "output": True,
            "description": True,
            "base": True,  # its digest is below
            "sweep": True,
            "training": {"report_to"},
        }
        recipe = self.model_dump(mode="json", exclude=aside, exclude_defaults=True)  # a later version has more keys
        if judge := recipe.get("reinforce", {}).get("reward_model"):
            recipe["reinforce"]["reward_model"] = Path(judge).name
        for origin in origins_in(recipe):
            if "path" in origin:
                origin["path"] = Path(origin["path"]).name
        identity = {"recipe": recipe, "data": data, "base": base, "defaults": DEFAULTS}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
