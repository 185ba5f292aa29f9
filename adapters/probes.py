"""What a version is asked once it is loaded, before anyone is served by it.

The texts are our own: a version's reference answers give away nothing of the data it was trained on.
"""

from __future__ import annotations

from adapters.tasks import Sampling
from adapters.tasks.base import BaseTask

TEXTS = (
    "The delivery came two days late, and nobody answered my letter.",
    "Either party may end this agreement with thirty days' notice in writing.",
)
# Of a free text, the probabilities of so many first tokens stand for the answer.
CHOICES = 8


def choices(task: BaseTask, vocabulary: int) -> tuple[int, ...]:
    """Return token ids whose log-probabilities at the answer slot tell versions apart: the labels', or, for a
    task without any, some spread over a ``vocabulary`` of that size."""
    return task.probe_choices(vocabulary, CHOICES)


def sampling(token_ids: tuple[int, ...]) -> Sampling:
    """Return how to ask for the log-probabilities of ``token_ids``."""
    return Sampling(max_tokens=1, choices=token_ids)
