"""The store: immutable versions, an append-only log of releases, one primitive (create-if-absent) under both."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import obstore
import pytest

import adapters.seed
import adapters.store
from adapters.base_model import Base
from adapters.errors import GenerationConflict, HotswapError, InvalidAdapter, NotInStore, StoreUnavailable
from adapters.intake import add_version
from adapters.manifest import Manifest
from adapters.releases import NewRelease, Release, Share
from adapters.seed import open_store
from adapters.store import CONFIG, MANIFEST, PULSE, WEIGHTS, Store
from adapters.tasks import ClassificationTask
from tests.conftest import MakeAdapter

WRITERS = 6
Add = Callable[..., Manifest]


@pytest.fixture(params=["disk", "memory", "S3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Replaces the store on disk of the other tests: nothing here may assume a disk."""
    if request.param == "S3":
        return Store(request.getfixturevalue("s3").make_bucket())
    return Store(tmp_path / "store" if request.param == "disk" else "memory://")


@pytest.fixture
def add(store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task: ClassificationTask) -> Add:
    def add(name: str = "mood", **about: Any) -> Manifest:
        return add_version(store, name, make_adapter(), sentiment_task, tiny, **about)

    return add


@pytest.fixture
def mood(store: Store, add: Add) -> Store:
    """A store with three versions of ``mood``, none released."""
    for _ in range(3):
        add()
    return store


def put(store: Store, path: str, content: bytes) -> None:
    """Change what the store holds behind its back."""
    obstore.put(store._objects, path, content)


def get(store: Store, path: str) -> bytes:
    return bytes(obstore.get(store._objects, path).bytes())


def everything(store: Store) -> dict[str, bytes]:
    """Return all objects but the pulse, which is the one that changes."""
    paths = [entry["path"] for batch in obstore.list(store._objects) for entry in batch]
    return {path: get(store, path) for path in paths if path != PULSE}


def fail(*_: Any) -> Any:
    raise KeyboardInterrupt


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Run the calls in threads; return what each gave back or raised."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except HotswapError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


def all_look_before_one_writes(monkeypatch: pytest.MonkeyPatch, store: Store, look: str) -> None:
    """Make the race certain: every writer has seen the same state before the first one writes."""
    together, looked = Barrier(WRITERS), getattr(store, look)

    def held(name: str) -> Any:
        seen = looked(name)
        together.wait(timeout=30)
        return seen

    monkeypatch.setattr(store, look, held)


class TestVersions:
    def test_are_numbered_from_one(self, store: Store, add: Add) -> None:
        assert [add().version, add().version, add("brief").version] == [1, 2, 1]
        assert store.names() == ["brief", "mood"]
        assert store.versions("mood") == [1, 2]

    def test_carry_the_manifest_they_were_added_with(self, store: Store, add: Add) -> None:
        added = add(description="What a film is like.", metrics={"accuracy": 0.9})
        manifest, digest = store.manifest("mood", 1)
        assert manifest == added
        assert manifest.metrics == {"accuracy": 0.9}
        assert digest.startswith("sha256:")

    def test_take_the_card_along(self, store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task) -> None:
        folder = make_adapter()
        (folder / "README.md").write_text("# mood")
        (folder / "notes.txt").write_text("private")
        manifest = add_version(store, "mood", folder, sentiment_task, tiny)
        assert set(manifest.files) == {CONFIG, WEIGHTS, "README.md"}
        assert not [path for path in everything(store) if "notes" in path]

    @pytest.mark.parametrize("killed_at", ["the claim", "the weights", "the manifest"])
    def test_stay_invisible_until_the_manifest_is_written(
        self,
        store: Store,
        add: Add,
        make_adapter: MakeAdapter,
        monkeypatch: pytest.MonkeyPatch,
        killed_at: str,
    ) -> None:
        folder, described = make_adapter(), add()
        describe = fail if killed_at == "the claim" else lambda _: described
        with monkeypatch.context() as patch:
            if killed_at != "the claim":
                patch.setattr(obstore, "put", kill_before(WEIGHTS if killed_at == "the weights" else MANIFEST))
            with pytest.raises(KeyboardInterrupt):
                store.add("mood", folder, describe)
        assert store.versions("mood") == [1]
        assert list(store.problems()) == []
        with pytest.raises(NotInStore, match="mood@2 is not in the store"):
            store.manifest("mood", 2)
        assert add().version == 3, "a number that was claimed is never used again"

    def test_of_an_unfinished_first_version_alone_make_no_name(self, store: Store, make_adapter: MakeAdapter) -> None:
        with pytest.raises(KeyboardInterrupt):
            store.add("mood", make_adapter(), fail)
        assert store.names() == []
        assert store.versions("mood") == []

    def test_added_at_the_same_time_get_a_number_each(
        self, store: Store, add: Add, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        all_look_before_one_writes(monkeypatch, store, "_listed")
        outcomes = at_once([add] * WRITERS)
        monkeypatch.undo()
        assert sorted(manifest.version for manifest in outcomes) == list(range(1, WRITERS + 1))
        assert store.versions("mood") == list(range(1, WRITERS + 1))
        assert list(store.problems()) == []

    @pytest.mark.parametrize("field", [{"description": "x" * 2001}, {"unheard_of": 1}, {"profile": {"rows": 0}}])
    def test_with_a_field_that_does_not_fit_claim_no_number(
        self, store: Store, add: Add, field: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidAdapter, match=next(iter(field))):
            add(**field)
        assert everything(store) == {}

    def test_whose_label_tokens_the_base_lacks_are_refused(
        self, store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task: ClassificationTask
    ) -> None:
        beyond = sentiment_task.labels[1].model_copy(update={"token_id": 40_000})
        task = sentiment_task.model_copy(update={"labels": (sentiment_task.labels[0], beyond)})
        with pytest.raises(InvalidAdapter, match="labels negative have tokens that tiny-llama lacks"):
            add_version(store, "mood", make_adapter(), task, tiny)
        assert everything(store) == {}

    @pytest.mark.parametrize("name", ["../mood", "mood/versions", "", ".", "..", "MOOD", "mood\n", "a" * 65])
    def test_have_names_that_cannot_leave_the_store(self, store: Store, make_adapter: MakeAdapter, name: str) -> None:
        for call in (store.versions, store.history, store.released, lambda name: store.manifest(name, 1)):
            with pytest.raises(NotInStore, match="an adapter's name is made of"):
                call(name)
        with pytest.raises(NotInStore):
            store.add(name, make_adapter(), fail)
        assert everything(store) == {}

    def test_that_are_unknown_are_said_to_be(self, mood: Store, tmp_path: Path) -> None:
        for call in (lambda: mood.manifest("mood", 9), lambda: mood.fetch("nobody", 1, tmp_path)):
            with pytest.raises(NotInStore, match=r"@\d is not in the store"):
                call()
        assert mood.versions("nobody") == []
        assert mood.released("nobody") is None
        assert mood.history("nobody") == []

    def test_that_carry_the_manifest_of_another_are_refused(self, mood: Store) -> None:
        put(mood, f"mood/versions/2/{MANIFEST}", get(mood, f"mood/versions/1/{MANIFEST}"))
        with pytest.raises(InvalidAdapter, match="mood@2 carries the manifest of mood@1"):
            mood.manifest("mood", 2)


class TestFetching:
    def test_gives_a_folder_with_the_version_s_files(self, mood: Store, tmp_path: Path) -> None:
        folder = mood.fetch("mood", 1, tmp_path)
        assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS}
        assert (folder / WEIGHTS).read_bytes() == get(mood, f"mood/versions/1/{WEIGHTS}")

    def test_reads_the_store_once(self, mood: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = mood.fetch("mood", 1, tmp_path)
        monkeypatch.setattr(mood, "read", fail)
        assert mood.fetch("mood", 1, tmp_path) == folder

    def test_keeps_versions_apart(self, mood: Store, tmp_path: Path) -> None:
        assert mood.fetch("mood", 1, tmp_path) != mood.fetch("mood", 2, tmp_path)

    @pytest.mark.parametrize("damage", ["one bit", "truncated", "longer", "missing"])
    @pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
    def test_refuses_files_that_are_not_what_the_manifest_says(
        self, mood: Store, tmp_path: Path, damage: str, file: str
    ) -> None:
        path = f"mood/versions/2/{file}"
        spoil(mood, path, damage)
        with pytest.raises(InvalidAdapter, match=rf"mood@2: {file} is (damaged|missing).*publish it again"):
            mood.fetch("mood", 2, tmp_path)
        assert not list((tmp_path / "adapters").iterdir()), "nothing of it is left in the cache"
        assert mood.fetch("mood", 1, tmp_path).is_dir()

    @pytest.mark.parametrize("damage", ["one bit", "missing"])
    def test_fetches_a_damaged_copy_again(self, mood: Store, tmp_path: Path, damage: str) -> None:
        kept = mood.fetch("mood", 1, tmp_path) / WEIGHTS
        sound = kept.read_bytes()
        if damage == "missing":
            kept.unlink()
        else:
            kept.write_bytes(flipped(sound))
        assert (mood.fetch("mood", 1, tmp_path) / WEIGHTS).read_bytes() == sound

    @pytest.mark.parametrize("state", ["absent", "damaged"])
    def test_may_be_done_by_many_at_once(
        self, mood: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
    ) -> None:
        if state == "damaged":
            (mood.fetch("mood", 1, tmp_path) / WEIGHTS).unlink()
        together, read = Barrier(WRITERS), mood.read

        def held(path: str) -> Any:
            if path.endswith(CONFIG):
                together.wait(timeout=30)
            return read(path)

        monkeypatch.setattr(mood, "read", held)
        folders = at_once([lambda: mood.fetch("mood", 1, tmp_path)] * WRITERS)
        assert len(set(folders)) == 1
        assert {path.name for path in folders[0].iterdir()} == {CONFIG, WEIGHTS}
        assert list(folders[0].parent.iterdir()) == [folders[0]], "no scratch is left"


class TestReleases:
    def test_are_an_append_only_log(self, mood: Store) -> None:
        mood.release("mood", NewRelease(stable=1, by="ann", why="first"))
        before = everything(mood)
        mood.release("mood", NewRelease(stable=2, canary=Share(version=3, percent=10), by="ben"))
        assert everything(mood).items() >= before.items(), "nothing is edited in place"
        first, second = mood.history("mood")
        assert (first.generation, first.stable, first.canary, first.by, first.why) == (1, 1, None, "ann", "first")
        assert (second.generation, second.stable, second.canary) == (2, 2, Share(version=3, percent=10))
        assert second.at >= first.at
        assert mood.released("mood") == second

    def test_of_one_adapter_leave_the_others_alone(self, mood: Store, add: Add) -> None:
        add("brief")
        mood.release("mood", NewRelease(stable=1))
        assert mood.released("brief") is None

    @pytest.mark.parametrize(("stable", "canary"), [(9, None), (1, Share(version=9, percent=10))])
    def test_of_a_version_that_is_not_there_are_refused(self, mood: Store, stable: int, canary: Share | None) -> None:
        before = everything(mood)
        with pytest.raises(NotInStore, match="is not in the store"):
            mood.release("mood", NewRelease(stable=stable, canary=canary))
        assert everything(mood) == before

    @pytest.mark.parametrize("percent", [0, 101])
    def test_take_shares_from_1_to_100(self, percent: int) -> None:
        with pytest.raises(ValueError, match="percent"):
            Share(version=1, percent=percent)

    @pytest.mark.parametrize("expected", [0, 1, 3, 7])
    def test_whose_generation_is_not_the_expected_one_change_nothing(self, mood: Store, expected: int) -> None:
        mood.release("mood", NewRelease(stable=1))
        mood.release("mood", NewRelease(stable=2))
        before = everything(mood)
        with pytest.raises(GenerationConflict, match=f"mood is at generation 2, not {expected}; look, then retry"):
            mood.release("mood", NewRelease(stable=3), expected_generation=expected)
        assert everything(mood) == before
        assert mood.release("mood", NewRelease(stable=3), expected_generation=2).generation == 3

    def test_may_expect_to_be_the_first(self, mood: Store) -> None:
        assert mood.release("mood", NewRelease(stable=1), expected_generation=0).generation == 1

    @pytest.mark.parametrize("expected", [0, None])
    def test_made_at_the_same_time_have_one_winner(
        self, mood: Store, monkeypatch: pytest.MonkeyPatch, expected: int
    ) -> None:
        all_look_before_one_writes(monkeypatch, mood, "_listed")
        outcomes = at_once(
            [
                lambda n=n: mood.release(
                    "mood", NewRelease(stable=1 + n % 3, by=f"writer {n}"), expected_generation=expected
                )
                for n in range(WRITERS)
            ]
        )
        monkeypatch.undo()
        won = [outcome for outcome in outcomes if isinstance(outcome, Release)]
        lost = [outcome for outcome in outcomes if isinstance(outcome, GenerationConflict)]
        assert (len(won), len(lost)) == (1, WRITERS - 1)
        assert mood.history("mood") == won, "what the losers wanted left no trace"

    def test_say_who_made_them_even_where_the_user_has_no_name(
        self, mood: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def nameless() -> str:
            raise KeyError("getpwuid(): uid not found: 10001")  # in a container that runs as a bare number

        monkeypatch.setattr("getpass.getuser", nameless)
        assert mood.release("mood", NewRelease(stable=1)).by == f"uid {os.getuid()}"

    def test_that_are_damaged_do_not_pass_for_another(self, mood: Store) -> None:
        mood.release("mood", NewRelease(stable=1))
        put(mood, "mood/releases/2.json", b'{"stable": ')
        with pytest.raises(InvalidAdapter, match="release 2 of mood is damaged; release again"):
            mood.released("mood")
        mended = mood.release("mood", NewRelease(stable=3))
        assert mended.generation == 3
        assert mood.released("mood") == mended

    def test_are_found_beside_files_that_are_none(self, mood: Store) -> None:
        mood.release("mood", NewRelease(stable=1))
        put(mood, "mood/releases/notes.json", b"{}")
        put(mood, "mood/releases/2.json.bak", b"{}")
        assert [release.generation for release in mood.history("mood")] == [1]


class TestRollback:
    def test_releases_again_what_was_served_before(self, mood: Store) -> None:
        mood.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=5)))
        mood.release("mood", NewRelease(stable=3))
        back = mood.rollback("mood", by="ann")
        assert (back.generation, back.stable, back.canary) == (3, 1, Share(version=2, percent=5))
        assert back.why == "rollback of generation 2"
        assert [release.stable for release in mood.history("mood")] == [1, 3, 1], "the mistake stays in the log"

    def test_says_why_in_the_caller_s_words(self, mood: Store) -> None:
        mood.release("mood", NewRelease(stable=1))
        mood.release("mood", NewRelease(stable=2))
        assert mood.rollback("mood", why="worse on short texts").why == "worse on short texts"

    @pytest.mark.parametrize("releases", [0, 1])
    def test_without_an_earlier_release_is_refused(self, mood: Store, releases: int) -> None:
        for _ in range(releases):
            mood.release("mood", NewRelease(stable=1))
        before = everything(mood)
        with pytest.raises(NotInStore, match="mood has no release to go back to"):
            mood.rollback("mood")
        assert everything(mood) == before

    @pytest.mark.parametrize("damaged", [1, 3], ids=["an old record", "the newest record"])
    def test_works_though_a_record_it_does_not_need_is_damaged(self, mood: Store, damaged: int) -> None:
        for version in (1, 2, 3):
            mood.release("mood", NewRelease(stable=version))
        put(mood, f"mood/releases/{damaged}.json", b"")
        assert mood.rollback("mood").stable == 2

    def test_at_the_same_time_as_a_release_does_not_undo_it(self, mood: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        mood.release("mood", NewRelease(stable=1))
        mood.release("mood", NewRelease(stable=2))
        look = mood._release

        def someone_is_faster(name: str, generation: int) -> Release:
            record = look(name, generation)
            monkeypatch.undo()
            mood.release("mood", NewRelease(stable=3))
            return record

        monkeypatch.setattr(mood, "_release", someone_is_faster)
        with pytest.raises(GenerationConflict):
            mood.rollback("mood")
        assert [release.stable for release in mood.history("mood")] == [1, 2, 3]


class TestPulse:
    def test_is_none_before_the_first_change(self, store: Store) -> None:
        assert store.pulse() is None

    def test_is_another_after_every_release(self, mood: Store, add: Add) -> None:
        add("brief")
        pulses = [mood.release("mood", NewRelease(stable=1)) and mood.pulse()]
        pulses += [
            mood.release("mood", NewRelease(stable=1)) and mood.pulse(),
            mood.release("brief", NewRelease(stable=1)) and mood.pulse(),
        ]
        pulses += [mood.rollback("mood") and mood.pulse()]
        assert None not in pulses
        assert len(set(pulses)) == 4

    def test_is_another_after_a_version_was_added(self, mood: Store, add: Add) -> None:
        seen = mood.pulse()
        add()
        assert mood.pulse(seen) not in (None, seen)

    def test_stays_while_nothing_is_changed(self, mood: Store) -> None:
        mood.release("mood", NewRelease(stable=1))
        seen = mood.pulse()
        with pytest.raises(GenerationConflict):
            mood.release("mood", NewRelease(stable=2), expected_generation=0)
        assert mood.pulse(seen) == seen
        assert mood.pulse() == seen

    def test_tells_who_has_seen_it_of_the_next_release(self, mood: Store) -> None:
        mood.release("mood", NewRelease(stable=1))
        seen = mood.pulse()
        mood.release("mood", NewRelease(stable=2))
        assert mood.pulse(seen) not in (None, seen)

    def test_that_cannot_be_written_fails_no_release(self, mood: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        put_, seen = obstore.put, mood.pulse()

        def refuses(objects: Any, path: str, *rest: Any, **settings: Any) -> Any:
            if path == PULSE:
                raise TimeoutError
            return put_(objects, path, *rest, **settings)

        monkeypatch.setattr(obstore, "put", refuses)
        assert mood.release("mood", NewRelease(stable=2)) == mood.released("mood")
        assert mood.pulse() == seen

    def test_is_no_adapter(self, mood: Store) -> None:
        mood.release("mood", NewRelease(stable=1))
        assert mood.names() == ["mood"]
        assert list(mood.problems()) == []


class TestVerifying:
    def test_finds_nothing_wrong_with_what_was_added(self, mood: Store) -> None:
        assert list(mood.problems()) == []

    @pytest.mark.parametrize("damage", ["one bit", "truncated", "missing"])
    def test_names_version_file_and_fault(self, mood: Store, damage: str) -> None:
        spoil(mood, f"mood/versions/2/{WEIGHTS}", damage)
        [(name, version, problem)] = mood.problems()
        assert (name, version) == ("mood", 2)
        assert problem.startswith(f"{WEIGHTS} is {'missing' if damage == 'missing' else 'damaged'}")

    def test_reports_a_damaged_manifest_and_goes_on(self, mood: Store, make_adapter: MakeAdapter) -> None:
        put(mood, f"mood/versions/1/{MANIFEST}", b"{")
        spoil(mood, f"mood/versions/3/{WEIGHTS}", "one bit")
        assert [version for _, version, _ in mood.problems()] == [1, 3]

    def test_passes_by_what_is_no_adapter(self, mood: Store) -> None:
        put(mood, "lost+found/versions/1/manifest.json", b"")  # as at the root of an ext4 volume
        put(mood, "README.md", b"")
        assert list(mood.problems()) == []
        assert mood.names() == ["mood"]


class TestOpening:
    @pytest.fixture(autouse=True)
    def places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_adapter, tiny, sentiment_task) -> Path:
        """A project of its own: ``starter`` holds two released adapters, ``var/store`` nothing yet."""
        starter = Store(tmp_path / "starter")
        for name in ("mood", "brief"):
            add_version(starter, name, make_adapter(), sentiment_task, tiny)
            starter.release(name, NewRelease(stable=1))
        monkeypatch.setattr(adapters.seed, "STARTER", tmp_path / "starter")
        monkeypatch.setattr(adapters.seed, "DEFAULT_STORE", tmp_path / "var" / "store")
        return tmp_path

    @pytest.mark.parametrize("said", [None, "", "var/store", "absolute"])
    def test_the_default_store_begins_with_the_shipped_adapters(
        self, places: Path, monkeypatch: pytest.MonkeyPatch, said: str | None
    ) -> None:
        monkeypatch.chdir(places)
        opened = open_store(str(places / "var" / "store") if said == "absolute" else said)
        assert opened.names() == ["brief", "mood"]
        assert list(opened.problems()) == []
        assert opened.released("mood") is not None
        assert [path.name for path in (places / "var").iterdir()] == ["store"], "no scratch is left"

    def test_another_folder_begins_empty_unless_asked(self, places: Path) -> None:
        assert open_store(str(places / "mine")).names() == []
        assert open_store(str(places / "mine"), seed="empty").names() == ["brief", "mood"]

    def test_what_is_in_a_store_is_left_alone(self, places: Path, make_adapter, tiny, sentiment_task) -> None:
        add_version(Store(places / "var" / "store"), "own", make_adapter(), sentiment_task, tiny)
        assert open_store().names() == ["own"]

    def test_seeding_happens_once(self, places: Path) -> None:
        open_store()
        shutil.rmtree(places / "var" / "store" / "brief")
        assert open_store().names() == ["mood"], "what an operator removed does not come back"

    def test_seeding_that_was_killed_is_finished_the_next_time(self, places: Path) -> None:
        store = places / "var" / "store"
        shutil.copytree(places / "starter" / "mood", store / "mood")
        shutil.copytree(places / "starter" / "brief" / "versions", store / ".seeding-x" / "brief" / "versions")
        opened = open_store()
        assert opened.names() == ["brief", "mood"]
        assert list(opened.problems()) == []

    @pytest.mark.parametrize("inside", [None, "lost+found", ".gitkeep"])
    def test_an_empty_mounted_volume_is_seeded(
        self, places: Path, monkeypatch: pytest.MonkeyPatch, inside: str | None
    ) -> None:
        volume = places / "volume"
        volume.mkdir()
        if inside:
            (volume / inside).mkdir()
        rename = Path.rename

        def within_one_volume(self: Path, target: Path) -> Path:
            if self.is_relative_to(volume) != Path(target).is_relative_to(volume) or Path(target) == volume:
                raise OSError(18, "Invalid cross-device link")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", within_one_volume)
        assert open_store(str(volume), seed="empty").names() == ["brief", "mood"]

    def test_seeding_may_be_done_by_many_at_once(self, places: Path) -> None:
        stores = at_once([open_store] * WRITERS)
        assert [store.names() for store in stores] == [["brief", "mood"]] * WRITERS
        assert list(stores[0].problems()) == []

    def test_a_project_that_ships_nothing_begins_empty(self, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(adapters.seed, "STARTER", places / "nothing")
        assert open_store().names() == []


class TestUnreachable:
    @pytest.mark.parametrize("place", ["/dev/null/store", "/dev/null", "unheard://of", "s3://", "file:///no/such/one"])
    def test_places_are_refused_in_one_line(self, place: str) -> None:
        with pytest.raises(StoreUnavailable) as refused:
            Store(place)
        assert str(refused.value).startswith(f"the store {place} cannot be used: ")
        assert "\n" not in str(refused.value)

    def test_servers_are_said_in_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {
            "ENDPOINT": "http://127.0.0.1:1",  # nobody listens there
            "ALLOW_HTTP": "true",
            "REGION": "nowhere-1",
            "ACCESS_KEY_ID": "key",
            "SECRET_ACCESS_KEY": "secret",
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        with pytest.raises(StoreUnavailable) as refused:
            Store("s3://bucket/prefix").names()
        assert str(refused.value).startswith("the store s3://bucket/prefix cannot be used: ")
        assert "\n" not in str(refused.value)
        assert "secret" not in str(refused.value)

    def test_an_error_without_a_text_is_named(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any, **__: Any) -> Any:
            raise TimeoutError

        monkeypatch.setattr(obstore, "get", broken)
        with pytest.raises(StoreUnavailable, match="cannot be used: TimeoutError"):
            store.manifest("mood", 1)

    def test_a_folder_without_write_permission_can_be_read_but_not_added_to(
        self, tmp_path: Path, make_adapter: MakeAdapter, tiny: Base, sentiment_task: ClassificationTask
    ) -> None:
        store = Store(tmp_path / "shut")
        add_version(store, "mood", make_adapter(), sentiment_task, tiny)
        folders = [path for path in (tmp_path / "shut").rglob("*") if path.is_dir()]
        for folder in folders:
            folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:  # root may write everywhere
            for above in tmp_path.parents[: len(tmp_path.parents) - 2]:
                above.chmod(above.stat().st_mode | 0o055)
            tmp_path.chmod(0o755)
            os.seteuid(65534)
        try:
            assert Store(tmp_path / "shut").versions("mood") == [1]
            with pytest.raises(StoreUnavailable):
                store.release("mood", NewRelease(stable=1))
        finally:
            os.seteuid(user)
            for folder in folders:
                folder.chmod(0o755)


def kill_before(file: str) -> Callable[..., Any]:
    put_ = obstore.put

    def killed(objects: Any, path: str, *rest: Any, **settings: Any) -> Any:
        return fail() if path.endswith(file) else put_(objects, path, *rest, **settings)

    return killed


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def spoil(store: Store, path: str, damage: str) -> None:
    content = get(store, path)
    if damage == "missing":
        obstore.delete(store._objects, path)
    else:
        put(store, path, {"one bit": flipped(content), "truncated": content[:-1], "longer": content + b"\0"}[damage])
