"""Blind judgement of two versions: the page, the key, the votes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.intake import add_version
from adapters.store import Store
from adapters.tasks import ClassificationTask
from tests.conftest import MakeAdapter
from tests.trainer.workplace import Workplace, furnish
from trainer import comparison
from trainer.comparison import Item
from trainer.rows import Row

ROWS = [Row(f"text {n} </script><b>", "", str(n)) for n in range(20)]
ONES, OTHERS = [f"one {n}" for n in range(20)], [f"other {n}" if n else "one 0" for n in range(20)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    comparison.write(tmp_path, "news@1", "news@2", comparison.items(ROWS, ONES, OTHERS), 20)
    return tmp_path


def voted(folder: Path, votes: Any, name: str = "votes.json", **changes: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps({"page": comparison.read_key(folder).page, "votes": votes, **changes}))
    return path


def for_a(folder: Path, wins: int) -> dict[str, str]:
    """Return votes in which the first side wins so many items and the other side the rest."""
    items: list[Item] = comparison.read_key(folder).items
    return {item.id: "left" if (item.left == "a") == (number < wins) else "right" for number, item in enumerate(items)}


def test_the_page_does_not_know_which_is_which_and_shows_text_as_text(folder: Path) -> None:
    page = (folder / "compare.html").read_text()
    assert "news@" not in page
    assert "</script><b>" not in page
    sides = [item.left for item in comparison.read_key(folder).items]
    assert {"a", "b"} == set(sides)


def test_equal_answers_are_not_to_be_judged(folder: Path) -> None:
    assert len(comparison.read_key(folder).items) == 19


def test_votes_are_counted_for_the_side_that_was_meant(folder: Path) -> None:
    key = comparison.read_key(folder)
    found = comparison.verdict(key, comparison.read_votes([voted(folder, for_a(folder, 15))], key))
    assert (found.a, found.b, found.ties, found.voters) == (15, 4, 0, 1)
    assert found.rate == pytest.approx(15 / 19)
    assert (found.low, found.high) == pytest.approx((0.567, 0.915), abs=1e-3)  # Wilson, by hand
    assert found.p_value == pytest.approx(0.0192, abs=1e-4)


def test_a_tie_is_half_a_win_and_says_nothing_of_who_is_better(folder: Path) -> None:
    key = comparison.read_key(folder)
    ties = {item.id: "tie" for item in key.items}
    found = comparison.verdict(key, [ties])
    assert (found.rate, found.p_value, found.low, found.high) == (0.5, 1.0, 0.0, 1.0)


def test_voters_are_held_against_each_other(folder: Path) -> None:
    key = comparison.read_key(folder)
    one, other = for_a(folder, 19), for_a(folder, 10)
    found = comparison.verdict(key, [one, other])
    assert found.agreement == pytest.approx(10 / 19)


def test_what_won_is_a_pair_to_train_on(folder: Path) -> None:
    key = comparison.read_key(folder)
    rows = list(comparison.pairs(key, [for_a(folder, 15), for_a(folder, 15), for_a(folder, 0)]))
    assert len(rows) == 19
    assert rows[0] == {"text": ROWS[1].text, "chosen": "one 1", "rejected": "other 1"}
    assert rows[-1] == {"text": ROWS[19].text, "chosen": "other 19", "rejected": "one 19"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"page": "0" * 16}, "another page"),
        ({"votes": {"x": "left"}}, r"votes\.json: 'x' is no item of the page"),
        ({"votes": {}}, "nobody voted"),
        ({"votes": None}, "no votes"),
        ({"votes": []}, "no votes"),
        ({"voter": 5}, "no votes"),
    ],
)
def test_votes_are_refused_for_what_is_wrong_in_them(folder: Path, changes: dict[str, Any], said: str) -> None:
    key = comparison.read_key(folder)
    with pytest.raises(HotswapError, match=said):
        comparison.read_votes([voted(folder, **{"votes": for_a(folder, 3), **changes})], key)


@pytest.mark.parametrize("choice", ["both", 1, ["left"], None])
def test_a_vote_is_left_right_or_tie(folder: Path, choice: Any) -> None:
    key = comparison.read_key(folder)
    path = voted(folder, {**for_a(folder, 3), key.items[4].id: choice})
    with pytest.raises(HotswapError, match=r"is no vote; each is left, right or tie"):
        comparison.read_votes([path], key)


@pytest.mark.parametrize(
    "content",
    [b"", b"5", b"[]", b'"votes"', b"\xff", b"[" * 9000],
    ids=["empty", "number", "list", "text", "bytes", "deep"],
)
def test_what_is_no_file_of_votes_is_refused(folder: Path, content: bytes) -> None:
    (folder / "votes.json").write_bytes(content)
    with pytest.raises(HotswapError, match="holds no votes"):
        comparison.read_votes([folder / "votes.json"], comparison.read_key(folder))


def test_two_voters_may_agree_on_everything(folder: Path) -> None:
    key = comparison.read_key(folder)
    paths = [voted(folder, for_a(folder, 3), f"{name}.json", voter=name) for name in ("anna", "ben")]
    assert comparison.verdict(key, comparison.read_votes(paths, key)).agreement == 1.0


def test_a_voter_who_went_on_after_saving_does_not_count_twice(folder: Path) -> None:
    key = comparison.read_key(folder)
    paths = [voted(folder, for_a(folder, wins), f"{wins}.json", voter="anna") for wins in (3, 4)]
    with pytest.raises(HotswapError, match=r"4\.json holds the votes of a file before it"):
        comparison.read_votes(paths, key)


# Runs the script of a page in as little of a browser as it needs; prints what was saved, for each visit.
BROWSER = """
const [script, data] = process.argv.slice(1), kept = {}, saved = [], parts = {};
const element = () => ({classList: {toggle() {}}, click() {}});
globalThis.document = {getElementById: id => parts[id] ??= element(), createElement: element};
globalThis.localStorage = {getItem: key => kept[key] ?? null, setItem: (key, value) => { kept[key] = value; }};
globalThis.Blob = class { constructor(said) { saved.push(...said); } };
globalThis.URL.createObjectURL = () => "";
parts.items = {textContent: data};
for (const choice of ["left", "right"]) { new Function(script)(); parts[choice].onclick(); parts.save.onclick(); }
console.log(saved.join("\\n"));
"""


def test_the_page_remembers_who_votes_and_knows_nobody_else(folder: Path) -> None:
    assert shutil.which("node"), "the page's script is run in node: apt-get install nodejs"
    _, data, script = (part.split("</script>")[0] for part in (folder / "compare.html").read_text().split("<script"))
    code, items = script.partition(">")[2], data.partition(">")[2]
    visits = [
        subprocess.run(["node", "-e", BROWSER, code, items], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    anna, ben = ([json.loads(line) for line in visit.splitlines()] for visit in visits)
    assert [list(save["votes"].values()) for save in anna] == [["left"], ["left", "right"]]
    assert anna[0]["voter"] == anna[1]["voter"] != ben[0]["voter"]
    paths = [voted(folder, **save, name=f"{save['voter']}.json") for save in (anna[1], ben[1])]
    assert len(comparison.read_votes(paths, comparison.read_key(folder))) == 2


def test_the_same_votes_do_not_count_twice_where_nobody_is_named(folder: Path) -> None:
    key = comparison.read_key(folder)
    paths = [voted(folder, for_a(folder, 3), name) for name in ("one.json", "two.json")]
    with pytest.raises(HotswapError, match=r"two\.json holds the votes of a file before it"):
        comparison.read_votes(paths, key)


def test_without_a_page_there_is_nothing_to_count(tmp_path: Path) -> None:
    with pytest.raises(HotswapError, match="write the page first"):
        comparison.read_key(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"items": []}', "[" * 9000], ids=["list", "lacking", "deep"])
def test_a_damaged_key_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "compare.key.json").write_text(content)
    with pytest.raises(HotswapError, match="missing or damaged"):
        comparison.read_key(tmp_path)


def test_the_key_of_a_page_that_is_out_is_not_overwritten(folder: Path) -> None:
    files = [folder / "compare.html", folder / "compare.key.json"]
    before = [file.read_bytes() for file in files]
    same, fewer = comparison.items(ROWS, ONES, OTHERS), comparison.items(ROWS[:9], ONES[:9], OTHERS[:9])
    comparison.write(folder, "news@1", "news@2", same, 20)
    for other, found in (("news@2", fewer), ("news@3", same)):
        with pytest.raises(HotswapError, match="of another page; give --folder, or delete it"):
            comparison.write(folder, "news@1", other, found, 20)
    assert [file.read_bytes() for file in files] == before


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, stocked: Store) -> Workplace:
    """Where mood@1, mood@2 and brief@1 are in the store; only the first two are of one task."""
    return furnish(tmp_path, tiny_folder)


def refused(place: Workplace, *arguments: object) -> str:
    result = place.run("compare", *arguments)
    assert (result.status, result.out) == (1, "")
    return result.err


ASKED = ("compare", "mood@1", "mood@2", "--on", "mood.yaml", "--folder", "judged")


def test_what_was_written_is_told_as_json_too(place: Workplace) -> None:
    told = place.run(*ASKED, "--rows", 12, "--json")
    key = comparison.read_key(place.folder / "judged")
    assert json.loads(told.out) == {
        "page": "judged/compare.html",
        "key": "judged/compare.key.json",
        "differ": len(key.items),
        "asked": 12,
    }
    assert place.run(*ASKED, "--rows", 12).status == 0
    assert "of another page" in refused(place, *ASKED[1:], "--rows", 11)


def test_where_nothing_differs_there_is_no_page(place: Workplace) -> None:
    asked = ("compare", "mood@1", "mood@1", "--on", "mood.yaml", "--rows", 5, "--folder", "judged")
    told = place.run(*asked)
    assert (told.status, told.out) == (
        0,
        "none of 5 answers differ: there is nothing to judge, and no page was written\n",
    )
    assert json.loads(place.run(*asked, "--json").out) == {"page": None, "key": None, "differ": 0, "asked": 5}
    assert not (place.folder / "judged").exists()


def test_what_cannot_be_compared_is_refused_before_a_model_is_loaded(
    place: Workplace, make_adapter: MakeAdapter, tiny: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.prediction.answers", lambda *_: pytest.fail("a model was loaded"))
    more = ClassificationTask.of("Review: {text}\nSentiment:", ["positive", "negative", "bug"], tiny.tokenizer)
    add_version(place.store, "mood", make_adapter(seed=9), more, tiny)
    assert "mood@1 and brief@1 do classification and summarization" in refused(
        place, "mood@1", "brief@1", "--on", "mood.yaml"
    )
    assert "mood@3 and mood@2 do not share 'bug' as a label" in refused(place, "mood@3", "mood@2", "--on", "mood.yaml")


def test_votes_are_counted_for_the_versions_that_were_judged(place: Workplace, folder: Path) -> None:
    votes = voted(folder, for_a(folder, 3))
    for sides in (("mood@1", "mood@14"), ("news@2", "news@1")):
        said = refused(place, *sides, "--votes", votes, "--folder", folder)
        assert f"is of news@1 and news@2, not of {sides[0]} and {sides[1]}; give the --folder" in said
    assert place.run("compare", "news@1", "news@2", "--votes", votes, "--folder", folder).status == 0
