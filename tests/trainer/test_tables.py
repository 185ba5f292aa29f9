"""What people have is read as it was written: one small file of each program that writes such rows."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import HotswapError
from tests.trainer.conftest import MakeRecipe, WriteRows
from tests.trainer.workplace import Workplace, furnish
from trainer.data import load_splits
from trainer.origin import Origin
from trainer.rows import Columns, open_table

DATA = Path(__file__).parent / "data"
USUAL = [("I was charged twice", "billing"), ("The app, it crashes", "bug"), ('He said "no" to me', "login")]
NUMBERS = [("2024-03-05", "1.0"), ("007", "true")]

# file → how it was told to be read, what is in it, and what is said of it
FILES: dict[str, tuple[dict[str, Any], list[tuple[str, str]], str]] = {
    "alpaca.json": ({}, [(f"Sort.\n\n{text}", label) for text, label in USUAL], "instruction and output"),
    "as-written.csv": ({}, [*NUMBERS, ("NA", "None"), ("10:30:00", "null")], "comma-separated, quoted"),
    "as-written.jsonl": ({}, [*NUMBERS, ("NA", "12345678901234567890"), ("10:30:00", "null")], ""),
    "blanks-after-commas.csv": ({}, [USUAL[1], USUAL[0]], "comma-separated, quoted"),
    "completions.jsonl": ({}, USUAL, "prompt and completion"),
    "doccano.jsonl": ({}, USUAL, ""),
    "excel-blank-rows.csv": ({}, USUAL, "comma-separated, quoted"),
    "excel-semicolon.csv": ({}, USUAL, "semicolon-separated, quoted"),
    "excel-sep-line.csv": ({}, USUAL, "semicolon-separated, quoted"),
    "excel-unicode.txt": ({"encoding": "utf-16"}, USUAL, "tab-separated, quoted"),
    "excel-windows.csv": ({"encoding": "cp1252"}, [("Café noir", "bar"), ("Über dem Dach", "roof")], "semicolon"),
    "google-sheets.csv": ({}, USUAL, "comma-separated, quoted"),
    "google-sheets.tsv": ({}, USUAL, "tab-separated, not quoted"),
    "hive.txt": ({}, USUAL, "\\x01-separated, not quoted"),
    "label-studio.json": ({}, USUAL, "Label Studio's"),
    "mac.csv": ({}, USUAL, "comma-separated, quoted"),
    "mysql-outfile.tsv": (
        {},
        [USUAL[0], ("two\nlines and\ta tab", "bug"), ("C:\\new", "login")],
        "tab-separated, not quoted, with backslash escapes",
    ),
    "openai.jsonl": ({}, USUAL, "messages"),
    "pandas-index.csv": ({}, USUAL, "comma-separated, quoted"),
    "pandas.json": ({}, USUAL, ""),
    "pipe.psv": ({}, USUAL, "pipe-separated, not quoted"),
    "prodigy-binary.jsonl": ({}, USUAL, "Prodigy's"),
    "prodigy.jsonl": ({}, USUAL, "Prodigy's"),
    "quoted-lines.tsv": ({}, [("first line\nsecond\tline", "billing"), ("plain", "bug")], "tab-separated, quoted"),
    "r-write-csv.csv": ({}, USUAL, "comma-separated, quoted"),
    "r-write-table.tsv": ({}, USUAL, "with row names"),
    "semicolons-in-text.csv": ({}, [("first; then; last", "billing"), ("one; two; three", "bug")], "comma-separated"),
    "sharegpt.json": ({}, USUAL, "conversations"),
    "spark.csv": ({}, USUAL, "quoted, with backslashes"),
    "stray-quotes.tsv": (
        {},
        [
            ('"Urgent: pay', "billing"),
            ('it says "yes"', "bug"),
            ('5" screen', "login"),
            ('now"', "billing"),
            ('"Look" here', "bug"),
        ],
        "tab-separated, not quoted",
    ),
}


def read(path: Path, **told: Any) -> list[tuple[str, str]]:
    """Return text and answer of each row; of a row that is none, what is wrong with it."""
    table = open_table(Origin(path=path, **told), Columns("classification"), path.parent / "cache")
    return [(row.text, row.answer) if row else (f"row {number}", problem) for number, row, problem in table.rows()]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(HotswapError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_every_file_is_in_the_list() -> None:
    assert sorted(path.name for path in DATA.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_rows_are_what_the_file_says_and_how_it_was_read_is_said(name: str) -> None:
    told, rows, said = FILES[name]
    assert read(DATA / name, **told) == rows
    table = open_table(Origin(path=DATA / name, **told), Columns("classification"), DATA)
    assert said in " ".join(table.notes)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["excel-semicolon.csv", "google-sheets.tsv", "doccano.jsonl", "pandas.json"])
def test_packed_files_are_read_as_they_are_unpacked(tmp_path: Path, name: str, ending: str) -> None:
    import pyarrow

    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(
        ending, lambda content: pyarrow.compress(content, "zstd", asbytes=True)
    )
    packed = pack((DATA / name).read_bytes())
    assert read(written(tmp_path / f"{name}{ending}", packed)) == USUAL
    broken = written(tmp_path / f"broken-{name}{ending}", packed[:-9])
    assert "could not be read: it is not whole" in refusal(lambda: read(broken))


@pytest.mark.parametrize("row", [b"a,b\n", b"\n", b"a" * 1000])
def test_a_file_that_unpacks_to_more_than_a_text_would_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: bytes
) -> None:
    monkeypatch.setattr("trainer.files.FREE_BYTES", 2**20)
    bomb = written(tmp_path / "rows.csv.gz", gzip.compress(b"text,label\n" + row * (8 * 2**20 // len(row))))
    assert "it unpacks to more than" in refusal(lambda: read(bomb))


@pytest.mark.parametrize("name", ["rows.ndjson", "rows.jsonl"])
def test_json_lines_have_two_names(tmp_path: Path, name: str) -> None:
    assert read(written(tmp_path / name, (DATA / "doccano.jsonl").read_bytes())) == USUAL


@pytest.mark.parametrize(
    ("name", "advice"),
    [("rows.xlsx", "CSV UTF-8"), ("rows.zip", "unpack it"), ("rows.feather", ".parquet"), ("rows.sql", ".jsonl")],
)
def test_of_another_format_the_way_is_said(tmp_path: Path, name: str, advice: str) -> None:
    assert advice in refusal(lambda: read(written(tmp_path / name, "x")))


def test_parquet_keeps_what_was_text_and_writes_the_rest_as_json_and_sql_do(tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "text": pa.array(["2024-03-05", "007", "NA"]),
        "whole": pa.array([1, 2**62, None]),
        "half": pa.array([0.1, 1.0, float("nan")], pa.float32()),
        "true": pa.array([True, False, None]),
        "day": pa.array([datetime.date(2024, 3, 5), None, None]),
        "price": pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.00"), None]),
        "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
        "raw": pa.array([b"caf\xc3\xa9", b"\xff", None]),
    }
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    empty = "is empty; fill it in or remove the row."
    for column, first, second in (
        ("whole", "1", str(2**62)),
        ("half", "0.1", "1.0"),
        ("true", "true", "false"),
        ("price", "1.50", "2.00"),
    ):
        said = [answer for _, answer in read(tmp_path / "rows.parquet", answer=column)]
        assert said == [first, second, f"column '{column}' {empty}"]
    assert [answer for _, answer in read(tmp_path / "rows.parquet", answer="kind")] == ["a", "b", "a"]
    assert read(tmp_path / "rows.parquet", answer="day")[0] == ("2024-03-05", "2024-03-05")
    assert [answer for _, answer in read(tmp_path / "rows.parquet", answer="raw")][:2] == [
        "café",
        "column 'raw' holds bytes that are not UTF-8; decode them first.",
    ]


def test_a_file_that_has_changed_is_read_anew_whatever_its_time_says(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", "text,label\nfirst,a\n")
    read(path)
    before = path.stat()
    written(path, "text,label\nother,b\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(path) == [("other", "b")]


class TestQuotationMarks:
    def test_that_are_never_closed_are_named_by_their_line(self, tmp_path: Path) -> None:
        path = written(tmp_path / "rows.csv", 'text,label\nfine,a\n"open,b\nnext,a\nlast,b\n')
        assert "line 3 opens a quotation mark that is never closed" in refusal(lambda: read(path))
        assert read(path, quoting="none")[1] == ('"open', "b")

    def test_that_close_in_a_later_cell_are_named_by_both_lines(self, tmp_path: Path) -> None:
        path = written(tmp_path / "rows.csv", 'text,label\nfine,a\n"open,b\nnext,a\n"an, other",b\n')
        text = refusal(lambda: read(path))
        assert "line 3 opens a quotation mark that closes within a cell of line 5" in text

    def test_that_take_in_what_look_like_rows_are_asked_about(self, tmp_path: Path) -> None:
        path = written(tmp_path / "rows.csv", 'text,label\nfine,a\n"open,b\nnext,a\nsays so",b\nlast,b\n')
        assert "line 3 opens a quotation mark that takes in the next lines" in refusal(lambda: read(path))
        assert len(read(path, quoting="quoted")) == 3
        assert len(read(path, quoting="none")) == 5

    def test_around_letters_of_several_lines_are_no_cause_to_ask(self, tmp_path: Path) -> None:
        path = written(tmp_path / "rows.csv", 'text,label\nfine,a\n"Dear all,\nI ask, please\nBob",b\n')
        assert read(path)[1] == ("Dear all,\nI ask, please\nBob", "b")

    def test_around_every_cell_of_a_column_are_no_part_of_them(self, tmp_path: Path) -> None:
        assert read(written(tmp_path / "rows.tsv", 'text\tlabel\n"a"\t1\n"b"\t2\n')) == [("a", "1"), ("b", "2")]


class TestWhatIsTold:
    @pytest.mark.parametrize(("told", "text"), [("semicolon", "a,b"), (";", "a,b"), ("tab", "a,b"), ("\\t", "a,b")])
    def test_of_the_separator_decides(self, tmp_path: Path, told: str, text: str) -> None:
        separator = "\t" if "t" in told else ";"
        path = written(tmp_path / "rows.csv", f"text{separator}label,text\n{text}{separator}x,y\n")
        if told == ";":
            assert read(path, separator=told, answer="label,text") == [("a,b", "x,y")]
        else:
            assert read(path, separator=told, answer="label,text")[0][0] == text

    @pytest.mark.parametrize("origin", [{"separator": ";;"}, {"separator": '"'}, {"encoding": "utf-99"}])
    def test_is_looked_at(self, origin: dict[str, str]) -> None:
        with pytest.raises(ValueError, match=r"one character|is none that Python knows"):
            Origin(path=Path("rows.csv"), **origin)

    def test_of_another_encoding_than_the_file_has_is_refused_with_the_line(self, tmp_path: Path) -> None:
        path = written(tmp_path / "rows.csv", "text,label\nfine,a\ncafé,b\n".encode("cp1252"))
        assert "line 3 is not UTF-8; save the file as UTF-8" in refusal(lambda: read(path))
        assert "cp1252" in refusal(lambda: read(path))
        assert read(path, encoding="cp1252")[1] == ("café", "b")
        assert "line 3 is not ascii" in refusal(lambda: read(path, encoding="ascii"))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


class TestChats:
    def test_of_several_turns_name_the_command_that_converts(self, write_rows: WriteRows) -> None:
        turns = [user("hi"), assistant("hello"), user("it crashes"), assistant("bug")]
        path = write_rows([{"messages": turns[2:]}, {"messages": turns}])
        row, problem = read(path)[1]
        assert row == "row 2"
        assert problem.startswith("has 3 turns before the answer, and a row has one text; `python -m trainer data conv")

    def test_whose_systems_differ_lose_nothing_in_silence(self, write_rows: WriteRows) -> None:
        rows = [
            {"messages": [{"role": "system", "content": f"As {n}."}, user("x"), assistant("bug")]} for n in ("a", "b")
        ]
        assert "another system turn" in read(write_rows(rows))[1][1]

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            ({"messages": [user("x")]}, "does not end with an answer"),
            ({"messages": [assistant("x")]}, "has no user turn"),
            ({"messages": "x"}, "holds no list of turns"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "a turn of 'tool'"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, assistant("x")]}, "not text alone"),
            ({"data": {"text": "x"}, "annotations": [{"result": [{"value": {"choices": ["a", "b"]}}]}]}, "2 labels"),
            ({"data": {"text": "x"}, "annotations": [{"result": [{"value": {"start": 0}}]}]}, "labels of parts"),
            ({"text": "x", "spans": [{"start": 0}], "_task_hash": 1, "answer": "accept"}, "has spans and no label"),
            ({"text": "x", "labels": [[0, 1, "PER"]]}, "has labels of parts"),
        ],
    )
    def test_and_annotations_that_are_no_row_say_why(self, write_rows: WriteRows, row: dict, said: str) -> None:
        ((_, problem),) = read(write_rows([row]))
        assert said in problem

    def test_with_columns_of_their_own_are_plain_tables(self, write_rows: WriteRows) -> None:
        row = {"instruction": "Sort.", "input": "x", "output": "bug"}
        assert read(write_rows([row]), text="input", answer="output") == [("x", "bug")]


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Workplace:
    return furnish(tmp_path, tiny_folder)


class TestConverting:
    def test_makes_rows_of_what_can_be_and_says_what_cannot(self, place: Workplace, write_rows: WriteRows) -> None:
        turns = [user("hi"), assistant("hello"), user("it crashes"), assistant("bug")]
        write_rows([{"messages": turns, "by": "ann"}, {"messages": turns[:1]}, {"messages": turns[:2]}], "chat.jsonl")
        done = place.run("data", "convert", "chat.jsonl", "--out", "out.jsonl")
        assert done.status == 0
        assert done.out == "2 rows in out.jsonl, 1 not converted\n"
        assert "not converted: row 2: does not end with an answer" in done.err
        rows = [json.loads(line) for line in (place.folder / "out.jsonl").read_text().splitlines()]
        assert rows == [
            {"text": "User: hi\nAssistant: hello\nUser: it crashes", "label": "bug", "by": "ann"},
            {"text": "hi", "label": "hello"},
        ]

    def test_keeps_what_the_system_says_where_told(self, place: Workplace) -> None:
        place.run("data", "convert", DATA / "openai.jsonl", "--out", "out.jsonl", "--keep-system")
        first = (place.folder / "out.jsonl").read_text().splitlines()[0]
        assert json.loads(first) == {"text": "Sort.\n\nI was charged twice", "label": "billing"}

    def test_writes_the_answer_as_the_task_wants_it(self, place: Workplace) -> None:
        told = ("--task", "summarization", "--answer", "label")
        assert place.run("data", "convert", DATA / "spark.csv", "--out", "out.jsonl", *told).status == 0
        assert json.loads((place.folder / "out.jsonl").read_text().splitlines()[2])["summary"] == "login"

    def test_of_nothing_writes_nothing(self, place: Workplace, write_rows: WriteRows) -> None:
        write_rows([{"messages": [user("x")]}], "chat.jsonl")
        done = place.run("data", "convert", "chat.jsonl", "--out", "out.jsonl")
        assert (done.status, (place.folder / "out.jsonl").exists()) == (1, False)
        assert "nothing that can be converted: row 1: does not end" in done.err
        assert place.run("data", "convert", "chat.jsonl", "--out", "chat.jsonl").status == 1


@pytest.mark.parametrize("name", [name for name, (told, *_) in FILES.items() if not told])
def test_data_check_looks_at_every_kind_of_file(place: Workplace, name: str) -> None:
    done = place.run("data", "check", DATA / name)
    assert f"{len(FILES[name][1])} usable rows" in done.out
    assert done.err == ""


class TestRareLabels:
    def load(self, make_recipe: MakeRecipe, path: Path, seed: int, **data: Any) -> Any:
        recipe = make_recipe(seed=seed, data={"path": str(path), "validation": 0.3, "test": 0.3, **data})
        return load_splits(recipe, path.parent / "cache")

    @pytest.mark.parametrize("seed", range(12))
    @pytest.mark.parametrize("data", [{}, {"stratified": True}, {"train_rows": 6}])
    def test_of_two_rows_are_trained_on(
        self, make_recipe: MakeRecipe, write_rows: WriteRows, seed: int, data: dict
    ) -> None:
        rows = [{"text": f"film {n}", "label": "ab"[n % 2]} for n in range(60)]
        rows += [{"text": f"rare {n}", "label": "rare"} for n in range(2)]
        splits = self.load(make_recipe, write_rows(rows), seed, **data)
        assert "rare" in {row.answer for row in splits.train}

    def test_of_one_row_that_is_held_out_say_what_to_do(self, make_recipe: MakeRecipe, write_rows: WriteRows) -> None:
        rows = [{"text": f"film {n}", "label": "ab"[n % 2]} for n in range(60)] + [{"text": "odd", "label": "rare"}]
        path, said = write_rows(rows), []
        for seed in range(12):
            try:
                self.load(make_recipe, path, seed)
            except HotswapError as error:
                said.append(str(error))
        assert 0 < len(said) < 12
        assert "label 'rare' is not among ['a', 'b']" in said[0]
        assert "1 row of one group" in said[0]
        assert "61), held out for testing" in said[0]
        assert "find more of its rows, merge it with another label, or remove it" in said[0]
