"""Score base and adapter on the same held-out rows, through the Task that the service uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from adapters import probes
from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.manifest import CONFIDENCE_BOUNDS, TOKEN_BOUNDS
from adapters.tasks import ClassificationTask, Completion
from adapters.tasks.base import BaseTask
from trainer import statistics
from trainer.data import Row, Splits
from trainer.soft_prompts import spelled

BATCH = 16


@dataclass(frozen=True)
class Released:
    """The version that is served now, to be compared with."""

    version: int
    folder: Path
    task: BaseTask


def evaluate(
    adapter: Path, splits: Splits, task: BaseTask, base: Base, released: Released | None = None
) -> dict[str, Any]:
    """Return ``scores``: base and adapter, by test set; ``profile``: how the test rows look to the adapter;
    ``references``: what it answers to the texts that the service asks it before it is served; and ``released``: how it
    compares with what is served now, on the test rows."""
    if not (adapter / "adapter_config.json").is_file():
        raise HotswapError(f"{adapter} holds no adapter; run train first.")
    model = _adapted(adapter, base)
    scores: dict[str, Any] = {}
    profile: dict[str, Any] = {}
    for name, rows in {"test": splits.test, **splits.extra_tests}.items():
        answers = [row.answer for row in rows]
        with model.disable_adapter():
            zero_shot = predict(model, rows, task, base, f"{name}: base")
        adapted = predict(model, rows, task, base, f"{name}: adapter")
        scores[name] = {"base": task.score(zero_shot, answers), "adapter": task.score(adapted, answers)}
        scores[name]["adapter"]["intervals"] = statistics.intervals(task, adapted, answers)
        if name == "test":
            tested = adapted
            profile = profile_of(adapted, [task.prompt(row.text, base.tokenizer).input_tokens for row in rows])
    references = references_of(model, task, base)
    del model
    against = _against(released, tested, splits.test, task, base) if released else None
    return {"scores": scores, "profile": profile, "references": references, "released": against}


def _adapted(adapter: Path, base: Base) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32).to(device)
    return PeftModel.from_pretrained(model, adapter).eval()


def _against(
    released: Released, tested: list[dict[str, Any]], rows: list[Row], task: BaseTask, base: Base
) -> dict[str, Any]:
    theirs = predict(_adapted(released.folder, base), rows, released.task, base, f"test: version {released.version}")
    compared = statistics.compare(task, tested, theirs, [row.answer for row in rows])
    return {"version": released.version, **compared}


@torch.inference_mode()
def references_of(model: Any, task: BaseTask, base: Base) -> list[dict[str, Any]]:
    """Return a :class:`~adapters.manifest.Reference` for each probe: the labels' log-probabilities, or those of the
    likeliest first tokens of a free text."""
    answers = []
    for text in probes.TEXTS:
        prompt = torch.tensor([task.prompt(text, base.tokenizer).ids], device=model.device)
        called, inputs = spelled(model, {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)})
        logprobs = called(**inputs).logits[0, -1].float().log_softmax(-1)
        ids = task.sampling({}).choices or logprobs.topk(probes.CHOICES).indices.tolist()
        answers.append({"text": text, "logprobs": {token: round(float(logprobs[token]), 6) for token in ids}})
    return answers


def profile_of(outputs: Sequence[dict[str, Any]], input_tokens: Sequence[int]) -> dict[str, Any]:
    """Return the :class:`~adapters.manifest.Profile` of ``outputs``."""
    rows = len(outputs)
    labels = Counter(output["label"] for output in outputs if "label" in output)
    confidence = [output["score"] for output in outputs if "score" in output]
    return {
        "rows": rows,
        "labels": {label: count / rows for label, count in sorted(labels.items())},
        "confidence": {bound: sum(c <= bound for c in confidence) / rows for bound in CONFIDENCE_BOUNDS if confidence},
        "input_tokens": {bound: sum(n <= bound for n in input_tokens) / rows for bound in TOKEN_BOUNDS},
    }


def predict(model: Any, rows: list[Row], task: BaseTask, base: Base, what: str = "rows") -> list[dict[str, Any]]:
    """Return the task's reading of the model's answer to every row, in order. Greedy."""
    prompts = [task.prompt(row.text, base.tokenizer).ids for row in rows]
    order = sorted(range(len(rows)), key=lambda i: -len(prompts[i]))
    outputs: list[dict[str, Any]] = [{} for _ in rows]
    answer = _scored if isinstance(task, ClassificationTask) else _generated
    with tqdm(total=len(rows), desc=what, unit="row", disable=None) as bar:
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            ids, mask = _left_padded([prompts[i] for i in part], base.end_id, model.device)
            for index, completion in zip(part, answer(model, ids, mask, task, base), strict=True):
                outputs[index] = task.read(completion, {})
            bar.update(len(part))
    return outputs


def _left_padded(prompts: list[list[int]], pad_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


@torch.inference_mode()
def _scored(model: Any, ids: torch.Tensor, mask: torch.Tensor, task: BaseTask, base: Base) -> Iterator[Completion]:
    called, inputs = spelled(model, {"input_ids": ids, "attention_mask": mask})
    logits = called(**inputs, logits_to_keep=1).logits[:, -1].float()
    choices = task.sampling({}).choices
    for row in logits.log_softmax(-1)[:, list(choices)].tolist():
        yield Completion(logprobs=dict(zip(choices, row, strict=True)))


@torch.inference_mode()
def _generated(model: Any, ids: torch.Tensor, mask: torch.Tensor, task: BaseTask, base: Base) -> Iterator[Completion]:
    called, inputs = spelled(model, {"input_ids": ids, "attention_mask": mask})
    out = called.generate(
        **inputs,
        max_new_tokens=task.sampling({}).max_tokens,
        do_sample=False,
        eos_token_id=base.end_id,
        pad_token_id=base.end_id,
    )
    begun = ids.shape[1] if "input_ids" in inputs else 0  # of vectors, transformers gives back the new ids alone
    for row in out[:, begun:].tolist():
        ended = base.end_id in row
        kept = row[: row.index(base.end_id)] if ended else row
        yield Completion(text=base.tokenizer.decode(kept), finish_reason="stop" if ended else "length")
