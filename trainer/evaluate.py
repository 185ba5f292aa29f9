"""Score base and adapter on the same held-out rows, through the Task that the service uses."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from adapters import probes
from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.manifest import Reference
from adapters.profile import Profile, values_of
from adapters.progress import say, spoken
from adapters.tasks.base import SCORED_AT_ONCE, BaseTask
from trainer import likelihood, statistics
from trainer.baselines import Baseline, baseline_of
from trainer.codec import Codec
from trainer.data import Splits
from trainer.embeddings import Embed, similarity
from trainer.evaluation import (
    Baselines,
    Both,
    ByBase,
    ByBaseline,
    ByReleased,
    Evaluation,
    Example,
    Examples,
    Forgetting,
    Majority,
    ReliabilityBin,
    Robustness,
    Scores,
)
from trainer.faithfulness import faithfulness
from trainer.few_shot import with_examples
from trainer.job import Job
from trainer.mixture import mixed_jobs
from trainer.precision import computed_by
from trainer.prediction import predict, with_adapter
from trainer.robustness import AS_WRITTEN, DISTURBANCES
from trainer.rows import Row
from trainer.slices import slices_of
from trainer.soft_prompts import spelled
from trainer.statistics import Output
from trainer.validity import validity

# How many of the first test rows are also tried in other ways: of free text, which takes longer, so many that all the
# disturbances together cost what the test does.
ROBUST_LABELS, ROBUST_TEXTS = 200, (16, 40)
FEW_SHOT_ROWS = 20  # at least
GENERAL_WINDOWS = 16
EXAMPLES, EXAMPLE_CHARS = 8, 600


@dataclass(frozen=True)
class Released:
    """The version that is served now, to be compared with."""

    version: int
    folder: Path
    task: BaseTask


def evaluate(
    adapter: Path,
    job: Job,
    released: Released | None = None,
    embed: Embed | None = None,
    general_text: str = "",
) -> Evaluation:
    """Score base and adapter on every test set; ``embed`` measures how near summaries are to the reference,
    ``general_text`` what was forgotten."""
    if not (adapter / "adapter_config.json").is_file():
        raise HotswapError(f"{adapter} holds no adapter; run train first.")
    task, codec, base, costs = job.task, job.codec, job.base, Costs()
    model = with_adapter(adapter, base)
    computed = computed_by(model)
    tests = job.splits.tests["test"]
    scores: dict[str, Both] = {}
    with costs.of("the simple baseline"):
        baseline = baseline_of(job.splits, task)
    for name, rows in job.splits.tests.items():
        answers = [row.answer for row in rows]
        zero_shot, adapted = _of_both(model, job, name, name, costs)
        with model.disable_adapter(), costs.of("likelihoods"):
            likely = _likelihoods(model, rows, codec, f"{name}: base")
        spans = statistics.intervals(task, zero_shot, answers, groups := [row.group for row in rows], merit_only=True)
        without = Scores(**_score(task, zero_shot, rows, embed), **likely, intervals=spans)
        with costs.of("likelihoods"):
            likely = _likelihoods(model, rows, codec, f"{name}: adapter")
        intervals = statistics.intervals(task, adapted, answers, groups)
        reached = Scores(**_score(task, adapted, rows, embed), **likely, intervals=intervals)
        simple = baseline.answer(rows) if baseline else None
        scores[name] = Both(base=without, baseline=_scored_alone(task, simple, rows), adapter=reached)
        if name == "test":
            tested, untrained = adapted, zero_shot
            by_base = statistics.compare(task, adapted, zero_shot, answers, "base")
            by_baseline = _against_baseline(baseline, simple, adapted, answers, task)
            profile = profile_of(job, rows, adapted)
    for name, other in mixed_jobs(job).items():
        rows = other.splits.tests["test"]
        zero_shot, adapted = _of_both(model, other, "test", name, costs)
        of_both = (Scores.model_validate(_score(other.task, outputs, rows)) for outputs in (zero_shot, adapted))
        scores[name] = Both(base=next(of_both), adapter=next(of_both))
    with costs.of("general text"):
        references = references_of(model, codec)
        forgotten = forgetting_of(model, general_text, base) if general_text else None
    with costs.of("disturbed rows"):
        disturbed = robustness_of(model, tested, tests, codec)
    with costs.of("few-shot prompts"):
        baselines = baselines_of(model, untrained, tested, job)
    del model
    with costs.of("the released version"):
        against = _against(released, tested, tests, job) if released else None
    say(str(costs))
    return Evaluation(
        scores=scores,
        profile=profile,
        references=references,
        computed=computed,
        base=ByBase.model_validate(by_base),
        baseline=by_baseline,
        released=against,
        robustness=disturbed,
        baselines=baselines,
        forgetting=forgotten,
        slices=slices_of(tested, tests, codec),
        reliability=reliability_of(tested, tests, task),
        examples=examples_of(tested, tests, task),
        seconds=costs.seconds,
    )


class Costs:
    """How many ``seconds`` each part has taken."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[part] = round(self.seconds.get(part, 0.0) + time.monotonic() - began, 1)

    def __str__(self) -> str:
        parts = sorted(self.seconds.items(), key=lambda part: -part[1])
        told = ", ".join(f"{name} {spoken(taken)}" for name, taken in parts if taken >= 1)
        return f"evaluated in {spoken(sum(self.seconds.values()))}{f': {told}' if told else ''}"


def _of_both(model: Any, job: Job, test: str, name: str, costs: Costs) -> tuple[list[Output], list[Output]]:
    """Return what the base answers to a test without the adapter, and with it."""
    rows, codec = job.splits.tests[test], job.codec
    with model.disable_adapter(), costs.of("the base"):
        untrained = predict(model, rows, codec, f"{name}: base")
    if name == "test":  # the first of all
        say(f"evaluation: about {spoken(costs.seconds['the base'] * _passes(job))} more")
    with costs.of("the adapter"):
        return untrained, predict(model, rows, codec, f"{name}: adapter")


def _passes(job: Job) -> float:
    """Return how many times what the base took for the first test the rest will take: the adapter on it, both on
    others, the first rows in other ways, with examples, and by the released version."""
    test = job.splits.tests["test"]
    others = sum(map(len, job.splits.tests.values())) - len(test)
    others += sum(len(mixed.tests["test"]) for mixed in job.splits.mixed.values())
    return 2 + (2 * others + (len(DISTURBANCES) + 1) * len(_first(test, job.task))) / len(test)


def _score(task: BaseTask, outputs: list[Output], rows: list[Row], embed: Embed | None = None) -> dict[str, Any]:
    scores = task.score(outputs, [row.answer for row in rows])
    if task.closed:
        return scores
    said = [task.answer(output) for output in outputs]
    near = {"similarity": similarity(embed, said, [row.answer for row in rows])} if embed else {}
    return scores | near | faithfulness([row.text for row in rows], said) | validity(said, rows, task)


def _scored_alone(task: BaseTask, outputs: list[Output] | None, rows: list[Row]) -> Scores | None:
    if outputs is None:
        return None
    answers, groups = [row.answer for row in rows], [row.group for row in rows]
    spans = statistics.intervals(task, outputs, answers, groups, merit_only=True)
    return Scores(**_score(task, outputs, rows), intervals=spans)


def _against_baseline(
    baseline: Baseline | None, theirs: list[Output] | None, ours: list[Output], answers: list[str], task: BaseTask
) -> ByBaseline | None:
    if baseline is None or theirs is None:
        return None
    compared = statistics.compare(task, ours, theirs, answers, "baseline")
    return ByBaseline.model_validate({"name": baseline.name, **compared})


def forgetting_of(model: Any, text: str, base: Base) -> Forgetting:
    """Return the perplexity of general text to the base and to the adapter: what rises was unlearnt."""
    pieces = likelihood.windows(text, base, GENERAL_WINDOWS)
    adapted = likelihood.perplexity(model, pieces, base, "general text: adapter")
    with model.disable_adapter():
        untrained = likelihood.perplexity(model, pieces, base, "general text: base")
    return Forgetting(tokens=sum(len(after) for _, after in pieces), base=untrained, adapter=adapted)


def _likelihoods(model: Any, rows: list[Row], codec: Codec, what: str) -> dict[str, float]:
    """Return what is measured of given answers: perplexity of reference summaries, and, of pairs, which is likelier."""
    found = {}
    if not codec.task.closed:
        found["perplexity"] = likelihood.perplexity(model, likelihood.answers(rows, codec), codec.base, what)
    if rows[0].rejected:
        found["prefers_chosen"] = likelihood.prefers_chosen(model, rows, codec, what)
    return found


def robustness_of(model: Any, outputs: list[Output], rows: list[Row], codec: Codec) -> Robustness:
    """Return the mean merit (accuracy, ROUGE-L) of the first test rows as written, whose ``outputs`` are known, and
    disturbed in each way."""
    task, rows = codec.task, _first(rows, codec.task)
    disturbed = [replace(row, text=disturb(row.text)) for disturb in DISTURBANCES.values() for row in rows]
    answered = predict(model, disturbed, codec, "test: disturbed")
    parts = (answered[start : start + len(rows)] for start in range(0, len(answered), len(rows)))
    found = {name: _mean_merit(task, part, rows) for name, part in zip(DISTURBANCES, parts, strict=True)}
    as_written = _mean_merit(task, outputs[: len(rows)], rows)
    return Robustness.model_validate({"rows": len(rows), AS_WRITTEN: as_written, **found})


def _mean_merit(task: BaseTask, outputs: list[Output], rows: list[Row]) -> float:
    return float(statistics.merits(task, outputs, [row.answer for row in rows]).mean())


def _first(rows: list[Row], task: BaseTask) -> list[Row]:
    if task.closed:
        return rows[:ROBUST_LABELS]
    least, most = ROBUST_TEXTS
    return rows[: max(least, min(most, len(rows) // len(DISTURBANCES)))]


def baselines_of(model: Any, zero_shot: list[Output], adapted: list[Output], job: Job) -> Baselines:
    """Return the mean merit of the first test rows without training, beside that of the adapter: of the ``zero_shot``
    answers, and with examples in the prompt. Did it need to be trained at all?

    Examples make prompts several times as long: of the rows there are as many as cost what they all do without."""
    task, rows = job.task, _first(job.splits.tests["test"], job.task)
    usual = all(job.codec.is_usual(row.before) for row in rows)  # in a conversation of its own no example has a place
    rows = [replace(row, before=()) for row in rows] if usual else rows
    asked, shots = with_examples(job.codec, [row for row in job.splits.train if row.good])
    few_shot = None
    if not usual:
        shots = 0
    if shots:
        plain = sum(len(job.codec.prompt(row.text)) for row in rows)
        costs = accumulate(len(asked.prompt(row.text)) for row in rows)
        rows = rows[: max(FEW_SHOT_ROWS, sum(cost <= plain for cost in costs))]
        with model.disable_adapter():
            few_shot = _mean_merit(task, predict(model, rows, asked, "test: few-shot"), rows)
    return Baselines(
        **({"majority": majority_of(job.splits, task)} if task.closed else {}),
        rows=len(rows),
        shots=shots,
        zero_shot=_mean_merit(task, zero_shot[: len(rows)], rows),
        few_shot=few_shot,
        adapter=_mean_merit(task, adapted[: len(rows)], rows),
    )


def majority_of(splits: Splits, task: BaseTask) -> Majority:
    """Return what always answering the training rows' most frequent label reaches on the test rows."""
    label = Counter(row.answer for row in splits.train if row.good).most_common(1)[0][0]
    answers = [row.answer for row in splits.tests["test"]]
    scores = task.score([task.saying(label)] * len(answers), answers)
    return Majority(label=label, accuracy=scores["accuracy"], macro_f1=scores["macro_f1"])


def reliability_of(outputs: Sequence[Output], rows: list[Row], task: BaseTask) -> tuple[ReliabilityBin, ...]:
    """Return, for each tenth of confidence that occurs: rows, mean confidence, and the share that was right."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for output, row in zip(outputs, rows, strict=True):
        if "score" in output:
            kept = bins.setdefault(min(9, int(10 * output["score"])), [])
            kept.append((output["score"], task.answer(output) == row.answer))
    return tuple(
        ReliabilityBin(
            rows=len(pairs),
            confidence=sum(score for score, _ in pairs) / len(pairs),
            right=sum(right for _, right in pairs) / len(pairs),
        )
        for _, pairs in sorted(bins.items())
    )


def examples_of(outputs: Sequence[Output], rows: list[Row], task: BaseTask) -> Examples:
    """Return the best and the worst answers of the test rows: of labels, those it was surest of."""
    merits = statistics.merits(task, outputs, [row.answer for row in rows])
    sureness = [output.get("score", 0.0) for output in outputs]
    shown = [
        Example(
            text=row.text[:EXAMPLE_CHARS],
            wanted=row.answer,
            answered=task.answer(output),
            merit=round(float(merit), 4),
            confidence=output.get("score"),
        )
        for output, row, merit in zip(outputs, rows, merits, strict=True)
    ]
    worst = sorted((i for i in range(len(rows)) if merits[i] < 1), key=lambda i: (merits[i], -sureness[i]))
    best = sorted((i for i in range(len(rows)) if merits[i] > 0), key=lambda i: (-merits[i], -sureness[i]))
    # A summary is neither right nor wrong: of a few, none is to stand on both sides.
    most = EXAMPLES if task.closed else min(EXAMPLES, len(rows) // 2)
    return Examples(wrong=tuple(shown[i] for i in worst[:most]), right=tuple(shown[i] for i in best[:most]))


def _against(released: Released, tested: list[Output], rows: list[Row], job: Job) -> ByReleased:
    model = with_adapter(released.folder, job.base)
    theirs = predict(model, rows, Codec(released.task, job.base), f"test: version {released.version}")
    compared = statistics.compare(job.task, tested, theirs, [row.answer for row in rows])
    return ByReleased.model_validate({"version": released.version, **compared})


@torch.inference_mode()
def references_of(model: Any, codec: Codec) -> tuple[Reference, ...]:
    """Return what it answers to each probe: the labels' log-probabilities, or those of the
    likeliest first tokens of a free text."""
    answers = []
    for text in probes.TEXTS:
        prompt = torch.tensor([codec.prompt(text)], device=model.device)
        called, inputs = spelled(model, {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)})
        logprobs = called(**inputs).logits[0, -1].float().log_softmax(-1)
        ids = codec.task.sampling({}).choices[:SCORED_AT_ONCE] or logprobs.topk(probes.CHOICES).indices.tolist()
        told = {token: round(float(logprobs[token]), 6) for token in ids}
        answers.append(Reference(text=text, logprobs=told))
    return tuple(answers)


def profile_of(job: Job, rows: Sequence[Row], outputs: Sequence[Output]) -> Profile:
    """Return how held-out ``rows`` and the ``outputs`` for them look: what live traffic is compared with."""
    task, codec = job.task, job.codec
    known = frozenset(token for row in job.splits.train for token in codec.prompt(row.text, row.before))
    return Profile.of(
        [
            values_of(task, row.text, codec.made(row.text, row.before), output, job.base.tokenizer, known)
            for row, output in zip(rows, outputs, strict=True)
        ],
        known,
        fmean(task.merits(outputs, [row.answer for row in rows])) if task.closed else None,
    )
