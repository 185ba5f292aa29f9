"""Labels that look alike: made one where a reader sees one, named where they may be."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

# What takes no room on a page, or only says how what is before it is drawn.
UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff\ufe00-\ufe0f\u202a-\u202e]")
SAME_SIGNS = str.maketrans("\u2018\u2019\u201c\u201d\u2010\u2011", "''\"\"--")
DRAWN_ALIKE = (
    "<noBreak>",
    "<wide>",
    "<narrow>",
    "<compat>",
    "<font>",
    "<initial>",
    "<medial>",
    "<final>",
    "<isolated>",
)
WHOLE = re.compile(r"([+-]?\d+)\.0+")
# Letters of Cyrillic and Greek that are drawn as Latin ones.
FOREIGN = str.maketrans("аеорсухіјѕԁһԛԝκονρυχϲ", "aeopcyxijsdhqwkovpuxc")
MOST_COMPARED = 1000  # labels; more are no classes
LEAST_LENGTH, TIMES_RARER = 5, 5  # of what may be a slip of the pen


def seen(label: str) -> str:
    """Return what a reader sees of a label: one form of each letter, single blanks, nothing invisible."""
    composed = "".join(_drawn(c) for c in unicodedata.normalize("NFC", UNSEEN.sub("", label)))
    return " ".join(unicodedata.normalize("NFC", composed).translate(SAME_SIGNS).split())


def _drawn(character: str) -> str:
    how = unicodedata.decomposition(character)
    return unicodedata.normalize("NFKC", character) if how.startswith(DRAWN_ALIKE) else character


def alike(label: str) -> str:
    """Return what labels share that are the same but for case, and for the decimals of a whole number."""
    folded = seen(label).casefold()
    return whole[1] if (whole := WHOLE.fullmatch(folded)) else folded


@dataclass(frozen=True)
class Folding:
    """Which label each spelling stands for; spellings that are not there stand for themselves."""

    into: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, label: str) -> str:
        return self.into.get(label, label)

    def notes(self) -> Iterator[str]:
        """Say which spellings a reader cannot tell apart were made one."""
        for label, spellings in sorted(self._merged().items()):
            same = [spelling for spelling in spellings if seen(spelling) == seen(label) and spelling != label]
            if same:
                rows = sum(self.counts[spelling] for spelling in same)
                yield f"'{label}': {rows} rows have it with other blanks or in another Unicode form; it is one label"

    def warnings(self) -> Iterator[str]:
        """Say which labels were made one that differ in case, or as 1 and 1.0."""
        for label, spellings in sorted(self._merged().items()):
            shown: Counter[str] = Counter()
            for spelling in spellings:
                shown[seen(spelling)] += self.counts[spelling]
            if len(shown) > 1 or seen(label) not in shown:
                named = ", ".join(f"'{spelling}' {count}" for spelling, count in shown.most_common())
                yield f"{named} are taken for one label, '{label}'; data.fold_labels: false keeps them apart"

    def _merged(self) -> dict[str, list[str]]:
        merged: dict[str, list[str]] = defaultdict(list)
        for spelling in self.counts:
            merged[self(spelling)].append(spelling)
        return merged


def folding(answers: Iterable[str], listed: tuple[str, ...] | None = None, tested: Iterable[str] = ()) -> Folding:
    """Return how the labels of all rows are folded: into those that the recipe lists, else into the spelling that most
    rows have (of two as frequent, that with fewer capitals).

    Listed labels are kept apart however alike they look. Rows that are only ``tested`` on have no say in how a label
    is spelled that others have.
    """
    own = Counter(answers)
    counts = own + Counter(tested)
    if listed:
        return Folding({spelling: _listed(spelling, listed) for spelling in counts}, counts)
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for spelling in counts:
        groups[alike(spelling)][seen(spelling)] += own[spelling]
    chosen = {key: min(found, key=lambda s: (-found[s], sum(map(str.isupper, s)), s)) for key, found in groups.items()}
    into = {s: chosen[alike(s)] for s in counts if alike(s)}
    # A label that all rows spell in one way stays as it is, whatever its letters are made of.
    alone = {label for label, n in Counter(into.values()).items() if n == 1}
    return Folding({s: label for s, label in into.items() if label not in alone}, counts)


def _listed(spelling: str, listed: tuple[str, ...]) -> str:
    if spelling in listed:
        return spelling
    for form in (seen, alike):
        if len(same := [label for label in listed if form(label) == form(spelling)]) == 1:
            return same[0]
    return spelling


def doubtful(counts: Mapping[str, int]) -> Iterator[str]:
    """Say which labels may be one: but for punctuation, hyphens, accents, a plural's s, letters of another script, or
    a letter in a label that is rare beside another."""
    if len(counts) > MOST_COMPARED:
        return
    for one, other in combinations(sorted(counts, key=lambda label: (-counts[label], label)), 2):
        if alike(one) == alike(other):
            continue  # kept apart on purpose
        rare = counts[one] >= TIMES_RARER * counts[other]
        if _loosely(one) == _loosely(other) or (rare and _one_letter_apart(alike(one), alike(other))):
            yield f"'{one}' ({counts[one]} rows) and '{other}' ({counts[other]}) may be one; if so, spell it alike"


def _loosely(label: str) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFD", alike(label)) if not unicodedata.combining(c))
    words = re.sub(r"[-_/\u2013\u2014\s]+", " ", plain.translate(FOREIGN)).strip(string.punctuation + " …。！？")
    return re.sub(r"(?<=[a-z]{3})s$", "", words.replace(" ", "")) or label


def _one_letter_apart(one: str, other: str) -> bool:
    """Whether one letter more, less or other (or two in turn) makes one of the other; figures tell labels apart."""
    if min(len(one), len(other)) < LEAST_LENGTH or abs(len(one) - len(other)) > 1:
        return False
    if re.findall(r"\d+", one) != re.findall(r"\d+", other):
        return False
    start = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    a, b = one[start:], other[start:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
