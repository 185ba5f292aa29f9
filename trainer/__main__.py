"""``python -m trainer``: train, evaluate and publish an adapter from one recipe."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from adapters import cli
from adapters.base_model import Base, resolve_base
from adapters.errors import HotswapError
from adapters.intake import REPORT
from adapters.packages import cache_folder
from adapters.store import Store, open_store
from adapters.tasks import Task
from trainer.checks import SHOWN, Finding, as_records, check_data
from trainer.config import IDENTITY, PAIRED, Data, Recipe, load_recipe
from trainer.data import Columns, Row, Splits, load_splits
from trainer.feedback import read_log, rows_for
from trainer.report import score_rows

COLUMNS = ("measure", "value")
RUN, EVALUATION, TASK, CHECKED = "run.json", "evaluation.json", "adapter/task.json", "data-check.json"


def main() -> int:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would tell of a kernel that nobody asked for
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # of weights that are new because they are to be learnt
    return cli.run(_parser())


def check(options: argparse.Namespace) -> int:
    data, columns, seed, limit = _to_check(options)
    base = resolve_base(options.base or os.environ.get("HOTSWAP_BASE_MODEL"))
    findings = _findings(data, columns, seed, limit, base)
    if options.json:
        print(json.dumps(as_records(findings), indent=1))
    else:
        for finding in findings:
            more = " …" if len(finding.rows) == SHOWN else ""
            where = f" (rows {', '.join(map(str, finding.rows))}{more})" if finding.rows else ""
            print(f"{finding.level:8} {finding.check}: {finding.message}{where}")
    return 1 if any(finding.level == "error" for finding in findings) else 0


def from_feedback(options: argparse.Namespace) -> None:
    records = read_log(options.log, options.adapter)
    rows = list(rows_for(options.objective, records))
    if not rows:
        wanted = "a better summary or the right label" if options.objective in PAIRED else "a right answer"
        raise HotswapError(f"of {len(records)} answers none came with {wanted}; objective kto takes thumbs alone.")
    _write_rows(options.out, rows)
    print(f"{len(rows)} rows for objective {options.objective} in {options.out}")


def compare(options: argparse.Namespace) -> None:
    from trainer import comparison

    folder = options.folder or Path("runs/compare") / re.sub(r"[^\w.@-]+", "_", f"{options.a}-vs-{options.b}")
    if not options.votes:
        if options.rows < 1:
            raise HotswapError("--rows needs a number from 1 on.")
        if options.on is None:
            raise HotswapError("--on RECIPE.yaml says whose test rows are answered; --votes reads what was judged.")
        rows, ones, others = _answers_of_both(options)
        found = comparison.items(rows, ones, others)
        page = comparison.write(folder, options.a, options.b, found, len(rows))
        print(f"{len(found)} of {len(rows)} answers differ; open {page}, and keep {comparison.KEY} from the voters")
        return
    key = comparison.read_key(folder)
    ballots = comparison.read_votes(options.votes, key)
    result = comparison.verdict(key, ballots)
    if options.pairs:
        _write_rows(options.pairs, comparison.pairs(key, ballots))
    if options.json:
        print(json.dumps({"compared": [key["a"], key["b"]], **asdict(result)}))
        return
    print(
        f"{key['a']} won {result.a}, {key['b']} won {result.b}, ties {result.ties}; {result.voters} voters\n"
        f"{key['a']} wins {result.rate:.1%} (ties are halves); where one won, 95 % interval {result.low:.1%} to "
        f"{result.high:.1%}, sign test p = {result.p_value:.2g}"
    )
    if result.agreement is not None:
        print(f"two voters agreed on {result.agreement:.1%} of what both judged")


def _answers_of_both(options: argparse.Namespace) -> tuple[list[Row], list[str], list[str]]:
    """Return the first test rows and what each side says to them."""
    recipe = load_recipe(options.on, tuple(options.set))
    rows = load_splits(recipe, cache_folder()).tests["test"][: options.rows]
    base = resolve_base(recipe.base or os.environ.get("HOTSWAP_BASE_MODEL"))
    from trainer.evaluate import answers

    sides = []
    for side in (options.a, options.b):
        name, _, number = side.partition("@")
        if not number.isdigit():
            raise HotswapError(f"'{side}' is no version; write NAME@VERSION, for example sentiment@2.")
        store = _store(options)
        manifest, _ = store.manifest(name, int(number))
        if manifest.base.digest != base.digest:
            raise HotswapError(f"{side} is for another base than {base.name}; set HOTSWAP_BASE_MODEL to it.")
        folder = store.fetch(name, int(number), cache_folder())
        sides.append(answers(folder, rows, manifest.task, base, side))
    return rows, sides[0], sides[1]


def _findings(data: Data, columns: Columns, seed: int, limit: int, base: Base) -> list[Finding]:
    def count(text: str) -> int:
        return len(base.tokenizer.encode(text))

    return check_data(data, columns, cache_folder(), seed=seed, max_input_tokens=limit, count_tokens=count)


def _to_check(options: argparse.Namespace) -> tuple[Data, Columns, int, int]:
    """Return the data of a recipe, or of a file as the options describe it."""
    if options.file.suffix.lower() in (".yaml", ".yml"):
        recipe = load_recipe(options.file, tuple(options.set))
        return recipe.data, Columns(recipe.task.kind, recipe.objective), recipe.seed, recipe.task.max_input_tokens
    if options.set:
        raise HotswapError("--set changes a recipe's keys; a file's columns are named by --text, --answer and --group.")
    columns = {"text": options.text, "answer": options.answer, "group": options.group}
    data = Data(path=options.file, **{key: column for key, column in columns.items() if column})
    return data, Columns(options.task), 0, 512 if options.task == "classification" else 1024


def train(options: argparse.Namespace) -> None:
    recipe = _recipe(options)
    splits = load_splits(recipe, cache_folder())  # bad data is refused before a model is fetched
    base = resolve_base(recipe.base or os.environ.get("HOTSWAP_BASE_MODEL"))
    from trainer import train as training  # torch and transformers take seconds to import
    from trainer.fit import processes
    from trainer.mixture import make_task

    task = make_task(recipe, splits, base)
    _say(f"{recipe.name}: {_counts(splits.counts())}; base {base.name}; run folder {recipe.run_folder}")
    if (recipe.run_folder / RUN).is_file() and _identity(recipe) == recipe.run_identity(
        splits.fingerprint, base.digest
    ):
        _say(f"already trained; delete {recipe.run_folder} to train it again")
        run = _read(recipe, RUN)
    else:
        start = _start(recipe, base)
        first = processes().is_main_process
        findings = _checked(recipe, base) if first else []
        run = training.train(recipe, splits, task, base, start=start)
        if not first:
            return
        _write(recipe.run_folder / CHECKED, as_records(findings))
        if run["temperature"] != 1.0:
            task = task.model_copy(update={"temperature": run["temperature"]})
        _write(recipe.run_folder / TASK, json.loads(task.model_dump_json()))
        _write(recipe.run_folder / RUN, run)  # last: its presence says that the run is finished
    if options.json:
        print(json.dumps(run))
    else:
        print(
            f"trained {run['trainable_parameters']:,} parameters in {run['seconds']:.0f} s "
            f"({run['tokens_per_second']:.0f} tokens/s), validation {_aim(recipe)} {run['best_validation_loss']:.4f}"
        )
        print(_next("evaluate", options))


def _aim(recipe: Recipe) -> str:
    return "reward" if recipe.objective == "grpo" else "loss"


def _start(recipe: Recipe, base: Base) -> Path | None:
    """Return the folder of the LoRA that the recipe starts from. Raises where there is none that could be."""
    if recipe.start_from is None:
        return None
    store, (name, _, number) = _store(argparse.Namespace()), recipe.start_from.partition("@")
    manifest, _ = store.manifest(name, int(number))
    if manifest.base.digest != base.digest or manifest.virtual_tokens:
        raise HotswapError(f"start_from: {recipe.start_from} is not a LoRA for {base.name}.")
    return store.fetch(name, int(number), cache_folder())


def _checked(recipe: Recipe, base: Base) -> list[Finding]:
    """Say what is doubtful about the data before the time for training is spent."""
    columns = Columns(recipe.task.kind, recipe.objective)
    findings = _findings(recipe.data, columns, recipe.seed, recipe.task.max_input_tokens, base)
    for finding in findings:
        if finding.level == "warning":
            _say(f"data: {finding.message}")
    return findings


def sweep(options: argparse.Namespace) -> None:
    recipe = _recipe(options)
    if options.trials < 1:
        raise HotswapError("--trials needs a number from 1 on.")
    if recipe.objective == "grpo":
        raise HotswapError(
            "a sweep compares validation losses, and objective grpo has none; sweep it supervised first."
        )

    def changed(params: dict[str, Any]) -> Recipe:
        return load_recipe(options.recipe, (*options.set, *sweeping.as_settings(params)))

    for key, space in recipe.sweep.items():  # a misspelt key is said before the first training
        first = space[0] if isinstance(space, tuple) else int(space.low) if space.whole else space.low
        load_recipe(options.recipe, (*options.set, f"{key}={json.dumps(first)}"))
    load_splits(recipe, cache_folder())
    base = resolve_base(recipe.base or os.environ.get("HOTSWAP_BASE_MODEL"))
    from trainer import sweep as sweeping

    study = sweeping.sweep(recipe, changed, lambda tried: load_splits(tried, cache_folder()), base, options.trials)
    rows = sweeping.table(study)
    if options.json:
        print(json.dumps(rows))
        return
    cli.show(rows, as_json=False, columns=("trial", "state", "validation_loss", *recipe.sweep))
    options.set = [*options.set, *sweeping.as_settings(study.best_params)]
    print(_next("train", options))


def evaluate(options: argparse.Namespace) -> None:
    recipe = _recipe(options)
    if recipe.objective == "reward":
        _evaluate_reward(recipe, options)
        return
    evaluation = _evaluate(recipe, _store(options))
    rows = score_rows(evaluation["scores"])
    if options.json:
        print(json.dumps(evaluation["scores"]))
    else:
        cli.show(rows, as_json=False, columns=("test", "metric", "base", "adapter", "interval"))
        if against := evaluation["released"]:
            print(
                f"released is version {against['version']}: {against['released']:.4f} on the same test rows, "
                f"this one {against['candidate']:.4f} (p = {against['p_value']:.2g})"
            )
        untrained = evaluation["baselines"]
        if most := untrained.get("majority"):
            told = f"accuracy {most['accuracy']:.3f}, macro-F1 {most['macro_f1']:.3f}"
            _say(f"always '{most['label']}' would reach {told}")
        _say(
            f"without training, on the first {untrained['rows']} test rows: zero-shot {untrained['zero_shot']:.3f}, "
            f"{untrained['shots']} examples in the prompt {untrained['few_shot']:.3f}; "
            f"adapter {untrained['adapter']:.3f}"
        )
        _say(f"report: {recipe.run_folder / REPORT}")
        print(_next("publish", options))


def _evaluate_reward(recipe: Recipe, options: argparse.Namespace) -> None:
    _, base, splits = _held_out(recipe)
    from trainer.reward import judged

    found = judged(recipe.run_folder, splits.test, _task(recipe), base)
    _write(recipe.run_folder / EVALUATION, found)
    if options.json:
        print(json.dumps(found))
    else:
        cli.show([{"measure": k, "value": round(v, 4)} for k, v in found.items()], as_json=False, columns=COLUMNS)
        print(f"next: a recipe with objective grpo and reinforce.reward_model: {recipe.run_folder}")


def publish(options: argparse.Namespace) -> None:
    recipe, signer = _recipe(options), cli.signer_of(options)
    if recipe.objective == "reward":
        raise HotswapError("a reward model answers nothing: it is for reinforce.reward_model, not for the store.")
    run, base = _trained(recipe)
    done = recipe.run_folder / EVALUATION
    store = _store(options)
    evaluation = _read(recipe, EVALUATION) if done.is_file() else None
    if evaluation is None or _compared_with(evaluation) != _stable(store, recipe.name):
        evaluation = _evaluate(recipe, store)
    from trainer import publish as publishing

    manifest = publishing.publish(recipe, store, _task(recipe), base, run, evaluation, signer)
    release = None if options.no_release else store.release(recipe.name, manifest.version, why=options.why)
    generation = release.generation if release else None
    if options.json:
        print(json.dumps({"name": manifest.name, "version": manifest.version, "generation": generation}))
    else:
        served = f"released as generation {generation}" if release else "not released"
        print(f"{manifest.name}@{manifest.version} published to {store.place}, {served}")


def _store(options: argparse.Namespace) -> Store:
    return open_store(getattr(options, "store", None) or os.environ.get("HOTSWAP_STORE"))


def _stable(store: Store, name: str) -> int | None:
    release = store.released(name)
    return release.stable if release else None


def _compared_with(evaluation: dict[str, Any]) -> int | None:
    return (evaluation.get("released") or {}).get("version")


def _released(recipe: Recipe, store: Store, base: Base) -> Any:
    """Return the version that is served now, if it does the same on the same base."""
    from trainer.evaluate import Released

    if (version := _stable(store, recipe.name)) is None:
        return None
    manifest, _ = store.manifest(recipe.name, version)
    if manifest.base.digest != base.digest or manifest.task.kind != recipe.task.kind:
        return None
    return Released(version, store.fetch(recipe.name, version, cache_folder()), manifest.task)


def _held_out(recipe: Recipe) -> tuple[dict[str, Any], Base, Splits]:
    """Return the finished run, its base, and the rows that it was split from. Raises where these have changed."""
    run, base = _trained(recipe)
    splits = load_splits(recipe, cache_folder())
    if splits.fingerprint != run["data"]:
        raise HotswapError("the data is not what the adapter was trained on; train again, then evaluate.")
    return run, base, splits


def _evaluate(recipe: Recipe, store: Store) -> dict[str, Any]:
    run, base, splits = _held_out(recipe)
    from trainer import evaluate as evaluation

    released = _released(recipe, store, base)
    from trainer.mixture import mixed_tasks

    result = evaluation.evaluate(
        recipe.run_folder / "adapter",
        splits,
        _task(recipe),
        base,
        released,
        mixed=mixed_tasks(recipe, splits, base),
        embed=_encoder(recipe),
        general_text=_general_text(recipe),
    )
    _write(recipe.run_folder / EVALUATION, result)
    from trainer.page import page

    (recipe.run_folder / REPORT).write_text(page(recipe, base, run, result), encoding="utf-8")
    return result


def _encoder(recipe: Recipe) -> Any:
    if recipe.task.kind != "summarization" or not recipe.evaluation.similarity:
        return None
    from trainer.embeddings import encoder

    try:
        return encoder(cache_folder())
    except HotswapError as error:
        _say(f"similarity is left out: {error}")
        return None


def _general_text(recipe: Recipe) -> str:
    if recipe.evaluation.general_text is not None:
        return recipe.evaluation.general_text.read_text(encoding="utf-8")
    from pydoc_data.topics import topics  # English prose on every machine that has Python

    return "\n\n".join(topics[name] for name in sorted(topics))


def _trained(recipe: Recipe) -> tuple[dict[str, Any], Base]:
    """Return the finished run and its base. Raises where recipe or base are not those that were trained."""
    run = _read(recipe, RUN)
    base = resolve_base(recipe.base or os.environ.get("HOTSWAP_BASE_MODEL"))
    if base.digest != run["base"]:
        raise HotswapError(f"the adapter was trained on another base than {base.name}; set HOTSWAP_BASE_MODEL to it.")
    if _identity(recipe) != recipe.run_identity(run["data"], run["base"]):
        raise HotswapError(
            f"the recipe is not the one that {recipe.run_folder} was trained with; give the same --set, or train again."
        )
    return run, base


def _identity(recipe: Recipe) -> str | None:
    note = recipe.run_folder / IDENTITY
    return note.read_text() if note.is_file() else None


def _recipe(options: argparse.Namespace) -> Recipe:
    return load_recipe(options.recipe, tuple(options.set))


def _task(recipe: Recipe) -> Any:
    return TypeAdapter(Task).validate_python(_read(recipe, TASK))


def _read(recipe: Recipe, name: str) -> dict[str, Any]:
    path = recipe.run_folder / name
    if not path.is_file():
        raise HotswapError(f"{path} is missing: python -m trainer train comes first, with the same recipe.")
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        raise HotswapError(f"{path} is damaged; train again.") from None


def _write(path: Path, content: Any) -> None:
    """Write all or nothing: a full disk, or a kill, leaves what was there."""
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    scratch.replace(path)


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _next(command: str, options: argparse.Namespace) -> str:
    settings = [part for override in options.set for part in ("--set", override)]
    return f"next: python -m trainer {shlex.join([command, str(options.recipe), *settings])}"


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        print(text, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    shared.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. training.epochs=2")
    shared.add_argument("--json", action="store_true", help="print JSON")
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Train an adapter, compare it with the base model, publish it.",
        epilog="example: python -m trainer train trainer/recipes/sentiment.yaml --set training.epochs=2",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("train", train, "make the adapter; goes on where a killed run stopped"),
        ("sweep", sweep, "try the recipe's `sweep` of settings; goes on where it stopped"),
        ("evaluate", evaluate, "score base and adapter on the held-out rows"),
        ("publish", publish, "write a version to the store, if the recipe's gate lets it, and release it"),
    ):
        example = f"example: python -m trainer {name} trainer/recipes/sentiment.yaml"
        sub = commands.add_parser(name, help=text, description=text, epilog=example, parents=[shared])
        sub.set_defaults(command=run)
        if name == "sweep":
            sub.add_argument("--trials", type=int, default=20, help="in all, those of earlier sweeps counted (20)")
        if name == "publish":
            sub.add_argument("--store", metavar="URL", help="default: HOTSWAP_STORE, var/store")
            sub.add_argument("--no-release", action="store_true", help="store the version without serving it")
            sub.add_argument("--why", default="", help="recorded with the release")
            cli.add_sign_option(sub)
    _add_compare(commands)
    _add_data(commands)
    return parser


def _add_compare(commands: Any) -> None:
    text = "write a page on which people judge two versions blindly, and read their votes back"
    example = "example: python -m trainer compare news@1 news@2 --on news.yaml, then with --votes votes.json"
    sub = commands.add_parser("compare", help=text, description=text, epilog=example)
    sub.set_defaults(command=compare)
    sub.add_argument("a", metavar="A", help="NAME@VERSION")
    sub.add_argument("b", metavar="B", help="NAME@VERSION")
    sub.add_argument("--on", type=Path, metavar="RECIPE.yaml", help="whose test rows are answered")
    sub.add_argument("--rows", type=int, default=50, help="at most so many (50)")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    sub.add_argument("--store", metavar="URL", help="default: HOTSWAP_STORE, var/store")
    sub.add_argument("--folder", type=Path, help="for page and key; default: runs/compare/A-vs-B")
    sub.add_argument("--votes", type=Path, nargs="+", metavar="votes.json", help="what the page saved, of each voter")
    sub.add_argument("--pairs", type=Path, metavar="FILE.jsonl", help="write what won as rows for objective dpo")
    sub.add_argument("--json", action="store_true", help="print JSON")


def _add_data(commands: Any) -> None:
    text = "look at the data before it is trained on"
    data = commands.add_parser("data", help=text, description=text).add_subparsers(required=True, metavar="COMMAND")
    text = "find what is broken, doubtful, repeated, leaking, personal or unbalanced; 1 if it cannot be trained on"
    example = "example: python -m trainer data check tickets.csv --text message --answer topic"
    sub = data.add_parser("check", help=text, description=text, epilog=example)
    sub.set_defaults(command=check)
    sub.add_argument(
        "file", type=Path, metavar="FILE", help="a .jsonl, .json, .csv, .tsv or .parquet file, or a recipe"
    )
    sub.add_argument("--task", choices=("classification", "summarization"), default="classification")
    sub.add_argument("--text", metavar="COLUMN", help="default: text")
    sub.add_argument("--answer", metavar="COLUMN", help="default: label, or summary")
    sub.add_argument("--group", metavar="COLUMN", help="rows that share its value stay in one split")
    sub.add_argument("--base", help="whose tokens are counted; default: HOTSWAP_BASE_MODEL")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of a recipe")
    sub.add_argument("--json", action="store_true", help="print JSON")
    text = "make rows to train on from what users said of an adapter's answers"
    example = "example: python -m trainer data from-feedback log.jsonl --adapter topics --out rows.jsonl"
    sub = data.add_parser("from-feedback", help=text, description=text, epilog=example)
    sub.set_defaults(command=from_feedback)
    sub.add_argument("log", type=Path, nargs="+", metavar="LOG", help="what HOTSWAP_FEEDBACK_LOG wrote")
    sub.add_argument("--adapter", required=True, metavar="NAME")
    sub.add_argument("--objective", choices=("supervised", "dpo", "kto", "reward"), default="supervised")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")


if __name__ == "__main__":
    sys.exit(main())
