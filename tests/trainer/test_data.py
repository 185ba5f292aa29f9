"""Rows: read from what people have, checked, split so that near-copies never cross, fingerprinted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from adapters.errors import HotswapError
from tests.trainer.conftest import MakeRecipe, WriteRows, reviews, settings
from trainer.data import Splits, _split, labels_of, load_splits, read_rows
from trainer.origin import Data, Origin
from trainer.rows import Columns, Row
from trainer.sources import SOURCES

ROWS = [{"text": "A moving film", "label": "good"}, {"text": 'So "dull",\nand slow', "label": "bad"}]
properties = hypothesis_settings(max_examples=60, deadline=None)


def as_csv(path: Path, separator: str = ",") -> None:
    import csv

    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0], delimiter=separator)
        writer.writeheader()
        writer.writerows(ROWS)


def as_parquet(path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(ROWS).to_parquet(path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "rows.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS)),
    "rows.csv": as_csv,
    "rows.CSV": as_csv,
    "rows.tsv": lambda path: as_csv(path, "\t"),
    "rows.parquet": as_parquet,
}


def read(path: Path, kind: str = "classification", **columns: str) -> list[Row]:
    return read_rows(Origin(path=path, **columns), Columns(kind), path.parent / "cache")


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(HotswapError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


class TestReading:
    @pytest.mark.parametrize("name", WRITERS)
    def test_every_format_gives_the_same_rows(self, tmp_path: Path, name: str) -> None:
        WRITERS[name](tmp_path / name)
        rows = read(tmp_path / name)
        assert [(row.text, row.answer) for row in rows] == [(row["text"], row["label"]) for row in ROWS]

    def test_takes_columns_by_other_names(self, write_rows: WriteRows) -> None:
        path = write_rows([{"review": "dull", "stars": 1, "film": "x"}, {"review": "moving", "stars": 5, "film": "y"}])
        rows = read(path, text="review", answer="stars", group="film")
        assert rows == [Row("dull", "1", "x"), Row("moving", "5", "y")]

    def test_of_summaries_takes_the_summary(self, write_rows: WriteRows) -> None:
        assert read(write_rows([{"text": "long", "summary": "short"}]), "summarization")[0].answer == "short"

    def test_gives_the_names_of_class_labels(self, tmp_path: Path) -> None:
        from datasets import ClassLabel, Dataset, Features, Value

        features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
        rows = {"text": ["dull", "moving"], "label": [0, 1]}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
        assert [row.answer for row in read(tmp_path / "rows.parquet")] == ["bad", "good"]

    def test_refuses_class_labels_that_are_withheld(self, tmp_path: Path) -> None:
        from datasets import ClassLabel, Dataset, Features, Value

        features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
        Dataset.from_dict({"text": ["dull"], "label": [-1]}, features=features).to_parquet(tmp_path / "rows.parquet")
        assert "row 1: column 'label' is empty" in refusal(lambda: read(tmp_path / "rows.parquet"))

    def test_takes_words_that_look_like_nothing_for_words(self, tmp_path: Path) -> None:
        (tmp_path / "rows.csv").write_text("text,label\nnull,None\nNA,n/a\nnan,-\n")
        rows = read(tmp_path / "rows.csv")
        assert [(row.text, row.answer) for row in rows] == [("null", "None"), ("NA", "n/a"), ("nan", "-")]

    def test_takes_numbers_as_they_are_written(self, tmp_path: Path) -> None:
        (tmp_path / "rows.csv").write_text("text,label\n1.50,01\n2020-01-01,1e3\ntrue,True\n")
        rows = read(tmp_path / "rows.csv")
        assert [(row.text, row.answer) for row in rows] == [("1.50", "01"), ("2020-01-01", "1e3"), ("true", "True")]

    def test_takes_labels_that_look_like_numbers_at_first(self, tmp_path: Path) -> None:
        lines = [f"text {number},1" for number in range(10_001)]  # more than pandas reads at a time
        (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines, "last,other"]))
        assert read(tmp_path / "rows.csv")[-1].answer == "other"

    @pytest.mark.parametrize(
        ("columns", "missing"),
        [({}, "label"), ({"text": "review"}, "review"), ({"answer": "stars", "group": "film"}, "film")],
    )
    def test_without_a_column_lists_those_there_are(
        self, write_rows: WriteRows, columns: dict[str, str], missing: str
    ) -> None:
        path = write_rows([{"text": "dull", "stars": 1}])
        text = refusal(lambda: read(path, **columns))
        assert text == f"the data has no column '{missing}'; it has: stars, text."

    @pytest.mark.parametrize(
        ("bad", "column"),
        [
            ({"text": "", "label": "x"}, "text"),
            ({"text": " \n", "label": "x"}, "text"),
            ({"text": None, "label": "x"}, "text"),
            ({"label": "x"}, "text"),
            ({"text": "x", "label": None}, "label"),
            ({"text": "x", "label": ""}, "label"),
        ],
    )
    def test_names_the_row_with_an_empty_cell(self, write_rows: WriteRows, bad: dict, column: str) -> None:
        path = write_rows([*ROWS, bad, *ROWS])
        expected = f"row 3: column '{column}' is empty; fill it in or remove the row."
        assert refusal(lambda: read(path)) == expected

    def test_names_the_csv_row_with_an_empty_cell(self, tmp_path: Path) -> None:
        (tmp_path / "rows.csv").write_text("text,label\ndull,1\nmoving,\n")
        assert refusal(lambda: read(tmp_path / "rows.csv")).startswith("row 2: column 'label' is empty")

    def test_names_the_row_that_belongs_to_no_group(self, write_rows: WriteRows) -> None:
        rows = [{"text": "a", "label": "x", "film": "1"}, {"text": "b", "label": "x", "film": None}]
        assert refusal(lambda: read(write_rows(rows), group="film")).startswith("row 2: column 'film' is empty")

    def test_takes_nan_for_empty(self, tmp_path: Path) -> None:
        from datasets import Dataset

        Dataset.from_dict({"text": ["a", "b"], "label": [1.0, float("nan")]}).to_parquet(tmp_path / "rows.parquet")
        assert refusal(lambda: read(tmp_path / "rows.parquet")).startswith("row 2: column 'label' is empty")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("rows.jsonl", b'{"text": "a", "label": "x"}\n{"text": "b", "label"\n'),
            ("rows.jsonl", b"text,label\na,x\n"),
            ("rows.jsonl", b"\xff\xfe\xff"),
            ("rows.json", b"{"),
            ("rows.csv", b"text,label\na,x\nb,x,y,z\n"),
            ("rows.csv", b"text,label\n\xff\xfe,x\n"),
            ("rows.csv", b""),
            ("rows.csv", b"text,label\n"),
            ("rows.parquet", b"not parquet"),
            ("rows.jsonl", b""),
        ],
    )
    def test_of_a_broken_file_names_it(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        assert name in refusal(lambda: read(tmp_path / name))

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("rows.csv", "text,label\nHello 0, film,dull\n", "line 2 has 3 fields and the header 2; put a text"),
            ("rows.csv", "0,film,dull\n1,film,moving\n", "it has no column 'text'"),
            ("rows.csv", "text,label,label\na,b,c\n", "there are two columns 'label'; rename one"),
            ("rows.csv", 'text,label\n"a film,dull\nanother,moving\n', "opens a quotation mark that is never closed"),
            ("rows.csv", "text,label\n", "it has no rows"),
            ("rows.csv", "\n\n", "it has no rows"),
            ("rows.tsv", "text\tlabel\na\tb\tc\n", "line 2 has 3 fields"),
            ("rows.csv", "text,label\na,b\n".encode("utf-16"), "save it as UTF-8"),
            ("rows.csv", "text,label\na,b\n".encode("utf-16-le"), "save it as UTF-8"),
            ("rows.jsonl", "\n \n", "it has no rows"),
            ("rows.jsonl", "[" * 100_000, "line 1 is nested too deeply"),
            ("rows.jsonl", '{"text": "a", "label": "b", "text": "c"}', "line 1 has the key 'text' twice"),
            ("rows.jsonl", r'{"text": "\ud800", "label": "b"}', "line 1 has half a character"),
            ("rows.jsonl", '[{"text": "a", "label": "b"}]', "line 1 begins a list"),
            ("rows.jsonl", '[\n{"text": "a", "label": "b"},\n]', "line 1 begins a list"),
            ("rows.json", "null", "it is no list of objects"),
            ("rows.json", '[{"text": "a", "label": "b"}, null]', "row 2 is not a JSON object"),
            ("rows.json", '[\n{"text": "a"\n"label": "b"}]', "line 3: "),
            ("rows.json", "[]", "it has no rows"),
            ("rows.json", "[" * 100_000, "it is nested too deeply"),
        ],
    )
    def test_says_what_is_wrong_and_where(self, tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        assert said.replace("it has no column", "the data has no column") in refusal(lambda: read(tmp_path / name))

    @pytest.mark.parametrize("name", ["g[1].csv", "g*.csv", "with, odd ?.csv"])
    def test_takes_a_name_for_a_name_and_not_for_a_pattern(self, tmp_path: Path, name: str) -> None:
        for other in ("g1.csv", "g2.csv", "with, odd x.csv"):
            (tmp_path / other).write_text("text,label\nwrong,wrong\n")
        (tmp_path / name).write_text("text,label\nright,right\n")
        assert [row.answer for row in read(tmp_path / name)] == ["right"]

    def test_of_an_empty_parquet_file_says_so(self, tmp_path: Path) -> None:
        from datasets import Dataset, Features, Value

        features = Features({"text": Value("string"), "label": Value("string")})
        Dataset.from_dict({"text": [], "label": []}, features=features).to_parquet(tmp_path / "rows.parquet")
        assert "rows.parquet could not be read: it has no rows" in refusal(lambda: read(tmp_path / "rows.parquet"))

    def test_of_json_takes_objects_line_by_line_too(self, tmp_path: Path) -> None:
        (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        assert len(read(tmp_path / "rows.json")) == 2

    def test_of_a_file_that_is_not_there_names_it(self, tmp_path: Path) -> None:
        assert "nothing.csv does not exist" in refusal(lambda: read(tmp_path / "nothing.csv"))

    @pytest.mark.parametrize("name", ["rows.xlsx", "rows", "rows.txt"])
    def test_of_another_format_lists_those_it_knows(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).touch()
        assert "read are .jsonl, .json, .csv, .tsv, .parquet" in refusal(lambda: read(tmp_path / name))

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_names_the_line_that_is_no_json(self, tmp_path: Path, number: int) -> None:
        lines = [json.dumps(row) for row in (*ROWS, *ROWS)]
        lines[number - 1] = lines[number - 1][:-5]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        assert f"rows.jsonl could not be read: line {number} is not a JSON object" in refusal(
            lambda: read(tmp_path / "rows.jsonl")
        )

    def test_names_the_row_with_more_than_one_value(self, write_rows: WriteRows) -> None:
        path = write_rows([{"text": ["a", "b"], "label": "x"}])
        assert refusal(lambda: read(path)).startswith("row 1: column 'text' holds several values")

    def test_sees_that_a_file_has_changed(self, write_rows: WriteRows) -> None:
        read(write_rows(ROWS))
        assert len(read(write_rows([*ROWS, {"text": "another", "label": "good"}]))) == 3


class TestSources:
    def test_that_are_unknown_are_told_from_those_that_are_known(self, tmp_path: Path) -> None:
        text = refusal(lambda: read_rows(Origin(source="vader-books"), Columns("classification"), tmp_path))
        assert text.startswith("data.source 'vader-books' is unknown; known: ")
        assert all(name in text for name in SOURCES)

    def test_bring_their_own_groups(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [{"text": "dull", "label": "bad", "group": "g"}]
        monkeypatch.setitem(SOURCES, "mine", lambda cache: iter(rows))
        assert read_rows(Origin(source="mine"), Columns("classification"), tmp_path) == [Row("dull", "bad", "g")]

    @pytest.mark.parametrize("columns", [{"text": "review"}, {"answer": "summary"}])
    def test_have_the_columns_they_have(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, str]
    ) -> None:
        monkeypatch.setitem(SOURCES, "mine", lambda cache: iter([{"text": "x", "label": "y", "group": "g"}]))
        text = refusal(lambda: read_rows(Origin(source="mine", **columns), Columns("classification"), tmp_path))
        assert "it has: group, label, text" in text

    def test_of_summaries_are_no_classes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(SOURCES, "mine", lambda cache: iter([{"text": "x", "label": "y", "group": "g"}]))
        text = refusal(lambda: read_rows(Origin(source="mine"), Columns("summarization"), tmp_path))
        assert text == "the data has no column 'summary'; it has: group, label, text."


class TestDuplicates:
    def test_are_dropped_whatever_their_case_and_blanks(self, write_rows: WriteRows) -> None:
        copies = ["A moving film", "a  MOVING film", " A moving\nfilm "]
        rows = read(write_rows([{"text": text, "label": "good"} for text in copies]))
        assert [row.text for row in rows] == ["A moving film"]

    def test_keep_the_order_of_the_first(self, write_rows: WriteRows) -> None:
        rows = read(write_rows([{"text": text, "label": "x"} for text in "bacab"]))
        assert [row.text for row in rows] == ["b", "a", "c"]


def split(rows: list[Row], seed: int = 0, **data: Any) -> dict[str, list[Row]]:
    parts = _split(rows, Data(path=Path("x"), **data), seed)
    return dict(zip(("train", "validation", "test"), parts, strict=True))


def rows_of(groups: list[int]) -> list[Row]:
    return [Row(f"text {number}", "x", f"group {group}") for number, group in enumerate(groups)]


class TestSplitting:
    @properties
    @given(groups=st.lists(st.integers(0, 12), max_size=60), seed=st.integers(0, 5), share=st.floats(0.05, 0.45))
    def test_never_divides_a_group(self, groups: list[int], seed: int, share: float) -> None:
        rows = rows_of(groups)
        parts = split(rows, seed, validation=share, test=share)
        assert sorted(r.text for part in parts.values() for r in part) == sorted(r.text for r in rows)
        homes = [{row.group for row in part} for part in parts.values()]
        assert sum(map(len, homes)) == len(set().union(*homes))

    @properties
    @given(
        groups=st.lists(st.integers(0, 30), max_size=40),
        more=st.lists(st.integers(0, 60), max_size=40),
        seed=st.integers(0, 5),
    )
    def test_of_more_rows_moves_none_that_was_there(self, groups: list[int], more: list[int], seed: int) -> None:
        before, after = split(rows_of(groups), seed), split(rows_of([*groups, *more]), seed)
        for name, part in before.items():
            assert set(part) <= set(after[name])

    def test_of_another_validation_share_leaves_the_test_rows_alone(self) -> None:
        rows = rows_of(list(range(200)))
        small, large = split(rows, validation=0.1), split(rows, validation=0.3)
        assert small["test"] == large["test"]
        assert set(small["validation"]) < set(large["validation"])

    def test_gives_about_the_shares_asked_for(self) -> None:
        parts = split(rows_of(list(range(2000))), validation=0.1, test=0.2)
        assert (len(parts["validation"]), len(parts["test"])) == (
            pytest.approx(200, rel=0.2),
            pytest.approx(400, rel=0.2),
        )

    def test_depends_on_the_seed_alone(self) -> None:
        rows = rows_of(list(range(100)))
        assert split(rows, 1) == split(rows, 1)
        assert split(rows, 1) != split(rows, 2)

    def test_keeps_no_more_rows_than_asked_for(self) -> None:
        parts = split(rows_of(list(range(300))), train_rows=5, validation_rows=4, test_rows=3)
        assert {name: len(part) for name, part in parts.items()} == {"train": 5, "validation": 4, "test": 3}


def texts_of(splits: Splits) -> list[set[str]]:
    return [{row.text for row in part} for part in (splits.train, splits.validation, splits.test)]


class TestNoTextIsOnTwoSides:
    @pytest.fixture
    def load(self, make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path) -> Callable[..., Splits]:
        def load(rows: list[dict[str, Any]], task: dict[str, Any] | None = None, **changes: Any) -> Splits:
            data = {"path": str(write_rows(rows)), "validation": 0.2, "test": 0.2, **changes.pop("data", {})}
            told = {"task": {"kind": "classification", **task}} if task else {}
            return load_splits(make_recipe(data=data, **told, **changes), tmp_path / "cache")

        return load

    def test_where_masking_makes_texts_the_same(self, load: Callable[..., Splits]) -> None:
        rows = [{"text": f"Film {n // 2} moved ann{n}@example.com", "label": "ab"[n // 2 % 2]} for n in range(120)]
        train, validation, test = texts_of(load(rows, data={"mask": True}))
        assert "Film 0 moved <EMAIL_ADDRESS>" in train | validation | test
        assert len(train | validation | test) == 60
        assert len(train) + len(validation) + len(test) == len(train | validation | test)

    def test_where_normalizing_does(self, load: Callable[..., Splits]) -> None:
        rows = [
            {"text": f"film {n // 2} mov\u00ad{'' if n % 2 else ' '}es", "label": "ab"[n // 2 % 2]} for n in range(80)
        ]
        rows += [{"text": row["text"].replace("\u00ad", ""), "label": row["label"]} for row in rows]
        train, validation, test = texts_of(load(rows, task={"normalize": True}))
        assert len(train | validation | test) == 80
        assert len(train) + len(validation) + len(test) == len(train | validation | test)

    def test_where_a_text_has_several_answers_in_several_groups(self, load: Callable[..., Splits]) -> None:
        rows = [
            {"text": f"film {n % 40}", "chosen": "a", "rejected": "b" if n < 40 else "c", "by": f"judge {n}"}
            for n in range(80)
        ]
        rows = [{**row, "chosen": "c"} if row["rejected"] == "b" and n % 2 else row for n, row in enumerate(rows)]
        splits = load(rows, objective="dpo", task={"labels": ["a", "b", "c"]}, data={"group": "by"})
        train, validation, test = texts_of(splits)
        assert sum(splits.counts().values()) == 80
        assert len(train) + len(validation) + len(test) == len(train | validation | test)

    def test_and_rejected_labels_are_labels_too(self, load: Callable[..., Splits]) -> None:
        rows = [{"text": f"film {n}", "chosen": "ab"[n % 2], "rejected": "ba"[n % 2]} for n in range(60)]
        rows[7]["rejected"] = "third"
        assert "label 'third' is not among ['a', 'b']" in refusal(lambda: load(rows, objective="dpo"))


class TestWhatCannotMakeAnAdapter:
    def test_too_few_rows(self, make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path) -> None:
        recipe = make_recipe(data={"path": write_rows(reviews(2))})
        text = refusal(lambda: load_splits(recipe, tmp_path / "cache"))
        assert "split is empty: 2 usable rows in 2 groups are too few; add rows or change data.validation" in text

    def test_one_group_only(self, make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path) -> None:
        rows = [{**row, "film": 1} for row in reviews(50)]
        recipe = make_recipe(data={"path": write_rows(rows), "group": "film"})
        assert "50 usable rows in 1 groups are too few" in refusal(lambda: load_splits(recipe, tmp_path / "cache"))

    def test_one_label_only(self, make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path) -> None:
        recipe = make_recipe(data={"path": write_rows([{**row, "label": "good"} for row in reviews(50)])})
        text = refusal(lambda: load_splits(recipe, tmp_path / "cache"))
        assert "the training rows have one label only (good); a classifier needs two" in text

    def test_a_label_that_is_only_ever_tested(
        self, make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path
    ) -> None:
        far = write_rows([{"text": "so so", "label": "neutral"}], "far.jsonl")
        data = {"path": write_rows(reviews(50)), "extra_tests": {"far": {"path": far}}}
        text = refusal(lambda: load_splits(make_recipe(data=data), tmp_path / "cache"))
        assert "label 'neutral' is not among ['negative', 'positive']; list it in task.labels or mend it" in text

    def test_a_label_that_the_recipe_does_not_name(
        self, make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path
    ) -> None:
        recipe = make_recipe(
            data={"path": write_rows(reviews(50))}, task={"kind": "classification", "labels": ["positive", "other"]}
        )
        assert "label 'negative' is not among" in refusal(lambda: load_splits(recipe, tmp_path / "cache"))

    def test_more_labels_than_can_be_served(
        self, make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path
    ) -> None:
        rows = [{"text": f"text {n}", "label": f"own {n}"} for n in range(1500)]
        text = refusal(lambda: load_splits(make_recipe(data={"path": write_rows(rows)}), tmp_path / "cache"))
        assert "different labels and 512 can be served; is 'answer' the right column?" in text

    def test_an_extra_test_without_rows(self, make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path) -> None:
        (tmp_path / "far.csv").write_text("text,label\n")
        data = {"path": write_rows(reviews(50)), "extra_tests": {"far": {"path": tmp_path / "far.csv"}}}
        assert "far.csv could not be read" in refusal(lambda: load_splits(make_recipe(data=data), tmp_path / "cache"))


class TestLabels:
    def test_are_those_of_the_training_rows_sorted(self, make_recipe: MakeRecipe, splits: Splits) -> None:
        assert labels_of(make_recipe().task, splits.train) == ("negative", "positive")  # type: ignore[arg-type]

    def test_are_those_of_the_recipe_in_its_order(self, make_recipe: MakeRecipe, splits: Splits) -> None:
        task = make_recipe(task={"kind": "classification", "labels": ["positive", "negative"]}).task
        assert labels_of(task, splits.train) == ("positive", "negative")  # type: ignore[arg-type]


class TestTheFingerprint:
    A, B, C = (Row(text, "x", text) for text in "abc")

    def test_is_that_of_the_rows_in_any_order(self) -> None:
        one, other = Splits([self.A, self.B], [self.C], [], {}), Splits([self.B, self.A], [self.C], [], {})
        assert one.fingerprint == other.fingerprint

    @pytest.mark.parametrize(
        "changed",
        [
            Splits([A], [B, C], [], {}),
            Splits([A, C], [B], [], {}),
            Splits([A, B, C], [], [], {}),
            Splits([A, B], [Row("c", "y", "c")], [], {}),
            Splits([A, B], [Row("c ", "x", "c")], [], {}),
            Splits([A, B], [C], [], {"far": []}),
            Splits([A, B], [C, C], [], {}),
        ],
    )
    def test_changes_with_a_text_an_answer_or_a_split(self, changed: Splits) -> None:
        assert changed.fingerprint != Splits([self.A, self.B], [self.C], [], {}).fingerprint

    def test_is_the_same_on_every_machine(self) -> None:
        """It is written into manifests: to change how it is computed is to disown them."""
        splits = Splits([self.A, self.B], [self.C], [], {"far": [Row("ü", "y", "g")]})
        assert splits.fingerprint == FINGERPRINT

    def test_does_not_depend_on_the_format(self, tmp_path: Path, make_recipe: MakeRecipe) -> None:
        fingerprints = set()
        for name in ("rows.csv", "rows.jsonl"):
            rows = reviews(50)
            lines = [f"{r['text']},{r['label']}" if name == "rows.csv" else json.dumps(r) for r in rows]
            (tmp_path / name).write_text("\n".join(["text,label"] * (name == "rows.csv") + lines))
            recipe = make_recipe(data={"path": tmp_path / name})
            fingerprints.add(load_splits(recipe, tmp_path / "cache").fingerprint)
        assert len(fingerprints) == 1


FINGERPRINT = "sha256:4772d61df32f4980263290694d78575e9aa1e1ad61f0a48a17463c0a37c963ae"


class TestFurtherTrainingRows:
    def load(self, make_recipe: MakeRecipe, write_rows: WriteRows, more: list[dict[str, Any]], cache: Path) -> Splits:
        data = {
            **settings()["data"],
            "path": write_rows(reviews(50)),
            "extra_train": {"judged": {"path": write_rows(more, "judged.jsonl")}},
        }
        return load_splits(make_recipe(data=data), cache)

    def test_are_trained_on_and_tested_nowhere(
        self, make_recipe: MakeRecipe, write_rows: WriteRows, splits: Splits, tmp_path: Path
    ) -> None:
        more = [{"text": "quite new", "label": "positive"}]
        found = self.load(make_recipe, write_rows, more, tmp_path / "cache")
        assert [row.text for row in found.train if row.text == "quite new"] == ["quite new"]
        assert "quite new" not in {row.text for row in (*found.validation, *found.test)}

    def test_count_where_another_row_has_the_same_text_and_never_where_it_is_held_out(
        self, make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path
    ) -> None:
        plain = load_splits(
            make_recipe(data={**settings()["data"], "path": write_rows(reviews(50))}), tmp_path / "cache"
        )
        other = {"positive": "negative", "negative": "positive"}
        changed, held_out = plain.train[0], plain.test[0]
        more = [{"text": row.text, "label": other[row.answer]} for row in (changed, held_out)]
        found = self.load(make_recipe, write_rows, more, tmp_path / "cache")
        assert {row.text: row.answer for row in found.train}[changed.text] == other[changed.answer]
        assert len(found.train) == len(plain.train)
        assert found.test == plain.test
