"""The fake engine as vLLM's serving classes see an engine: its configuration and renderer are real, its answers not."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from adapters.base_model import Base
from adapters.tasks import Decoding, Sampling

if TYPE_CHECKING:
    from service.engine.fake import FakeEngine


class FakeClient:
    """What vLLM's EngineClient is, as far as its serving of OpenAI's API asks. Imports vLLM, without its kernels."""

    errored = False

    def __init__(self, engine: FakeEngine, base: Base) -> None:
        self.vllm_config, self.renderer, self.input_processor = _made(str(base.folder), engine.limits.max_model_len)
        self.model_config = self.vllm_config.model_config
        self.adapters: Mapping[str, Any] = _Resident(engine)
        self._engine = engine

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Take everything, as an engine without a limit of its own."""

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, lora_request: Any = None, **_: Any
    ) -> AsyncGenerator[Any]:
        from vllm.exceptions import VLLMValidationError
        from vllm.logprobs import Logprob
        from vllm.outputs import CompletionOutput, RequestOutput
        from vllm.sampling_params import RequestOutputKind

        ids = list(prompt["prompt_token_ids"])
        if max(ids, default=0) >= self.model_config.get_vocab_size():
            raise VLLMValidationError(f"Token id {max(ids)} is out of vocabulary")
        decoding = Decoding(temperature=sampling_params.temperature, stop=tuple(sampling_params.stop or ()))
        sampling = Sampling(max_tokens=sampling_params.max_tokens, decoding=decoding)
        adapter = lora_request.lora_name if lora_request else None
        streams = sampling_params.output_kind == RequestOutputKind.DELTA
        async for chunk in self._engine.generate(ids, sampling, adapter, stream=streams):
            sure = [{0: Logprob(0.0, 1, word)} for word in chunk.text.split()]
            logprobs = sure if sampling_params.logprobs is not None else None
            yield RequestOutput(
                request_id,
                prompt=None,
                prompt_token_ids=ids,
                prompt_logprobs=None,
                outputs=[
                    CompletionOutput(
                        n, chunk.text, [0] * chunk.tokens, None, logprobs, finish_reason=chunk.finish_reason
                    )
                    for n in range(sampling_params.n)
                ],
                finished=chunk.finish_reason is not None,
            )


@cache
def _made(folder: str, max_model_len: int) -> tuple[Any, Any, Any]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.renderers import renderer_from_config
    from vllm.v1.engine.input_processor import InputProcessor

    args = AsyncEngineArgs(model=folder, max_model_len=max_model_len, dtype="float32", enforce_eager=True)
    environment = dict(os.environ)  # into which vLLM writes for processes that are not started here
    try:
        config = args.create_engine_config()
    finally:
        os.environ.clear()
        os.environ.update(environment)
    renderer = renderer_from_config(config)
    return config, renderer, InputProcessor(config, renderer)


class _Resident(Mapping[str, Any]):
    """LoRA requests for what the fake engine has resident now."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def __getitem__(self, name: str) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest(name, 1, str(self._engine.resident[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._engine.resident)

    def __len__(self) -> int:
        return len(self._engine.resident)
