"""Questions about a text by OpenAI's client: on the fake engine, whose probabilities are arbitrary but stable."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.conftest import LABELS
from tests.service.conftest import Running, Serve
from tests.service.test_openai import client

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
TEXT = "The parcel came late, and the box was open."
COMPLAINS: Any = {"type": "predicate", "name": "complains", "instructions": "The customer complains."}
ABOUT: Any = {
    "type": "choice",
    "instructions": "What is it about?",
    "choices": [{"value": "shipping", "description": "parcels"}, {"value": "billing"}, {"value": True}],
}
ANGER: Any = {"type": "score", "instructions": "How angry?", "levels": [{"label": "calm"}, {"label": "cross"}]}
MOOD: Any = {"type": "choice", "instructions": "Mood?", "choices": [{"value": label} for label in LABELS]}


async def test_every_kind_of_question_is_answered_in_order_by_the_base(serve: Serve) -> None:
    async with serve() as service, client(service) as ask:
        told = await ask.decisions.create(model="tiny-llama", input=TEXT, questions=[COMPLAINS, ABOUT, ANGER])
        predicate, choice, score = told.answers
        assert (predicate.type, predicate.name) == ("predicate", "complains")
        assert 0 < predicate.probability < 1
        assert [each.value for each in choice.probabilities] == ["shipping", "billing", True]
        assert sum(each.probability for each in choice.probabilities) == pytest.approx(1)
        assert choice.confidence == max(each.probability for each in choice.probabilities)
        assert [(each.label, each.value) for each in score.probabilities] == [("calm", 0), ("cross", 1)]
        assert score.score == pytest.approx(score.probabilities[1].probability)
        assert (told.model, told.usage.output_tokens) == ("tiny-llama", 3)
        assert told.usage.total_tokens == told.usage.input_tokens + 3


async def test_an_adapter_answers_choices_between_its_labels_and_refuses_the_rest(serve: Serve) -> None:
    async with serve() as service, client(service) as ask:
        told = await ask.decisions.with_raw_response.create(
            model="mood", input=TEXT, questions=[MOOD, COMPLAINS, ABOUT]
        )
        assert told.headers["x-hotswap-version"] == "mood@1"
        mood, *others = told.parse().answers
        (output,) = (await service.predict("mood", TEXT)).json()["outputs"]
        assert mood.choice == output["label"]
        scores = {each.value: each.probability for each in mood.probabilities}
        assert scores == pytest.approx(output["scores"])
        assert [answer.type for answer in others] == ["refusal", "refusal"]
        assert others[0].name == "complains"
        assert told.parse().usage.output_tokens == 1, "the text is read once"


async def test_a_question_that_does_not_fit_is_refused_and_the_others_are_answered(serve: Serve) -> None:
    long = {"type": "predicate", "instructions": "word " * 1900}
    async with serve() as service, client(service) as ask:
        told = await ask.decisions.create(model="tiny-llama", input=TEXT, questions=[COMPLAINS, long, ANGER])
        assert [answer.type for answer in told.answers] == ["predicate", "refusal", "score"]
        with pytest.raises(openai.BadRequestError) as none:
            await ask.decisions.create(model="tiny-llama", input="word " * 3000, questions=[COMPLAINS])
        assert none.value.code == "context_length_exceeded"


async def test_conversations_calls_and_json_are_read(serve: Serve) -> None:
    said: Any = [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": TEXT}, {"type": "input_json", "data": {"order": 7}}],
        },
        {"type": "function_call", "call_id": "1", "name": "look_up", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "late by 3 days"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Sorry."}]},
    ]
    async with serve() as service, client(service) as ask:
        told = await ask.decisions.create(model="tiny-llama", input=said, questions=[COMPLAINS])
        assert told.answers[0].type == "predicate"


IMAGE = [{"role": "user", "content": [{"type": "input_image", "image_url": "http://169.254.169.254"}]}]


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ({"questions": []}, 400, "questions"),
        ({"questions": [COMPLAINS] * 401}, 400, "questions"),
        ({"questions": [{"type": "guess", "instructions": "?"}]}, 400, "questions"),
        ({"questions": [{**ABOUT, "choices": [{"value": "one"}]}]}, 400, "choices"),
        ({"questions": [{**ABOUT, "choices": [{"value": "a"}, {"value": "a"}]}]}, 400, "must differ"),
        ({"questions": [{**ABOUT, "choices": [{"value": str(n)} for n in range(256)]}]}, 400, "choices"),
        ({"questions": [{"type": "score", "instructions": "?", "levels": []}]}, 400, "levels"),
        ({"input": ""}, 400, "input"),
        ({"input": "  "}, 400, "empty"),
        ({"input": IMAGE}, 400, "images are not read"),
        ({"input": [{"role": "user"}]}, 400, "content"),
        ({"input": [{"type": "computer_call"}]}, 400, "is none"),
        ({"model": "nobody"}, 404, "No adapter is called 'nobody'"),
        ({"model": "GPT 6"}, 404, "No model is called"),
    ],
)
async def test_what_cannot_be_asked_is_said(serve: Serve, more: dict[str, Any], status: int, said: str) -> None:
    async with serve() as service:
        body = {"model": "tiny-llama", "input": TEXT, "questions": [COMPLAINS], **more}
        answer = await service.client.post("/v1/decisions", json=body)
        assert answer.status_code == status, answer.text
        assert said in answer.json()["error"]["message"]


async def test_many_questions_are_counted_one_by_one(serve: Serve) -> None:
    async with serve() as service:
        body = {"model": "tiny-llama", "input": TEXT, "questions": [COMPLAINS] * 40}
        answer = await service.client.post("/v1/decisions", json=body)
        assert len(answer.json()["answers"]) == 40
        assert await requests(service) == 1


async def requests(service: Running) -> float:
    return await service.metric("hotswap_requests_total", route="decisions", outcome="ok")
