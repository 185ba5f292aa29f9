"""Fine-tuning jobs: what becomes of rows, of a job whose worker is killed, and of one that is not wanted any more."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from transformers import AutoTokenizer

from adapters.base_model import Base
from adapters.chat import asked
from adapters.errors import HotswapError, StoreUnavailable
from adapters.intake import add_version
from adapters.jobs.files import Files
from adapters.jobs.ids import new_id
from adapters.jobs.place import Place
from adapters.jobs.queue import MOST_ATTEMPTS, Queue
from adapters.jobs.rows import Example, check
from adapters.jobs.tables import jobs
from adapters.store import Store
from adapters.tasks import Chat, ClassificationTask, GenerationTask
from tests.conftest import MakeAdapter
from tests.trainer.conftest import reviews
from tests.trainer.workplace import Workplace
from trainer.data import load_splits
from trainer.jobs import chain
from trainer.jobs.order import Order
from trainer.jobs.preparation import BadFile, kind_of, prepare
from trainer.jobs.worker import Worker
from trainer.mixture import make_job

pytestmark = pytest.mark.usefixtures("one_thread")
SYSTEM = "Rate films."
TELL = """
import json, sys

def tell(event, **about):
    print(json.dumps({"event": event} | about), file=sys.stderr, flush=True)

"""
DONE = 'tell("done", model="moods@1", released="", steps=2, train_loss=0.5, valid_loss=0.2, tokens=9)'
QUICK = {"n_epochs": 6, "batch_size": 8, "learning_rate_multiplier": 10.0}


def chats(rows: int = 120, system: str = SYSTEM) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": row["text"]},
                {"role": "assistant", "content": row["label"]},
            ]
        }
        for row in reviews(rows)
    ]


@dataclass
class Shop:
    """Queue, files and store of a service that is not running."""

    place: Place
    store: Store
    base: Base
    queue: Queue
    files: Files

    def upload(self, rows: list[dict[str, Any]]) -> str:
        part = self.files.take(io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode()))
        return str(self.files.add(part, "ann", "rows.jsonl", check(part), 2**30)["id"])

    def ask(self, rows: list[dict[str, Any]] | None = None, **changes: Any) -> str:
        """Queue a job; return its id."""
        asked = {
            **{"id": new_id("ftjob"), "owner": "ann", "model": self.base.name, "base": self.base.digest},
            **{"start_from": None, "adapter": "moods", "release": "none", "seed": 7},
            "training_file": self.upload(rows or chats()),
            "method": {"type": "supervised", "hyperparameters": QUICK},
        }
        return str(self.queue.add(asked | changes, 99)["id"])

    def order(self, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Order:
        return Order.of(self.queue.get(self.ask(rows, **changes)), self.place, str(self.store.place))

    def worker(self, script: str | None = None) -> Worker:
        """Return a worker; with a ``script``, its jobs are done by that."""
        if script is None:
            return Worker(self.place, str(self.store.place), self.base)
        return Worker(self.place, str(self.store.place), self.base, (sys.executable, "-c", TELL + script))

    def told(self, id: str) -> list[str]:
        return [event["message"] for event in self.queue.events(id, after=None, limit=999)[0]][::-1]


@pytest.fixture
def shop(tmp_path: Path, tiny: Base, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("HOTSWAP_BASE_MODEL", str(tiny.folder))
    monkeypatch.setattr("trainer.jobs.worker.BEAT_SECONDS", 0.01)
    monkeypatch.setattr("trainer.jobs.worker.NICENESS", 0)
    store = Store(tmp_path / "store")
    place = Place.of(tmp_path / "cache", str(store.place))
    database = place.open()
    database.prepare()
    files = Files(database, place.files)
    files.prepare()
    return Shop(place, store, tiny, Queue(database), files)


class Given(chain.Leave):
    """A worker that lets everything be published."""

    def __init__(self) -> None:
        self.asked = 0

    def wait(self) -> None:
        self.asked += 1


def do(shop: Shop, order: Order, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Do a job in this process; return what it told."""
    folder = shop.place.runs / order.id
    order.write(folder)
    capsys.readouterr()
    chain.run(folder, Given())
    lines = capsys.readouterr().err.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


class TestRows:
    def test_few_short_answers_are_labels(self, shop: Shop) -> None:
        folder = shop.place.runs / "one"
        folder.mkdir(parents=True)
        recipe = prepare(shop.order(), folder, shop.store, shop.base)
        assert recipe.task.kind == "classification"
        assert recipe.task.template == "Rate films.\n\nText: {text}\nLabel:"
        assert (recipe.name, recipe.seed, recipe.training.epochs, recipe.training.batch_size) == ("moods", 7, 6, 8)
        assert recipe.training.learning_rate == pytest.approx(1e-2)
        first = json.loads((folder / "rows.jsonl").read_text().splitlines()[0])
        assert first == {"text": "film 0 is dull", "label": "negative"}

    @pytest.mark.parametrize(
        ("answers", "kind"),
        [
            (["yes", "no"] * 10, "classification"),
            (["yes"] * 20, "classification"),
            ([f"answer {n}" for n in range(20)], "generation"),
            (["yes", "no\nor perhaps"] * 10, "generation"),
            (["a" * 60, "b"] * 10, "generation"),
        ],
    )
    def test_other_answers_are_text(self, answers: list[str], kind: str) -> None:
        assert kind_of([Example("text", answer) for answer in answers]) == kind

    def test_chats_in_words_are_learnt_as_the_chats_that_they_are(self, shop: Shop) -> None:
        folder = shop.place.runs / "one"
        folder.mkdir(parents=True)
        said = [("system", "Be brief."), ("user", "Hello."), ("assistant", "Hi."), ("user", "Is film 0 dull?")]
        before = [{"role": role, "content": text} for role, text in said]
        rows = [{"messages": [*before, {"role": "assistant", "content": "Yes, film 0 is."}]}]
        rows = [json.loads(json.dumps(rows[0]).replace("film 0", f"film {n}")) for n in range(20)]
        recipe = prepare(shop.order(rows), folder, shop.store, shop.base)
        assert recipe.task.kind == "generation"
        splits = load_splits(recipe, folder)
        row = next(row for row in (*splits.train, *splits.validation, *splits.test) if row.number == 1)
        tokenizer = AutoTokenizer.from_pretrained(shop.base.folder)
        theirs = tokenizer.apply_chat_template(before, add_generation_prompt=True)["input_ids"]
        assert make_job(recipe, splits, shop.base).codec.prompt(row.text, row.before) == theirs

    def test_what_goes_on_from_a_version_in_words_answers_as_it_does(
        self, shop: Shop, make_adapter: MakeAdapter
    ) -> None:
        told = asked(Chat(), shop.base.folder, conversational=True)
        task = GenerationTask.of(told, max_answer_tokens=9, decoding={"temperature": 0.5})
        add_version(shop.store, "moods", make_adapter(), task, shop.base)
        folder = shop.place.runs / "one"
        folder.mkdir(parents=True)
        recipe = prepare(shop.order(start_from="moods@1"), folder, shop.store, shop.base)
        assert recipe.task.kind == "generation"
        assert (recipe.task.max_answer_tokens, recipe.task.decoding.temperature) == (9, 0.5)

    def test_a_column_of_our_own_says_which_task_it_is(self) -> None:
        assert kind_of([Example("text", "yes", kind="answer")] * 20) == "generation"
        assert kind_of([Example("text", "yes", kind="summary")] * 20) == "summarization"
        assert kind_of([Example("text", f"{n}", kind="label") for n in range(20)]) == "classification"

    def test_a_system_message_that_differs_stays_with_its_text(self, shop: Shop) -> None:
        folder = shop.place.runs / "one"
        folder.mkdir(parents=True)
        rows = [*chats(60), *chats(60, "Rate plays.")]
        recipe = prepare(shop.order(rows), folder, shop.store, shop.base)
        assert recipe.task.template == "Text: {text}\nLabel:"
        assert (
            json.loads((folder / "rows.jsonl").read_text().splitlines()[0])["text"] == "Rate films.\n\nfilm 0 is dull"
        )

    def test_a_validation_file_is_held_out_as_a_test_of_its_own(self, shop: Shop) -> None:
        folder = shop.place.runs / "one"
        folder.mkdir(parents=True)
        recipe = prepare(shop.order(validation_file=shop.upload(chats(20))), folder, shop.store, shop.base)
        assert list(recipe.data.extra_tests) == ["validation_file"]

    def test_pairs_are_preferences(self, shop: Shop) -> None:
        pairs = [
            {
                "input": {"messages": [{"role": "user", "content": f"film {n}"}]},
                "preferred_output": [{"role": "assistant", "content": f"dull {n}"}],
                "non_preferred_output": [{"role": "assistant", "content": f"dull and slow {n}"}],
            }
            for n in range(20)
        ]
        folder = shop.place.runs / "one"
        folder.mkdir(parents=True)
        method = {"type": "dpo", "hyperparameters": {"beta": 0.3, "n_epochs": "auto"}}
        recipe = prepare(shop.order(pairs, method=method), folder, shop.store, shop.base)
        assert (recipe.objective, recipe.preference.beta, recipe.training.epochs) == ("dpo", 0.3, None)
        assert json.loads((folder / "rows.jsonl").read_text().splitlines()[0]) == {
            "text": "film 0",
            "chosen": "dull 0",
            "rejected": "dull and slow 0",
        }

    def test_what_goes_on_from_a_version_does_its_task(
        self, shop: Shop, make_adapter: MakeAdapter, sentiment_task: ClassificationTask
    ) -> None:
        add_version(shop.store, "mood", make_adapter(), sentiment_task, shop.base)
        folder = shop.place.runs / "one"
        folder.mkdir(parents=True)
        recipe = prepare(shop.order(start_from="mood@1"), folder, shop.store, shop.base)
        assert recipe.start_from == "mood@1"
        assert recipe.task.template == "Review: {text}\nSentiment:"
        assert recipe.task.labels == ("positive", "negative")  # type: ignore[union-attr]

    def test_a_file_that_is_gone_is_said(self, shop: Shop, tmp_path: Path) -> None:
        order = shop.order()
        order.training.unlink()
        with pytest.raises(BadFile, match="the file is gone"):
            prepare(order, tmp_path, shop.store, shop.base)


class TestAJob:
    def test_becomes_one_version_whatever_is_killed_on_the_way(
        self, shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        order = shop.order(release="canary")
        for step in ("prepare", "complete", "evaluation_of", "_publish", "_release"):
            for when in ("before", "after"):
                with monkeypatch.context() as patch:
                    patch.setattr(chain, step, killed(getattr(chain, step), when))
                    with pytest.raises(Killed):
                        do(shop, order, capsys)
        told = do(shop, order, capsys)
        assert told[-1]["event"] == "done"
        assert told[-1]["model"] == "moods@1"
        assert told[-1]["steps"] > 0
        assert shop.store.versions("moods") == [1]
        manifest = shop.store.manifest("moods", 1)[0]
        assert (manifest.lineage["job"], manifest.lineage["asked_by"]) == (order.id, "ann")
        assert "report.html" not in manifest.files, "it would quote the tenant's rows"
        assert [release.stable for release in shop.store.history("moods")] == [1]

    def test_that_does_not_pass_the_gate_is_not_published(
        self, shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def closed(*_: Any) -> None:
            raise HotswapError("the gate is closed, nothing is published: TF-IDF is better")

        monkeypatch.setattr("trainer.publish.check_gate", closed)
        order = shop.order(method={"type": "supervised", "hyperparameters": QUICK | {"n_epochs": 1}})
        told = do(shop, order, capsys)[-1]
        assert (told["event"], told["code"]) == ("failed", "gate_closed")
        assert "TF-IDF is better" in told["message"]
        assert shop.store.versions("moods") == []

    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            ([{"text": f"film {n}", "label": "dull"} for n in range(40)], "label"),
            ([{"text": "the same film", "label": "dull"}] * 20, "split is empty"),
        ],
    )
    def test_whose_rows_cannot_be_trained_on_says_why(
        self, shop: Shop, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], said: str
    ) -> None:
        told = do(shop, shop.order(rows), capsys)[-1]
        assert (told["event"], told["code"]) == ("failed", "invalid_training_file")
        assert (told["param"], said in told["message"]) == ("training_file", True)

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), StoreUnavailable("the store is away")])
    def test_that_finds_no_room_or_store_is_tried_again(
        self, shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(*_: Any) -> None:
            raise error

        monkeypatch.setattr(chain, "prepare", fail)
        assert do(shop, shop.order(), capsys)[-1]["event"] == "later"


class Killed(BaseException):
    pass


def killed(work: Callable[..., Any], when: str) -> Callable[..., Any]:
    """Return ``work`` as a process does it that is killed before or after it."""

    def half(*args: Any, **more: Any) -> None:
        if when == "after":
            work(*args, **more)
        raise Killed

    return half


class TestRelease:
    @pytest.fixture
    def made(self, shop: Shop, make_adapter: MakeAdapter, sentiment_task: ClassificationTask) -> list[Any]:
        return [add_version(shop.store, "moods", make_adapter(seed=n), sentiment_task, shop.base) for n in range(3)]

    def test_is_left_to_people_by_default(self, shop: Shop, made: list[Any]) -> None:
        assert chain._release(shop.order(), shop.store, made[0]).startswith("not released")
        assert shop.store.released("moods") is None

    @pytest.mark.parametrize(("policy", "percent", "guarded"), [("canary", 10, False), ("guarded", 5, True)])
    def test_of_a_first_version_is_to_everyone_and_of_the_next_to_some(
        self, shop: Shop, made: list[Any], policy: str, percent: int, guarded: bool
    ) -> None:
        order = shop.order(release=policy)
        assert chain._release(order, shop.store, made[0]) == "released to everyone: it is the first"
        assert chain._release(order, shop.store, made[0]) == "released", "once"
        assert chain._release(order, shop.store, made[1]) == f"released as a canary of {percent} %"
        release = shop.store.released("moods")
        assert release is not None
        assert release.canary is not None
        assert (release.stable, release.canary.version, release.canary.percent) == (1, 2, percent)
        assert (release.by, release.guard is not None) == ("ann", guarded)
        assert "tried out" in chain._release(order, shop.store, made[2]), "a trial is not ended"


class TestWorker:
    def test_tells_the_queue_what_its_process_tells(self, shop: Shop) -> None:
        script = """
tell("message", text="data: 120 usable rows")
tell("begin")
tell("step", step=1, of=2, loss=0.5, seconds_left=3.0)
tell("validation", step=2, of=2, loss=0.25)
tell("scores", test="test", values={"accuracy": 1.0})
tell("ready")
assert sys.stdin.readline() == "go\\n"
tell("done", model="moods@1", released="not released", steps=2, train_loss=0.5, valid_loss=0.25, tokens=99)
"""
        id = shop.ask()
        assert shop.worker(script).work()
        job = shop.queue.get(id)
        assert (job["status"], job["fine_tuned_model"], job["trained_tokens"]) == ("succeeded", "moods@1", 99)
        assert shop.told(id) == [
            f"Created fine-tuning job: {id}",
            "data: 120 usable rows",
            "Fine-tuning job started",
            "Step 1/2: training loss=0.5000",
            "Step 2/2: validation loss=0.2500",
            "Scores on test",
            "The adapter passed its gate and is published",
            "moods@1: not released",
            "New fine-tuned model created: moods@1",
            "The job has successfully completed",
        ]
        assert (shop.place.runs / id).is_dir()
        assert not shop.worker(script).work()
        assert not (shop.place.runs / id).exists(), "it holds rows"

    def test_fails_a_job_with_the_reason(self, shop: Shop) -> None:
        id = shop.ask()
        shop.worker('tell("failed", code="gate_closed", message="worse than the base", param=None); sys.exit(1)').work()
        job = shop.queue.get(id)
        assert (job["status"], job["error"]["code"]) == ("failed", "gate_closed")
        assert shop.told(id)[-1] == "The job failed: worse than the base"

    @pytest.mark.parametrize(
        "script", ["import os; os.kill(os.getpid(), 9)", "raise KeyError", 'tell("later", message="no room")']
    )
    def test_tries_again_what_did_not_come_to_its_end_and_at_last_gives_up(self, shop: Shop, script: str) -> None:
        id = shop.ask()
        for _ in range(MOST_ATTEMPTS):
            assert shop.worker(script).work()
            assert shop.queue.get(id)["status"] == "validating_files"
            assert not shop.worker(script).work(), "not at once"
            expire(shop, id)
        assert not shop.worker(script).work()
        job = shop.queue.get(id)
        assert (job["status"], job["error"]["code"]) == ("failed", "attempts")

    def test_takes_up_what_another_worker_was_killed_at(self, shop: Shop) -> None:
        id = shop.ask()
        shop.queue.claim("killed", shop.base.digest)
        shop.queue.begin(id, "killed")
        assert not shop.worker(DONE).work(), "as long as it may be alive"
        expire(shop, id)
        assert shop.worker(DONE).work()
        assert shop.queue.get(id)["status"] == "succeeded"
        assert "The worker was lost; another one goes on" in shop.told(id)
        assert not shop.queue.keep(id, "killed")
        assert not shop.queue.succeed(id, "killed", fine_tuned_model="moods@2", result=None, trained_tokens=0)

    @pytest.mark.parametrize(("turn", "status", "kept"), [("cancel", "cancelled", False), ("pause", "paused", True)])
    @pytest.mark.parametrize("at", ["validating_files", "running"])
    def test_stops_a_job_that_is_not_wanted(self, shop: Shop, turn: str, status: str, kept: bool, at: str) -> None:
        id = shop.ask()
        begin = 'tell("begin")' if at == "running" else ""
        worker = shop.worker(f"{begin}\nsys.stdin.read()")
        working = threading.Thread(target=worker.work)
        working.start()
        while shop.queue.get(id)["status"] != at:  # bounded by the test's timeout
            pass
        getattr(shop.queue, turn)(id, "ann")
        working.join()
        assert shop.queue.get(id)["status"] == status
        assert not shop.worker(DONE).work()
        assert (shop.place.runs / id).exists() == kept
        if kept:
            shop.queue.resume(id, "ann")
            assert shop.worker(DONE).work()
            assert shop.queue.get(id)["status"] == "succeeded"

    def test_does_not_publish_what_was_cancelled_just_before(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        id, published = shop.ask(), shop.place.folder / "published"
        asked = Queue.publishing

        def late(queue: Queue, id: str, worker: str) -> bool:
            queue.cancel(id, "ann")
            return asked(queue, id, worker)

        monkeypatch.setattr(Queue, "publishing", late)
        assert shop.worker(f'tell("ready")\nif sys.stdin.readline(): open({str(published)!r}, "w")').work()
        assert shop.queue.get(id)["status"] == "cancelled"
        assert not published.exists()

    def test_that_is_stopped_gives_its_job_back_at_once(self, shop: Shop) -> None:
        id = shop.ask()
        worker = shop.worker('tell("begin")\nsys.stdin.read()')
        working = threading.Thread(target=worker.run)
        working.start()
        while shop.queue.get(id)["status"] != "running":
            pass
        worker.stopping.set()
        working.join()
        job = shop.queue.get(id)
        assert (job["status"], job["lease"], job["attempts"]) == ("running", None, 0)
        assert shop.worker(DONE).work()

    def test_leaves_jobs_for_another_base_alone_and_says_so(
        self, shop: Shop, capsys: pytest.CaptureFixture[str]
    ) -> None:
        id = shop.ask(base="sha256:other")
        assert not shop.worker(DONE).work()
        assert shop.queue.get(id)["status"] == "queued"
        assert "1 jobs wait for a worker with another base than tiny-llama" in capsys.readouterr().err

    def test_has_its_process_end_with_it_however_that_ends(self) -> None:
        waiting = "from trainer.jobs import chain; import threading; chain.Leave(); threading.Event().wait()"
        process = subprocess.Popen([sys.executable, "-c", waiting], stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 1


def expire(shop: Shop, id: str) -> None:
    """Let the time pass that a job belongs to its worker."""
    with shop.queue._database.writing() as connection:
        connection.execute(update(jobs).where(jobs.c.id == id).values(lease=1))


def test_the_command_works_lists_and_shows(shop: Shop, tmp_path: Path, tiny: Base) -> None:
    id = shop.ask(chats(12))
    place = Workplace(tmp_path, tiny.folder)
    (listed,) = json.loads(place.run("jobs", "list", "--json").out)
    assert (listed["job"], listed["status"], listed["adapter"], listed["owner"]) == (id, "queued", "moods", "ann")
    assert id in place.run("jobs", "list").out
    assert f"Created fine-tuning job: {id}" in place.run("jobs", "show", id).out
    gone = place.run("jobs", "show", "ftjob-gone")
    assert (gone.status, "No fine-tuning job is called" in gone.err) == (1, True)
    assert place.run("jobs", "sing").status == 2
