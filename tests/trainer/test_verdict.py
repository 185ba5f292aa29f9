"""What numbers mean in plain words, and the page that opens with it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest

from adapters.base_model import Base
from adapters.tasks import ClassificationTask, SummarizationTask
from trainer.evaluation import Confusion, Evaluation, PerClass
from trainer.page import page
from trainer.recipe import Recipe
from trainer.report import card
from trainer.run_record import RunRecord
from trainer.verdict import (
    Finding,
    breaks,
    confused,
    enough_rows,
    findings,
    forgotten,
    labels,
    lost,
    weakest,
    worth_it,
    worth_serving,
)

RUN = RunRecord(data="sha256:" + "0" * 64, rows={"train": 300, "test": 200}, base="sha256:0", seconds=9)
NAME = "TF-IDF with logistic regression (C = 3)"


def of_labels(count: int, rows: int = 20) -> dict[str, Any]:
    """The adapter's scores, where each label is taken for the next one in a fourth of its rows."""
    names = [f"label <{n}>" for n in range(count)]
    counts = [[0] * count for _ in names]
    for n in range(count):
        counts[n][n], counts[n][(n + 1) % count] = rows - rows // 4, rows // 4
    per_class = {name: {"precision": 0.75, "recall": 0.75, "f1-score": 0.75, "support": rows} for name in names}
    confusion = {"labels": names, "counts": counts}
    return {"rows": rows * count, "accuracy": 0.75, "per_class": per_class, "confusion": confusion}


def evaluation(adapter: dict[str, Any] | None = None, **parts: Any) -> Evaluation:
    adapter = adapter or {"rows": 400, "accuracy": 0.8, "intervals": {"accuracy": (0.76, 0.84)}}
    base = {name: value for name, value in adapter.items() if isinstance(value, int | float)}
    return Evaluation.model_validate(
        {"scores": {"test": {"base": base, "adapter": adapter}}, "profile": {"rows": 1}} | parts
    )


def against(candidate: float, baseline: float, p_value: float) -> dict[str, Any]:
    return {"name": NAME, "candidate": candidate, "baseline": baseline, "p_value": p_value}


def judged(**parts: Any) -> Finding:
    return worth_serving(evaluation(**parts), ClassificationTask)


class TestWhetherItIsWorthServing:
    BETTER: ClassVar = against(0.8, 0.7, 0.001)

    def test_it_is_where_it_is_better_than_what_is_simpler(self) -> None:
        found = judged(baseline=self.BETTER, base={"candidate": 0.8, "base": 0.3, "p_value": 0.0})
        assert found == (
            "Worth serving",
            "good",
            "Accuracy 0.800; the best of what is simpler has 0.700 (p = 0.001).",
        )

    @pytest.mark.parametrize(
        "worse",
        [
            {"baseline": against(0.8, 0.9, 0.001)},
            {"baseline": BETTER, "base": {"candidate": 0.8, "base": 0.9, "p_value": 0.01}},
            {"baseline": BETTER, "released": {"candidate": 0.8, "released": 0.9, "p_value": 0.01, "version": 3}},
        ],
    )
    def test_it_is_not_where_any_of_them_is_better(self, worse: dict[str, Any]) -> None:
        found = judged(**worse)
        assert (found.question, found.tone) == ("Not worth serving as it is", "bad")
        assert "has 0.900 where this adapter has 0.800" in found.answer
        assert "0.700" not in found.answer

    def test_it_is_not_shown_where_the_difference_may_be_chance(self) -> None:
        found = judged(baseline=against(0.8, 0.79, 0.4))
        assert (found.question, found.tone) == ("Not shown to be worth serving", "fair")

    def test_it_need_not_be_better_than_what_is_served(self) -> None:
        served = {"candidate": 0.8, "released": 0.8, "p_value": 1.0, "version": 3}
        assert judged(baseline=self.BETTER, released=served).tone == "good"

    def test_with_care_where_something_is_bad_and_says_what(self) -> None:
        found = judged(baseline=self.BETTER, forgetting={"tokens": 9, "base": 19.0, "adapter": 117.0})
        assert (found.question, found.tone) == ("Worth serving, with care", "fair")
        assert found.answer.endswith("But see below: What was forgotten?")

    def test_nothing_to_compare_with_is_no_verdict(self) -> None:
        assert judged().question == "Not judged"

    @pytest.mark.parametrize(
        ("by", "said"),
        [
            (against(0.8, 0.7, 0.0), f"worth it: this adapter 0.800, {NAME} 0.700 (p < 0.001)"),
            (against(0.6, 0.7, 0.01), "not worth it, a simple model is better: "),
            (against(0.8, 0.7, 0.2), "not shown to be better than a simple model: "),
        ],
    )
    def test_one_line_says_whether_fine_tuning_was_worth_it(self, by: dict[str, Any], said: str) -> None:
        assert worth_it(evaluation(baseline=by)).startswith(said)


class TestJudgements:
    @pytest.mark.parametrize(
        ("after", "tone", "said"),
        [
            (19.0, "good", "Little: perplexity of general text was 20.0 and is 19.0."),
            (24.0, "good", "Little: "),
            (30.0, "fair", "Some: perplexity of general text was 20.0 and is 30.0, 1.5 times as much."),
            (40.1, "bad", "Much: "),
        ],
    )
    def test_of_what_was_forgotten(self, after: float, tone: str, said: str) -> None:
        found = forgotten(evaluation(forgetting={"tokens": 9, "base": 20.0, "adapter": after}), ClassificationTask)
        assert found
        assert (found.tone, found.answer.startswith(said)) == (tone, True)

    def test_advice_names_only_what_the_kind_has(self) -> None:
        much = evaluation(forgetting={"tokens": 9, "base": 20.0, "adapter": 90.0})
        told = [forgotten(much, kind) for kind in (ClassificationTask, SummarizationTask)]
        assert ["training.shrink" in finding.answer for finding in told if finding] == [True, False]

    @pytest.mark.parametrize(
        ("distractor", "tone", "said"),
        [
            (0.62, "good", "Nothing that was tried"),
            (
                0.60,
                "good",
                "Nothing that was tried: at worst, a distracting sentence takes accuracy from 0.61 to 0.60.",
            ),
            (0.55, "fair", "A distracting sentence takes accuracy from 0.61 to 0.55."),
            (0.24, "bad", "A distracting sentence takes accuracy from 0.61 to 0.24."),
        ],
    )
    def test_of_what_breaks_it_name_the_worst_in_words(self, distractor: float, tone: str, said: str) -> None:
        merits = {"rows": 200, "as written": 0.61, "typos": 0.605, "distractor": distractor}
        found = breaks(evaluation(robustness=merits), ClassificationTask)
        assert found
        assert (found.tone, found.answer.startswith(said)) == (tone, True)

    def test_what_a_disturbance_costs_is_a_share_of_the_score_as_written(self) -> None:
        (loss,) = lost(evaluation(robustness={"rows": 9, "as written": 0.8, "typos": 0.6}))
        assert (loss.name, loss.merit) == ("typos", 0.6)
        assert (loss.lost, loss.share) == pytest.approx((0.2, 0.25))
        assert lost(evaluation(robustness={"rows": 9, "as written": 0.0, "typos": 0.0}))[0].share == 0

    def test_of_labels_name_those_that_it_does_not_know(self) -> None:
        recalls = {"a": 0.9, "b": 0.0, "c": 0.3, "unseen": 0.0}
        found = {
            name: PerClass.model_validate(
                {"precision": r, "recall": r, "f1-score": r, "support": 0 if name == "unseen" else 9}
            )
            for name, r in recalls.items()
        }
        assert [name for name, _ in weakest(found)] == ["b", "c", "a"]
        told = labels(found)
        assert told == (
            "Which labels does it not know?",
            "bad",
            "2 of 3 have F1 below 0.5, 1 of them never recognised: “b”, “c”. More rows of these may help most.",
        )
        assert labels({}) is None

    def test_pairs_that_are_confused_come_by_how_often(self) -> None:
        found = confused(Confusion(labels=("a", "b", "c"), counts=((5, 3, 0), (0, 0, 0), (4, 0, 4))))
        assert found == [("c", "a", 4, 0.5), ("a", "b", 3, 3 / 8)]

    @pytest.mark.parametrize(("rows", "tone"), [(99, "bad"), (100, "good")])
    def test_of_few_rows_say_which_differences_do_not_show(self, rows: int, tone: str) -> None:
        found = enough_rows(evaluation({"rows": rows, "accuracy": 0.8}))
        assert (found.tone, "differences below about 0.10 do not show" in found.answer) == (tone, True)

    def test_of_confidence_say_which_way_it_errs(self) -> None:
        bins = [{"rows": 200, "confidence": 0.9, "right": 0.7}]
        scores = {"rows": 200, "accuracy": 0.7, "calibration_error": 0.2}
        told = findings(evaluation(scores, reliability=bins), ClassificationTask)
        assert any(each.tone == "bad" and "too sure of itself" in each.answer for each in told)

    def test_examples_that_do_as_well_as_training_are_named(self) -> None:
        asked = {"rows": 200, "shots": 4, "zero_shot": 0.3, "few_shot": 0.82, "adapter": 0.8}
        base = {"candidate": 0.8, "base": 0.3, "p_value": 0.0}
        told = findings(evaluation(base=base, baselines=asked), ClassificationTask)
        assert any(each.answer.startswith("Perhaps not: ") for each in told)


def recipe(tmp_path: Path, kind: str = "classification") -> Recipe:
    (tmp_path / "rows.csv").touch()
    task = {"kind": kind, "template": "Text: {text}\nAnswer:"}
    if kind == "classification":
        task |= {"labels": ["a", "b"]}  # type: ignore[dict-item]
    data = {"path": tmp_path / "rows.csv"}
    return Recipe.model_validate({"name": "desk", "description": "Mails <to> teams.", "task": task, "data": data})


class Structure(HTMLParser):
    """What is open where: the path of elements above each text."""

    VOID: ClassVar = {"meta", "br"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, tuple[str, ...]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "every element is closed where it was opened"

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((data.strip(), tuple(self.open)))

    def above(self, text: str) -> list[tuple[str, ...]]:
        return [path for each, path in self.texts if each == text]


class TestThePage:
    def test_opens_with_the_verdict_then_numbers_and_folds_every_score(self, tmp_path: Path, tiny: Base) -> None:
        both = {"base": {"accuracy": 0.3}, "baseline": {"accuracy": 0.7}, "adapter": {"rows": 400, "accuracy": 0.8}}
        found = evaluation(scores={"test": both}, baseline=against(0.8, 0.7, 0.001))
        html = page(recipe(tmp_path), tiny, RUN, found)
        texts = [text for text, _ in Structure(html).texts]
        order = ["desk", "Worth serving.", f"Is it better than {NAME[:31]}?", "0.800", "0.700", "0.300"]
        places = [texts.index(text) for text in order]
        assert places == sorted(places)
        assert "details" in Structure(html).above("test")[0]

    @pytest.mark.parametrize(("count", "folded"), [(2, False), (12, False), (13, True), (77, True)])
    def test_folds_the_confusion_of_many_labels_and_escapes_their_names(
        self, tmp_path: Path, tiny: Base, count: int, folded: bool
    ) -> None:
        html = page(recipe(tmp_path), tiny, RUN, evaluation(of_labels(count)))
        (path,) = Structure(html).above("truth \\ answer")
        assert ("details" in path) is folded
        assert "<0>" not in html
        assert "label &lt;0&gt;" in html
        assert "Mails &lt;to&gt; teams." in html

    def test_of_summaries_has_no_labels(self, tmp_path: Path, tiny: Base) -> None:
        found = evaluation(
            {"rows": 100, "rougeL": 0.4}, baseline={**against(0.4, 0.3, 0.001), "name": "the first 9 words"}
        )
        html = page(recipe(tmp_path, "summarization"), tiny, RUN, found)
        assert "Is it better than the first 9 words?" in html
        assert ">Labels<" not in html
        assert "ROUGE-L 0.40" in html

    def test_of_an_evaluation_from_before_shows_what_there_is(self, tmp_path: Path, tiny: Base) -> None:
        html = page(recipe(tmp_path), tiny, RUN, evaluation({"rows": 100, "accuracy": 0.8}))
        assert "Not judged" in html
        assert "<svg" not in html

    def test_tells_of_a_training_that_diverged(self, tmp_path: Path, tiny: Base) -> None:
        lost = RUN.model_copy(update={"diverged_at": 12})
        for shown in (page, card):
            assert "at step 12 its loss was no number any more" in shown(recipe(tmp_path), tiny, lost, evaluation())
        assert "Did the training hold?" not in page(recipe(tmp_path), tiny, RUN, evaluation())

    def test_needs_nothing_else_is_the_same_every_time_and_takes_the_colours_around_it(
        self, tmp_path: Path, tiny: Base
    ) -> None:
        run = RunRecord.model_validate(
            {**RUN.content(), "history": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}
        )
        robust = {"rows": 9, "as written": 0.8, "typos": 0.6}
        html = page(recipe(tmp_path), tiny, run, evaluation(of_labels(5), robustness=robust))
        assert html == page(recipe(tmp_path), tiny, run, evaluation(of_labels(5), robustness=robust))
        assert not re.search(r"(src|href)\s*=\s*.(https?:|//)|url\((?!#)|@import|<script", html)
        assert html.count("<svg") == 2
        assert "prefers-color-scheme: dark" in html
        assert "currentColor" in html
        assert "#000000" not in html

    def test_leaves_the_table_of_many_labels_out_of_the_card_too(self, tmp_path: Path, tiny: Base) -> None:
        cards = {n: card(recipe(tmp_path), tiny, RUN, evaluation(of_labels(n))) for n in (5, 77)}
        assert "Confusion on test" in cards[5]
        assert "Most often confused on test" in cards[77]
        assert max(map(len, cards[77].splitlines())) < 300
