"""What a model answers to rows: the same however they are put together."""

from __future__ import annotations

import pytest
import torch

from adapters.base_model import Base
from adapters.tasks import SummarizationTask
from tests.conftest import MakeAdapter
from trainer import prediction
from trainer.codec import Codec
from trainer.prediction import predict, with_adapter
from trainer.rows import Row

TEXTS = ("a", "some words more", "and a text that is somewhat longer than the others")
ROWS = [Row(text, "", text) for text in TEXTS]


@pytest.fixture
def codec(tiny: Base) -> Codec:
    task = SummarizationTask.of("{text}:", max_input_tokens=64, max_answer_tokens=8)
    return Codec(task, tiny)


def test_rows_are_answered_in_their_order_and_alike_in_a_batch_and_alone(
    codec: Codec, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_adapter(make_adapter(), codec.base)
    together = predict(model, ROWS, codec)
    monkeypatch.setattr(prediction, "TOKENS", 1)
    assert predict(model, ROWS, codec) == together
    assert len({codec.task.answer(output) for output in together}) > 1


def test_a_lora_is_out_of_the_base_again_after_writing_and_not_in_it_while_it_is_disabled(
    codec: Codec, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_adapter(make_adapter(), codec.base)
    own = {name: weight.clone() for name, weight in model.get_base_model().state_dict().items()}
    with model.disable_adapter():
        untrained = predict(model, ROWS, codec)
    adapted = predict(model, ROWS, codec)
    assert adapted != untrained
    for name, weight in model.get_base_model().state_dict().items():
        torch.testing.assert_close(weight, own[name], msg=name)
    monkeypatch.setattr(type(model), "merge_adapter", lambda self: None, raising=False)
    monkeypatch.setattr(type(model), "unmerge_adapter", lambda self: None, raising=False)
    assert predict(model, ROWS, codec) == adapted
