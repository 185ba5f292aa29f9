"""What it saves to ask many questions about one text at once: ``python -m loadtests.decisions [URL]``.

So many questions about a long text in one request, and one by one about texts that begin otherwise, in turns: the
second is what it costs where nothing read is used again.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import httpx

WORDS, QUESTIONS, REPEATS = 900, 16, 3
SENTENCE = "The parcel came late, the box was open, and nobody answered the phone for a week."
KINDS: list[dict[str, Any]] = [
    {"type": "predicate", "instructions": "The customer complains."},
    {"type": "choice", "instructions": "What is it about?", "choices": [{"value": "shipping"}, {"value": "billing"}]},
    {"type": "score", "instructions": "How angry?", "levels": [{"label": "calm"}, {"label": "furious"}]},
]


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    with httpx.Client(base_url=url, timeout=600) as client:
        model = client.get("/v1/models").json()["data"][0]["id"]
        _seconds(client, model, _text("warm"), KINDS)
        factors = [_factor(client, model, repeat) for repeat in range(REPEATS)]
    told = {"words": WORDS, "questions": QUESTIONS, "factors": [round(factor, 2) for factor in factors]}
    print(json.dumps({**told, "median": round(statistics.median(factors), 2)}))


def _factor(client: httpx.Client, model: str, repeat: int) -> float:
    """Return how many times as long the questions take one by one about texts of their own."""
    questions = [{**KINDS[n % len(KINDS)], "name": f"q{n}"} for n in range(QUESTIONS)]
    together = _seconds(client, model, _text(f"{repeat}"), questions)
    apart = sum(_seconds(client, model, _text(f"{repeat} {n}"), [each]) for n, each in enumerate(questions))
    return apart / together


def _text(beginning: str) -> str:
    """Return a text that no other begins like: what the engine keeps of one is of no use to another."""
    return f"Case {beginning}. " + " ".join([SENTENCE] * (WORDS // len(SENTENCE.split())))


def _seconds(client: httpx.Client, model: str, text: str, questions: list[dict[str, Any]]) -> float:
    began = time.monotonic()
    client.post("/v1/decisions", json={"model": model, "input": text, "questions": questions}).raise_for_status()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
