"""Labels that look alike are one where a reader sees one, and named where they may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.errors import HotswapError
from tests.trainer.conftest import MakeRecipe, WriteRows, settings
from trainer.checks import Finding, check_data
from trainer.data import Splits, labels_of, load_splits
from trainer.labels import doubtful, folding
from trainer.loading import load_recipe


def folded(*labels: str, listed: tuple[str, ...] | None = None) -> list[str]:
    fold = folding(labels, listed)
    return [fold(label) for label in labels]


class TestFolding:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("facturaci\u00f3n", "facturacio\u0301n"),
            ("billing team", "billing\u00a0team"),
            ("billing team", "billing \u3000 team"),
            ("billing", "bil\u200bling\ufeff"),
            ("billing", "bill\u00ading"),
            ("ABC", "\uff21\uff22\uff23"),
            ("don't know", "don\u2019t know"),
            ("office", "o\ufb03ce"),
            ("e-mail", "e\u2011mail"),
            ("\u2764", "\u2764\ufe0f"),
        ],
    )
    def test_of_what_a_reader_cannot_tell_apart_is_silent(self, one: str, other: str) -> None:
        fold = folding([one, one, other])
        assert (fold(one), fold(other)) == (one, one)
        assert not list(fold.warnings())
        assert "1 rows have it with other blanks or in another Unicode form" in next(fold.notes())

    @pytest.mark.parametrize(
        ("labels", "into"),
        [
            (("bug", "Bug", "bug", "BUG"), "bug"),
            (("Bug", "Bug", "bug"), "Bug"),
            (("BUG", "bug"), "bug"),
            (("1.0", "1", "1"), "1"),
            (("1.0", "1.0", "1"), "1.0"),
        ],
    )
    def test_of_case_and_of_whole_numbers_takes_what_most_have_and_warns(
        self, labels: tuple[str, ...], into: str
    ) -> None:
        fold = folding(labels)
        assert {fold(label) for label in labels} == {into}
        (warning,) = fold.warnings()
        assert f"are taken for one label, '{into}'; data.fold_labels: false keeps them apart" in warning
        assert all(f"'{label}' {labels.count(label)}" in warning for label in labels)

    def test_leaves_what_differs(self) -> None:
        labels = ("x2", "x\u00b2", "1.5", "1", "01", "10", "bug", "bugs", "1.0.0")
        assert folded(*labels) == list(labels)

    def test_leaves_a_label_that_all_rows_spell_in_one_way(self) -> None:
        assert folded("facturacio\u0301n", "a") == ["facturacio\u0301n", "a"]

    def test_goes_into_the_labels_that_are_listed(self) -> None:
        labels = ("US", "us", "Bug", "BUG", "bug\u00a0", "Us", "other")
        assert folded(*labels, listed=("US", "us", "bug")) == ["US", "us", "bug", "bug", "bug", "Us", "other"]


class TestDoubts:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("billing", "billing."),
            ("sign in", "sign-in"),
            ("sign_in", "sign in"),
            ("log in", "login"),
            ("refund", "refunds"),
            ("facturación", "facturacion"),
            ("billing", "biling"),
            ("billing", "biilling"),
            ("billing", "blilling"),
            ("bug", "b\u0443g".replace("\u0443", "u\u200a").strip()),
            ("caps", "\u0441aps"),
        ],
    )
    def test_are_said_with_counts(self, one: str, other: str) -> None:
        assert f"'{one}' (50 rows) and '{other}' (2) may be one" in "".join(doubtful({one: 50, other: 2, "else": 9}))

    @pytest.mark.parametrize(
        "counts",
        [
            {"level 1": 50, "level 2": 2},
            {"male": 50, "female": 2},
            {"import": 50, "export": 50},
            {"cat": 50, "car": 2},
            {"US": 50, "us": 20},
            {"+": 50, "-": 20},
        ],
    )
    def test_are_not_raised_about_labels_that_differ(self, counts: dict[str, int]) -> None:
        assert not list(doubtful(counts))


def rows_of(*labels: str) -> list[dict[str, Any]]:
    return [{"text": f"film {n} is number {n * n}", "label": labels[n % len(labels)]} for n in range(120)]


class TestInARecipe:
    def load(self, make_recipe: MakeRecipe, path: Path, task: dict[str, Any] | None = None, **data: Any) -> Splits:
        told = {"kind": "classification", **(task or {})}
        recipe = make_recipe(task=told, data={"path": str(path), "validation": 0.2, "test": 0.2, **data})
        return load_splits(recipe, path.parent / "cache")

    def test_labels_are_folded_in_all_parts(self, make_recipe: MakeRecipe, write_rows: WriteRows) -> None:
        far = write_rows(rows_of("BUG ", "Billing\u00a0"), "far.jsonl")
        path = write_rows(rows_of("bug", " bug", "billing", "Bug", "billing"))
        splits = self.load(make_recipe, path, extra_tests={"far": {"path": str(far)}})
        parts = (splits.train, splits.validation, splits.test, *splits.extra_tests.values())
        assert {row.answer for part in parts for row in part} == {"bug", "billing"}

    def test_labels_stay_apart_where_told(self, make_recipe: MakeRecipe, write_rows: WriteRows) -> None:
        path = write_rows(rows_of("US", "us"))
        with pytest.raises(HotswapError, match="one label only"):
            self.load(make_recipe, path)
        for told in ({"fold_labels": False}, {"task": {"labels": ["US", "us"]}}):
            splits = self.load(make_recipe, path, **told)
            assert {row.answer for row in splits.train} == {"US", "us"}

    def test_listed_labels_are_those_of_the_rows_whatever_their_blanks(
        self, make_recipe: MakeRecipe, write_rows: WriteRows
    ) -> None:
        splits = self.load(make_recipe, write_rows(rows_of(" Billing ", "bug")), {"labels": ["billing", " bug "]})
        assert {row.answer for row in splits.train} == {"billing", "bug"}

    def test_pairs_that_are_one_label_are_refused(self, make_recipe: MakeRecipe, write_rows: WriteRows) -> None:
        rows = [{"text": f"film {n}", "chosen": "ab"[n % 2], "rejected": "ba"[n % 2]} for n in range(60)]
        rows[7] = {"text": "film 7", "chosen": "a", "rejected": "A"}
        recipe = make_recipe(objective="dpo", data={"path": str(write_rows(rows))})
        with pytest.raises(HotswapError, match="row 8: 'a' and 'A' are one label"):
            load_splits(recipe, Path("cache"))

    def test_data_check_counts_them(self, make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path) -> None:
        path = write_rows(rows_of("bug", "bug", "bug", "Bug", "billing", "billing\u00a0", "billing.", "billing"))
        recipe = make_recipe(data={"path": str(path)})
        found = check_data(recipe, tmp_path / "cache", len)
        said = [(f.level, f.message) for f in found if f.check == "labels"]
        assert [level for level, _ in said] == ["warning", "warning"]
        assert "'bug' 45, 'Bug' 15 are taken for one label" in said[0][1]
        assert "'billing' (45 rows) and 'billing.' (15) may be one" in said[1][1]
        assert Finding("note", "classes", "3 labels: bug 60, billing 45, billing. 15") in found


class TestInYaml:
    @pytest.mark.parametrize(
        ("written", "labels"),
        [
            ("[1, 2, 3]", ("1", "2", "3")),
            ("[yes, no]", ("yes", "no")),
            ("[on, Off, ON]", ("on", "Off", "ON")),
            ("[true, false]", ("true", "false")),
            (
                "[~, null, 1.0, 0x10, 1_000, 010, 1:30, .inf]",
                ("~", "null", "1.0", "0x10", "1_000", "010", "1:30", ".inf"),
            ),
            ("[2024-03-05, 1e3]", ("2024-03-05", "1e3")),
            ("\n  - no\n  - 'yes'\n  - \"a, b\"", ("no", "yes", "a, b")),
            ("&names [no, yes]", ("no", "yes")),
        ],
    )
    def test_labels_are_what_is_written(self, tmp_path: Path, written: str, labels: tuple[str, ...]) -> None:
        recipe = tmp_path / "mood.yaml"
        recipe.write_text(f"name: mood\ntask:\n kind: classification\n labels: {written}\ndata: {{path: rows.csv}}\n")
        assert load_recipe(recipe).task.labels == labels  # type: ignore[union-attr]

    def test_in_a_mix_and_on_the_command_line_too(self, tmp_path: Path) -> None:
        recipe = tmp_path / "mood.yaml"
        recipe.write_text(yaml.safe_dump(settings()))
        task = "{kind: classification, labels: [on, off]}"
        told = ("task.labels=[yes, no]", f"mix.far={{task: {task}, data: {{path: far.csv}}}}")
        loaded = load_recipe(recipe, told)
        assert loaded.task.labels == ("yes", "no")  # type: ignore[union-attr]
        assert loaded.mix["far"].task.labels == ("on", "off")  # type: ignore[union-attr]
        assert load_recipe(recipe, (f"task={task}",)).task.labels == ("on", "off")  # type: ignore[union-attr]

    def test_other_keys_mean_what_they_mean_to_yaml(self, tmp_path: Path) -> None:
        recipe = tmp_path / "mood.yaml"
        recipe.write_text(yaml.safe_dump(settings()) + "description: 'no'\n")
        assert load_recipe(recipe, ("data.mask=yes", "data.near_duplicates=group", "seed=0x10")).seed == 16

    def test_labels_given_in_python_may_be_numbers(self, make_recipe: MakeRecipe) -> None:
        task = make_recipe(task={"kind": "classification", "labels": [1, 2]}).task
        assert labels_of(task, []) == ("1", "2")  # type: ignore[arg-type]
