"""``python -m adapters``: the store on the command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from adapters import cli, garbage, verification
from adapters.base_model import Base, resolve_base
from adapters.catalogue import Entry
from adapters.errors import HotswapError, InvalidAdapter, NotInStore, printable
from adapters.intake import add_version
from adapters.kinship import check_family
from adapters.lint import doubts, lint
from adapters.mirror import mirror
from adapters.modules import base_shapes
from adapters.packages import cache_folder
from adapters.reference import Reference, is_name
from adapters.releases import Guard, NewRelease, Release, Share
from adapters.seed import open_store
from adapters.server import ask_server
from adapters.signing import TrustedKeys
from adapters.store import Store
from adapters.task_options import add_task_options, task_of
from adapters.tasks.classification import order_decides
from adapters.validation import explained


def main() -> int:
    return cli.run(_parser())


def add(options: argparse.Namespace) -> None:
    if not is_name(options.name):
        raise HotswapError(f"'{options.name}' is not a name: use a-z, 0-9, '.', '_' and '-', at most 64 of them.")
    if not options.dir.is_dir():
        raise HotswapError(f"{options.dir} is not a folder.")
    signer = cli.signer_of(options)
    lint(options.dir)  # before a base model is fetched for it
    base = resolve_base(options.base)
    task = task_of(options, base)
    store, about = _store(options), options.description
    manifest = add_version(store, options.name, options.dir, task, base, signer=signer, description=about)
    _warn(options.dir, base)
    if options.json:
        print(json.dumps({"name": manifest.name, "version": manifest.version}))
    else:
        print(manifest.version)
    if task.answers and options.labels and order_decides(task.answers, base.tokenizer, task.template):
        print("These labels begin alike: --labels must have the order in which they were trained", file=sys.stderr)
    if options.task and not options.template and not options.chat and task.template.version == 1:
        prompt = task.template.text.replace("\n", "\\n")
        print(f"No --template: taken to be trained with the prompt '{prompt}'", file=sys.stderr)
    print(f"Not served yet: python -m adapters release {manifest.name} {manifest.version}", file=sys.stderr)


def list_(options: argparse.Namespace) -> None:
    store, rows = _store(options), []
    for entry in store.catalogue():
        release, newest = entry.release, None
        try:
            newest, _ = store.manifest(entry.name, entry.versions[-1]) if entry.versions else (None, "")
        except InvalidAdapter as error:  # the rest is shown all the same
            print(error, file=sys.stderr)
        if entry.fault:
            print(entry.fault, file=sys.stderr)
        rows.append(
            {
                "name": entry.name,
                "task": newest.task.kind if newest else None,
                "stable": release.stable if release else None,
                "canary": f"{release.canary.version} ({release.canary.percent} %)"
                if release and release.canary
                else None,
                "versions": list(entry.versions),
                "base": newest.base.name if newest else None,
                "description": newest.description if newest else None,
            }
        )
    cli.show(rows, as_json=options.json, columns=("name", "task", "stable", "canary", "versions", "base"))


def show(options: argparse.Namespace) -> None:
    store, reference = _store(options), Reference.parse(options.name)
    entry = store.adapter(reference.name)
    if not entry.versions:
        raise NotInStore(f"'{entry.name}' is not in the store {store.place}; python -m adapters list shows what is.")
    manifest, digest = store.manifest(entry.name, _version(reference, entry))
    release = entry.release.model_dump(mode="json") if entry.release else None
    about = {"digest": digest, "released": release, "versions": list(entry.versions)}
    print(json.dumps({**manifest.model_dump(mode="json"), **about}, indent=1, ensure_ascii=False))


def _version(reference: Reference, entry: Entry) -> int:
    """Return the version that is meant; by the bare name the stable one or, before any release, the newest."""
    if reference.version is not None:
        return reference.version
    release = entry.release
    if reference.channel == "canary":
        if release is None or release.canary is None:
            raise NotInStore(f"{entry.name} has no canary now.")
        return release.canary.version
    return release.stable if release else entry.versions[-1]


def lint_(options: argparse.Namespace) -> None:
    if not options.dir.is_dir():
        raise HotswapError(f"{options.dir} is not a folder.")
    max_rank = options.max_rank
    base = None if options.no_base else resolve_base(options.base)
    if options.server:
        server = ask_server(options.server)
        max_rank = min(max_rank or server.max_lora_rank, server.max_lora_rank)
        if base is not None and base.digest != server.base_digest:
            raise HotswapError(
                f"{options.server} serves {server.base}, which is not the base at hand ({base.name}); name it: --base"
            )
    facts = lint(options.dir, shapes=base_shapes(base.folder) if base else None, max_rank=max_rank)
    if base is not None:
        check_family(options.dir, base.folder)
    _warn(options.dir, base)
    if options.json:
        print(json.dumps(asdict(facts)))
        return
    if facts.virtual_tokens:
        print(f"ok: soft prompt of {facts.virtual_tokens} vectors")
        return
    print(f"ok: LoRA of rank {facts.rank}, alpha {facts.alpha:g}, on {', '.join(facts.target_modules)}")


def _warn(folder: Path, base: Base | None) -> None:
    for doubt in doubts(folder, base.name if base else None):
        print(f"warning: {printable(doubt)}", file=sys.stderr)


def release(options: argparse.Namespace) -> None:
    store = _store(options)
    stable, canary, expected = options.version, None, None
    if options.channel == "canary":
        current = store.released(options.name)
        if current is None:
            raise HotswapError(f"{options.name} has no stable version yet; release one without --channel first.")
        if options.percent is None or not 1 <= options.percent <= 100:
            raise HotswapError("--channel canary needs --percent from 1 to 100: the share of callers that get it.")
        store.manifest(options.name, options.version)  # an unknown version is said here, by its name
        canary = _share("--channel canary", options.version, options.percent)
        stable, expected = current.stable, current.generation
    elif options.percent is not None:
        raise HotswapError("--percent is for --channel canary; without it every caller gets the version.")
    if options.expected_generation is not None:
        expected = options.expected_generation
    shadow = _share("--shadow", *options.shadow) if options.shadow else None
    _release(options, store, expected, stable=stable, canary=canary, shadow=shadow, why=options.why)


def promote(options: argparse.Namespace) -> int:
    store = _store(options)
    current = store.released(options.name)
    if current is None:
        raise HotswapError(
            f"{options.name} has no stable version yet: python -m adapters release {options.name} VERSION"
        )
    if options.version is None and current.canary is None:
        raise HotswapError(f"{options.name} has no canary to promote; name a version.")
    canary = current.canary.version if current.canary else 0
    version = canary if options.version is None else options.version
    if not options.guard:
        _release(options, store, current.generation, stable=version, why=options.why)
        return 0
    if version == current.stable:
        raise HotswapError(f"{options.name}@{version} is the stable version already.")
    guard = _guard(options)
    record = _release(
        options,
        store,
        current.generation,
        stable=current.stable,
        canary=_share("canary", version, guard.steps[0]),
        shadow=_share("--shadow", version, options.shadow) if options.shadow else None,
        guard=guard,
        why=options.why or "guarded promotion",
    )
    return _follow(options, store, record) if options.follow else 0


def _guard(options: argparse.Namespace) -> Guard:
    given = {name: getattr(options, name) for name in Guard.model_fields if getattr(options, name) is not None}
    if options.steps is not None:
        given["steps"] = [_number(step.strip()) for step in options.steps.split(",")]
    with explained(Guard, "nothing is released"):
        return Guard.model_validate(given)


def _follow(options: argparse.Namespace, store: Store, record: Release) -> int:
    """Print what the servers' guards decide, until it is over; 0 where the version became stable."""
    started = record
    while record.guard is not None:
        time.sleep(1)
        newest = store.released(options.name)
        if newest is not None and newest.generation > record.generation:
            record = newest
            _released(options, record)
    return 0 if started.canary and record.stable == started.canary.version else 1


def _release(options: argparse.Namespace, store: Store, expected: int | None, **what: Any) -> Release:
    """Release versions that are whole and sound, and print the record."""
    store.manifest(options.name, what["stable"])  # an unknown version is named
    with explained(NewRelease, "nothing is released"):
        new = NewRelease(**what)
    for version in new.versions:
        verification.verify(store, options.name, version, cache_folder())
    record = store.release(options.name, new, expected_generation=expected)
    _released(options, record)
    return record


def _share(what: str, version: str | int, percent: str | int) -> Share:
    with explained(Share, what):
        return Share.model_validate({"version": _number(version), "percent": _number(percent)})


def _number(text: str | int) -> object:
    return int(text) if str(text).isdecimal() else text


def retire(options: argparse.Namespace) -> None:
    _store(options).retire(options.name, options.version, why=options.why)
    if options.json:
        print(json.dumps({"name": options.name, "version": options.version, "state": "retired"}))
        return
    print(f"{options.name}@{options.version} is served to nobody any more")


def rollback(options: argparse.Namespace) -> None:
    record = _store(options).rollback(options.name, expected_generation=options.expected_generation, why=options.why)
    _released(options, record)


def _released(options: argparse.Namespace, record: Release) -> None:
    if options.json:
        about = {"name": options.name, "generation": record.generation}
        print(json.dumps({**about, **record.model_dump(mode="json")}), flush=True)
        return
    shares = {"canary": record.canary, "shadow": record.shadow}
    beside = "".join(f", {what} {share.version} for {share.percent} %" for what, share in shares.items() if share)
    why = f" ({record.why})" if record.step else ""
    print(f"{options.name}: generation {record.generation}, stable {record.stable}{beside}{why}", flush=True)


def history(options: argparse.Namespace) -> None:
    records = _store(options).history(options.name)
    if not records:
        raise NotInStore(f"'{options.name}' has no releases.")
    missing = set(range(1, records[-1].generation)) - {record.generation for record in records}
    if missing:
        print(f"not shown, as damaged: generation {', '.join(map(str, sorted(missing)))}", file=sys.stderr)
    rows = [{"generation": r.generation, **r.model_dump(mode="json")} for r in records]
    if not options.json:
        for row in rows:
            row["canary"] = f"{row['canary']['version']} ({row['canary']['percent']} %)" if row["canary"] else None
    cli.show(rows, as_json=options.json, columns=("generation", "stable", "canary", "at", "by", "why"))


def verify(options: argparse.Namespace) -> int:
    trusted = TrustedKeys(options.trusted_keys) if options.trusted_keys else None
    faults = _store(options, trusted).problems()
    problems = [{"name": n, "version": v, "problem": p} for n, v, p in faults]
    if options.json or problems:
        cli.show(problems, as_json=options.json, columns=("name", "version", "problem"))
    else:
        signed = ", and a trusted key signed it" if trusted else ""
        print(f"ok: every file of every version has the hash that its manifest says{signed}")
    return 1 if problems else 0


def gc(options: argparse.Namespace) -> None:
    store, rows, freed = _store(options), [], 0
    for found in garbage.find(store, timedelta(days=options.older_than)):
        if not options.dry_run:
            garbage.collect(store, found)
        rows.append({"name": found.name, "version": found.version, "why": found.why, "bytes": found.size})
        freed += found.size
    if rows or options.json:
        cli.show(rows, as_json=options.json, columns=("name", "version", "why", "bytes"))
    if not options.json:
        did = "would be freed" if options.dry_run else "freed"
        print(f"{freed / 1e6:.1f} MB {did}; everything that can still be named stays")


def mirror_(options: argparse.Namespace) -> int:
    trusted = TrustedKeys(options.trusted_keys) if options.trusted_keys else None
    copied = mirror(_store(options, trusted), Store(options.target))
    for problem in copied.problems:
        print(f"not copied: {problem}", file=sys.stderr)
    if options.json:
        print(json.dumps(asdict(copied)))
    else:
        print(f"{copied.versions} versions, {copied.releases} releases, {copied.retirements} retirements copied")
    return 1 if copied.problems else 0


def _days(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 36500:
            return float(text)
    raise argparse.ArgumentTypeError(f"'{text}' is no number of days")


def _store(options: argparse.Namespace, trusted: TrustedKeys | None = None) -> Store:
    place = options.store or os.environ.get("HOTSWAP_STORE")
    # Only `add` makes a store: elsewhere a folder that is not there is a typing mistake.
    if place and "://" not in place and options.command is not add and not Path(place).expanduser().is_dir():
        raise HotswapError(f"there is no store at {place}.")
    return open_store(place, trusted=trusted)


def _generation(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no generation: history shows them, from 1 on")
    return int(text)


def _margin(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)


def _add_expected_generation(parser: argparse.ArgumentParser) -> None:
    text = "refuse if someone released in the meantime"
    parser.add_argument("--expected-generation", type=_generation, metavar="N", help=text)


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--store", metavar="URL", help="a folder, s3://… or gs://… (default: HOTSWAP_STORE, var/store)")
    shared.add_argument("--json", action="store_true", help="print JSON")
    based = argparse.ArgumentParser(add_help=False)
    based.add_argument("--base", default=os.environ.get("HOTSWAP_BASE_MODEL"), help="folder or Hugging Face id")
    parser = argparse.ArgumentParser(
        prog="python -m adapters",
        description="Versions and releases of adapters.",
        epilog="example: python -m adapters release sentiment 2 --channel canary --percent 10",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: cli.Command, text: str, example: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        subparser = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example: python -m adapters {example}",
            parents=[shared, *parents],
        )
        subparser.set_defaults(command=run)
        return subparser

    text = "take a PEFT adapter folder into the store as the next version"
    sub = command("add", add, text, "add ./my-lora support-topics --task classification --labels billing,bug", based)
    sub.add_argument("dir", type=Path, metavar="DIR")
    sub.add_argument("name", metavar="NAME")
    add_task_options(sub)
    sub.add_argument("--description", default="")
    cli.add_sign_option(sub)
    command("list", list_, "adapters, their versions and what is released", "list --json")
    sub = command("show", show, "a version's manifest (the stable one, or NAME@VERSION)", "show sentiment@1")
    sub.add_argument("name", metavar="NAME")
    sub = command(
        "lint", lint_, "check a PEFT adapter folder without storing it", "lint ./my-lora --max-rank 16", based
    )
    sub.add_argument("dir", type=Path, metavar="DIR")
    sub.add_argument("--max-rank", type=int, help="the server's HOTSWAP_MAX_LORA_RANK")
    sub.add_argument("--server", metavar="URL", help="check against a running service's base and limits")
    sub.add_argument("--no-base", action="store_true", help="do not compare shapes with the base model")
    sub = command("release", release, "serve a version to all, or to a share", "release sentiment 2")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("version", type=int, metavar="VERSION")
    sub.add_argument("--channel", choices=("stable", "canary"), default="stable")
    sub.add_argument("--percent", type=int, help="share of callers that get the canary")
    _add_expected_generation(sub)
    sub.add_argument("--shadow", nargs=2, metavar=("VERSION", "PERCENT"), help="copy a share of the texts to a version")
    sub.add_argument("--why", default="")
    sub = command("rollback", rollback, "release again what was served before", "rollback sentiment --why 'worse'")
    sub.add_argument("name", metavar="NAME")
    _add_expected_generation(sub)
    sub.add_argument("--why", default="")
    sub = command("history", history, "every release, oldest first", "history sentiment")
    sub.add_argument("name", metavar="NAME")
    text = "make a version stable: at once, or step by step while the servers compare it with the stable one"
    sub = command("promote", promote, text, "promote sentiment 2 --guard --follow")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("version", type=int, metavar="VERSION", nargs="?", help="default: the canary of now")
    sub.add_argument("--guard", action="store_true", help="raise it in steps; take it back if it is worse")
    sub.add_argument("--steps", metavar="5,25,50", help="percentages; after the last one everyone gets it")
    sub.add_argument(
        "--shadow", type=int, metavar="PERCENT", help="also copy a share of the stable version's texts to it"
    )
    for margin, field in Guard.model_fields.items():
        if margin != "steps":
            text = f"{field.description} ({'not looked at' if field.default is None else field.default})"
            sub.add_argument(f"--{margin.replace('_', '-')}", type=_margin, metavar="N", help=text)
    sub.add_argument("--follow", action="store_true", help="wait for the end: 0 if it became stable, 1 if not")
    sub.add_argument("--why", default="")
    sub = command(
        "retire", retire, "serve a version to nobody any more, for ever", "retire sentiment 1 --why 'wrong data'"
    )
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("version", type=int, metavar="VERSION")
    sub.add_argument("--why", default="")
    text = "free the space of what can never be named again: versions retired, or never finished, some time ago"
    sub = command("gc", gc, text, "gc --dry-run")
    sub.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    text = "longer ago than this (7); a replica that is behind must have caught up by then"
    sub.add_argument("--older-than", type=_days, default=7.0, metavar="DAYS", help=text)
    text = "copy what another place lacks: a backup, or the way back from one"
    sub = command("mirror", mirror_, text, "mirror s3://backup/adapters")
    sub.add_argument("target", metavar="URL", help="a folder, s3://… or gs://…; empty, or an earlier copy")
    sub.add_argument("--trusted-keys", type=Path, metavar="FILE", help="pass over versions that none of them signed")
    sub = command("verify", verify, "hash every file of every version again", "verify --trusted-keys team.pub")
    sub.add_argument("--trusted-keys", type=Path, metavar="FILE", help="say also which versions none of them signed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
