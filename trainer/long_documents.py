"""Long texts in training and evaluation, read as the service reads them: in parts, and then the parts' summaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from rouge_score.rouge_scorer import RougeScorer

from adapters.tasks.chunks import sentences
from adapters.tasks.summarization import ROUNDS
from trainer.codec import Codec
from trainer.rows import Row


def in_parts(rows: Sequence[Row], codec: Codec) -> list[Row]:
    """Return the rows to train on: of a long text each part, with the sentences of the summary that are about it.

    A sentence is about the part with which it shares most (ROUGE-L recall: DANCER, Gidiotis and Tsoumakas 2020,
    arXiv:2004.06190); a part that no sentence is about is left out.
    """
    return [part for row in rows for part in _parts(row, codec)]


def _parts(row: Row, codec: Codec) -> Iterator[Row]:
    parts = codec.parts(row.text)
    if len(parts) == 1 or row.rejected:
        yield row
        return
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    about: dict[int, list[str]] = {}
    for sentence in sentences(row.answer):
        shared = [scorer.score(sentence, part)["rougeL"].recall for part in parts]
        about.setdefault(shared.index(max(shared)), []).append(sentence)
    for number, said in sorted(about.items()):
        yield replace(row, text=parts[number], answer="".join(said).strip())


def condensed(texts: Sequence[str], codec: Codec, summarize: Callable[[list[str]], list[str]]) -> list[str]:
    """Return what is to be summarized in the place of each text: of long ones the summaries of their parts."""
    texts = list(texts)
    condensable = set(range(len(texts)))
    for _ in range(ROUNDS):
        parts = {i: found for i in sorted(condensable) if len(found := codec.parts(texts[i])) > 1}
        if not parts:
            break
        said = iter(summarize([part for found in parts.values() for part in found]))
        for i, found in parts.items():
            joined = codec.task.joined([next(said) for _ in found])
            texts[i] = joined or texts[i]
            if not joined:
                condensable.remove(i)
    return texts
