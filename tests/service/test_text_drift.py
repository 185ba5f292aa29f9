"""Text drift: silent on texts of one kind, and able to say which texts and words are new."""

from __future__ import annotations

import random

import pytest

from service.monitoring.text_drift import difference

FILMS = ("film", "plot", "acting", "scene", "director", "moving", "dull", "long", "music", "story")
GADGETS = ("battery", "screen", "charger", "shipping", "price", "phone", "broken", "cheap", "case", "story")


def texts(words: tuple[str, ...], count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [f"{' '.join(chance.choices(words, k=8))} only{seed}n{n}" for n in range(count)]


def test_texts_of_one_kind_are_told_apart_as_often_as_chance_would() -> None:
    found = [difference(texts(FILMS, 60, 2 * n), texts(FILMS, 60, 2 * n + 1)).p_value for n in range(20)]
    assert sum(p <= 0.05 for p in found) <= 4


def test_texts_of_another_kind_are_told_by_their_words() -> None:
    found = difference(texts(FILMS, 80, 1), [*texts(FILMS, 40, 2), *texts(GADGETS, 40, 3)])
    assert found.p_value == 0.001
    assert found.auc > 0.6
    assert {word for word, _ in found.words[:5]} <= set(GADGETS)
    assert all(any(word in text for word in GADGETS[:-1]) for text, _ in found.newest[:5])


def test_one_text_again_and_again_is_one_text() -> None:
    with pytest.raises(ValueError, match="80 reference texts and 1 live ones: 20 of each are needed"):
        difference(texts(FILMS, 80, 1), ["the same"] * 500)
