"""Summarization: free text, and texts longer than the model reads at once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from adapters.tasks.base import Completion, Sampling
from adapters.tasks.chunks import in_chunks
from adapters.tasks.free_text import FreeTextTask
from adapters.tokens import Tokenizer

Long = Literal["cut", "chunks"]
# Each round makes a text several times shorter; what is still too long after so many is cut.
ROUNDS = 4
# An upper bound for English subword vocabularies: enough tokens that `max_words` words always fit.
TOKENS_PER_WORD = 2.0


class SummarizationTask(FreeTextTask):
    """Say the same in fewer words."""

    answer_key: ClassVar[str] = "summary"
    pipeline_tag: ClassVar[str] = "summarization"
    usual_template: ClassVar[str] = "Text: {text}\n\nSummary:"

    kind: Literal["summarization"] = "summarization"
    long: Long = Field(
        default="cut", description="texts that do not fit are cut, or read in chunks whose summaries are summarized"
    )

    def parts(self, text: str, tokenizer: Tokenizer, *, room: int | None = None) -> list[str]:
        limit = self.limit(tokenizer, room)
        if self.long == "cut" or len(self.body(text, tokenizer)) <= limit:
            return [text]
        return in_chunks(text, limit, lambda piece: len(self.body(piece, tokenizer)))

    def sampling(self, parameters: Mapping[str, Any]) -> Sampling:
        sampling, words = super().sampling(parameters), parameters.get("max_words")
        if words is None:
            return sampling
        return replace(sampling, max_tokens=min(sampling.max_tokens, math.ceil(words * TOKENS_PER_WORD) + 1))

    def read(self, completion: Completion, parameters: Mapping[str, Any]) -> dict[str, Any]:
        output, limit = super().read(completion, parameters), parameters.get("max_words")
        ends = [word.end() for word in re.finditer(r"\S+", output["summary"])]
        if limit is not None and len(ends) > limit:
            return {"summary": output["summary"][: ends[limit - 1]], "finish_reason": "length"}
        return output
