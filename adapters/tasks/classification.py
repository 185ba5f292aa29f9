"""Classification: every label is scored at the answer slot, by one forward pass where they are at most 128."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from string import ascii_uppercase
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapters.errors import InvalidAdapter
from adapters.tasks.base import SLOT, BaseTask, Completion, Sampling, Template
from adapters.tokens import Tokenizer
from adapters.validation import explained

# Each hundred takes another forward pass, most of which the prefix cache spares.
MAX_LABELS = 512
# Of a text that is too long, beginning and end are kept: together they beat either alone when a classifier must read
# less than everything (Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?", section 5.3.1). So much of it
# is the beginning where a task does not say how much, as none did at first.
HEAD_SHARE = 0.25


class Label(BaseModel):
    """A label and the one vocabulary token that stands for it at the answer slot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=200)
    token_id: int = Field(ge=0)


class ClassificationTask(BaseTask):
    """Choose one of a closed set of labels."""

    closed: ClassVar[bool] = True
    answer_key: ClassVar[str] = "label"
    gate_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "weighted_f1")
    merit_name: ClassVar[str] = "accuracy"
    merit_metric: ClassVar[str] = "accuracy"
    pipeline_tag: ClassVar[str] = "text-classification"
    headings: ClassVar[tuple[str, str]] = ("Where it is wrong, the surest first", "Where it is right, the surest first")
    usual_template: ClassVar[str] = "Text: {text}\nLabel:"

    kind: Literal["classification"] = "classification"
    labels: tuple[Label, ...] = Field(min_length=2, max_length=MAX_LABELS)
    temperature: float = Field(default=1.0, gt=0, description="divides the scores' logits: calibration")
    head_share: float = Field(
        default=HEAD_SHARE, ge=0, le=1, description="of a text that is cut: so much of what is kept is its beginning"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what, values in (
            ("names", [label.name for label in self.labels]),
            ("tokens", [label.token_id for label in self.labels]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"label {what} must be distinct")
        return self

    @classmethod
    def of(cls, template: str | Template, labels: Sequence[str], tokenizer: Tokenizer, **settings: Any) -> Self:
        """Make a task, choosing a token for each label.

        Raises :class:`InvalidAdapter` where none is left, or the template or a label is not one.
        """
        chat = template if isinstance(template, Template) else None
        return cls._made(template, choose_tokens(labels, tokenizer, chat), **settings)

    @classmethod
    def _made(cls, template: str | Template, labels: Sequence[Label], **settings: Any) -> Self:
        with explained(cls, "the task is invalid"):
            made = template if isinstance(template, Template) else {"text": template}
            return cls.model_validate({"template": made, "labels": tuple(labels), **settings})

    @classmethod
    def zero_shot(cls, labels: Sequence[str], tokenizer: Tokenizer) -> Self:
        """Make a task for a model that was never trained on it: the prompt says what the labels are.

        Labels that share their first token are lettered, and the letters scored. Raises
        :class:`InvalidAdapter` for labels that cannot be told apart or put into a prompt.
        """
        if any(SLOT in label for label in labels):
            raise InvalidAdapter(f"a label cannot contain {SLOT}: that is where the text goes.")
        own = choose_tokens(labels, tokenizer)
        if all(tokenizer.encode(" " + label.name.strip())[:1] == [label.token_id] for label in own):
            text = f"Choose the label that fits the text: {', '.join(labels)}.\n\nText: {SLOT}\nLabel:"
            return cls._made(text, own)
        if len(labels) > len(ascii_uppercase):
            raise InvalidAdapter(f"labels that begin alike are lettered: give at most {len(ascii_uppercase)}.")
        options = "\n".join(f"{letter}. {label}" for letter, label in zip(ascii_uppercase, labels, strict=False))
        text = f"Choose the label that fits the text:\n{options}\n\nText: {SLOT}\nLabel:"
        chosen = choose_tokens(ascii_uppercase[: len(labels)], tokenizer)
        named = [Label(name=label, token_id=letter.token_id) for label, letter in zip(labels, chosen, strict=True)]
        return cls._made(text, named)

    @property
    def answer_tokens(self) -> int:
        return 1

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    def cut(self, ids: list[int], limit: int) -> list[int]:
        head = round(limit * self.head_share)
        return ids[:head] + ids[len(ids) - (limit - head) :]

    def target(self, answer: str, tokenizer: Tokenizer, *, end: int) -> list[int]:
        for label in self.labels:
            if label.name == answer:
                return [label.token_id]
        raise InvalidAdapter(f"'{answer}' is not one of the labels {list(self.answers)}.")

    def sampling(self, parameters: Mapping[str, Any]) -> Sampling:
        return Sampling(max_tokens=1, choices=tuple(label.token_id for label in self.labels))

    def read(self, completion: Completion, parameters: Mapping[str, Any]) -> dict[str, Any]:
        logits = [completion.logprobs[label.token_id] / self.temperature for label in self.labels]
        top = max(logits)
        weights = [math.exp(logit - top) for logit in logits]
        total = sum(weights)
        scores = {label.name: weight / total for label, weight in zip(self.labels, weights, strict=True)}
        best = max(scores, key=scores.__getitem__)
        return {"label": best, "score": scores[best], "scores": scores}

    def saying(self, answer: str) -> dict[str, Any]:
        return {"label": answer, "score": 1.0, "scores": {answer: 1.0}}

    def score(self, outputs: Sequence[Mapping[str, Any]], references: Sequence[str]) -> dict[str, Any]:
        """Accuracy, macro- and weighted F1, per class, confusion (rows: truth), and expected calibration error in 10
        equal-width bins (Guo et al. 2017, "On Calibration of Modern Neural Networks")."""
        from sklearn.metrics import accuracy_score, classification_report, confusion_matrix  # heavy; trainer only

        names = list(self.answers)
        predicted = [output["label"] for output in outputs]
        report = classification_report(references, predicted, labels=names, output_dict=True, zero_division=0)
        return {
            "rows": len(references),
            "accuracy": float(accuracy_score(references, predicted)),
            "macro_f1": float(report["macro avg"]["f1-score"]),
            "weighted_f1": float(report["weighted avg"]["f1-score"]),
            "calibration_error": calibration_error(outputs, references),
            "per_class": {
                name: {key: float(report[name][key]) for key in ("precision", "recall", "f1-score", "support")}
                for name in names
            },
            "confusion": {
                "labels": names,
                "counts": confusion_matrix(references, predicted, labels=names).tolist(),
            },
        }


def calibration_error(outputs: Sequence[Mapping[str, Any]], references: Sequence[str], bins: int = 10) -> float:
    """Return the mean distance between confidence and accuracy, weighted by how many outputs fall in a bin."""
    confidence = [0.0] * bins
    correct = [0.0] * bins
    for output, reference in zip(outputs, references, strict=True):
        index = min(int(output["score"] * bins), bins - 1)
        confidence[index] += output["score"]
        correct[index] += output["label"] == reference
    return sum(abs(a - b) for a, b in zip(confidence, correct, strict=True)) / max(len(outputs), 1)


def order_decides(labels: Sequence[str], tokenizer: Tokenizer, template: Template | None = None) -> bool:
    """Whether labels begin alike, so that their tokens depend on the order in which they are given."""
    there, back = (set(choose_tokens(given, tokenizer, template)) for given in (labels, labels[::-1]))
    return there != back


def choose_tokens(labels: Sequence[str], tokenizer: Tokenizer, template: Template | None = None) -> tuple[Label, ...]:
    """Give each label a token of its own, the first of the label itself, as it follows the ``template`` (default: after
    a blank), wherever that is free.

    Labels that begin alike ("Copyleft", "Copyleft Limited") get a later word of theirs, and at last a
    letter code; the adapter learns what it stands for.
    """
    asked = template or Template(text=f"{SLOT}:")
    taken: set[int] = set()
    codes = _codes(tokenizer, asked)  # one after the other: none that a label had becomes free again
    chosen = []
    for name in labels:
        if not name.strip():
            raise InvalidAdapter("a label is empty; every label needs a name.")
        token_id = next((i for i in chain(_own(name, tokenizer, asked), codes) if i not in taken), None)
        if token_id is None:
            raise InvalidAdapter(f"the vocabulary has no token left for label '{name}'; use fewer labels.")
        taken.add(token_id)
        with explained(Label, f"label '{name[:40]}'"):
            chosen.append(Label(name=name, token_id=token_id))
    return tuple(chosen)


def _own(name: str, tokenizer: Tokenizer, template: Template) -> Iterator[int]:
    blank = tokenizer.encode(" ")
    for spelling in (name.strip(), name.strip().title()):
        yield from (i for i in template.encode_answer(spelling, tokenizer) if [i] != blank)


def _codes(tokenizer: Tokenizer, template: Template) -> Iterator[int]:
    for length in (1, 2, 3):
        for letters in product(ascii_uppercase, repeat=length):
            ids = template.encode_answer("".join(letters), tokenizer)
            if len(ids) == 1:
                yield ids[0]
