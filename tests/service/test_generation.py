"""Adapters that answer in words, asked by every API: over the fake engine."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from adapters.base_model import Base
from adapters.chat import asked
from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.store import Store
from adapters.tasks import Chat, GenerationTask
from tests.conftest import MakeAdapter
from tests.service.conftest import Serve
from tests.service.test_openai import client

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
TEXT = "The plot is dull and slow."
MESSAGES: Any = [{"role": "user", "content": TEXT}]
DRAWN = {"decoding": {"temperature": 0.9}}
ASKED: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": MESSAGES},
    "completions": {"prompt": TEXT},
    "responses": {"input": TEXT},
}


@pytest.fixture(autouse=True)
def helpers(stocked: Store, make_adapter: MakeAdapter, tiny: Base) -> Store:
    """``helper`` answers the same every time, in three tokens at most; ``poet`` draws its answers."""
    chat = asked(Chat(system="Be brief."), tiny.folder, conversational=True)
    for seed, (name, settings) in enumerate({"helper": {"max_answer_tokens": 3}, "poet": DRAWN}.items()):
        task = GenerationTask.of(chat, **settings)
        add_version(stocked, name, make_adapter(seed=20 + seed), task, tiny)
        stocked.release(name, NewRelease(stable=1))
    return stocked


async def said(service: Any, name: str, route: str, **more: Any) -> Any:
    answer = await service.client.post(f"/v1/{route}", json={"model": name, **ASKED[route], **more})
    answer.raise_for_status()
    body = answer.json()
    if route == "responses":
        return body["output"][-1]["content"][0]["text"]
    (first, *_) = body["choices"]
    return first["text"] if route == "completions" else first["message"]["content"]


async def test_a_text_is_answered_in_words_and_says_why_it_ended(serve: Serve) -> None:
    async with serve() as service:
        body = (await service.predict("helper", TEXT)).json()
        assert (body["task"], body["adapter"]["name"]) == ("generation", "helper")
        (output,) = body["outputs"]
        assert set(output) == {"answer", "finish_reason"}
        assert output["answer"].startswith("[helper@1] system Be")
        assert (output["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 3)


async def test_one_bad_text_costs_the_others_nothing(serve: Serve) -> None:
    async with serve() as service:
        body = {"adapter": "helper", "inputs": ["dull", " ", "moving"]}
        first, second, third = (await service.client.post("/v1/predict", json=body)).json()["outputs"]
        assert second["error"]["code"] == "invalid_request"
        assert first["answer"]
        assert third["answer"]


async def test_an_answer_streams_as_summaries_do(serve: Serve) -> None:
    async with serve() as service:
        whole = (await service.predict("helper", TEXT)).json()["outputs"]
        lines = (await service.predict("helper", TEXT, stream=True)).text.splitlines()
        events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        assert events == ["delta"] * (len(events) - 1) + ["done"]
        assert "".join(each["delta"] for each in data[:-1]) == whole[0]["answer"]
        assert data[-1]["outputs"] == whole


@pytest.mark.parametrize("route", ["classify", "summarize"])
async def test_the_typed_twins_are_for_other_tasks(serve: Serve, route: str) -> None:
    async with serve() as service:
        answer = await service.client.post(f"/v1/{route}", json={"adapter": "helper", "input": TEXT})
        assert (answer.status_code, answer.json()["code"]) == (422, "task_mismatch")


async def test_labels_do_not_stream(serve: Serve) -> None:
    async with serve() as service:
        answer = await service.predict("mood", TEXT, stream=True)
        assert (answer.status_code, answer.json()["code"]) == (422, "task_mismatch")


@pytest.mark.parametrize("route", ASKED)
async def test_what_a_request_says_nothing_of_is_as_the_version_was_published(serve: Serve, route: str) -> None:
    async with serve() as service:
        assert len({await said(service, "helper", route) for _ in range(2)}) == 1
        assert len((await said(service, "helper", route)).split()) == 3
        assert len({await said(service, "poet", route) for _ in range(2)}) == 2


@pytest.mark.parametrize(
    ("route", "limit"),
    [("chat/completions", "max_tokens"), ("completions", "max_tokens"), ("responses", "max_output_tokens")],
)
async def test_what_a_request_says_holds(serve: Serve, route: str, limit: str) -> None:
    async with serve() as service:
        assert len((await said(service, "helper", route, **{limit: 2})).split()) == 2
        assert len({await said(service, "helper", route, temperature=1.0) for _ in range(2)}) == 2
        assert len({await said(service, "poet", route, temperature=0, **{limit: None}) for _ in range(2)}) == 1


async def test_several_answers_are_drawn_where_nobody_says_how(serve: Serve) -> None:
    async with serve() as service, client(service) as ask:
        told = await ask.chat.completions.create(model="helper", messages=MESSAGES, n=2)
        assert len(told.choices) == 2
        with pytest.raises(openai.BadRequestError, match="greedy"):
            await ask.chat.completions.create(model="helper", messages=MESSAGES, n=2, temperature=0)


async def test_a_long_chat_gets_what_room_there_is(
    serve: Serve, helpers: Store, make_adapter: MakeAdapter, tiny: Base
) -> None:
    add_version(helpers, "helper", make_adapter(seed=30), GenerationTask.of("{text}:", max_answer_tokens=200), tiny)
    async with serve(max_model_len=256) as service, client(service) as ask:
        long: Any = [{"role": "user", "content": "dull " * 120}]
        told = await ask.chat.completions.create(model="helper@2", messages=long)
        assert told.choices[0].message.content


async def test_other_kinds_are_asked_by_openais_calls_as_before(serve: Serve) -> None:
    async with serve() as service:
        assert len({await said(service, "brief", "completions") for _ in range(2)}) == 2, "vLLM draws in silence"


async def test_drawn_answers_are_not_kept_and_others_are(serve: Serve) -> None:
    async with serve(answer_cache_mib=1) as service:
        drawn = [(await service.predict("poet", TEXT)).json()["outputs"][0]["answer"] for _ in range(2)]
        assert drawn[0] != drawn[1]
        assert await service.metric("hotswap_answer_cache_lookups_total", adapter="poet") == 0
        for _ in range(2):
            await service.predict("helper", TEXT)
        assert await service.metric("hotswap_answer_cache_lookups_total", adapter="helper", outcome="hit") == 1


async def test_kserve_gives_answers_as_a_tensor(serve: Serve) -> None:
    async with serve() as service:
        about = (await service.client.get("/v2/models/helper")).json()
        assert [output["name"] for output in about["outputs"]] == ["answer"]
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
        answer = (await service.client.post("/v2/models/helper/infer", json={"inputs": [tensor]})).json()
        assert answer["outputs"][0]["data"][0].startswith("[helper@1]")


async def test_an_answer_is_judged_by_a_better_one(serve: Serve) -> None:
    async with serve() as service:
        given = (await service.predict("helper", TEXT)).json()
        judged = await service.client.post("/v1/feedback", json={"id": given["id"], "label": "x"})
        assert "has no label" in judged.json()["detail"]
        judged = await service.client.post("/v1/feedback", json={"id": given["id"], "better": "A dull film."})
        assert judged.json()["correct"] is False


async def test_it_is_listed_with_its_task(serve: Serve) -> None:
    async with serve() as service:
        assert (await service.client.get("/v1/adapters/helper")).json()["task"] == "generation"


async def test_a_shadow_is_compared_by_what_it_says(
    serve: Serve, helpers: Store, make_adapter: MakeAdapter, tiny: Base
) -> None:
    task = helpers.manifest("helper", 1)[0].task
    add_version(helpers, "helper", make_adapter(seed=31), task, tiny)
    helpers.release("helper", NewRelease(stable=1, shadow={"version": 2, "percent": 100}))
    async with serve() as service:
        await service.predict("helper", TEXT)
        await service.until(bool, "hotswap_shadow_total", adapter="helper", outcome="differ")
