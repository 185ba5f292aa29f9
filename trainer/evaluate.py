"""Score base and adapter on the same held-out rows, through the Task that the service uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
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
from trainer.faithfulness import faithfulness
from trainer.few_shot import SHOTS, with_examples
from trainer.robustness import DISTURBANCES
from trainer.soft_prompts import spelled

BATCH = 16
ROBUST_LABELS, ROBUST_SUMMARIES = 200, 40
EXAMPLES, EXAMPLE_CHARS = 8, 600
SLICE_ROWS = 20  # fewer say too little to be compared


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
        scores[name] = {"base": _score(task, zero_shot, rows), "adapter": _score(task, adapted, rows)}
        scores[name]["adapter"]["intervals"] = statistics.intervals(task, adapted, answers)
        if name == "test":
            tested, untrained = adapted, zero_shot
            profile = profile_of(adapted, [task.prompt(row.text, base.tokenizer).input_tokens for row in rows])
    references = references_of(model, task, base)
    disturbed = robustness_of(model, tested, splits.test, task, base)
    baselines = baselines_of(model, untrained, splits, task, base, disturbed["as written"])
    del model
    against = _against(released, tested, splits.test, task, base) if released else None
    return {
        "scores": scores,
        "profile": profile,
        "references": references,
        "released": against,
        "robustness": disturbed,
        "baselines": baselines,
        "slices": slices_of(tested, splits.test, task, base),
        "reliability": reliability_of(tested, splits.test),
        "examples": examples_of(tested, splits.test, task),
    }


def _score(task: BaseTask, outputs: list[dict[str, Any]], rows: list[Row]) -> dict[str, Any]:
    scores = task.score(outputs, [row.answer for row in rows])
    if isinstance(task, ClassificationTask):
        return scores
    return scores | faithfulness([row.text for row in rows], [output["summary"] for output in outputs])


def robustness_of(
    model: Any, outputs: list[dict[str, Any]], rows: list[Row], task: BaseTask, base: Base
) -> dict[str, Any]:
    """Return the mean merit (accuracy, ROUGE-L) of the first test rows as written, whose ``outputs`` are known, and
    disturbed in each way."""
    rows = _first(rows, task)
    found: dict[str, Any] = {"rows": len(rows), "as written": _mean_merit(task, outputs[: len(rows)], rows)}
    for name, disturb in DISTURBANCES.items():
        disturbed = [replace(row, text=disturb(row.text)) for row in rows]
        found[name] = _mean_merit(task, predict(model, disturbed, task, base, f"test: {name}"), rows)
    return found


def _mean_merit(task: BaseTask, outputs: list[dict[str, Any]], rows: list[Row]) -> float:
    return float(statistics.merits(task, outputs, [row.answer for row in rows]).mean())


def _first(rows: list[Row], task: BaseTask) -> list[Row]:
    return rows[: ROBUST_LABELS if isinstance(task, ClassificationTask) else ROBUST_SUMMARIES]


def baselines_of(
    model: Any, zero_shot: list[dict[str, Any]], splits: Splits, task: BaseTask, base: Base, adapted: float
) -> dict[str, Any]:
    """Return the mean merit of the first test rows without training: of the ``zero_shot`` answers, and with examples in
    the prompt; beside ``adapter``, that of the trained on the same rows. Did it need to be trained at all?"""
    rows = _first(splits.test, task)
    with model.disable_adapter():
        few_shot = predict(model, rows, with_examples(task, splits.train, base), base, "test: few-shot")
    return {
        "rows": len(rows),
        "shots": SHOTS,
        "zero_shot": _mean_merit(task, zero_shot[: len(rows)], rows),
        "few_shot": _mean_merit(task, few_shot, rows),
        "adapter": adapted,
    }


def slices_of(
    outputs: Sequence[dict[str, Any]], rows: list[Row], task: BaseTask, base: Base
) -> dict[str, dict[str, Any]]:
    """Return the mean merit (accuracy, ROUGE-L) of the test rows apart, by thirds of their length and by each column of
    ``data.slices``; ``gap`` is the largest difference between those of at least 20 rows, where there are two."""
    merits = statistics.merits(task, outputs, [row.answer for row in rows])
    lengths = [len(base.tokenizer.encode(row.text)) for row in rows]
    low, high = np.percentile(lengths, [100 / 3, 200 / 3])
    names = (f"to {low:.0f} tokens", f"to {high:.0f} tokens", "longer")
    by: dict[str, dict[str, list[float]]] = {"length": {}}
    for row, length, merit in zip(rows, lengths, merits, strict=True):
        third = names[0 if length <= low else 1 if length <= high else 2]
        for column, value in (("length", third), *row.slices):
            by.setdefault(column, {}).setdefault(value, []).append(float(merit))
    return {column: _apart(values) for column, values in by.items()}


def _apart(values: dict[str, list[float]]) -> dict[str, Any]:
    found = {
        value: {"rows": len(merits), "score": sum(merits) / len(merits)} for value, merits in sorted(values.items())
    }
    compared = [each["score"] for each in found.values() if each["rows"] >= SLICE_ROWS]
    return {"values": found, "gap": max(compared) - min(compared) if len(compared) > 1 else None}


def reliability_of(outputs: Sequence[dict[str, Any]], rows: list[Row]) -> list[dict[str, float]]:
    """Return, for each tenth of confidence that occurs: rows, mean confidence, and the share that was right."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for output, row in zip(outputs, rows, strict=True):
        if "score" in output:
            kept = bins.setdefault(min(9, int(10 * output["score"])), [])
            kept.append((output["score"], output["label"] == row.answer))
    return [
        {
            "rows": len(pairs),
            "confidence": sum(score for score, _ in pairs) / len(pairs),
            "right": sum(right for _, right in pairs) / len(pairs),
        }
        for _, pairs in sorted(bins.items())
    ]


def examples_of(outputs: Sequence[dict[str, Any]], rows: list[Row], task: BaseTask) -> dict[str, list[dict[str, Any]]]:
    """Return the best and the worst answers of the test rows: of labels, those it was surest of."""
    merits = statistics.merits(task, outputs, [row.answer for row in rows])
    sureness = [output.get("score", 0.0) for output in outputs]
    shown = [
        {
            "text": row.text[:EXAMPLE_CHARS],
            "wanted": row.answer,
            "answered": output.get("label", output.get("summary")),
            "merit": round(float(merit), 4),
            "confidence": output.get("score"),
        }
        for output, row, merit in zip(outputs, rows, merits, strict=True)
    ]
    worst = sorted((i for i in range(len(rows)) if merits[i] < 1), key=lambda i: (merits[i], -sureness[i]))
    best = sorted((i for i in range(len(rows)) if merits[i] > 0), key=lambda i: (-merits[i], -sureness[i]))
    return {"wrong": [shown[i] for i in worst[:EXAMPLES]], "right": [shown[i] for i in best[:EXAMPLES]]}


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
