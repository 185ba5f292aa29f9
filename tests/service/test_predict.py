"""Asking an adapter, over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from adapters.base_model import Base
from adapters.intake import add_version
from adapters.store import Store
from adapters.tasks import ClassificationTask, Template
from adapters.tasks.classification import Label
from service.engine.base import Chunk
from tests.conftest import MakeAdapter
from tests.service.conftest import Serve

pytestmark = pytest.mark.anyio


async def test_a_classification_names_the_exact_version_that_gave_it(serve: Serve, stocked) -> None:
    async with serve() as service:
        response = await service.predict("mood")
        body = response.json()
        assert response.status_code == 200
        assert body["id"].startswith("pred_")
        assert body["adapter"] == {
            "name": "mood",
            "version": 1,
            "channel": "stable",
            "digest": stocked.manifest("mood", 1)[1],
        }
        assert (body["task"], body["model"]) == ("classification", "tiny-llama")
        (output,) = body["outputs"]
        assert set(output) == {"label", "score", "scores"}
        assert sum(output["scores"].values()) == pytest.approx(1)
        assert output["score"] == max(output["scores"].values()) == output["scores"][output["label"]]
        assert body["usage"]["completion_tokens"] == 1
        assert body["usage"]["prompt_tokens"] > 3


async def test_more_labels_than_are_scored_at_once_are_scored_in_several_passes(
    serve: Serve, stocked: Store, make_adapter: MakeAdapter, tiny: Base
) -> None:
    labels = [Label(name=f"label {n}", token_id=n + 10) for n in range(300)]
    task = ClassificationTask(template=Template(text="Text: {text}\nLabel:"), labels=tuple(labels))
    add_version(stocked, "topics", make_adapter(seed=7), task, tiny)
    async with serve(answer_cache_mib=1) as service:
        asked = {"adapter": "topics@1", "inputs": ["A moving film.", " ", "Dull."]}
        first, second, third = (await service.client.post("/v1/predict", json=asked)).json()["outputs"]
        for output in (first, third):
            assert len(output["scores"]) == 300
            assert sum(output["scores"].values()) == pytest.approx(1)
            assert output["label"] == max(output["scores"], key=output["scores"].__getitem__)
        assert second["error"]["code"] == "invalid_request"
        assert (await service.client.post("/v1/predict", json=asked)).json()["outputs"] == [first, second, third]


async def test_a_summary_has_a_text_and_says_why_it_ended(serve: Serve) -> None:
    async with serve() as service:
        (output,) = (await service.predict("brief")).json()["outputs"]
        assert set(output) == {"summary", "finish_reason"}
        assert output["finish_reason"] in ("stop", "length")


async def test_the_same_question_gets_the_same_answer(serve: Serve) -> None:
    async with serve() as service:
        first, second = [(await service.predict("mood")).json()["outputs"] for _ in range(2)]
        assert first == second


async def test_many_texts_are_answered_in_their_order(serve: Serve) -> None:
    texts = [f"film number {n}" for n in range(20)]
    async with serve() as service:
        batch = (await service.client.post("/v1/predict", json={"adapter": "mood", "inputs": texts})).json()
        alone = [(await service.predict("mood", text)).json()["outputs"][0] for text in texts]
        assert batch["outputs"] == alone


async def test_one_bad_text_is_reported_in_its_place_and_the_others_are_answered(serve: Serve) -> None:
    async with serve(max_input_chars=50) as service:
        asked = {"adapter": "mood", "inputs": ["good", "  ", "x" * 51, "bad"]}
        outputs = (await service.client.post("/v1/predict", json=asked)).json()["outputs"]
        assert [output.get("error", {}).get("code") for output in outputs] == [
            None,
            "invalid_request",
            "input_too_long",
            None,
        ]


async def test_a_long_text_is_cut_and_the_answer_says_so(serve: Serve) -> None:
    async with serve(max_model_len=64) as service:
        (output,) = (await service.predict("mood", "slow " * 300)).json()["outputs"]
        assert output["truncated"] is True


async def test_a_long_text_is_refused_where_the_caller_wants_no_cutting(serve: Serve) -> None:
    async with serve(max_model_len=64) as service:
        response = await service.predict("mood", "slow " * 300, parameters={"truncate": False})
        assert (response.status_code, response.json()["code"]) == (422, "input_too_long")


LONG = " ".join(f"The film number {n} is slow." for n in range(30))


async def test_a_long_document_is_summarized_in_parts_where_that_is_asked_for(serve: Serve) -> None:
    async with serve(max_model_len=96) as service:
        cut = (await service.predict("brief", LONG)).json()
        whole = (await service.predict("brief", LONG, parameters={"long": "chunks"})).json()
        (output,) = whole["outputs"]
        assert cut["outputs"][0]["truncated"] is True
        assert output["chunks"] > 1
        assert "truncated" not in output or output["truncated"] is None
        assert whole["usage"]["prompt_tokens"] > 3 * cut["usage"]["prompt_tokens"]


async def test_the_word_limit_is_for_the_summary_not_for_those_of_the_parts(serve: Serve) -> None:
    async with serve(max_model_len=96) as service:
        asked = {"long": "chunks", "max_words": 1}
        whole = (await service.predict("brief", LONG, parameters=asked)).json()
        assert len(whole["outputs"][0]["summary"].split()) == 1
        assert whole["usage"]["completion_tokens"] > 10


async def test_a_document_of_whose_parts_nothing_is_said_is_read_itself(serve: Serve) -> None:
    async with serve(max_model_len=96) as service:

        async def silent(*_: Any, **__: Any) -> AsyncGenerator[Chunk]:
            yield Chunk(finish_reason="stop")

        service.engine.generate = silent  # type: ignore[method-assign]
        response = await service.predict("brief", LONG, parameters={"long": "chunks"})
        assert response.status_code == 200
        (output,) = response.json()["outputs"]
        assert (output["summary"], output["truncated"]) == ("", True)
        assert output["chunks"] > 1


async def test_the_parts_of_one_document_do_not_fill_the_engine(serve: Serve) -> None:
    async with serve(max_model_len=96) as service:
        seen, generate = [], service.engine.generate

        def watched(*given: Any, **more: Any) -> Any:
            seen.append(service.state.answering._admission.concurrency - service.state.answering._admission._in_engine)
            return generate(*given, **more)

        service.engine.generate = watched  # type: ignore[method-assign]
        await service.predict("brief", LONG * 3, parameters={"long": "chunks"})
        assert min(seen) >= 64 - 4


async def test_a_streamed_summary_of_a_long_document_is_the_same(serve: Serve) -> None:
    async with serve(max_model_len=96) as service:
        asked = {"adapter": "brief", "input": LONG, "parameters": {"long": "chunks"}}
        plain = (await service.client.post("/v1/summarize", json=asked)).json()
        streamed = await service.client.post("/v1/summarize", json={**asked, "stream": True})
        pieces = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
        assert pieces[-1]["outputs"] == plain["outputs"]


async def test_max_words_bounds_a_summary(serve: Serve) -> None:
    async with serve() as service:
        response = await service.predict("brief", parameters={"max_words": 2})
        (output,) = response.json()["outputs"]
        assert len(output["summary"].split()) == 2
        assert output["finish_reason"] == "length"


async def test_a_pinned_version_answers_though_another_is_released(serve: Serve) -> None:
    async with serve() as service:
        adapter = (await service.predict("mood@2")).json()["adapter"]
        assert (adapter["version"], adapter["channel"]) == (2, "pinned")


async def test_the_typed_twins_take_only_their_own_task(serve: Serve) -> None:
    async with serve() as service:
        asked = {"adapter": "mood", "input": "good"}
        assert (await service.client.post("/v1/classify", json=asked)).status_code == 200
        wrong = await service.client.post("/v1/summarize", json=asked)
        assert (wrong.status_code, wrong.json()["code"]) == (422, "task_mismatch")


async def test_without_an_adapter_labels_are_classified_by_the_base_model(serve: Serve) -> None:
    async with serve() as service:
        asked = {"labels": ["billing", "bug"], "inputs": ["it crashes", "I paid twice"]}
        body = (await service.client.post("/v1/classify", json=asked)).json()
        assert body["adapter"] is None
        assert all(set(output["scores"]) == {"billing", "bug"} for output in body["outputs"])


async def test_a_streamed_summary_is_the_unstreamed_one_in_pieces(serve: Serve) -> None:
    async with serve() as service:
        whole = (await service.predict("brief")).json()["outputs"][0]["summary"]
        response = await service.client.post(
            "/v1/summarize", json={"adapter": "brief", "input": "A moving film.", "stream": True}
        )
        events = [block.split("\r\n") for block in response.text.strip().split("\r\n\r\n")]
        parsed = [(event.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for event, data in events]
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "".join(data["delta"] for event, data in parsed if event == "delta") == whole
        assert len(parsed) > 2
        event, last = parsed[-1]
        assert (event, last["outputs"][0]["summary"], last["adapter"]["name"]) == ("done", whole, "brief")


async def test_what_goes_wrong_before_the_first_piece_of_a_stream_has_its_own_status(serve: Serve) -> None:
    async with serve() as service:
        response = await service.client.post(
            "/v1/summarize", json={"adapter": "nobody", "input": "text", "stream": True}
        )
        assert (response.status_code, response.json()["code"]) == (404, "adapter_not_found")


async def test_what_goes_wrong_later_in_a_stream_is_an_event(serve: Serve) -> None:
    async with serve() as service:
        asked = {"adapter": "brief", "input": "A moving film.", "stream": True}
        async with service.client.stream("POST", "/v1/summarize", json=asked) as response:
            lines = response.aiter_lines()
            assert await anext(lines) == "event: delta"
            service.engine.die()
            rest = "\n".join([line async for line in lines])
        assert "event: done" in rest or ("event: error" in rest and "engine_down" in rest)


async def test_every_adapter_in_the_store_is_listed_loaded_or_not(serve: Serve) -> None:
    async with serve() as service:
        listed = (await service.client.get("/v1/adapters")).json()["adapters"]
        mood = next(adapter for adapter in listed if adapter["name"] == "mood")
        assert (mood["stable"], mood["task"], mood["labels"]) == (1, "classification", ["positive", "negative"])
        assert [(v["version"], v["state"]) for v in mood["versions"]] == [(1, "resident"), (2, "available")]
        assert (await service.client.get("/v1/adapters/mood")).json()["name"] == "mood"
        assert (await service.client.get("/v1/adapters/nobody")).json()["code"] == "adapter_not_found"


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/classify"])
async def test_an_adapter_may_be_named_by_model_as_routers_read_it(serve: Serve, path: str) -> None:
    async with serve() as service:
        answer = await service.client.post(path, json={"model": "mood@2", "input": "Good."})
        assert answer.json()["adapter"] == (await service.predict("mood@2")).json()["adapter"]
        both = await service.client.post(path, json={"model": "mood", "adapter": "mood", "input": "Good."})
        assert (both.status_code, both.json()["code"]) == (422, "invalid_request")
        assert "another name of 'adapter'" in both.json()["detail"]
        for wrong in (None, 7, "", ["mood"]):
            refused = await service.client.post(path, json={"model": wrong, "input": "Good."})
            assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request"), wrong


async def test_openapi_shows_an_example_of_every_request(serve: Serve) -> None:
    async with serve() as service:
        document = (await service.client.get("/openapi.json")).json()
        for name in ("PredictRequest", "ClassifyRequest", "SummarizeRequest"):
            assert document["components"]["schemas"][name]["examples"]
        assert {"/v1/predict", "/v1/classify", "/v1/summarize", "/v1/adapters", "/livez", "/readyz"} <= set(
            document["paths"]
        )
