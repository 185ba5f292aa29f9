"""An adapter is a model of OpenAI's API: vLLM's own serving over the fake engine, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from adapters.releases import NewRelease
from adapters.store import Store
from service.http.keys import new_key
from tests.service.conftest import Running, Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
TEXT = "The plot is dull and slow."
MESSAGES: Any = [{"role": "user", "content": TEXT}]
ASKED: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": MESSAGES},
    "completions": {"prompt": TEXT},
    "responses": {"input": TEXT},
}


@asynccontextmanager
async def client(service: Running, key: str = "none") -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0) as made:
        yield made


async def refusal(service: Running, route: str, **more: Any) -> tuple[int, dict[str, Any]]:
    answer = await service.client.post(f"/v1/{route}", json={"model": "brief", **ASKED[route], **more})
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error


async def test_every_api_answers_with_the_adapter_and_says_which_version_it_was(serve: Serve) -> None:
    async with serve() as service, client(service) as ask:
        chat = await ask.chat.completions.with_raw_response.create(model="brief", messages=MESSAGES, temperature=0)
        assert chat.headers["x-hotswap-version"] == "brief@1"
        digest = chat.headers["x-hotswap-digest"]
        said = chat.parse()
        assert said.choices[0].message.content.startswith("[brief@1] user The plot")
        assert (said.model, said.system_fingerprint) == ("brief@1", f"brief@1-{digest[7:19]}")
        assert said.usage.prompt_tokens > 0 < said.usage.completion_tokens
        text = await ask.completions.create(model="brief@stable", prompt=TEXT, max_tokens=2, temperature=0)
        assert (text.choices[0].text, text.choices[0].finish_reason) == ("[brief@1] The", "length")
        answer = await ask.responses.create(model="brief@1", input=TEXT, temperature=0)
        assert answer.output_text.startswith("[brief@1] user The plot")


async def test_the_base_model_is_a_model_too(serve: Serve) -> None:
    async with serve() as service, client(service) as ask:
        assert (await ask.completions.create(model="tiny-llama", prompt=TEXT)).choices[0].text.startswith("[base] ")


async def test_streams_say_the_same_piece_by_piece(serve: Serve) -> None:
    async with serve() as service, client(service) as ask:
        whole = (await ask.completions.create(model="brief", prompt=TEXT, temperature=0)).choices[0].text
        stream = await ask.completions.create(
            model="brief", prompt=TEXT, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        pieces = [piece async for piece in stream]
        assert "".join(piece.choices[0].text for piece in pieces if piece.choices).strip() == whole
        assert pieces[-1].usage.completion_tokens == len(whole.split())
        chat = await ask.chat.completions.create(model="brief", messages=MESSAGES, temperature=0, stream=True)
        said = [piece.choices[0].delta.content or "" async for piece in chat]
        assert "".join(said).strip().startswith("[brief@1] user The plot")
        kinds = [event.type async for event in await ask.responses.create(model="brief", input=TEXT, stream=True)]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")


async def test_many_answers_to_many_prompts(serve: Serve) -> None:
    async with serve() as service, client(service) as ask:
        told = await ask.completions.create(model="brief", prompt=[TEXT, "A moving film."], n=2, logprobs=1)
        assert len(told.choices) == 4
        assert told.choices[0].logprobs.tokens


async def test_models_are_what_the_key_may_use_loaded_or_not(serve: Serve, tmp_path: Any) -> None:
    key, line = new_key("name=team scopes=predict adapters=br*")
    (tmp_path / "keys").write_text(line + "\n")
    async with serve(api_keys=tmp_path / "keys") as service, client(service, key) as ask:
        listed = [model.id async for model in await ask.models.list()]
        assert listed == ["tiny-llama", "brief"]
        assert (await ask.models.retrieve("brief@stable")).root == "brief@1"
        for call in (ask.models.retrieve("mood"), ask.completions.create(model="mood", prompt=TEXT)):
            with pytest.raises(openai.NotFoundError) as told:
                await call
            assert told.value.code == "model_not_found"
        with pytest.raises(openai.AuthenticationError):
            await ask.with_options(api_key="wrong").models.list()


async def test_a_stream_keeps_its_version_until_it_ends(serve: Serve, two_briefs: Store) -> None:
    async with serve(max_loras=1, max_cpu_loras=1) as service, client(service) as ask:
        service.engine.gate.clear()
        asked = asyncio.create_task(ask.completions.create(model="brief", prompt=TEXT, stream=True))
        await until(lambda: service.engine.active == 1)
        two_briefs.release("brief", NewRelease(stable=2))
        service.engine.gate.set()
        said = "".join([piece.choices[0].text async for piece in await asked])
        assert said.strip().startswith("[brief@1]")
        await until(lambda: service.state.routing.served("brief").stable == 2)
        assert (await ask.completions.create(model="brief", prompt=TEXT)).choices[0].text.startswith("[brief@2]")


async def test_who_leaves_ends_the_work(serve: Serve) -> None:
    async with serve() as service, client(service) as ask:
        service.engine.gate.clear()
        asked = asyncio.create_task(ask.chat.completions.create(model="brief", messages=MESSAGES))
        await until(lambda: service.engine.active == 1)
        asked.cancel()
        await until(lambda: service.engine.active == 0)
        stream = await ask.chat.completions.create(model="brief", messages=MESSAGES, stream=True)
        await until(lambda: service.engine.active == 1)
        await stream.close()
        await until(lambda: service.engine.active == 0)


@pytest.mark.parametrize("route", ASKED)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_embeds", "AAAA"),
        ("kv_transfer_params", {"do_remote_prefill": True}),
        ("vllm_xargs", {"session_id": "other"}),
        ("priority", -5),
        ("cache_salt", "x"),
        ("chat_template", "{{ 1 }}"),
        ("truncate_prompt_tokens", 1),
        ("request_id", "other"),
        ("use_beam_search", True),
        ("mm_processor_kwargs", {}),
        ("background", True),
        ("previous_input_messages", []),
    ],
)
async def test_what_a_stranger_has_no_say_in_is_refused_or_unknown(
    serve: Serve, route: str, field: str, value: Any
) -> None:
    async with serve() as service:
        answer = await service.client.post(f"/v1/{route}", json={"model": "brief", **ASKED[route], field: value})
        if answer.status_code != 200:
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
        else:  # vLLM has no such field there: it is as good as not sent
            plain = await service.client.post(f"/v1/{route}", json={"model": "brief", **ASKED[route]})
            assert answer.json()["usage"] == plain.json()["usage"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
        {"image_url": "file:///etc/passwd"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "http://localhost"}},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "file", "file": {"file_id": "x"}},
    ],
)
async def test_no_address_is_fetched_for_anybody(serve: Serve, part: dict[str, Any]) -> None:
    async with serve() as service:
        said = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]
        for route, field in (("chat/completions", "messages"), ("responses", "input")):
            status, error = await refusal(service, route, **{field: said})
            assert (status, error["param"]) == (400, field)
            assert "Text alone is taken" in error["message"]


@pytest.mark.parametrize(
    ("route", "more", "status", "code", "param"),
    [
        ("completions", {"model": "nobody"}, 404, "model_not_found", None),
        ("completions", {"model": "No Body/1"}, 404, "model_not_found", None),
        ("completions", {"model": "brief@9"}, 404, "model_not_found", None),
        ("completions", {"model": 7}, 400, "invalid_request", None),
        ("completions", {"n": 129}, 400, "invalid_request", "n"),
        ("completions", {"prompt": ["a"] * 129}, 400, "invalid_request", "n"),
        ("completions", {"n": 10**12}, 400, "invalid_request", "n"),
        ("completions", {"n": "x"}, 400, "invalid_request", "n"),
        (
            "completions",
            {"structured_outputs": {"choice": ["x" * 999] * 99}},
            400,
            "invalid_request",
            "structured_outputs",
        ),
        ("chat/completions", {"tools": 5}, 400, "invalid_request", "tools"),
        ("chat/completions", {"chat_template_kwargs": 5}, 400, "invalid_request", None),
        ("chat/completions", {"messages": 5}, 400, "invalid_request", None),
        ("responses", {"input": 5}, 400, "invalid_request", None),
        ("completions", {"n": 0}, 400, "invalid_request", None),
        ("completions", {"max_tokens": -1}, 400, "invalid_request", None),
        ("completions", {"prompt": []}, 400, "invalid_request", None),
        ("completions", {"prompt": {"a": 1}}, 400, "invalid_request", "prompt"),
        ("completions", {"prompt": "long " * 3000}, 400, "invalid_request", "input_tokens"),
        ("completions", {"prompt": "x" * 300_000}, 400, "context_length_exceeded", None),
        ("completions", {"prompt": ["x" * 300_000, "y", "z"]}, 400, "context_length_exceeded", None),
        ("completions", {"prompt": [10**9]}, 400, "invalid_request", None),
        ("completions", {"temperature": "hot"}, 400, "invalid_request", "temperature"),
        ("chat/completions", {"messages": []}, 400, "invalid_request", None),
        ("chat/completions", {"messages": [{"role": "user"}] * 2 + ["x"]}, 400, "invalid_request", None),
        ("chat/completions", {"chat_template_kwargs": {"chat_template": "x"}}, 400, "invalid_request", None),
        ("chat/completions", {"tools": [{"type": "web_search"}]}, 400, "invalid_request", "tools"),
        ("responses", {"previous_response_id": "resp_1"}, 400, "invalid_request", None),
        ("responses", {"truncation": "auto"}, 400, "invalid_request", "truncation"),
    ],
)
async def test_what_cannot_be_answered_is_said_in_openais_shape(
    serve: Serve, route: str, more: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    async with serve() as service:
        got, error = await refusal(service, route, **more)
        assert (got, error["code"]) == (status, code)
        assert param in (None, error["param"])
        assert error["type"] in ("invalid_request_error", "not_found_error")


async def test_limits_hold_as_on_predict(serve: Serve) -> None:
    async with serve(max_concurrency=1, max_queue=0, deadline_seconds=0.3, max_body_bytes=100_000) as service:
        status, error = await refusal(service, "completions", prompt="x" * 200_000)
        assert (status, error["code"]) == (413, "body_too_large")
        await refusal(service, "completions", model="nobody")  # vLLM is imported by now
        (await service.client.post("/v1/completions", json={"model": "brief", "prompt": TEXT})).raise_for_status()
        service.engine.gate.clear()
        first = asyncio.create_task(refusal(service, "completions"))
        await until(lambda: service.engine.active == 1)
        status, error = await refusal(service, "chat/completions")
        assert (status, error["type"], error["code"]) == (429, "rate_limit_error", "overloaded")
        status, error = await first
        assert (status, error["code"]) == (504, "deadline_exceeded")


async def test_every_answer_takes_a_place_in_the_engine(serve: Serve) -> None:
    async with serve(max_concurrency=4) as service, client(service) as ask:
        service.engine.gate.clear()
        asked = [asyncio.create_task(ask.completions.create(model="brief", prompt=TEXT, n=n)) for n in (3, 2, 4, 1)]
        await until(lambda: service.engine.active == 1)
        assert await service.metric("hotswap_in_flight") == 4, "the second has one of its two places, and waits"
        service.engine.gate.set()
        assert [len((await each).choices) for each in asked] == [3, 2, 4, 1]
        status, error = await refusal(service, "completions", n=5)
        assert (status, error["param"]) == (400, "n")


@pytest.mark.parametrize("ends", ["engine_down", "deadline_exceeded"])
async def test_what_ends_a_stream_early_is_an_event_of_it_and_counted(serve: Serve, ends: str) -> None:
    async with serve(deadline_seconds=60 if ends == "engine_down" else 0.5) as service, client(service) as ask:
        await refusal(service, "completions", n=0)  # vLLM is imported by now
        service.engine.gate.clear()
        stream = await ask.chat.completions.create(model="brief", messages=MESSAGES, stream=True)
        if ends == "engine_down":
            service.engine.die()
        with pytest.raises(openai.APIError) as told:
            assert [piece async for piece in stream]
        assert told.value.code == ends
        assert await service.metric("hotswap_requests_total", route="chat", outcome=ends) == 1


async def test_what_is_read_and_made_is_counted_for_the_version(serve: Serve) -> None:
    async with serve() as service, client(service) as ask:
        told = await ask.completions.create(model="brief", prompt=TEXT)
        labels = {"adapter": "brief", "version": "1"}
        assert await service.metric("hotswap_prompt_tokens_total", **labels) == told.usage.prompt_tokens
        assert await service.metric("hotswap_completion_tokens_total", **labels) == told.usage.completion_tokens
        requests = await service.metric("hotswap_requests_total", route="completions", outcome="ok", **labels)
        assert requests == 1


async def test_a_rate_counts_every_answer(serve: Serve, tmp_path: Any) -> None:
    key, line = new_key("name=team scopes=predict rate=5/hour")
    (tmp_path / "keys").write_text(line + "\n")
    async with serve(api_keys=tmp_path / "keys") as service, client(service, key) as ask:
        await ask.completions.create(model="brief", prompt=[TEXT, TEXT], n=2)
        with pytest.raises(openai.RateLimitError) as told:
            await ask.completions.create(model="brief", prompt=[TEXT, TEXT])
        assert told.value.code == "rate_limit_exceeded"
