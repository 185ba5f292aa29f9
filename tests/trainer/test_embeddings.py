"""Nearness in meaning, by the packaged sentence encoder itself."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.embeddings import Embed, encoder, similarity

pytestmark = pytest.mark.slow
ONE = "A tool that sorts photos into albums."


@pytest.fixture
def embed(monkeypatch: pytest.MonkeyPatch) -> Embed:
    from adapters.packages import cache_folder

    monkeypatch.delenv("HOTSWAP_CACHE", raising=False)  # fetched once for all runs of the tests
    return encoder(cache_folder())


def test_what_means_the_same_is_nearer_than_what_shares_words(embed: Embed) -> None:
    same = similarity(embed, [ONE], ["Software which organises pictures."])
    words = similarity(embed, [ONE], ["A tool that sorts numbers into lists."])
    assert similarity(embed, [ONE], [ONE]) == pytest.approx(1.0, abs=1e-5)
    assert 0.9 > same > words > 0


def test_a_text_s_vector_does_not_depend_on_its_neighbours(embed: Embed) -> None:
    alone, (among, *_) = embed([ONE])[0], embed([ONE, ONE * 20, "x"])
    assert np.allclose(alone, among, atol=1e-5)
    assert np.linalg.norm(alone) == pytest.approx(1.0, abs=1e-5)
