"""What an evaluation means, in plain words: for the page, the card and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from adapters.tasks.base import BaseTask
from trainer.evaluation import Confusion, Evaluation, PerClass, Scores
from trainer.robustness import AS_WRITTEN, IN_WORDS
from trainer.run_record import RunRecord

SIGNIFICANT = 0.05
FEW_ROWS, FEW_OF_A_LABEL = 100, 5
# Where a judgement changes: times the perplexity, share of the score that is lost, distance of confidence and truth.
LITTLE_FORGOTTEN, SOME_FORGOTTEN = 1.2, 2.0
HARMLESS, HARMFUL = 0.05, 0.15
CALIBRATED, ASTRAY = 0.05, 0.1
WEAK_F1, MANY_WEAK = 0.5, 0.1
IN_SHAPE, OFTEN_IN_SHAPE = 0.99, 0.9
SHAPES = {"schema_valid": "keep to the schema", "json_valid": "are JSON"}
NAMED = 3

Tone = Literal["good", "fair", "bad", "unknown"]


class Finding(NamedTuple):
    """A question that whoever decides about an adapter has, and what the evaluation answers."""

    question: str
    tone: Tone
    answer: str


class Loss(NamedTuple):
    """What a way of writing the test rows costs: mean merit, how much less than as written, and its share of that."""

    name: str
    merit: float
    lost: float
    share: float


class Pair(NamedTuple):
    """``rows`` of label ``truth`` were given ``told``: ``share`` of all that are ``truth``."""

    truth: str
    told: str
    rows: int
    share: float


def worth_serving(evaluation: Evaluation, kind: type[BaseTask]) -> Finding:
    """Return the verdict: a headline in the place of the question, and why."""
    against, worse, unproven = _rivals(evaluation), [], []
    for name, ours, theirs, p_value in against:
        told = f"{name} has {theirs:.3f} where this adapter has {ours:.3f} ({_chance(p_value)})"
        if p_value < SIGNIFICANT and ours < theirs:
            worse.append(told)
        elif p_value >= SIGNIFICANT:
            unproven.append(told)
    if not against:
        return Finding("Not judged", "unknown", "There was nothing to compare it with; evaluate it again.")
    if worse:
        return Finding("Not worth serving as it is", "bad", _sentences(worse))
    if unproven:
        return Finding("Not shown to be worth serving", "fair", f"The difference may be chance: {_sentences(unproven)}")
    _, ours, theirs, p_value = max(against, key=lambda rival: rival[2])
    best = f"{_capital(kind.merit_name)} {ours:.3f}; the best of what is simpler has {theirs:.3f} ({_chance(p_value)})."
    cautions = [each.question for each in findings(evaluation, kind) if each.tone == "bad"]
    if cautions:
        return Finding("Worth serving, with care", "fair", f"{best} But see below: {' '.join(cautions)}")
    return Finding("Worth serving", "good", best)


def findings(evaluation: Evaluation, kind: type[BaseTask]) -> list[Finding]:
    """Return what there is to say; nothing about what was not measured."""
    tested = evaluation.scores["test"].adapter
    found = [
        _how_good(tested, kind),
        _against_simple(evaluation, kind),
        _against_base(evaluation),
        _against_released(evaluation),
        forgotten(evaluation, kind),
        breaks(evaluation, kind),
        labels(tested.per_class or {}),
        shape(tested),
        _confidence(evaluation),
        enough_rows(evaluation),
    ]
    return [finding for finding in found if finding]


def training_held(run: RunRecord) -> Finding | None:
    """Tell of a training that ended in numbers of no use: what is judged is what it had reached before."""
    if (step := run.diverged_at) is None:
        return None
    told = f"No: at step {step} its loss was no number any more, and its best state before that was taken."
    return Finding("Did the training hold?", "fair", f"{told} With a lower training.learning_rate it may get further.")


def worth_it(evaluation: Evaluation) -> str:
    """Say in one line whether fine-tuning was worth it. Empty where nothing was there to compare with."""
    if (by := evaluation.baseline) is None:
        return ""
    told = f"this adapter {by.candidate:.3f}, {by.name} {by.baseline:.3f} ({_chance(by.p_value)})"
    if by.p_value >= SIGNIFICANT:
        return f"not shown to be better than a simple model: {told}; serve the simpler, or give it more rows"
    verdict = "worth it" if by.candidate > by.baseline else "not worth it, a simple model is better"
    return f"{verdict}: {told}"


def forgotten(evaluation: Evaluation, kind: type[BaseTask]) -> Finding | None:
    """Judge what became of general language, by its perplexity."""
    if (found := evaluation.forgetting) is None or found.base <= 0:
        return None
    question, times = "What was forgotten?", found.adapter / found.base
    told = f"perplexity of general text was {found.base:.1f} and is {found.adapter:.1f}"
    if times <= LITTLE_FORGOTTEN:
        return Finding(question, "good", f"Little: {told}.")
    told = f"{told}, {times:.1f} times as much"
    if times <= SOME_FORGOTTEN:
        return Finding(
            question, "fair", f"Some: {told}. Fit for texts like the training rows; try it first on any others."
        )
    shrink = ", training.shrink" if kind.closed else ""
    return Finding(
        question,
        "bad",
        f"Much: {told}. Use it for texts like the training rows only, and expect mistakes where they look otherwise; "
        f"the base and other adapters lose nothing. What keeps more: a lower training.learning_rate, fewer "
        f"passes{shrink}.",
    )


def breaks(evaluation: Evaluation, kind: type[BaseTask]) -> Finding | None:
    """Judge the disturbance that costs most."""
    if not (losses := lost(evaluation)):
        return None
    worst = max(losses, key=lambda loss: loss.lost)
    what, remedy = IN_WORDS.get(worst.name, (worst.name, ""))
    was = worst.merit + worst.lost
    told = f"{what} takes {kind.merit_name} from {was:.2f} to {worst.merit:.2f}"
    question = "What breaks it?"
    if worst.share <= HARMLESS:
        more = f": at worst, {told}" if worst.lost > 0 else ""
        return Finding(question, "good", f"Nothing that was tried{more}.")
    tone: Tone = "fair" if worst.share <= HARMFUL else "bad"
    return Finding(question, tone, ". ".join(filter(None, (_capital(told), remedy))) + ".")


def lost(evaluation: Evaluation) -> list[Loss]:
    """Return what each disturbance of the test rows costs; nothing where it was not measured."""
    merits = dict(evaluation.robustness.merits) if evaluation.robustness else {}
    whole = merits.pop(AS_WRITTEN, None)
    if whole is None:
        return []
    return [
        Loss(name, merit, whole - merit, (whole - merit) / whole if whole else 0.0) for name, merit in merits.items()
    ]


def labels(per_class: dict[str, PerClass]) -> Finding | None:
    """Judge which labels the adapter does not know."""
    tested = weakest(per_class)
    if not tested:
        return None
    question = "Which labels does it not know?"
    weak = [name for name, found in tested if found.f1 < WEAK_F1]
    if not weak:
        name, found = tested[0]
        return Finding(question, "good", f"None: the weakest, “{name}”, has F1 {found.f1:.2f}.")
    never = sum(found.recall == 0 for _, found in tested)
    named = ", ".join(f"“{name}”" for name in weak[:NAMED]) + (
        f" and {len(weak) - NAMED} more" if len(weak) > NAMED else ""
    )
    missed = f", {never} of them never recognised" if never else ""
    told = f"{len(weak)} of {len(tested)} have F1 below {WEAK_F1}{missed}: {named}. More rows of these may help most."
    return Finding(question, "fair" if len(weak) <= MANY_WEAK * len(tested) else "bad", told)


def shape(tested: Scores) -> Finding | None:
    """Judge whether answers that are to be JSON are, and keep to their schema."""
    found = {name: tested.values[name] for name in ("schema_valid", "json_valid") if name in tested.values}
    if not found:
        return None
    share, what = next((share, SHAPES[name]) for name, share in found.items())
    told = f"{100 * share:.1f} of 100 answers {what}"
    if share >= IN_SHAPE:
        return Finding("Does it keep to the shape?", "good", f"Yes: {told}.")
    helps = "Ask with response_format, which lets nothing else be said, or give it more rows"
    return Finding("Does it keep to the shape?", "fair" if share >= OFTEN_IN_SHAPE else "bad", f"{told}. {helps}.")


def enough_rows(evaluation: Evaluation) -> Finding:
    """Judge how much the test rows can tell."""
    scores = evaluation.scores["test"].adapter
    rows = int(scores.values.get("rows", evaluation.profile.rows))
    question, least = "Are there enough test rows?", 1 / math.sqrt(rows)
    if rows < FEW_ROWS:
        return Finding(
            question, "bad", f"{rows} test rows tell little: differences below about {least:.2f} do not show."
        )
    told = f"{rows:,} rows: differences below about {least:.2f} do not show"
    thin = sum(found.support < FEW_OF_A_LABEL for found in (scores.per_class or {}).values())
    if thin:
        few = f"{thin} of {len(scores.per_class or {})} labels have fewer than {FEW_OF_A_LABEL}"
        return Finding(question, "fair", f"{told}, and {few}: their own scores say little.")
    return Finding(question, "good", f"{told}.")


def weakest(per_class: dict[str, PerClass]) -> list[tuple[str, PerClass]]:
    """Return the labels that have test rows, the lowest F1 first."""
    tested = [(name, found) for name, found in per_class.items() if found.support]
    return sorted(tested, key=lambda each: (each[1].f1, -each[1].support, each[0]))


def confused(confusion: Confusion | None) -> list[Pair]:
    """Return which labels are taken for which, the most frequent first."""
    if confusion is None:
        return []
    pairs = [
        Pair(truth, told, count, count / sum(counts))
        for truth, counts in zip(confusion.labels, confusion.counts, strict=True)
        for told, count in zip(confusion.labels, counts, strict=True)
        if count and told != truth
    ]
    return sorted(pairs, key=lambda pair: (-pair.rows, -pair.share, pair.truth, pair.told))


def _how_good(tested: Scores, kind: type[BaseTask]) -> Finding | None:
    if (merit := tested.values.get(kind.merit_metric)) is None:
        return None
    low, high = tested.intervals.get(kind.merit_metric, (None, None))
    if not kind.closed:
        span = f" (95 %: {low:.2f} to {high:.2f})" if low is not None else ""
        told = f"{kind.merit_name} {merit:.2f}{span}; 1 would be word for word, and good answers may differ"
        return Finding("How near is it to what people wrote?", "unknown", f"{told}.")
    span = f" (95 %: {100 * low:.0f} to {100 * high:.0f})" if low is not None and high is not None else ""
    return Finding("How often is it right?", "unknown", f"With {100 * merit:.0f} of 100 texts{span}.")


def _against_simple(evaluation: Evaluation, kind: type[BaseTask]) -> Finding | None:
    if (by := evaluation.baseline) is None:
        return None
    question = f"Is it better than {by.name.split(' (')[0]}?"
    told = f"{kind.merit_name} {by.candidate:.3f} against {by.baseline:.3f} ({_chance(by.p_value)})"
    if by.p_value >= SIGNIFICANT:
        return Finding(
            question, "fair", f"Not shown: {told}. Serve the simpler, which costs nothing, or give it more rows."
        )
    if by.candidate < by.baseline:
        return Finding(question, "bad", f"No: {told}. Serve the simpler, or give this one more rows and passes.")
    return Finding(question, "good", f"Yes: {told}.")


def _against_base(evaluation: Evaluation) -> Finding | None:
    if (by := evaluation.base) is None:
        return None
    question, told = (
        "Did it need to be trained?",
        f"the base untrained has {by.base:.3f}, this adapter {by.candidate:.3f}",
    )
    asked = evaluation.baselines
    if asked and asked.few_shot is not None:
        told = f"{told}; with {asked.shots} examples in its prompt the base has {asked.few_shot:.3f}"
        if asked.few_shot >= asked.adapter:
            return Finding(question, "fair", f"Perhaps not: {told} on the first {asked.rows} rows.")
    if by.p_value >= SIGNIFICANT:
        return Finding(question, "fair", f"Not shown: {told} ({_chance(by.p_value)}).")
    if by.candidate < by.base:
        return Finding(question, "bad", f"It became worse: {told} ({_chance(by.p_value)}).")
    return Finding(question, "good", f"Yes: {told}.")


def _against_released(evaluation: Evaluation) -> Finding | None:
    if (by := evaluation.released) is None:
        return None
    question = f"Is it better than version {by.version}, which is served?"
    told = f"{by.candidate:.3f} against {by.released:.3f} ({_chance(by.p_value)})"
    if by.p_value >= SIGNIFICANT:
        return Finding(question, "fair", f"Not shown: {told}.")
    return Finding(question, *(("good", f"Yes: {told}.") if by.candidate > by.released else ("bad", f"No: {told}.")))


def _confidence(evaluation: Evaluation) -> Finding | None:
    tested, bins = evaluation.scores["test"].adapter, evaluation.reliability
    off = tested.values.get("calibration_error")
    rows = sum(each.rows for each in bins)
    if off is None or rows < FEW_ROWS:
        return None
    question, told = (
        "Does its confidence mean what it says?",
        f"on average it is {off:.2f} from the share that was right",
    )
    if off <= CALIBRATED:
        return Finding(question, "good", f"Yes: {told}.")
    too_sure = sum(each.rows * (each.confidence - each.right) for each in bins) > 0
    how = "it is too sure of itself" if too_sure else "it is right more often than it says"
    if off <= ASTRAY:
        return Finding(question, "fair", f"Roughly: {told}; {how}.")
    return Finding(question, "bad", f"No: {told}; {how}. Set no threshold on it unseen.")


def _rivals(evaluation: Evaluation) -> list[tuple[str, float, float, float]]:
    """What it was compared with: name, this adapter's merit, theirs, p-value. Where it is better than a simple model
    or the base, whether it is better than what is served may stay open."""
    found = []
    if simple := evaluation.baseline:
        found.append((simple.name, simple.candidate, simple.baseline, simple.p_value))
    if base := evaluation.base:
        found.append(("the base untrained", base.candidate, base.base, base.p_value))
    if (served := evaluation.released) and (served.p_value < SIGNIFICANT or not found):
        found.append((f"version {served.version}, which is served,", served.candidate, served.released, served.p_value))
    return found


def _chance(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def _sentences(told: Sequence[str]) -> str:
    return " ".join(f"{_capital(each)}." for each in told)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
