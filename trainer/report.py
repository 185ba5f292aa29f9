"""What a run has to say: the score table on the terminal, and the card stored with the version."""

from __future__ import annotations

from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from adapters.base_model import Base
from trainer.evaluation import Both, Evaluation
from trainer.recipe import PROMPTS, Recipe
from trainer.run_record import RunRecord
from trainer.sources import SOURCES
from trainer.verdict import breaks, confused, forgotten, labels, shape, training_held, worth_it

READABLE_LABELS = 12  # a confusion table of more is wider than a screen
CONFUSED = 10
FEW_SHOT = "no training row is short enough to be an example"


def score_rows(scores: dict[str, Both]) -> list[dict[str, Any]]:
    """Return one row per test set and metric, base beside adapter, with the 95 % interval where there is one; nested
    details are left out."""
    return [
        {
            "test": test,
            "metric": metric,
            "base": both.base.values.get(metric),
            "baseline": both.baseline.values.get(metric) if both.baseline else None,
            "adapter": value,
            "interval": _span(both, metric),
        }
        for test, both in scores.items()
        for metric, value in both.adapter.values.items()
    ]


def card(recipe: Recipe, base: Base, run: RunRecord, evaluation: Evaluation) -> str:
    """Return the version's ``README.md``: data, recipe, seed, scores, and how to make it again."""
    scores = evaluation.scores
    origin = recipe.data.source or recipe.data.dataset or str(recipe.data.path)
    about = (SOURCES[recipe.data.source].__doc__ or "").strip() if recipe.data.source else "The user's own data."
    rows = ", ".join(f"{count} {name}" for name, count in run.rows.items())
    settings = recipe.model_dump(mode="json", exclude={"output", "description", "gate", "sweep"}, exclude_none=True)
    lines = [
        "---",
        _metadata(recipe, base, scores).to_yaml(),
        "---",
        "",
        f"# {recipe.name}",
        "",
        *([recipe.description, ""] if recipe.description else []),
        f"{_made_by(recipe)} for {base.name} (`{base.digest}`).",
        *_conversion_lines(run),
        "",
        "## Data",
        "",
        f"`{origin}`: {about}",
        f"Rows: {rows}. {_split(recipe)}; fingerprint `{run.data}`.",
        "",
        "## Held-out scores",
        "",
        f"| test | metric | base, zero-shot | {_simple_name(evaluation)} | this adapter | 95 % interval |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r['test']} | {r['metric']} | {figure(r['base'])} | {figure(r['baseline'])} "
            f"| {figure(r['adapter'])} | {r['interval']} |"
            for r in score_rows(scores)
        ),
        *_confusion_lines(scores),
        *_findings(recipe, run, evaluation),
        "",
        "## How to make it again",
        "",
        f"`python -m trainer train RECIPE.yaml` with the recipe below (seed {recipe.seed}); it took "
        f"{run.seconds:.0f} seconds for {run.steps} steps on {run.machine}.",
        "",
        "```yaml",
        yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip(),
        "```",
        "",
        "## Intended use",
        "",
        recipe.card.intended_use or f"{recipe.task.kind.capitalize()} of text like the test rows, through hotswap.",
        "",
        "## Limits",
        "",
        recipe.card.limits
        or "Scores hold for text like the test rows, in the language of these. Check answers that matter.",
        "",
        "## Licence of the data, and consent",
        "",
        recipe.card.data_licence or "The recipe does not say under which licence the rows are (card.data_licence).",
        recipe.card.consent or "It does not say whether those whose texts these are agreed (card.consent).",
    ]
    return "\n".join(lines) + "\n"


def _metadata(recipe: Recipe, base: Base, scores: dict[str, Both]) -> ModelCardData:
    """Return the head of a Hugging Face model card, with the adapter's scores as its ``model-index``."""
    origin = recipe.data.source or recipe.data.dataset or (recipe.data.path.name if recipe.data.path else "")
    kind = recipe.task.makes.pipeline_tag
    results = [
        EvalResult(
            task_type=kind,
            dataset_type=origin,
            dataset_name=origin,
            dataset_split=row["test"],
            metric_type=row["metric"],
            metric_value=round(float(row["adapter"]), 4),
        )
        for row in score_rows(scores)
        if row["metric"] != "rows"
    ]
    return ModelCardData(
        model_name=recipe.name,
        language=recipe.card.language,
        license=recipe.card.licence or None,
        base_model=base.name,
        library_name="peft",
        pipeline_tag=kind,
        tags=["hotswap", recipe.method],
        eval_results=results,
    )


def _span(both: Both, metric: str) -> str:
    return "–".join(map(figure, both.adapter.intervals.get(metric, ())))


def _made_by(recipe: Recipe) -> str:
    if recipe.method in PROMPTS:
        return f"{recipe.soft_prompt.tokens} learnt vectors in front of the prompt ({recipe.method})"
    how = [] if recipe.method == "lora" else [f"with {recipe.method}"]
    how += [] if recipe.objective == "supervised" else [f"for {recipe.objective}"]
    how += [f"from {recipe.start_from} on"] if recipe.start_from else []
    return f"A LoRA adapter, trained {' '.join(how)}," if how else "A LoRA adapter"


def _split(recipe: Recipe) -> str:
    if recipe.data.near_duplicates == "group":
        return "Split so that nearly equal texts never cross"
    if recipe.data.group or recipe.data.source:
        return f"Split by {recipe.data.group or 'the groups of the source'}, whose rows never cross"
    return "Split by text: equal ones never cross, near-copies may"


def _findings(recipe: Recipe, run: RunRecord, evaluation: Evaluation) -> list[str]:
    """What else evaluation found that a user of the version should know."""
    lines = []
    if against := evaluation.base:
        lines.append(
            f"The base untrained scores {figure(against.base)} on the test rows, this adapter "
            f"{figure(against.candidate)} (p = {against.p_value:.2g})."
        )
    if verdict := worth_it(evaluation):
        lines.append(f"Was it worth it? {verdict[0].upper()}{verdict[1:]}.")
    if asked := evaluation.baselines:
        shown = f"{asked.shots} training rows in the base's prompt {figure(asked.few_shot or 0)}"
        lines.append(
            f"On the first {asked.rows} of them: {shown if asked.shots else FEW_SHOT}, "
            f"zero-shot {figure(asked.zero_shot)}, this adapter {figure(asked.adapter)}."
        )
    kind, tested = recipe.task.makes, evaluation.scores["test"].adapter
    judged = (
        training_held(run),
        forgotten(evaluation, kind),
        breaks(evaluation, kind),
        labels(tested.per_class or {}),
        shape(tested),
    )
    lines += [f"{finding.question} {finding.answer}" for finding in judged if finding]
    for column, apart in evaluation.slices.items():
        if apart.gap is not None:
            lines.append(f"By {column} the scores of the test rows differ by up to {figure(apart.gap)}.")
    return ["", *(f"- {line}" for line in lines)] if lines else []


def _conversion_lines(run: RunRecord) -> list[str]:
    """What was lost where vLLM cannot load what was trained; the table's scores are those of what is served."""
    if (made := run.converted) is None:
        return []
    scores = [f"{name} {figure(v)}" for name, v in made.as_trained.values.items() if isinstance(v, float)]
    return [
        "",
        f"The change was made into a LoRA of rank {made.rank}, which loses {made.error:.2%} of its squared size. "
        f"Before that, on the test rows: {', '.join(scores)}.",
    ]


def _simple_name(evaluation: Evaluation) -> str:
    return evaluation.baseline.name if evaluation.baseline else "simple baseline"


def figure(value: float | None) -> str:
    """Return a number as tables show it: counts in full, else four digits."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _confusion_lines(scores: dict[str, Both]) -> list[str]:
    """The whole table where it can be read; of many labels the pairs that are taken for each other most often."""
    lines = []
    for test, both in scores.items():
        if (confusion := both.adapter.confusion) is None:
            continue
        if len(confusion.labels) > READABLE_LABELS:
            lines += ["", f"Most often confused on {test}:", "", "| truth | answer | rows |", "|---|---|---|"]
            lines += [f"| {pair.truth} | {pair.told} | {pair.rows} |" for pair in confused(confusion)[:CONFUSED]]
            continue
        lines += ["", f"Confusion on {test} (rows: truth):", "", "| | " + " | ".join(confusion.labels) + " |"]
        lines += ["|---" * (len(confusion.labels) + 1) + "|"]
        lines += [
            f"| **{label}** | " + " | ".join(map(str, counts)) + " |"
            for label, counts in zip(confusion.labels, confusion.counts, strict=True)
        ]
    return lines
