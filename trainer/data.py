"""Rows: freed of duplicates, split by group, fingerprinted."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from adapters.errors import HotswapError
from adapters.tasks.classification import MAX_LABELS
from trainer.duplicates import near_duplicates
from trainer.label_noise import out_of_fold
from trainer.labels import Folding, folding
from trainer.origin import Data, Keep, Origin
from trainer.recipe import Recipe
from trainer.rows import Columns, Row, Table, as_compared, open_table
from trainer.task_recipe import ClassificationRecipe


@dataclass(frozen=True)
class Splits:
    train: list[Row]
    validation: list[Row]
    test: list[Row]
    extra_tests: dict[str, list[Row]]
    mixed: dict[str, Splits] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """``sha256:…`` of every row and the split it is in: equal fingerprints, equal data."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test, **self.extra_tests}
        digest = hashlib.sha256("".join(f"{n} {s.fingerprint}" for n, s in self.mixed.items()).encode())
        for name, rows in parts.items():
            digest.update(json.dumps([name, sorted(_as_fingerprinted(row) for row in rows)]).encode())
        return "sha256:" + digest.hexdigest()

    @property
    def tests(self) -> dict[str, list[Row]]:
        """The held-out rows whose answers are right: what was found bad says nothing about what would have been."""
        parts = {"test": self.test, **self.extra_tests}
        return {name: [row for row in rows if row.good] for name, rows in parts.items()}

    def counts(self) -> dict[str, int]:
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            **{name: len(rows) for name, rows in self.extra_tests.items()},
            **{f"of {name}": len(part.train) for name, part in self.mixed.items()},
        }


def _as_fingerprinted(row: Row) -> list[str]:
    more = [*map(str, row.before), *([row.schema] if row.schema else [])]
    return [row.text, row.answer, *([row.rejected] if row.rejected else []), *([] if row.good else ["bad"]), *more]


def load_splits(recipe: Recipe, cache: Path) -> Splits:
    """Return the recipe's rows, split. Raises :class:`HotswapError` where they cannot make an adapter."""
    data, columns = recipe.data, columns_of(recipe)
    rows = read_rows(data, columns, cache)
    extra = {name: read_rows(origin, columns, cache) for name, origin in data.extra_tests.items()}
    more = {f"train {name}": read_rows(origin, columns, cache) for name, origin in data.extra_train.items()}
    rows, folded = _folded(rows, {**extra, **more}, recipe)
    extra = {name: folded[name] for name in extra}
    if data.near_duplicates == "group":
        rows = _joined(rows, near_duplicates([row.asked for row in rows]))
    labelled = recipe.task.kind == "classification"
    train, validation, test = _split(rows, data, recipe.seed, labelled=labelled)
    if data.keep:
        chosen = kept(train, data.keep, recipe.task.kind, recipe.seed)
        train = _with_each_label(chosen, train) if labelled else chosen
    train = _with_more(train, chain.from_iterable(folded[name] for name in more), (validation, test, *extra.values()))
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        if not part:
            raise HotswapError(
                f"the {name} split is empty: {len(rows)} usable rows in {len({r.group for r in rows})} groups are "
                f"too few; add rows or change data.validation and data.test."
            )
    if isinstance(recipe.task, ClassificationRecipe):
        held_out = {"validation": validation, "test": test, **{f"extra_tests.{n}": part for n, part in extra.items()}}
        _check_labels(recipe.task.labels, train, held_out)
    if not any(row.good for row in test):
        raise HotswapError("the test split has no good answers to compare with; add rows or change data.test.")
    if recipe.objective == "kto" and len({row.good for row in train}) < 2:
        raise HotswapError(f"objective kto needs good answers and bad ones; '{data.good}' says the same of all.")
    mixed = {name: _mixed(recipe, name, cache) for name in recipe.mix}
    splits = Splits(train, validation, test, extra, mixed)
    return _without_held_out(splits) if mixed else splits


def _with_more(train: list[Row], more: Iterable[Row], held_out: Iterable[list[Row]]) -> list[Row]:
    """Return the training rows, with further ones in the place of those with the same text; what is held out stays
    so."""
    known = {as_compared(row.asked) for part in held_out for row in part}
    further = {text: row for row in more if (text := as_compared(row.asked)) not in known}
    return [*(row for row in train if as_compared(row.asked) not in further), *further.values()]


def _mixed(recipe: Recipe, name: str, cache: Path) -> Splits:
    try:
        return load_splits(recipe.part(name), cache)
    except HotswapError as error:
        raise HotswapError(f"mix.{name}: {error}") from error


def _without_held_out(splits: Splits) -> Splits:
    """Take out of each task's training rows what another task holds out: one text may be in several data sets, whose
    shares and groups put it into different splits."""
    parts = {"": splits, **splits.mixed}
    held_out = {
        name: {as_compared(row.asked) for row in chain(part.validation, part.test, *part.extra_tests.values())}
        for name, part in parts.items()
    }

    def kept(name: str, part: Splits) -> Splits:
        known = set().union(*(texts for other, texts in held_out.items() if other != name))
        train = [row for row in part.train if as_compared(row.asked) not in known]
        if not train:
            raise HotswapError(f"mix: {name or 'the own task'} has no training rows that no other task is tested on.")
        return replace(part, train=train)

    return replace(kept("", splits), mixed={name: kept(name, part) for name, part in splits.mixed.items()})


def folding_of(recipe: Recipe, rows: Iterable[Row], tests: Iterable[Row]) -> Folding:
    """Return how the labels are folded that the recipe's own rows have, and those of its further tests."""
    task = recipe.task
    if not isinstance(task, ClassificationRecipe) or not recipe.data.fold_labels:
        return Folding()
    return folding(_answers_of(rows), task.labels, _answers_of(tests))


def _answers_of(rows: Iterable[Row]) -> Iterable[str]:
    """Return all that is said to texts, the worse answers too."""
    return (answer for row in rows for answer in (row.answer, row.rejected) if answer)


def _folded(rows: list[Row], extra: dict[str, list[Row]], recipe: Recipe) -> tuple[list[Row], dict[str, list[Row]]]:
    fold = folding_of(recipe, rows, chain(*extra.values()))
    return fold_rows(rows, fold), {name: fold_rows(part, fold) for name, part in extra.items()}


def fold_rows(rows: list[Row], fold: Folding) -> list[Row]:
    """Return the rows with the labels that theirs stand for. Raises where both answers of a pair are one label."""
    found = []
    for row in rows:
        answer, rejected = fold(row.answer), fold(row.rejected)
        if row.rejected and answer == rejected:
            raise HotswapError(
                f"row {row.number}: '{row.answer}' and '{row.rejected}' are one label; remove the row, or set "
                "data.fold_labels: false."
            )
        same = answer == row.answer and rejected == row.rejected
        found.append(row if same else replace(row, answer=answer, rejected=rejected))
    return found


def labels_of(task: ClassificationRecipe, train: list[Row]) -> tuple[str, ...]:
    """Return the labels named by the recipe, else those of the training rows, sorted."""
    return task.labels or tuple(sorted({row.answer for row in train}))


def read_rows(origin: Origin, columns: Columns, cache: Path) -> list[Row]:
    """Return the usable, distinct rows of one origin, in its order."""
    return _distinct(open_table(origin, columns, cache))


def columns_of(recipe: Recipe) -> Columns:
    """Return what the rows of a recipe must have, and how they are read."""
    return Columns(recipe.task.kind, recipe.objective, mask=recipe.data.mask, normalize=recipe.task.normalize)


def _distinct(table: Table) -> list[Row]:
    rows: dict[str, Row] = {}
    compared = table.rejected or table.good  # then a text has as many rows as answers were judged
    for number, row, problem in table.rows():
        if row is None:
            raise HotswapError(f"row {number}: {problem}")
        said = (row.asked, row.answer, row.rejected) if compared else (row.asked,)
        rows.setdefault("\0".join(map(as_compared, said)), row)
    if not rows:
        raise HotswapError("the data has no rows.")
    found = list(rows.values())
    if not compared:
        return found
    same: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(found):
        same[as_compared(row.asked)].append(position)
    return _joined(found, same.values())


def _joined(rows: list[Row], alike: Iterable[Sequence[int]]) -> list[Row]:
    """Make one group of all groups that have rows which are alike, given by their positions."""
    into = {row.group: row.group for row in rows}

    def root(group: str) -> str:
        while into[group] != group:
            group = into[group]
        return group

    for first, *others in alike:
        for other in others:
            into[root(rows[other].group)] = root(rows[first].group)
    return [replace(row, group=root(row.group)) for row in rows]


def split_of(group: str, data: Data, seed: int) -> Literal["train", "validation", "test"]:
    """Return where a group's hash falls, so that a row added later moves no other."""
    point = _point(group, seed)
    return "test" if point < data.test else "validation" if point < data.test + data.validation else "train"


def _point(group: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") / 2**64


def _stratified(rows: list[Row], data: Data, seed: int) -> dict[str, str]:
    """Return each group's split, so that of the groups of every answer the same shares are in each."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        answers[row.group][row.answer] += 1
    strata: dict[str, list[str]] = defaultdict(list)
    for group in sorted(answers, key=lambda group: _point(group, seed)):
        strata[answers[group].most_common(1)[0][0]].append(group)
    where = {}
    for groups in strata.values():
        tested = round(len(groups) * data.test)
        validated = tested + round(len(groups) * data.validation)
        for rank, group in enumerate(groups):
            where[group] = "test" if rank < tested else "validation" if rank < validated else "train"
    return where


def placed(rows: list[Row], data: Data, seed: int, *, labelled: bool = False) -> dict[str, str]:
    """Return the split that each group of the rows is in; where they are ``labelled``, some of every label that more
    than one group has is trained on."""
    if data.stratified:
        where = _stratified(rows, data, seed)
    else:
        where = {row.group: str(split_of(row.group, data, seed)) for row in rows}
    return _rare_ones_trained(rows, where, seed) if labelled else where


def _rare_ones_trained(rows: list[Row], where: dict[str, str], seed: int) -> dict[str, str]:
    """Of a label that training would not see, move the group whose hash lies next to the training rows': only a new
    row of the same label can ever move it back."""
    groups: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        groups[row.answer].add(row.group)
    size = Counter(where.values())
    for _, found in sorted(groups.items()):
        if len(found) < 2 or any(where[group] == "train" for group in found):
            continue
        movable = [group for group in found if size[where[group]] > 1]
        if movable:
            group = max(movable, key=lambda group: _point(group, seed))
            size[where[group]] -= 1
            where[group] = "train"
    return where


def _split(rows: list[Row], data: Data, seed: int, *, labelled: bool = False) -> tuple[list[Row], list[Row], list[Row]]:
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    where = placed(rows, data, seed, labelled=labelled)
    for row in rows:
        parts[where[row.group]].append(row)
    limits = {"train": data.train_rows, "validation": data.validation_rows, "test": data.test_rows}
    for name, part in parts.items():
        random.Random(seed).shuffle(part)  # noqa: S311  # reproducible, not secret
        whole = list(part) if name == "train" and labelled else []
        del part[limits[name] or len(part) :]
        part[:] = _with_each_label(part, whole) if whole else part
    return parts["train"], parts["validation"], parts["test"]


def _with_each_label(chosen: list[Row], whole: list[Row]) -> list[Row]:
    """Return the chosen rows, with one of each label that was not chosen in the place of the last of a frequent one."""
    counts = Counter(row.answer for row in chosen)
    first: dict[str, Row] = {}
    for row in whole:
        first.setdefault(row.answer, row)
    found = list(chosen)
    places = iter(range(len(found) - 1, -1, -1))
    for row in (row for label, row in first.items() if label not in counts):
        place = next((place for place in places if counts[found[place].answer] > 1), None)
        if place is None:
            break
        counts[found[place].answer] -= 1
        found[place] = row
    return found


def kept(rows: list[Row], keep: Keep, kind: str, seed: int) -> list[Row]:
    """Return the share of the training rows that is to be kept, in their order.

    ``hard`` keeps those whose label is least expected by a word model that did not see them, ``easy`` the opposite,
    ``middle`` what is between the two (as in Marion et al. 2023, arXiv:2309.04564). Raises :class:`HotswapError`
    where there is nothing to choose by.
    """
    count = max(1, round(len(rows) * keep.share))
    if keep.by == "random":
        return rows[:count]  # they are shuffled
    scores = None
    if kind == "classification":
        scores = out_of_fold([row.text for row in rows], [row.answer for row in rows], seed)
    if scores is None:
        raise HotswapError(f"data.keep.by: {keep.by} needs labels, at least 100 rows and 5 of each; use random.")
    names = sorted({row.answer for row in rows})
    ranked = sorted(range(len(rows)), key=lambda i: scores[i][names.index(rows[i].answer)])
    first = {"hard": 0, "easy": len(rows) - count, "middle": (len(rows) - count) // 2}[keep.by]
    chosen = set(ranked[first : first + count])
    return [row for position, row in enumerate(rows) if position in chosen]


def _check_labels(named: tuple[str, ...] | None, train: list[Row], held_out: dict[str, list[Row]]) -> None:
    seen = {row.answer for row in train}
    known = set(named) if named else seen
    if len(seen) < 2:
        raise HotswapError(f"the training rows have one label only ({', '.join(seen)}); a classifier needs two.")
    if len(known) > MAX_LABELS:
        raise HotswapError(
            f"the data has {len(known)} different labels and {MAX_LABELS} can be served; is 'answer' the right column?"
        )
    for part, rows in {"train": train, **held_out}.items():
        for row in rows:
            for label in filter(None, (row.answer, row.rejected)):
                if label not in known:
                    own = named is None and label == row.answer and part in ("validation", "test")
                    where = _where_it_is(label, held_out) if own else ""
                    raise HotswapError(
                        f"label '{label}' is not among {sorted(known)}; list it in task.labels or mend it{where}."
                    )


def _where_it_is(label: str, held_out: dict[str, list[Row]]) -> str:
    found = {part: [row.number for row in rows if row.answer == label] for part, rows in held_out.items()}
    rows = sum(map(len, found.values()))
    places = "; ".join(f"{part}: {', '.join(map(str, n[:5]))}" for part, n in found.items() if n)
    return (
        f": it has {rows} {'row' if rows == 1 else 'rows'} of one group ({places}), held out for testing, so that none "
        "is trained on: find more of its rows, merge it with another label, or remove it"
    )
