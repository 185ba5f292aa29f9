"""Two adapters judged by people who do not know which is which."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scipy.stats import binomtest

from adapters.errors import HotswapError
from trainer.page import template
from trainer.rows import Row

PAGE, KEY = "compare.html", "compare.key.json"
CHOICES = ("left", "right", "tie")


@dataclass(frozen=True)
class Item:
    """One text with two answers; ``left`` says whose stands on the left."""

    id: str
    text: str
    a: str
    b: str
    left: str

    @property
    def shown(self) -> dict[str, str]:
        """What the page may know."""
        left, right = (self.a, self.b) if self.left == "a" else (self.b, self.a)
        return {"id": self.id, "text": self.text, "left": left, "right": right}


@dataclass(frozen=True)
class Key:
    """Which versions a page compares, its digest, and which of its answers is whose."""

    a: str
    b: str
    page: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Verdict:
    """Votes of all voters together. ``rate`` is the share of a's wins, a tie being half a one; ``low`` and ``high`` are
    the 95 % interval of its wins where somebody won (Wilson 1927), ``p_value`` that of the sign test."""

    a: int
    b: int
    ties: int
    voters: int
    rate: float
    low: float
    high: float
    p_value: float
    agreement: float | None


def items(rows: Sequence[Row], ones: Sequence[str], others: Sequence[str], seed: int = 0) -> list[Item]:
    """Return what there is to judge, sides by chance; where both say the same there is nothing."""
    chance = random.Random(seed)  # noqa: S311  # reproducible, not secret
    return [
        Item(hashlib.sha256(f"{n}{row.text}".encode()).hexdigest()[:12], row.text, a, b, chance.choice("ab"))
        for n, (row, a, b) in enumerate(zip(rows, ones, others, strict=True))
        if a != b
    ]


def write(folder: Path, a: str, b: str, found: Sequence[Item], asked: int) -> Path:
    """Write the page to be judged on, and beside it the key that says which answer is whose; return the page.

    Raises :class:`HotswapError` where the key of another page is: votes that are still out would be lost with it.
    """
    digest = _digest(found)
    page = template("compare.html.j2").render(digest=digest, items=[item.shown for item in found])
    content = {"a": a, "b": b, "page": digest, "asked": asked, "items": [asdict(item) for item in found]}
    key = json.dumps(content, indent=1, ensure_ascii=False).encode()
    if (folder / KEY).exists() and (folder / KEY).read_bytes() != key:
        raise HotswapError(f"{folder / KEY} is of another page; give --folder, or delete it.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEY).write_bytes(key)
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def _digest(found: Sequence[Item]) -> str:
    return hashlib.sha256(json.dumps([asdict(item) for item in found]).encode()).hexdigest()[:16]


def read_key(folder: Path) -> Key:
    """Return the key of a page that was written. Raises :class:`HotswapError` where there is none."""
    try:
        key = json.loads((folder / KEY).read_bytes())
        return Key(key["a"], key["b"], key["page"], tuple(Item(**item) for item in key["items"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise HotswapError(f"{folder / KEY} is missing or damaged; write the page first, without --votes.") from None


def read_votes(paths: Sequence[Path], key: Key) -> list[dict[str, str]]:
    """Return each voter's votes, item → left, right or tie.

    Raises :class:`HotswapError` for what is not of this page, or of a voter who has been read already.
    """
    known = {item.id for item in key.items}
    voters: list[str | dict[str, str]] = []
    ballots: list[dict[str, str]] = []
    for path in paths:
        voter, page, votes = _ballot(path)
        if page != key.page:
            raise HotswapError(f"{path} is of another page; the votes for this one name page {key.page}.")
        for item, choice in votes.items():
            if item not in known:
                raise HotswapError(f"{path}: {item!r:.40} is no item of the page; save its votes again.")
            if choice not in CHOICES:
                raise HotswapError(f"{path}: {choice!r:.40} is no vote; each is left, right or tie.")
        if voter in voters:
            raise HotswapError(f"{path} holds the votes of a file before it; give each voter's once.")
        voters.append(voter)
        ballots.append(votes)
    if not any(ballots):
        raise HotswapError("nobody voted yet.")
    return ballots


def _ballot(path: Path) -> tuple[str | dict[str, str], str, dict[str, str]]:
    """Return who voted, on which page, and how. Pages of before named no voter: then the votes stand for theirs."""
    try:
        ballot = json.loads(path.read_bytes())
        page, votes = ballot["page"], ballot["votes"]
        voter = ballot.get("voter", votes)
    except OSError as error:
        raise HotswapError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        page = votes = voter = None
    if not isinstance(votes, dict) or not isinstance(voter, str | dict):
        raise HotswapError(f"{path} holds no votes; the page's button saves such files.")
    return voter, page, votes


def verdict(key: Key, ballots: Sequence[dict[str, str]]) -> Verdict:
    """Count the votes."""
    sides = {item.id: item.left for item in key.items}
    votes = [_winner(sides[item], choice) for ballot in ballots for item, choice in ballot.items()]
    counts = Counter(votes)
    a, b, ties = counts["a"], counts["b"], counts["tie"]
    test = binomtest(a, a + b) if a + b else None
    low, high = test.proportion_ci(method="wilson") if test else (0.0, 1.0)
    return Verdict(
        a=a,
        b=b,
        ties=ties,
        voters=len(ballots),
        rate=(a + ties / 2) / len(votes),
        low=float(low),
        high=float(high),
        p_value=float(test.pvalue) if test else 1.0,
        agreement=_agreement(ballots),
    )


def _winner(left: str, choice: str) -> str:
    other = {"a": "b", "b": "a"}[left]
    return {"left": left, "right": other, "tie": "tie"}[choice]


def _agreement(ballots: Sequence[dict[str, str]]) -> float | None:
    """Return how often two voters said the same of an item that both saw."""
    same = [
        one[item] == other[item]
        for n, one in enumerate(ballots)
        for other in ballots[n + 1 :]
        for item in one.keys() & other.keys()
    ]
    return sum(same) / len(same) if same else None


def pairs(key: Key, ballots: Sequence[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Yield a row for objective ``dpo`` or ``reward`` for each item that one side won."""
    for item in key.items:
        counts = Counter(_winner(item.left, ballot[item.id]) for ballot in ballots if item.id in ballot)
        if counts["a"] != counts["b"]:
            chosen, rejected = (item.a, item.b) if counts["a"] > counts["b"] else (item.b, item.a)
            yield {"text": item.text, "chosen": chosen, "rejected": rejected}
