"""``python -m trainer``: train, evaluate and publish an adapter from one recipe."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
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
from trainer.config import IDENTITY, Data, Recipe, load_recipe
from trainer.data import load_splits
from trainer.report import score_rows

RUN, EVALUATION, TASK, CHECKED = "run.json", "evaluation.json", "adapter/task.json", "data-check.json"


def main() -> int:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would tell of a kernel that nobody asked for
    return cli.run(_parser())


def check(options: argparse.Namespace) -> int:
    data, kind, seed, limit = _to_check(options)
    base = resolve_base(options.base or os.environ.get("HOTSWAP_BASE_MODEL"))
    findings = _findings(data, kind, seed, limit, base)
    if options.json:
        print(json.dumps(as_records(findings), indent=1))
    else:
        for finding in findings:
            more = " …" if len(finding.rows) == SHOWN else ""
            where = f" (rows {', '.join(map(str, finding.rows))}{more})" if finding.rows else ""
            print(f"{finding.level:8} {finding.check}: {finding.message}{where}")
    return 1 if any(finding.level == "error" for finding in findings) else 0


def _findings(data: Data, kind: str, seed: int, limit: int, base: Base) -> list[Finding]:
    def count(text: str) -> int:
        return len(base.tokenizer.encode(text))

    return check_data(data, kind, cache_folder(), seed=seed, max_input_tokens=limit, count_tokens=count)


def _to_check(options: argparse.Namespace) -> tuple[Data, str, int, int]:
    """Return the data of a recipe, or of a file as the options describe it."""
    if options.file.suffix.lower() in (".yaml", ".yml"):
        recipe = load_recipe(options.file, tuple(options.set))
        return recipe.data, recipe.task.kind, recipe.seed, recipe.task.max_input_tokens
    if options.set:
        raise HotswapError("--set changes a recipe's keys; a file's columns are named by --text, --answer and --group.")
    columns = {"text": options.text, "answer": options.answer, "group": options.group}
    data = Data(path=options.file, **{key: column for key, column in columns.items() if column})
    return data, options.task, 0, 512 if options.task == "classification" else 1024


def train(options: argparse.Namespace) -> None:
    recipe = _recipe(options)
    splits = load_splits(recipe, cache_folder())  # bad data is refused before a model is fetched
    base = resolve_base(recipe.base or os.environ.get("HOTSWAP_BASE_MODEL"))
    from trainer import train as training  # torch and transformers take seconds to import

    task = training.make_task(recipe, splits, base)
    _say(f"{recipe.name}: {_counts(splits.counts())}; base {base.name}; run folder {recipe.run_folder}")
    if (recipe.run_folder / RUN).is_file() and _identity(recipe) == recipe.run_identity(
        splits.fingerprint, base.digest
    ):
        _say(f"already trained; delete {recipe.run_folder} to train it again")
        run = _read(recipe, RUN)
    else:
        findings = _checked(recipe, base)
        run = training.train(recipe, splits, task, base)
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
            f"({run['tokens_per_second']:.0f} tokens/s), validation loss {run['best_validation_loss']:.4f}"
        )
        print(_next("evaluate", options))


def _checked(recipe: Recipe, base: Base) -> list[Finding]:
    """Say what is doubtful about the data before the time for training is spent."""
    findings = _findings(recipe.data, recipe.task.kind, recipe.seed, recipe.task.max_input_tokens, base)
    for finding in findings:
        if finding.level == "warning":
            _say(f"data: {finding.message}")
    return findings


def sweep(options: argparse.Namespace) -> None:
    recipe = _recipe(options)
    if options.trials < 1:
        raise HotswapError("--trials needs a number from 1 on.")

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
        _say(
            f"without training, on the first {untrained['rows']} test rows: zero-shot {untrained['zero_shot']:.3f}, "
            f"{untrained['shots']} examples in the prompt {untrained['few_shot']:.3f}; "
            f"adapter {untrained['adapter']:.3f}"
        )
        _say(f"report: {recipe.run_folder / REPORT}")
        print(_next("publish", options))


def publish(options: argparse.Namespace) -> None:
    recipe, signer = _recipe(options), cli.signer_of(options)
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


def _evaluate(recipe: Recipe, store: Store) -> dict[str, Any]:
    run, base = _trained(recipe)
    splits = load_splits(recipe, cache_folder())
    if splits.fingerprint != run["data"]:
        raise HotswapError("the data is not what the adapter was trained on; train again, then evaluate.")
    from trainer import evaluate as evaluation

    released = _released(recipe, store, base)
    result = evaluation.evaluate(recipe.run_folder / "adapter", splits, _task(recipe), base, released)
    _write(recipe.run_folder / EVALUATION, result)
    from trainer.page import page

    (recipe.run_folder / REPORT).write_text(page(recipe, base, run, result), encoding="utf-8")
    return result


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
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _next(command: str, options: argparse.Namespace) -> str:
    settings = [part for override in options.set for part in ("--set", override)]
    return f"next: python -m trainer {shlex.join([command, str(options.recipe), *settings])}"


def _say(text: str) -> None:
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
    _add_data(commands)
    return parser


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


if __name__ == "__main__":
    sys.exit(main())
