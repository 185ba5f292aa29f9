"""What a model answers to rows, read by the Task that the service uses. Greedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from peft import LoraModel, PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from adapters.base_model import Base
from adapters.progress import bar
from adapters.tasks import Completion
from trainer.codec import Codec
from trainer.long_documents import condensed
from trainer.rows import Row
from trainer.soft_prompts import spelled
from trainer.statistics import Output

# Of a batch: at most so many rows, and so many tokens with their padding, of which a base of 135M remembers 46 KB each
# while it writes.
ROWS, TOKENS = 64, 16_384


def with_adapter(adapter: Path, base: Base) -> Any:
    """Return the base with an adapter's files, as they will be served."""
    disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32).to(device)
    return PeftModel.from_pretrained(model, adapter).eval()


def answers(adapter: Path, rows: list[Row], codec: Codec, what: str) -> list[str]:
    """Return the label or the text that an adapter gives to each row."""
    outputs = predict(with_adapter(adapter, codec.base), rows, codec, what)
    return [codec.task.answer(output) for output in outputs]


def predict(model: Any, rows: list[Row], codec: Codec, what: str = "rows") -> list[Output]:
    """Return the task's reading of the model's answer to every row, in order."""

    def summaries(parts: list[str]) -> list[str]:
        asked = [codec.prompt(part) for part in parts]
        return [codec.task.answer(output) for output in _predicted(model, asked, codec, f"{what}: parts")]

    with _merged(model) if not codec.task.closed else nullcontext():
        texts = condensed([row.text for row in rows], codec, summaries)
        prompts = [codec.prompt(text, row.before) for text, row in zip(texts, rows, strict=True)]
        return _predicted(model, prompts, codec, what)


@contextmanager
def _merged(model: Any) -> Iterator[None]:
    """Add a LoRA to the base's weights meanwhile, which spares two small products for each matrix and token written."""
    lora = isinstance(model, PeftModel) and isinstance(model.base_model, LoraModel)
    if not lora or model._adapters_disabled:
        yield
        return
    model.merge_adapter()
    try:
        yield
    finally:
        model.unmerge_adapter()


def _predicted(model: Any, prompts: list[list[int]], codec: Codec, what: str) -> list[Output]:
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    outputs: list[Output] = [{} for _ in prompts]
    answer = _scored if codec.task.closed else _generated
    with bar(len(prompts), what, "rows") as shown:
        tokens = TOKENS
        while order:
            part = order[: max(1, min(ROWS, tokens // max(1, len(prompts[order[0]]))))]
            ids, mask = _left_padded([prompts[i] for i in part], codec.base.end_id, model.device)
            try:
                completions = list(answer(model, ids, mask, codec))
            except RuntimeError as error:
                if len(part) == 1 or not should_reduce_batch_size(error):
                    raise
                tokens = len(prompts[order[0]]) * (len(part) // 2)
                clear_device_cache(garbage_collection=True)
                continue
            for index, completion in zip(part, completions, strict=True):
                outputs[index] = codec.task.read(completion, {})
            order = order[len(part) :]
            shown.update(len(part))
    return outputs


def _left_padded(prompts: list[list[int]], pad_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


@torch.inference_mode()
def _scored(model: Any, ids: torch.Tensor, mask: torch.Tensor, codec: Codec) -> Iterator[Completion]:
    called, inputs = spelled(model, {"input_ids": ids, "attention_mask": mask})
    logits = called(**inputs, logits_to_keep=1).logits[:, -1].float()
    choices = codec.task.sampling({}).choices
    for row in logits.log_softmax(-1)[:, list(choices)].tolist():
        yield Completion(logprobs=dict(zip(choices, row, strict=True)))


@torch.inference_mode()
def _generated(model: Any, ids: torch.Tensor, mask: torch.Tensor, codec: Codec) -> Iterator[Completion]:
    base, sampling = codec.base, codec.task.sampling({})
    ends = {base.end_id, *sampling.stop}
    called, inputs = spelled(model, {"input_ids": ids, "attention_mask": mask})
    out = called.generate(
        **inputs,
        max_new_tokens=sampling.max_tokens,
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=base.end_id,
    )
    begun = ids.shape[1] if "input_ids" in inputs else 0  # of vectors, transformers gives back the new ids alone
    for row in out[:, begun:].tolist():
        kept = list(takewhile(lambda token: token not in ends, row))
        finish_reason = "stop" if len(kept) < len(row) else "length"
        yield Completion(text=base.tokenizer.decode(kept), finish_reason=finish_reason)
