"""Summarization: free text, read up to the end of the answer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from adapters.tasks.base import BaseTask, Completion, Sampling, Template
from adapters.tasks.chunks import in_chunks
from adapters.tokens import Tokenizer
from adapters.validation import explained

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

Long = Literal["cut", "chunks"]
# Each round makes a text several times shorter; what is still too long after so many is cut.
ROUNDS = 4
# An upper bound for English subword vocabularies: enough tokens that `max_words` words always fit.
TOKENS_PER_WORD = 2.0


class SummarizationTask(BaseTask):
    """Say the same in fewer words."""

    closed: ClassVar[bool] = False
    answer_key: ClassVar[str] = "summary"
    gate_metrics: ClassVar[tuple[str, ...]] = ("rouge1", "rouge2", "rougeL", "similarity")
    merit_name: ClassVar[str] = "ROUGE-L"
    merit_metric: ClassVar[str] = "rougeL"
    pipeline_tag: ClassVar[str] = "summarization"
    headings: ClassVar[tuple[str, str]] = ("The worst by ROUGE-L", "The best by ROUGE-L")

    kind: Literal["summarization"] = "summarization"
    max_answer_tokens: int = Field(default=128, ge=1, le=4096)
    long: Long = Field(
        default="cut", description="texts that do not fit are cut, or read in chunks whose summaries are summarized"
    )

    @classmethod
    def of(cls, template: str | Template, **settings: Any) -> Self:
        """Make a task. Raises :class:`~adapters.errors.InvalidAdapter` for a template that is none."""
        with explained(cls, "the task is invalid"):
            made = template if isinstance(template, Template) else {"text": template}
            return cls.model_validate({"template": made, **settings})

    @property
    def answer_tokens(self) -> int:
        return self.max_answer_tokens

    def parts(self, text: str, tokenizer: Tokenizer, *, room: int | None = None) -> list[str]:
        limit = self.limit(tokenizer, room)
        if self.long == "cut" or len(self.body(text, tokenizer)) <= limit:
            return [text]
        return in_chunks(text, limit, lambda piece: len(self.body(piece, tokenizer)))

    def cut(self, ids: list[int], limit: int) -> list[int]:
        # What a text is about stands at its beginning: the lead is the strongest simple summary there is
        # (Grenander et al. 2019, "Countering the Effects of Lead Bias in News Summarization").
        return ids[:limit]

    def target(self, answer: str, tokenizer: Tokenizer, *, end: int) -> list[int]:
        ids = self.template.encode_answer(answer.strip(), tokenizer)[: self.max_answer_tokens - 1]
        return [*ids, end if self.template.end is None else self.template.end]

    def sampling(self, parameters: Mapping[str, Any]) -> Sampling:
        words, tokens = parameters.get("max_words"), self.max_answer_tokens
        if words is not None:
            tokens = min(tokens, math.ceil(words * TOKENS_PER_WORD) + 1)
        return Sampling(max_tokens=tokens, stop=() if self.template.end is None else (self.template.end,))

    def read(self, completion: Completion, parameters: Mapping[str, Any]) -> dict[str, Any]:
        summary, finish_reason = completion.text.strip(), completion.finish_reason
        limit = parameters.get("max_words")
        ends = [word.end() for word in re.finditer(r"\S+", summary)]
        if limit is not None and len(ends) > limit:
            summary, finish_reason = summary[: ends[limit - 1]], "length"
        return {"summary": summary, "finish_reason": finish_reason}

    def merits(self, outputs: Sequence[Mapping[str, Any]], references: Sequence[str]) -> list[float]:
        """ROUGE-L of each."""
        scorer = _scorer("rougeL")
        said = zip(references, map(self.answer, outputs), strict=True)
        return [float(scorer.score(reference, summary)["rougeL"].fmeasure) for reference, summary in said]

    def score(self, outputs: Sequence[Mapping[str, Any]], references: Sequence[str]) -> dict[str, Any]:
        """Mean ROUGE-1, ROUGE-2 and ROUGE-L F-measures, with stemming (Lin 2004), and mean words per summary."""
        scorer = _scorer("rouge1", "rouge2", "rougeL")
        summaries = [str(output["summary"]) for output in outputs]
        scores = [scorer.score(reference, summary) for reference, summary in zip(references, summaries, strict=True)]
        mean = {name: sum(s[name].fmeasure for s in scores) / len(scores) for name in ("rouge1", "rouge2", "rougeL")}
        return {
            "rows": len(references),
            **mean,
            "words": sum(len(summary.split()) for summary in summaries) / len(summaries),
        }


def _scorer(*metrics: str) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # heavy; trainer only

    return RougeScorer(metrics, use_stemmer=True)
