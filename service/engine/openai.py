"""OpenAI's API over the engine: vLLM's own serving classes, given what is sound to give them, and counted.

What is let through reaches them unchanged: an answer is what ``vllm serve`` would say with the same base and adapter.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from contextvars import ContextVar
from typing import Any, Literal, Protocol

from pydantic import ValidationError

from adapters.errors import HotswapError
from adapters.validation import explain
from service.engine.base import EngineDown

Kind = Literal["chat", "completions", "responses"]

# What a request may say. vLLM takes more, in which no stranger has a say: tensors, other machines' caches, templates.
SAMPLING = {
    *("model", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "stream", "user"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "ignore_eos"),
    *("include_stop_str_in_output", "skip_special_tokens", "structured_outputs"),
}
GENERATING = {
    *("n", "max_tokens", "min_tokens", "logprobs", "stream_options", "response_format", "bad_words"),
    *("allowed_token_ids", "spaces_between_special_tokens", "return_token_ids", "return_tokens_as_token_ids"),
    *("echo", "add_special_tokens"),
}
TALKING = {
    *("tools", "tool_choice", "parallel_tool_calls", "top_logprobs", "chat_template_kwargs"),
    *("include_reasoning",),
}
CHATTING = {
    *("messages", "max_completion_tokens", "reasoning_effort", "continue_final_message"),
    *("add_generation_prompt",),
}
RESPONDING = {
    *("input", "instructions", "max_output_tokens", "reasoning", "text", "include", "metadata", "truncation"),
    *("service_tier", "prompt_cache_key", "previous_response_id", "store"),
}
TAKEN: dict[Kind, set[str]] = {
    "completions": SAMPLING | GENERATING | {"prompt", "suffix"},
    "chat": SAMPLING | GENERATING | TALKING | CHATTING,
    "responses": SAMPLING | TALKING | RESPONDING,
}
# What is no text names an address, which the server would fetch for a stranger, or brings megabytes.
MEDIA = re.compile(r"(^|_)(image|audio|video|file|media|embed)(s|_|$)|_embeds$")
SEQUENCES = 128
# What vLLM's refusals advise, and who reads them knows by our names.
OPTIONS = {"--enable-auto-tool-choice": "HOTSWAP_TOOL_PARSER", "--tool-call-parser": "HOTSWAP_TOOL_PARSER"}
# What says which shape an answer is to have: a grammar is made of it, and the engine's processes wait for that.
SHAPES, MOST_OF_A_SHAPE = ("response_format", "structured_outputs", "tools", "text"), 32_768


class Refused(HotswapError):
    """vLLM, or we in its place, does not take the request: ``param`` says which part of it."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Meter(Protocol):
    """Who lets a request's generations into the engine, and counts them."""

    def turn(self, tokens: int, answers: int = 1) -> AbstractAsyncContextManager[None]:
        """Wait until the engine has room for a prompt of so many tokens, to be answered so often."""

    def count(self, prompt: int, completion: int) -> None:
        """Take note of tokens that were read, or made."""

    def fail(self, error: Exception) -> None:
        """Take note of what ended a generation."""


class OpenAI:
    """Answers documents in the shapes of OpenAI's API, each with the adapter that it is given.

    ``client`` is vLLM's EngineClient, ``adapters`` a live view of resident LoRA requests by their names in the engine.
    """

    def __init__(
        self,
        client: Any,
        base: str,
        adapters: Mapping[str, Any],
        *,
        tool_parser: str | None = None,
        reasoning_parser: str | None = None,
    ) -> None:
        from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
        from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
        from vllm.entrypoints.openai.models.protocol import BaseModelPath
        from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
        from vllm.renderers.online_renderer import OnlineRenderer

        self._base = base
        metered = _Metered(client)
        models = _models(metered, [BaseModelPath(name=base, model_path=base)], adapters)
        tools = {"enable_auto_tools": tool_parser is not None, "tool_parser": tool_parser}
        tools["reasoning_parser"] = reasoning_parser or ""
        form = {"chat_template": None, "chat_template_content_format": "auto"}
        renderer = OnlineRenderer(
            model_config=client.model_config, renderer=client.renderer, request_logger=None, **form, **tools
        )
        silent = {"request_logger": None, "online_renderer": renderer}
        self._chat = OpenAIServingChat(
            metered, models, "assistant", **silent, **form, **tools, enable_prompt_tokens_details=True
        )
        self._completion = OpenAIServingCompletion(metered, models, **silent, enable_prompt_tokens_details=True)
        self._responses = OpenAIServingResponses(
            metered, models, **silent, **form, **tools, enable_prompt_tokens_details=True
        )
        # That of vLLM's version and settings; ours is the version that answers.
        self._chat.system_fingerprint = self._completion.system_fingerprint = None

    def parse(self, kind: Kind, document: Mapping[str, Any]) -> Any:
        """Return what ``document`` asks for. Raises :class:`Refused`."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

        form = {"chat": ChatCompletionRequest, "completions": CompletionRequest, "responses": ResponsesRequest}[kind]
        given = {name: value for name, value in document.items() if value is not None and name in form.model_fields}
        for name in given:
            if name not in TAKEN[kind]:
                raise Refused(f"'{name}' is not taken here; leave it out.", name)
        for name in ("messages", "input"):
            for part in _objects(given.get(name)):
                if found := next(filter(MEDIA.search, (*part, str(part.get("type")))), None):
                    raise Refused(f"Text alone is taken, and no '{found}'.", name)
        if kind == "responses":
            given["store"] = False  # nothing is kept
        try:
            request = form.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise Refused(explain([first]), ".".join(map(str, first["loc"][:1])) or None) from None
        except Exception as error:
            raise _refusal(error) from None
        _check(kind, given)
        return request

    async def answer(
        self, kind: Kind, request: Any, adapter: str | None, meter: Meter
    ) -> dict[str, Any] | AsyncIterator[str]:
        """Return the answer, or a stream of server-sent events, to be read in the task that asks for it.

        Raises :class:`Refused`, :class:`EngineDown`.
        """
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.exceptions import GenerationError

        _meter.set(meter)
        request.model = adapter or self._base
        create = {
            "chat": self._chat.create_chat_completion,
            "completions": self._completion.create_completion,
            "responses": self._responses.create_responses,
        }[kind]
        try:
            # Without the HTTP request, whose headers may name a priority, a rank, or another request's id.
            answer = await create(request, None)
        except (EngineDown, TimeoutError):
            raise
        except GenerationError as error:  # the engine ended it: a shape that can be compiled and not kept to
            if any(getattr(request, name, None) for name in SHAPES):
                raise Refused("The engine cannot keep to this shape; give a simpler one.", "response_format") from error
            raise
        except Exception as error:
            raise _refusal(error) from error
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError  # which vLLM took for a reason to answer
        if isinstance(answer, ErrorResponse):
            raise _refused(answer)
        if isinstance(answer, AsyncGenerator):
            return answer if kind != "responses" else _events(answer)
        document: dict[str, Any] = answer.model_dump(mode="json", by_alias=True)
        return document


_meter: ContextVar[Meter] = ContextVar("meter")


class _Metered:
    """vLLM's engine client, each of whose generations waits for its turn and is counted."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str, **how: Any) -> AsyncGenerator[Any]:
        from vllm.v1.engine.exceptions import EngineDeadError

        meter = _meter.get()
        length = len(prompt["prompt_token_ids"])
        try:
            async with (
                meter.turn(length, sampling_params.n),
                aclosing(self._client.generate(prompt, sampling_params, request_id, **how)) as outputs,
            ):
                meter.count(length, 0)
                async for output in outputs:
                    meter.count(0, sum(len(each.token_ids) for each in output.outputs))
                    yield output
        except EngineDeadError as error:
            meter.fail(EngineDown("the engine has died"))
            raise EngineDown("the engine has died") from error
        except Exception as error:
            meter.fail(_refusal(error))
            raise


def _models(client: Any, base: list[Any], adapters: Mapping[str, Any]) -> Any:
    """Adapters as they are resident now, under the names that answers give them: ``name@version``."""
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

    models = OpenAIServingModels(client, base)
    models.lora_requests = adapters
    models.model_name = lambda lora=None: lora.lora_name.partition(":")[0] if lora else base[0].name
    return models


def _check(kind: Kind, given: Mapping[str, Any]) -> None:
    """Refuse what would look elsewhere, is not ours to keep to, or takes too long."""
    for tool in filter(lambda each: isinstance(each, dict), given.get("tools") or ()):
        if tool.get("type") != "function":
            raise Refused("Tools are functions that the caller runs; others are not taken.", "tools")
    for name in SHAPES:
        if len(json.dumps(given.get(name))) > MOST_OF_A_SHAPE:
            raise Refused(
                f"'{name}' has more than {MOST_OF_A_SHAPE:,} characters, which take too long to compile.", name
            )
    if "chat_template" in (given.get("chat_template_kwargs") or ()):
        raise Refused("The chat template is the base model's own.", "chat_template_kwargs")
    if kind == "responses" and given.get("truncation") == "auto":
        raise Refused("Nothing is cut in silence; send less, or 'truncation': 'disabled'.", "truncation")


def sequences(document: Mapping[str, Any]) -> int:
    """Return how many answers ``document`` asks for: ``n`` to each prompt. Raises :class:`Refused` for too many."""
    count = len(_prompts(document)) * _often(document)
    if count > SEQUENCES:
        raise Refused(f"A request is answered at most {SEQUENCES} times; lower 'n', or send fewer prompts.", "n")
    return count


def texts(document: Mapping[str, Any]) -> list[str]:
    """Return the texts that are to be read, one for each answer."""
    said = "\n".join(_strings([document.get(name) for name in ("messages", "input", "instructions", "tools")]))
    return [said + _text(each) for each in _prompts(document)] * _often(document)


def _prompts(document: Mapping[str, Any]) -> list[Any]:
    prompt = document.get("prompt", "")
    several = isinstance(prompt, list) and prompt and not all(isinstance(part, int) for part in prompt)
    return prompt if several else [prompt]


def _often(document: Mapping[str, Any]) -> int:
    n = document.get("n")
    return n if isinstance(n, int) and n > 0 else 1


def _text(prompt: Any) -> str:
    # Token ids count as much as the characters that they stand for.
    return prompt if isinstance(prompt, str) else "    " * len(prompt) if isinstance(prompt, list) else ""


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(each)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a JSON value."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(each)


def _refusal(error: Exception) -> Exception:
    """Return what vLLM's exception means to a caller; the exception itself where it is no fault of the request."""
    from vllm.entrypoints.serve import create_error_response

    found = create_error_response(error)
    return error if found.error.code >= 500 and found.error.code != 501 else _refused(found)


def _refused(answer: Any) -> Refused:
    message: str = answer.error.message
    for option, setting in OPTIONS.items():
        message = message.replace(option, setting)
    return Refused(message, answer.error.param)


async def _events(stream: AsyncGenerator[Any]) -> AsyncGenerator[str]:
    async with aclosing(stream):
        async for event in stream:
            yield f"event: {event.type}\ndata: {event.model_dump_json(by_alias=True)}\n\n"
