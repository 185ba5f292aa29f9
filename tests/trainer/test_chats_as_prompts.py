"""A recipe whose prompt is a chat: trained, evaluated and served with the tokens that transformers makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer

from adapters.base_model import Base, resolve_base
from adapters.tasks import Chat
from tests.bases import with_chat_template
from tests.trainer.conftest import MakeRecipe
from trainer.batches import Encoded
from trainer.data import Splits
from trainer.few_shot import with_examples
from trainer.methods import adapt, load_base
from trainer.mixture import make_job
from trainer.prediction import predict
from trainer.rows import Row

SUMMARY = {"kind": "summarization", "template": {"system": "Be brief.", "user": "{text}"}, "max_answer_tokens": 8}


@pytest.fixture
def chatty(tiny_folder: Path, tmp_path: Path) -> Base:
    folder = with_chat_template(Path(shutil.copytree(tiny_folder, tmp_path / "chatty")), "other-end")
    return resolve_base(str(folder), tmp_path / "cache")


def test_rows_are_learnt_as_the_chats_that_they_are(make_recipe: MakeRecipe, splits: Splits, chatty: Base) -> None:
    job = make_job(make_recipe(task=SUMMARY), splits, chatty)
    (example,) = Encoded([(Row("film is dull", "dull", ""), job.task)], chatty)
    said = [("system", "Be brief."), ("user", "film is dull"), ("assistant", "dull")]
    tokenizer = AutoTokenizer.from_pretrained(chatty.folder)
    whole = tokenizer.apply_chat_template([{"role": role, "content": text} for role, text in said])["input_ids"]
    assert example["input_ids"] == whole[: len(example["input_ids"])]
    assert example["labels"][-1] == 0  # this template ends a turn with another token than the base's own end


def test_answers_end_where_the_turn_does(make_recipe: MakeRecipe, splits: Splits, chatty: Base) -> None:
    job = make_job(make_recipe(task=SUMMARY), splits, chatty)
    (output,) = predict(load_base(chatty, job.recipe), [Row("film is dull", "dull", "")], job.codec)
    assert output["finish_reason"] in ("stop", "length")
    assert "<|endoftext|>" not in output["summary"]


def test_a_learnt_prompt_begins_with_the_words_of_the_chat(
    make_recipe: MakeRecipe, splits: Splits, chatty: Base
) -> None:
    recipe = make_recipe(task=SUMMARY, method="prompt_tuning")
    model = adapt(load_base(chatty, recipe), recipe, chatty, 10)
    first = chatty.tokenizer.encode("Be brief.")[0]
    table, learnt = model.get_input_embeddings().weight, model.prompt_encoder["default"].embedding.weight
    torch.testing.assert_close(learnt[0], table[first])


def test_examples_are_turns_of_the_chat(make_recipe: MakeRecipe, splits: Splits, chatty: Base) -> None:
    job = make_job(make_recipe(task=SUMMARY), splits, chatty)
    rows = [Row("film is dull", "dull", ""), Row("it says <|im_end|> itself", "odd", "")]
    asked, count = with_examples(job.codec, rows)
    assert count == 1
    text = asked.task.template.text
    assert text.startswith("<|im_start|>system\nBe brief.<|endoftext|>\n<|im_start|>user\nfilm is dull<|endoftext|>")
    assert "<|im_start|>assistant\ndull<|endoftext|>\n" in text
    assert text.endswith(job.task.template.text)


def test_a_text_is_a_template_as_before(make_recipe: MakeRecipe) -> None:
    assert make_recipe().task.template == "Review: {text}\nSentiment:"
    assert make_recipe(task=SUMMARY).task.template == Chat(system="Be brief.", user="{text}")


@pytest.mark.parametrize("template", [{"system": "x", "user": "no slot"}, {"user": "{text}", "assistant": "x"}])
def test_a_chat_that_is_none_is_refused(make_recipe: MakeRecipe, template: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"exactly once|assistant"):
        make_recipe(task=SUMMARY | {"template": template})
