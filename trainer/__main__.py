"""``python -m trainer``: train, evaluate and publish an adapter from one recipe."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

from adapters import cli

try:
    from trainer.commands import compare, data, evaluate, jobs, publish, retrain, runs, sweep, train
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] in ("trainer", "adapters"):
        raise
    sys.exit(f"python -m trainer: {error.name} is not installed: serving does without; run make setup.")


def main() -> int:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would tell of a kernel that nobody asked for
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # of weights that are new because they are to be learnt
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")  # which no training here uses
    warnings.filterwarnings("ignore", module="peft", message="Unable to fetch remote file|Could not find a config file")
    return cli.run(parser())


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Train an adapter, compare it with the base model, publish it.",
        epilog="example: python -m trainer train trainer/recipes/sentiment.yaml --set training.epochs=2",
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for command in (data, train, sweep, runs, evaluate, publish, compare, retrain, jobs):
        command.add(commands)
    return whole


if __name__ == "__main__":
    sys.exit(main())
