"""Generation: an answer to whatever is asked, in the chat form of the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from adapters.tasks.base import GREEDY, Completion, Decoding, Sampling
from adapters.tasks.free_text import FreeTextTask
from adapters.tasks.shapes import checked_schema, same


class GenerationTask(FreeTextTask):
    """Do what an instruction asks for.

    The template is that in which a text alone is asked; a conversation is written by the base's own chat template.
    What a request says nothing of is as the version was published: ``decoding`` and ``max_answer_tokens``.
    """

    conversational: ClassVar[bool] = True
    answer_key: ClassVar[str] = "answer"
    gate_metrics: ClassVar[tuple[str, ...]] = (*FreeTextTask.gate_metrics, "exact_match")
    pipeline_tag: ClassVar[str] = "text-generation"
    usual_template: ClassVar[str] = "Question: {text}\n\nAnswer:"

    kind: Literal["generation"] = "generation"
    max_answer_tokens: int = Field(default=256, ge=1, le=4096)
    decoding: Decoding = GREEDY
    json_schema: Annotated[dict[str, Any], AfterValidator(checked_schema)] | None = Field(
        default=None, description="what an answer, which is JSON then, is held against in evaluation"
    )

    def sampling(self, parameters: Mapping[str, Any]) -> Sampling:
        return replace(super().sampling(parameters), decoding=self.decoding)

    def defaults(self) -> dict[str, Any]:
        more = {"stop_token_ids": list(self.ends)} if self.ends else {}
        return {"max_tokens": self.max_answer_tokens, **self.decoding.model_dump(mode="json"), **more}

    def read(self, completion: Completion, parameters: Mapping[str, Any]) -> dict[str, Any]:
        ends = [at for stop in self.decoding.stop if (at := completion.text.find(stop)) >= 0]
        if ends:
            completion = replace(completion, text=completion.text[: min(ends)], finish_reason="stop")
        return super().read(completion, parameters)

    def score(self, outputs: Sequence[Mapping[str, Any]], references: Sequence[str]) -> dict[str, Any]:
        """The share of answers that are the reference, as JSON where both are, beside ROUGE."""
        exact = [same(self.answer(output), reference) for output, reference in zip(outputs, references, strict=True)]
        return {**super().score(outputs, references), "exact_match": sum(exact) / len(exact)}
