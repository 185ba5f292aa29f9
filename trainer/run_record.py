"""What a training was like: ``run.json``, whose presence says that the run is finished."""

from __future__ import annotations

from pydantic import Field

from trainer.evaluation import Kept, Scores


class HistoryEntry(Kept):
    """What was logged at a step, with whatever else transformers logs; None for what was no number."""

    step: int
    loss: float | None = None
    eval_loss: float | None = None


class Converted(Kept):
    """How a change that vLLM cannot load became a LoRA: what of its squared size was lost, and the test rows' scores
    from before."""

    rank: int
    error: float
    as_trained: Scores


class Code(Kept):
    version: str
    commit: str | None = None


class MadeWith(Kept):
    """This code, its libraries (name → version), this machine. Earlier versions of the trainer did not say."""

    code: Code | None = None
    libraries: dict[str, str] = Field(default_factory=dict)
    machine: str = ""


class RunRecord(Kept):
    """``data`` and ``base`` are digests, ``rows`` counts by split, ``files`` digests of what decides the answers.
    ``diverged_at`` is the step at which the training was lost, so that a state from before it was taken."""

    data: str
    rows: dict[str, int]
    base: str
    machine: str = ""
    seconds: float
    tokens_per_second: float = 0.0
    peak_memory_mib: int = 0
    steps: int = 0
    train_loss: float | None = None
    best_validation_loss: float | None = None
    shrunk_to: float = 1.0
    temperature: float = 1.0
    trainable_parameters: int = 0
    diverged_at: int | None = None
    converted: Converted | None = None
    made_with: MadeWith = MadeWith()
    files: dict[str, str] | None = None
    history: tuple[HistoryEntry, ...] = ()
