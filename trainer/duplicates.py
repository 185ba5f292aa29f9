"""Texts that are nearly the same: counted twice in training, and known beforehand where one of them is tested on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasketch import MinHash, MinHashLSH
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SHINGLE_WORDS, PERMUTATIONS = 3, 128


def near_duplicates(texts: Sequence[str], similarity: float = 0.8) -> list[list[int]]:
    """Return groups of two and more texts, by their positions, that are chained together by near-equal pairs.

    A pair is near-equal where the Jaccard similarity of its sets of three words in a row is at least ``similarity``.
    Candidates are found by MinHash and locality-sensitive hashing (Broder 1997; Leskovec et al., *Mining of Massive
    Datasets*, ch. 3), and then compared exactly: nothing is grouped by chance.
    """
    shingles = [_shingles(text) for text in texts]
    index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
    pairs: list[tuple[int, int]] = []
    for position, own in enumerate(shingles):
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch([shingle.encode() for shingle in own])
        pairs += [(other, position) for other in index.query(sketch) if _jaccard(shingles[other], own) >= similarity]
        index.insert(position, sketch)
    if not pairs:
        return []
    rows, columns = np.array(pairs).T
    links = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(texts), len(texts)))
    _, component = connected_components(links, directed=False)
    members: dict[int, list[int]] = {}
    for position in sorted(set(rows.tolist()) | set(columns.tolist())):
        members.setdefault(int(component[position]), []).append(position)
    return list(members.values())


def _shingles(text: str) -> frozenset[str]:
    words = text.lower().split()
    return frozenset(
        " ".join(words[start : start + SHINGLE_WORDS]) for start in range(max(1, len(words) - SHINGLE_WORDS + 1))
    )


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
