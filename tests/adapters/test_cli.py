"""``python -m adapters``: what each command prints, how it fails, and that a refusal changes nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import adapters.__main__ as commands
from adapters.base_model import Base
from adapters.catalogue import Catalogue
from adapters.errors import NotInStore
from adapters.releases import Guard, NewRelease, Share
from adapters.store import WEIGHTS, Store
from adapters.tasks import ClassificationTask, SummarizationTask
from tests.conftest import MakeAdapter, make_keys

ROOT = Path(__file__).parents[2]


@dataclass
class Result:
    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_folder: Path) -> Run:
    """Run a command on the test's own store and the tiny base."""
    monkeypatch.setenv("HOTSWAP_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HOTSWAP_BASE_MODEL", str(tiny_folder))
    monkeypatch.setenv("HOTSWAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("getpass.getuser", lambda: "ann")

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["adapters", *map(str, arguments)])
        capsys.readouterr()
        try:
            status = commands.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        shown = capsys.readouterr()
        return Result(status, shown.out, shown.err)

    return run


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Run:
    """Run a command that must be refused with one line, and must change nothing in the store."""

    def files() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()}

    def refused(*arguments: object) -> Result:
        before = files()
        result = run(*arguments)
        assert result.status == 1, (result.out, result.err)
        assert result.out == ""
        assert result.err.startswith("python -m adapters: ")
        assert result.err.count("\n") == 1, result.err
        assert files() == before
        return result

    return refused


CLASSIFICATION = ("--task", "classification", "--labels", "positive, negative")


class TestAdd:
    def test_prints_the_version_and_nothing_else(self, run: Run, make_adapter: MakeAdapter) -> None:
        assert run("add", make_adapter(), "mood", *CLASSIFICATION).out == "1\n"
        again = run("add", make_adapter(), "mood", *CLASSIFICATION)
        assert (again.status, again.out) == (0, "2\n")
        assert again.err.splitlines() == [
            "No --template: taken to be trained with the prompt 'Text: {text}\\nLabel:'",
            "Not served yet: python -m adapters release mood 2",
        ]

    def test_prints_json(self, run: Run, make_adapter: MakeAdapter) -> None:
        result = run("add", make_adapter(), "mood", *CLASSIFICATION, "--json")
        assert json.loads(result.out) == {"name": "mood", "version": 1}

    def test_stores_what_was_said_about_it(self, run: Run, make_adapter: MakeAdapter, store: Store) -> None:
        said = ("--template", "Review: {text}\\nSentiment:", "--description", "Good or bad.")
        run("add", make_adapter(rank=4), "mood", *CLASSIFICATION, *said)
        manifest, _ = store.manifest("mood", 1)
        assert manifest.task.template.text == "Review: {text}\nSentiment:"
        assert isinstance(manifest.task, ClassificationTask)
        assert [label.name for label in manifest.task.labels] == ["positive", "negative"]
        assert (manifest.description, manifest.rank, manifest.base.name) == ("Good or bad.", 4, "tiny-llama")

    @pytest.mark.parametrize("by", ["option", "environment"])
    def test_signs_what_it_adds(
        self, run: Run, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
    ) -> None:
        private, public = make_keys(tmp_path)
        if by == "environment":
            monkeypatch.setenv("HOTSWAP_SIGNING_KEY", str(private))
        run("add", make_adapter(), "mood", *CLASSIFICATION, *(["--sign", private] if by == "option" else []))
        done = run("verify", "--trusted-keys", public)
        assert (done.status, done.out.endswith(", and a trusted key signed it\n")) == (0, True)
        stranger = run("verify", "--trusted-keys", make_keys(tmp_path, "stranger")[1])
        assert (stranger.status, "a key that is not trusted" in stranger.out) == (1, True)

    def test_with_a_key_that_signs_nothing_claims_no_number(
        self, refused: Run, make_adapter: MakeAdapter, tmp_path: Path
    ) -> None:
        given = refused("add", make_adapter(), "mood", *CLASSIFICATION, "--sign", tmp_path / "typo.pem")
        assert "typo.pem cannot be read: No such file" in given.err
        assert not (tmp_path / "store").exists()

    def test_takes_a_summarizer(self, run: Run, make_adapter: MakeAdapter, store: Store) -> None:
        run("add", make_adapter(), "brief", "--task", "summarization")
        manifest, _ = store.manifest("brief", 1)
        assert manifest.task == SummarizationTask.of("Text: {text}\n\nSummary:")

    def test_warns_where_the_order_of_labels_decides(self, run: Run, make_adapter: MakeAdapter) -> None:
        told = "--labels must have the order in which they were trained"
        asked = ("add", make_adapter(), "topics", "--task", "classification", "--template", "{text}:", "--labels")
        assert told in run(*asked, "bug report,bug fix").err
        assert told not in run(*asked, "billing,login").err

    @pytest.mark.parametrize(
        "labels", ['billing,"late, or lost"', ' billing, "late, or lost" ,', 'billing,"late, or lost",']
    )
    def test_takes_labels_that_hold_commas_in_quotation_marks(
        self, run: Run, make_adapter: MakeAdapter, store: Store, labels: str
    ) -> None:
        run("add", make_adapter(), "topics", "--task", "classification", "--labels", labels)
        manifest, _ = store.manifest("topics", 1)
        assert isinstance(manifest.task, ClassificationTask)
        assert [label.name for label in manifest.task.labels] == ["billing", "late, or lost"]

    def test_leaves_out_a_report_which_quotes_test_rows(
        self, run: Run, make_adapter: MakeAdapter, store: Store
    ) -> None:
        folder = make_adapter()
        (folder / "report.html").write_text("<p>a test row</p>")
        run("add", folder, "brief", "--task", "summarization")
        assert "report.html" not in store.manifest("brief", 1)[0].files

    def test_takes_the_task_beside_the_adapter(
        self, run: Run, make_adapter: MakeAdapter, store: Store, sentiment_task: ClassificationTask
    ) -> None:
        folder = make_adapter()
        (folder / "task.json").write_text(sentiment_task.model_dump_json())
        assert run("add", folder, "mood").out == "1\n"
        assert store.manifest("mood", 1)[0].task == sentiment_task

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ((), "say what it does: --task classification --labels a,b (or put task.json beside it)"),
            (("--task", "classification"), "needs two or more different labels: --labels a,b"),
            (("--task", "classification", "--labels", "a"), "needs two or more different labels"),
            (("--task", "classification", "--labels", "a,b,a"), "needs two or more different labels"),
            (("--task", "classification", "--labels", 'a,"b'), "write it as a row of a CSV file"),
            ((*CLASSIFICATION, "--template", "Review:"), "a template contains {text} exactly once"),
            ((*CLASSIFICATION, "--template", "Review: {text}"), "a template ends with the answer slot"),
            (("--task", "summarization", "--template", "{text} "), "a template ends with the answer slot"),
            ((*CLASSIFICATION, "--description", "x" * 2001), "description: String should have at most 2000"),
            ((*CLASSIFICATION, "--base", "/no/such/base"), "'/no/such/base' is neither a folder nor a model"),
        ],
    )
    def test_refuses_what_it_cannot_understand(
        self,
        refused: Run,
        make_adapter: MakeAdapter,
        arguments: tuple[str, ...],
        reason: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert reason in refused("add", make_adapter(), "mood", *arguments).err

    @pytest.mark.parametrize("name", ["Mood", "../mood", "mo od", "-mood-", "m" * 65, ""])
    def test_refuses_a_name_that_is_none(self, refused: Run, make_adapter: MakeAdapter, name: str) -> None:
        result = refused("add", make_adapter(), *CLASSIFICATION, "--", name)
        assert f"'{name}' is not a name: use a-z, 0-9" in result.err

    @pytest.mark.parametrize("fault", [{"use_dora": True}, {"r": 8}, {"peft_type": "IA3"}])
    def test_lints_first(self, refused: Run, make_adapter: MakeAdapter, fault: dict) -> None:
        assert "adapter-1: " in refused("add", make_adapter(config=fault), "mood", *CLASSIFICATION).err

    def test_refuses_a_path_that_is_no_folder(self, refused: Run, tmp_path: Path) -> None:
        assert "/nothing is not a folder" in refused("add", tmp_path / "nothing", "mood", *CLASSIFICATION).err

    @pytest.mark.parametrize("content", ["{", "[]", '{"kind": "translation"}', '{"kind": "summarization"}'])
    def test_refuses_a_task_file_that_is_none(self, refused: Run, make_adapter: MakeAdapter, content: str) -> None:
        folder = make_adapter()
        (folder / "task.json").write_text(content)
        assert "task.json is no task: " in refused("add", folder, "mood").err

    @pytest.mark.parametrize("ignored", [("--labels", "a,b"), ("--template", "{text}:")])
    def test_ignores_nothing_that_was_said(
        self, refused: Run, make_adapter: MakeAdapter, summary_task: SummarizationTask, ignored: tuple[str, str]
    ) -> None:
        folder = make_adapter()
        (folder / "task.json").write_text(summary_task.model_dump_json())
        assert "say what it does: --task" in refused("add", folder, "mood", *ignored).err


class TestList:
    def test_of_an_empty_store_has_a_heading_only(self, run: Run, store: Store) -> None:
        assert run("list").out.split() == ["NAME", "TASK", "STABLE", "CANARY", "VERSIONS", "BASE"]
        assert json.loads(run("list", "--json").out) == []

    def test_shows_versions_and_releases(self, run: Run, stocked: Store) -> None:
        run("release", "mood", 2, "--channel", "canary", "--percent", 10)
        brief, mood = run("list").out.splitlines()[1:]
        assert brief.split() == ["brief", "summarization", "1", "-", "1", "tiny-llama"]
        assert re.split(r"\s{2,}", mood) == ["mood", "classification", "1", "2 (10 %)", "1, 2", "tiny-llama"]

    def test_prints_json(self, run: Run, stocked: Store) -> None:
        assert json.loads(run("list", "--json").out)[1] == {
            "name": "mood",
            "task": "classification",
            "stable": 1,
            "canary": None,
            "versions": [1, 2],
            "base": "tiny-llama",
            "description": "",
        }

    def test_may_look_into_another_store(self, run: Run, stocked: Store, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        assert json.loads(run("list", "--json", "--store", tmp_path / "other").out) == []
        assert len(json.loads(run("list", "--json", "--store", tmp_path / "store").out)) == 2

    @pytest.mark.parametrize("place", ["unheard://of"])
    def test_says_in_one_line_that_the_store_cannot_be_used(self, refused: Run, place: str) -> None:
        assert f"the store {place} cannot be used: " in refused("list", "--store", place).err

    def test_makes_no_store_of_a_mistyped_folder(self, refused: Run, tmp_path: Path) -> None:
        assert "there is no store at" in refused("list", "--store", tmp_path / "typo").err
        assert not (tmp_path / "typo").exists()


class TestShow:
    @pytest.mark.parametrize(("reference", "version"), [("mood", 1), ("mood@2", 2), ("mood@1", 1)])
    def test_prints_the_manifest(self, run: Run, stocked: Store, reference: str, version: int) -> None:
        shown = json.loads(run("show", reference).out)
        assert (shown["name"], shown["version"], shown["versions"]) == ("mood", version, [1, 2])
        assert shown["released"]["stable"] == 1
        assert shown["digest"] == stocked.manifest("mood", version)[1]
        assert set(shown["files"]) == {"adapter_config.json", "adapter_model.safetensors"}

    def test_of_what_was_never_released_is_the_newest(self, run: Run, make_adapter: MakeAdapter) -> None:
        for _ in range(2):
            run("add", make_adapter(), "mood", *CLASSIFICATION)
        shown = json.loads(run("show", "mood").out)
        assert (shown["version"], shown["released"]) == (2, None)

    @pytest.mark.parametrize(
        ("reference", "reason"),
        [
            ("nobody", "'nobody' is not in the store"),
            ("mood@9", "mood@9 is not in the store"),
            ("mood@0", "mood@0 is not in the store"),
            ("mood@canary", "mood has no canary"),
            ("../mood", "is no adapter: write sentiment"),
        ],
    )
    def test_says_what_is_not_there(self, refused: Run, stocked: Store, reference: str, reason: str) -> None:
        assert reason in refused("show", reference).err

    def test_says_that_a_manifest_is_damaged(self, refused: Run, stocked: Store, tmp_path: Path) -> None:
        (tmp_path / "store/mood/versions/1/manifest.json").write_text("{")
        assert "the manifest is not JSON" in refused("show", "mood").err


class TestLint:
    def test_says_what_a_sound_folder_holds(self, run: Run, make_adapter: MakeAdapter, tmp_path: Path) -> None:
        result = run("lint", make_adapter(rank=4))
        assert (result.status, result.out) == (0, "ok: LoRA of rank 4, alpha 8, on q_proj, v_proj\n")
        assert not (tmp_path / "store").exists(), "looking at a folder touches no store"

    def test_needs_no_base(self, run: Run, make_adapter: MakeAdapter) -> None:
        assert run("lint", make_adapter(), "--no-base", "--base", "/no/such/base").status == 0

    def test_says_what_is_wrong(self, refused: Run, make_adapter: MakeAdapter, tmp_path: Path) -> None:
        assert "use_dora=True cannot be served" in refused("lint", make_adapter(config={"use_dora": True})).err
        assert (
            "rank 32 is above the server's limit of 16" in refused("lint", make_adapter(rank=32), "--max-rank", 16).err
        )
        assert "/nothing is not a folder" in refused("lint", tmp_path / "nothing").err


class TestRelease:
    def test_prints_the_new_generation(self, run: Run, stocked: Store) -> None:
        result = run("release", "mood", 2, "--why", "better")
        assert (result.status, result.out) == (0, "mood: generation 2, stable 2\n")
        released = stocked.released("mood")
        assert released is not None
        assert (released.stable, released.canary, released.why, released.by) == (2, None, "better", "ann")

    def test_prints_json(self, run: Run, stocked: Store) -> None:
        shown = json.loads(run("release", "mood", 2, "--json").out)
        assert (shown["name"], shown["generation"], shown["stable"], shown["by"]) == ("mood", 2, 2, "ann")

    def test_of_a_canary_keeps_the_stable_version(self, run: Run, stocked: Store) -> None:
        result = run("release", "mood", 2, "--channel", "canary", "--percent", 10)
        assert result.out == "mood: generation 2, stable 1, canary 2 for 10 %\n"

    def test_of_a_stable_version_ends_the_canary(self, run: Run, stocked: Store) -> None:
        run("release", "mood", 2, "--channel", "canary", "--percent", 10)
        assert run("release", "mood", 2).out == "mood: generation 3, stable 2\n"

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (("mood", 9), "mood@9 is not in the store"),
            (("mood", 0), "mood@0 is not in the store"),
            (("nobody", 1), "nobody@1 is not in the store"),
            (("mood", 2, "--channel", "canary"), "--channel canary needs --percent from 1 to 100"),
            (("mood", 2, "--channel", "canary", "--percent", 0), "needs --percent from 1 to 100"),
            (("mood", 2, "--channel", "canary", "--percent", 101), "needs --percent from 1 to 100"),
            (("mood", 9, "--channel", "canary", "--percent", 10), "mood@9 is not in the store"),
            (("mood", 0, "--channel", "canary", "--percent", 10), "mood@0 is not in the store"),
            (("nobody", 1, "--channel", "canary", "--percent", 10), "nobody has no stable version yet"),
            (("mood", 2, "--percent", 10), "--percent is for --channel canary"),
            (("mood", 2, "--expected-generation", 7), "mood is at generation 1, not 7; look, then retry"),
        ],
    )
    def test_refuses_what_cannot_be_served(
        self, refused: Run, stocked: Store, arguments: tuple[object, ...], reason: str
    ) -> None:
        assert reason in refused("release", *arguments).err

    def test_of_a_canary_is_refused_where_someone_released_in_the_meantime(
        self, refused: Run, stocked: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = stocked.released("mood")
        stocked.release("mood", NewRelease(stable=2))
        monkeypatch.setattr(Store, "released", lambda self, name: seen)
        result = refused("release", "mood", 2, "--channel", "canary", "--percent", 10)
        assert "mood is at generation 2, not 1; look, then retry" in result.err


class TestRollback:
    def test_goes_back_to_the_release_before(self, run: Run, stocked: Store) -> None:
        run("release", "mood", 2)
        result = run("rollback", "mood", "--why", "worse")
        assert (result.status, result.out) == (0, "mood: generation 3, stable 1\n")
        assert json.loads(run("rollback", "mood", "--json").out)["stable"] == 2

    @pytest.mark.parametrize("name", ["mood", "nobody"])
    def test_without_a_release_before_is_refused(self, refused: Run, stocked: Store, name: str) -> None:
        assert f"{name} has no release to go back to" in refused("rollback", name).err


class TestPromote:
    def test_takes_only_versions_that_there_are(self, refused: Run, stocked: Store) -> None:
        stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=10)))
        assert "mood@0 is not in the store" in refused("promote", "mood", 0).err

    @pytest.mark.parametrize("margin", [("--seconds", "inf"), ("--samples", "1e300"), ("--errors", "nan")])
    def test_takes_no_margin_that_could_not_be_read_again(self, refused: Run, stocked: Store, margin) -> None:
        assert margin[0].strip("-") in refused("promote", "mood", 2, "--guard", *margin).err

    def test_makes_the_canary_stable(self, run: Run, stocked: Store) -> None:
        stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=10)))
        assert run("promote", "mood").out == "mood: generation 3, stable 2\n"

    def test_with_a_guard_begins_at_the_first_step(self, run: Run, stocked: Store) -> None:
        told = run("promote", "mood", 2, "--guard", "--steps", "10,50", "--errors", "0.05", "--shadow", 20)
        assert told.out == "mood: generation 2, stable 1, canary 2 for 10 %, shadow 2 for 20 %\n"
        guard = stocked.released("mood").guard
        assert (guard.steps, guard.errors, guard.slow) == ((10, 50), 0.05, Guard().slow)

    @pytest.mark.parametrize(("final", "status"), [(2, 0), (1, 1)])
    def test_followed_ends_with_what_the_guard_decided(
        self, run: Run, stocked: Store, monkeypatch: pytest.MonkeyPatch, final: int, status: int
    ) -> None:
        decide = lambda _: stocked.release("mood", NewRelease(stable=final, step=True, why="14 of 20 failed"))  # noqa: E731
        monkeypatch.setattr("time.sleep", decide)
        told = run("promote", "mood", 2, "--guard", "--follow")
        assert told.status == status
        assert told.out.splitlines()[1] == f"mood: generation 3, stable {final} (14 of 20 failed)"

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (("mood",), "no canary to promote"),
            (("nobody", 1), "no stable version yet"),
            (("mood", 9, "--guard"), "mood@9 is not in the store"),
            (("mood", 1, "--guard"), "is the stable version already"),
            (("mood", 2, "--guard", "--steps", "50,10"), "every step is above"),
            (("mood", 2, "--guard", "--steps", "a"), "steps"),
            (("mood", 2, "--guard", "--disagreement", "0.1"), "name a shadow"),
            (("mood", 2, "--guard", "--confidence", "2"), "confidence"),
        ],
    )
    def test_that_makes_no_sense_is_refused(self, refused: Run, stocked: Store, arguments: tuple, reason: str) -> None:
        assert reason in refused("promote", *arguments).err


class TestRetire:
    def test_is_for_ever(self, run: Run, stocked: Store) -> None:
        assert run("retire", "mood", 2, "--why", "bad rows").out == "mood@2 is served to nobody any more\n"
        assert stocked.adapter("mood").retired == {2}
        assert "mood@2 was retired" in run("release", "mood", 2).err
        assert run("add", stocked_folder(stocked), "mood", *CLASSIFICATION).out == "3\n"

    @pytest.mark.parametrize(("version", "reason"), [(1, "is released"), (9, "not in the store")])
    def test_of_what_is_released_or_unknown_is_refused(
        self, refused: Run, stocked: Store, version: int, reason: str
    ) -> None:
        assert reason in refused("retire", "mood", version).err


def stocked_folder(store: Store) -> Path:
    return Path(store.place) / "mood/versions/1"


class TestLintForAServer:
    @pytest.fixture
    def server(self) -> Iterator[Callable[[int, object], str]]:
        """Return ``answer(status, body)``: the address of a server that answers every GET so."""
        from http.server import BaseHTTPRequestHandler, HTTPServer
        from threading import Thread

        told: dict = {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(told["body"]).encode()
                self.send_response(told["status"])
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        listening = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=listening.serve_forever, daemon=True).start()

        def answer(status: int, body: object) -> str:
            told.update(status=status, body=body)
            return f"http://127.0.0.1:{listening.server_port}"

        yield answer
        listening.shutdown()
        listening.server_close()

    @pytest.fixture
    def limits(self, tiny: Base) -> dict:
        about = {"base": tiny.name, "base_digest": tiny.digest}
        return {"server": {**about, "max_lora_rank": 16, "max_model_len": 512, "max_resident": 4}, "adapters": []}

    def test_accepts_what_it_can_serve(self, run: Run, make_adapter: MakeAdapter, server, limits: dict) -> None:
        assert run("lint", make_adapter(rank=16), "--server", server(200, limits)).status == 0

    def test_refuses_a_rank_beyond_it(self, refused: Run, make_adapter: MakeAdapter, server, limits: dict) -> None:
        url = server(200, limits)
        assert "above the server's limit of 16" in refused("lint", make_adapter(rank=32), "--server", url).err

    def test_refuses_another_base(self, refused: Run, make_adapter: MakeAdapter, server, limits: dict) -> None:
        limits["server"] |= {"base": "other", "base_digest": "sha256:" + 64 * "0"}
        assert "serves other" in refused("lint", make_adapter(), "--server", server(200, limits)).err

    @pytest.mark.parametrize(
        ("status", "body", "reason"),
        [(401, {}, "HOTSWAP_API_KEY"), (500, {}, "status 500"), (200, [], "does not answer as a hotswap")],
    )
    def test_says_what_is_wrong_with_the_server(
        self, refused: Run, make_adapter: MakeAdapter, server, status: int, body: object, reason: str
    ) -> None:
        assert reason in refused("lint", make_adapter(), "--server", server(status, body)).err

    @pytest.mark.parametrize(("url", "reason"), [("http://127.0.0.1:9", "refused"), ("ftp://x", "no address")])
    def test_says_that_nobody_is_there(self, refused: Run, make_adapter: MakeAdapter, url: str, reason: str) -> None:
        assert reason in refused("lint", make_adapter(), "--server", url).err


class TestHistory:
    def test_shows_every_release_oldest_first(self, run: Run, stocked: Store) -> None:
        run("release", "mood", 2, "--channel", "canary", "--percent", 10, "--why", "try it")
        heading, first, second = run("history", "mood").out.splitlines()
        assert heading.split() == ["GENERATION", "STABLE", "CANARY", "AT", "BY", "WHY"]
        assert first.split()[:3] == ["1", "1", "-"]
        assert second.startswith("2           1       2 (10 %)")
        assert second.endswith("ann  try it")

    def test_prints_json(self, run: Run, stocked: Store) -> None:
        run("release", "mood", 2)
        shown = json.loads(run("history", "mood", "--json").out)
        assert [(row["generation"], row["stable"], row["canary"]) for row in shown] == [(1, 1, None), (2, 2, None)]

    def test_shows_the_others_where_a_record_is_damaged(self, run: Run, stocked: Store, tmp_path: Path) -> None:
        for version in (2, 1):
            run("release", "mood", version)
        (tmp_path / "store/mood/releases/2.json").write_text('{"stable": ')
        shown = run("history", "mood", "--json")
        assert [row["generation"] for row in json.loads(shown.out)] == [1, 3]
        assert shown.err == "not shown, as damaged: generation 2\n"

    def test_of_nobody_is_refused(self, refused: Run, stocked: Store) -> None:
        assert "'nobody' has no releases" in refused("history", "nobody").err


class TestVerify:
    def test_says_that_all_is_well(self, run: Run, stocked: Store) -> None:
        result = run("verify")
        assert (result.status, result.out.startswith("ok: every file of every version")) == (0, True)
        assert json.loads(run("verify", "--json").out) == []

    def test_lists_what_is_damaged_and_fails(self, run: Run, stocked: Store, tmp_path: Path) -> None:
        path = tmp_path / "store/mood/versions/2" / WEIGHTS
        path.write_bytes(path.read_bytes()[:-1])
        result = run("verify")
        assert result.status == 1
        assert result.out.splitlines()[1].split()[:3] == ["mood", "2", WEIGHTS]
        shown = run("verify", "--json")
        assert shown.status == 1
        assert [(row["name"], row["version"]) for row in json.loads(shown.out)] == [("mood", 2)]

    def test_says_what_is_released_and_not_there(self, run: Run, stocked: Store, tmp_path: Path) -> None:
        run("release", "mood", 2)
        shutil.rmtree(tmp_path / "store/mood/versions/2")
        result = run("verify")
        assert result.status == 1
        assert "released and not in the store" in result.out


class TestUsage:
    @pytest.mark.parametrize(
        "arguments",
        [
            (),
            ("frobnicate",),
            ("add",),
            ("release", "mood"),
            ("release", "mood", "two"),
            ("release", "mood", "1", "--channel", "beta"),
            ("release", "mood", "1", "--expected-generation", "-1"),
            ("list", "--unheard-of"),
            ("add", "dir", "mood", "--task", "translation"),
        ],
    )
    def test_that_is_wrong_ends_with_2_and_the_usage(self, run: Run, arguments: tuple[str, ...]) -> None:
        result = run(*arguments)
        assert (result.status, result.out) == (2, "")
        assert result.err.startswith("usage: python -m adapters")

    @pytest.mark.parametrize(
        "command", [None, "add", "list", "show", "lint", "release", "rollback", "history", "verify"]
    )
    def test_help_has_an_example(self, run: Run, command: str | None) -> None:
        result = run(*([command] if command else []), "--help")
        assert result.status == 0
        assert "example: python -m adapters " in result.out

    def test_an_interrupt_ends_with_130_and_no_traceback(
        self, run: Run, stocked: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(self: Store) -> Catalogue:
            raise KeyboardInterrupt

        monkeypatch.setattr(Store, "catalogue", interrupted)
        result = run("list")
        assert (result.status, result.err) == (130, "python -m adapters: interrupted\n")

    def test_only_refusals_are_caught(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuses(_: object) -> None:
            raise NotInStore("nothing there")

        def breaks(_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(commands, "list_", refuses)
        assert run("list").status == 1
        monkeypatch.setattr(commands, "list_", breaks)
        with pytest.raises(ZeroDivisionError):
            run("list")


def test_a_laptop_needs_neither_torch_nor_transformers_nor_vllm(tmp_path: Path, stocked: Store) -> None:
    heavy = ("torch", "vllm", "transformers", "peft", "sklearn", "datasets")
    script = (
        "import sys\n"
        "import adapters.store, adapters.intake, adapters.lint, adapters.base_model, adapters.__main__ as commands\n"
        f"sys.argv = ['adapters', 'list', '--store', {str(tmp_path / 'store')!r}]\n"
        "commands.main()\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "mood" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_gc_says_what_would_go_and_then_frees_it(run: Run, make_adapter: MakeAdapter) -> None:
    for _ in range(2):
        run("add", make_adapter(), "mood", *CLASSIFICATION)
    run("release", "mood", 1)
    run("retire", "mood", 2)
    assert "0.0 MB freed" in run("gc").out, "it was retired a moment ago"
    (row,) = json.loads(run("gc", "--older-than", 0, "--dry-run", "--json").out)
    assert (row["name"], row["version"], row["why"]) == ("mood", 2, "retired")
    assert row["bytes"] > 0
    assert "would be freed" in run("gc", "--older-than", 0, "--dry-run").out
    assert run("gc", "--older-than", 0).status == 0
    assert json.loads(run("gc", "--older-than", 0, "--json").out) == []
    assert run("gc", "--older-than", "soon").status == 2


def test_mirror_copies_the_store_and_says_what_it_could_not(
    run: Run, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    run("add", make_adapter(), "mood", *CLASSIFICATION)
    run("release", "mood", 1)
    done = run("mirror", tmp_path / "backup")
    assert (done.status, done.out) == (0, "1 versions, 1 releases, 0 retirements copied\n")
    assert run("verify", "--store", tmp_path / "backup").status == 0
    (tmp_path / "store" / "mood" / "versions" / "1" / WEIGHTS).write_bytes(b"damaged")
    done = run("mirror", tmp_path / "other", "--json")
    assert (done.status, json.loads(done.out)["versions"]) == (1, 0)
    assert "not copied: mood@1" in done.err
