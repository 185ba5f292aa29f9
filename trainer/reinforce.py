"""Online reinforcement learning: the model's own answers, rewarded by rules or by a reward model. TRL's GRPO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoTokenizer, Trainer
from trl import GRPOConfig, GRPOTrainer

from trainer.codec import Codec
from trainer.faithfulness import unsupported
from trainer.job import Job
from trainer.reference import BesideReference
from trainer.reward import Judge
from trainer.rows import Row

Reward = Callable[..., list[float]]


def reinforce_trainer(job: Job, model: Any, arguments: dict[str, Any]) -> Trainer:
    """Return TRL's GRPO trainer; a batch holds ``generations`` answers to each of its texts."""
    settings, rewards = job.recipe.reinforce, rewards_of(job)
    model.config.use_cache = True
    return _Reinforced(
        codec=job.codec,
        model=model,
        reward_funcs=[reward for reward, _ in rewards],
        args=GRPOConfig(
            **arguments,
            reward_weights=[weight for _, weight in rewards],
            num_generations=settings.generations,
            temperature=settings.temperature,
            beta=settings.beta,
            max_completion_length=job.task.answer_tokens,
        ),
        train_dataset=_asked(job.splits.train),
        eval_dataset=_asked(job.splits.validation),
        processing_class=AutoTokenizer.from_pretrained(job.base.folder, padding_side="left"),
    )


def _asked(rows: list[Row]) -> Dataset:
    return Dataset.from_list([{"prompt": row.text, "reference": row.answer} for row in rows])


def rewards_of(job: Job) -> list[tuple[Reward, float]]:
    """Return each reward with its weight. A reward gets the texts and the answers, and gives a number for each:
    ``rougeL`` to the reference; ``supported`` 1 where every number and name is the text's own; ``brief`` 1 up to
    ``max_words``, and less by the share that is over."""
    settings = job.recipe.reinforce
    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def rouge_l(completions: list[str], reference: list[str], **_: Any) -> list[float]:
        return [scorer.score(r, c)["rougeL"].fmeasure for r, c in zip(reference, completions, strict=True)]

    def supported(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [float(not unsupported(p, c)) for p, c in zip(prompts, completions, strict=True)]

    def brief(completions: list[str], **_: Any) -> list[float]:
        return [min(1.0, settings.max_words / max(1, len(c.split()))) for c in completions]

    rules: dict[str, Reward] = {"rougeL": rouge_l, "supported": supported, "brief": brief}
    rewards: list[tuple[Reward, float]] = [(rules[name], weight) for name, weight in settings.rewards.items()]
    if settings.reward_model is not None:
        judge = Judge(settings.reward_model, job.base)

        def preferred(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
            scores: list[float] = judge.scores(list(zip(prompts, completions, strict=True)), job.task)
            return scores

        rewards.append((preferred, settings.reward_weight))
    return rewards


class _Reinforced(BesideReference, GRPOTrainer):
    def __init__(self, codec: Codec, **options: Any) -> None:
        self._codec = codec
        super().__init__(**options)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """The task's own ids: TRL would put the text alone before the model, without the prompt around it."""
        return [self._codec.prompt(text) for text in prompts], None, {}
