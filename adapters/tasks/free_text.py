"""What tasks share whose answers are text, read up to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from adapters.tasks.base import BaseTask, Completion, Sampling, Template
from adapters.tokens import Tokenizer
from adapters.validation import explained

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


class FreeTextTask(BaseTask):
    """Answer in words."""

    closed: ClassVar[bool] = False
    gate_metrics: ClassVar[tuple[str, ...]] = ("rouge1", "rouge2", "rougeL", "similarity", "json_valid", "schema_valid")
    merit_name: ClassVar[str] = "ROUGE-L"
    merit_metric: ClassVar[str] = "rougeL"
    headings: ClassVar[tuple[str, str]] = ("The worst by ROUGE-L", "The best by ROUGE-L")

    max_answer_tokens: int = Field(default=128, ge=1, le=4096)

    @classmethod
    def of(cls, template: str | Template, **settings: Any) -> Self:
        """Make a task. Raises :class:`~adapters.errors.InvalidAdapter` for a template that is none."""
        with explained(cls, "the task is invalid"):
            made = template if isinstance(template, Template) else {"text": template}
            return cls.model_validate({"template": made, **settings})

    @property
    def answer_tokens(self) -> int:
        return self.max_answer_tokens

    def cut(self, ids: list[int], limit: int) -> list[int]:
        # What a text is about stands at its beginning: the lead is the strongest simple summary there is
        # (Grenander et al. 2019, "Countering the Effects of Lead Bias in News Summarization").
        return ids[:limit]

    def target(self, answer: str, tokenizer: Tokenizer, *, end: int) -> list[int]:
        ids = self.template.encode_answer(answer.strip(), tokenizer)[: self.max_answer_tokens - 1]
        return [*ids, end if self.template.end is None else self.template.end]

    def sampling(self, parameters: Mapping[str, Any]) -> Sampling:
        return Sampling(max_tokens=self.max_answer_tokens, stop=self.ends)

    @property
    def ends(self) -> tuple[int, ...]:
        """Token ids that end an answer besides those that end all of the base's."""
        return () if self.template.end is None else (self.template.end,)

    def read(self, completion: Completion, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {self.answer_key: completion.text.strip(), "finish_reason": completion.finish_reason}

    def merits(self, outputs: Sequence[Mapping[str, Any]], references: Sequence[str]) -> list[float]:
        """ROUGE-L of each."""
        scorer = _scorer("rougeL")
        said = zip(references, map(self.answer, outputs), strict=True)
        return [float(scorer.score(reference, answer)["rougeL"].fmeasure) for reference, answer in said]

    def score(self, outputs: Sequence[Mapping[str, Any]], references: Sequence[str]) -> dict[str, Any]:
        """Mean ROUGE-1, ROUGE-2 and ROUGE-L F-measures, with stemming (Lin 2004), and mean words per answer."""
        scorer = _scorer("rouge1", "rouge2", "rougeL")
        answers = list(map(self.answer, outputs))
        scores = [scorer.score(reference, answer) for reference, answer in zip(references, answers, strict=True)]
        mean = {name: sum(s[name].fmeasure for s in scores) / len(scores) for name in ("rouge1", "rouge2", "rougeL")}
        return {"rows": len(references), **mean, "words": sum(len(answer.split()) for answer in answers) / len(answers)}


def _scorer(*metrics: str) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # heavy; trainer only

    return RougeScorer(metrics, use_stemmer=True)
