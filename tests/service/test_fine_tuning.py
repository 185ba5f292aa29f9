"""Fine-tuning jobs, asked for by OpenAI's own client; what a worker would do is done to the queue by hand."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from adapters.base_model import Base
from adapters.errors import DatabaseAway
from adapters.jobs.place import Place
from adapters.jobs.queue import Queue
from service.http.keys import new_key
from service.jobs.watch import Watch
from service.jobs.worker import LocalWorker
from service.settings import Settings
from tests.service.conftest import Running, Serve, until
from tests.service.test_files import client, jsonl, upload

pytestmark = pytest.mark.anyio
BASE = "tiny-llama"
PAIRS = [
    {
        "input": {"messages": [{"role": "user", "content": f"film {n}"}]},
        "preferred_output": [{"role": "assistant", "content": "dull"}],
        "non_preferred_output": [{"role": "assistant", "content": "dull and slow"}],
    }
    for n in range(12)
]


def queue_of(service: Running) -> Queue:
    place: Place = service.state.desk.place
    database = place.open()
    database.prepare()
    return Queue(database)


async def test_a_job_is_queued_as_it_was_asked_for(serve: Serve) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        file = await upload(ask)
        held_out = await upload(ask)
        job = await ask.fine_tuning.jobs.create(
            model=BASE,
            training_file=file.id,
            validation_file=held_out.id,
            suffix="moods",
            seed=7,
            metadata={"team": "films"},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 8}}},
        )
        assert (job.object, job.status, job.model, job.seed) == ("fine_tuning.job", "queued", BASE, 7)
        assert (job.training_file, job.validation_file) == (file.id, held_out.id)
        assert job.hyperparameters.n_epochs == 3
        assert job.method.supervised.hyperparameters.learning_rate_multiplier == "auto"
        assert (job.metadata, job.fine_tuned_model, job.error) == ({"team": "films"}, None, None)
        assert await ask.fine_tuning.jobs.retrieve(job.id) == job
        kept = queue_of(service).get(job.id)
        assert (kept["adapter"], kept["release"], kept["start_from"]) == ("moods", "none", None)


async def test_what_is_not_said_is_chosen(serve: Serve) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        file = await upload(ask)
        job = await ask.fine_tuning.jobs.create(model=BASE, training_file=file.id)
        assert 0 <= job.seed < 2**31
        assert job.hyperparameters.n_epochs == "auto"
        assert queue_of(service).get(job.id)["adapter"] == f"ft-{job.id[-12:]}"


async def test_preferences_are_learnt_of_pairs(serve: Serve) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        pairs = await upload(ask, jsonl(PAIRS))
        method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
        job = await ask.fine_tuning.jobs.create(model=BASE, training_file=pairs.id, method=method)
        assert (job.method.type, job.method.dpo.hyperparameters.beta) == ("dpo", 0.2)
        for refused in ({}, {"training_file": (await upload(ask)).id, "method": method}):
            with pytest.raises(openai.BadRequestError) as told:
                await ask.fine_tuning.jobs.create(**{"model": BASE, "training_file": pairs.id, **refused})
            assert told.value.param == "training_file"


async def test_a_job_may_go_on_from_an_adapter(serve: Serve) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        file = await upload(ask)
        job = await ask.fine_tuning.jobs.create(model="mood", training_file=file.id, suffix="mood")
        assert job.model == "mood"
        assert queue_of(service).get(job.id)["start_from"] == "mood@1"


REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({"model": "gpt-4o-mini"}, "model"),
    ({"model": "nobody@2"}, "model"),
    ({"model": "mood@9"}, None),
    ({"training_file": "file-gone"}, "training_file"),
    ({"training_file": "\0"}, "training_file"),
    ({"validation_file": "file-gone"}, "validation_file"),
    ({"suffix": "Not a name"}, "suffix"),
    ({"seed": -1}, "seed"),
    ({"method": {"type": "reinforcement"}}, "method"),
    ({"method": {"type": "dpo", "supervised": {}}}, "method"),
    ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters"),
    ({"hyperparameters": {}, "method": {"type": "supervised"}}, None),
    ({"metadata": {f"key {n}": "" for n in range(17)}}, "metadata"),
    ({"metadata": {"key": "\0"}}, "metadata"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations"),
    ({"extra_body": {"epochs": 3}}, "epochs"),
]


async def test_what_cannot_be_done_is_refused_by_its_field(serve: Serve) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        file = await upload(ask)
        for asked, param in REFUSED:
            with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as told:
                await ask.fine_tuning.jobs.create(**{"model": BASE, "training_file": file.id, **asked})
            assert told.value.param == param, asked
        assert [job async for job in ask.fine_tuning.jobs.list()] == []


async def test_too_few_rows_are_refused_at_once(serve: Serve) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        file = await upload(ask, jsonl([{"text": f"film {n}", "label": "a"} for n in range(9)]))
        with pytest.raises(openai.BadRequestError, match="has 9 rows; 10 are the least"):
            await ask.fine_tuning.jobs.create(model=BASE, training_file=file.id)


async def test_jobs_are_listed_in_pages_and_by_metadata(serve: Serve) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        file = await upload(ask)
        made = [
            (await ask.fine_tuning.jobs.create(model=BASE, training_file=file.id, metadata={"n": str(n)})).id
            for n in range(3)
        ]
        assert [job.id async for job in ask.fine_tuning.jobs.list(limit=1)] == made[::-1]
        assert [job.id async for job in ask.fine_tuning.jobs.list(metadata={"n": "1"})] == made[1:2]
        assert [job.id async for job in ask.fine_tuning.jobs.list(metadata={"m": "1"})] == []


async def test_a_job_is_cancelled_paused_and_resumed_at_every_moment_but_the_last(serve: Serve, tiny: Base) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        jobs, queue, file = ask.fine_tuning.jobs, queue_of(service), await upload(ask)
        job = await jobs.create(model=BASE, training_file=file.id)
        assert (await jobs.pause(job.id)).status == "paused"
        assert queue.claim("worker", tiny.digest) is None
        assert (await jobs.resume(job.id)).status == "queued"
        assert queue.claim("worker", tiny.digest)["id"] == job.id  # type: ignore[index]
        assert (await jobs.retrieve(job.id)).status == "validating_files"
        assert queue.begin(job.id, "worker")
        assert (await jobs.pause(job.id)).status == "paused"
        assert not queue.keep(job.id, "worker"), "so that the worker stops"
        assert (await jobs.resume(job.id)).status == "queued"
        assert queue.claim("other", tiny.digest) is None, "until the first worker lets go"
        queue.let_go(job.id, "worker")
        assert queue.claim("other", tiny.digest)
        cancelled = await jobs.cancel(job.id)
        assert cancelled.status == "cancelled"
        assert cancelled.finished_at
        assert not queue.publishing(job.id, "other")
        for turn in (jobs.cancel, jobs.pause, jobs.resume):
            with pytest.raises(openai.BadRequestError) as told:
                await turn(job.id)
            assert told.value.code == "wrong_state"


async def test_what_is_being_published_is_not_cancelled_any_more(serve: Serve, tiny: Base) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        jobs, queue, file = ask.fine_tuning.jobs, queue_of(service), await upload(ask)
        job = await jobs.create(model=BASE, training_file=file.id)
        queue.claim("worker", tiny.digest)
        assert queue.publishing(job.id, "worker")
        for turn in (jobs.cancel, jobs.pause):
            with pytest.raises(openai.BadRequestError, match="is being published"):
                await turn(job.id)


async def test_a_job_tells_its_steps_and_at_last_its_model(serve: Serve, tiny: Base) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        jobs, queue, file = ask.fine_tuning.jobs, queue_of(service), await upload(ask)
        job = await jobs.create(model=BASE, training_file=file.id)
        queue.claim("worker", tiny.digest)
        queue.begin(job.id, "worker")
        metrics = {"step": 1, "total_steps": 2, "train_loss": 0.5}
        queue.report(job.id, "worker", "Step 1/2: training loss=0.5000", data=metrics, seconds_left=60)
        running = await jobs.retrieve(job.id)
        assert running.status == "running"
        assert running.estimated_finish > running.created_at
        assert [each async for each in jobs.checkpoints.list(job.id)] == []
        result = {"steps": 2, "train_loss": 0.4, "valid_loss": 0.3}
        queue.succeed(job.id, "worker", fine_tuned_model="moods@1", result=result, trained_tokens=99)
        done = await jobs.retrieve(job.id)
        assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "moods@1", 99)
        (checkpoint,) = [each async for each in jobs.checkpoints.list(job.id)]
        assert (checkpoint.fine_tuned_model_checkpoint, checkpoint.metrics.valid_loss) == ("moods@1", 0.3)
        told = [event async for event in jobs.list_events(job.id, limit=2)]
        assert told[0].message == "The job has successfully completed"
        assert [event.data for event in told if event.type == "metrics"] == [metrics]
        assert told[-1].message == f"Created fine-tuning job: {job.id}"


async def test_why_a_job_failed_is_told_without_this_machines_folders(serve: Serve, tiny: Base) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        jobs, queue, file = ask.fine_tuning.jobs, queue_of(service), await upload(ask)
        job = await jobs.create(model=BASE, training_file=file.id)
        queue.claim("worker", tiny.digest)
        queue.fail(job.id, "worker", "invalid_training_file", "/srv/jobs/rows.jsonl: row 3 is empty", "training_file")
        failed = await jobs.retrieve(job.id)
        assert failed.status == "failed"
        assert failed.error.model_dump() == {
            "code": "invalid_training_file",
            "message": "rows.jsonl: row 3 is empty",
            "param": "training_file",
        }


async def test_a_file_that_an_unfinished_job_needs_stays(serve: Serve) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        file = await upload(ask)
        job = await ask.fine_tuning.jobs.create(model=BASE, training_file=file.id)
        with pytest.raises(openai.BadRequestError, match=f"is needed by {job.id}"):
            await ask.files.delete(file.id)
        await ask.fine_tuning.jobs.cancel(job.id)
        await ask.files.delete(file.id)


async def test_a_key_has_so_many_unfinished_jobs(serve: Serve) -> None:
    async with serve(jobs="queue", max_jobs=1) as service, client(service) as ask:
        file = await upload(ask)
        job = await ask.fine_tuning.jobs.create(model=BASE, training_file=file.id)
        with pytest.raises(openai.BadRequestError) as told:
            await ask.fine_tuning.jobs.create(model=BASE, training_file=file.id)
        assert told.value.code == "quota_exceeded"
        await ask.fine_tuning.jobs.cancel(job.id)
        await ask.fine_tuning.jobs.create(model=BASE, training_file=file.id)


async def test_keys_have_jobs_files_and_names_of_their_own(serve: Serve, tmp_path: Path) -> None:
    rights = ("name=ann scopes=train adapters=ann-*", "name=ben scopes=train", "name=boss scopes=admin")
    made = [new_key(right) for right in rights]
    (tmp_path / "keys").write_text("".join(f"{line}\n" for _, line in made))
    async with serve(jobs="queue", api_keys=tmp_path / "keys") as service:
        async with client(service, made[0][0]) as ann:
            file = await upload(ann)
            for suffix in ({}, {"suffix": "ben-moods"}):
                with pytest.raises(openai.BadRequestError, match=r"this key's adapters are ann-\*"):
                    await ann.fine_tuning.jobs.create(model=BASE, training_file=file.id, **suffix)
            with pytest.raises(openai.NotFoundError):
                await ann.fine_tuning.jobs.create(model="mood", training_file=file.id, suffix="ann-moods")
            job = await ann.fine_tuning.jobs.create(model=BASE, training_file=file.id, suffix="ann-moods")
        async with client(service, made[1][0]) as ben:
            jobs = ben.fine_tuning.jobs
            assert [each async for each in jobs.list()] == []
            for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
                with pytest.raises(openai.NotFoundError):
                    await call(job.id)
            with pytest.raises(openai.BadRequestError):
                await jobs.create(model=BASE, training_file=file.id)
        async with client(service, made[2][0]) as boss:
            assert [each.id async for each in boss.fine_tuning.jobs.list()] == [job.id]


async def test_a_database_that_is_away_is_503(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with serve(jobs="queue", jobs_database=str(tmp_path / "file" / "jobs.db")) as service, client(service) as ask:
        with pytest.raises(openai.InternalServerError) as told:
            await ask.fine_tuning.jobs.list()
        assert (told.value.status_code, told.value.code) == (503, "jobs_unavailable")


async def test_a_worker_of_the_services_own_is_replaced_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.worker.FIRST_PAUSE", 0.001)
    waiting = (sys.executable, "-c", "import sys; sys.stdin.read()")
    store = str(tmp_path / "store")
    worker = LocalWorker(Settings(cache=tmp_path), Place.of(tmp_path, store), store, waiting)
    worker.start()
    await until(lambda: worker.process is not None)
    first = worker.process
    assert first is not None
    first.kill()
    await until(lambda: worker.process is not first)
    await worker.close()
    assert worker.process is not None
    assert worker.process.returncode == -signal.SIGTERM


async def test_the_queue_is_shown_by_metrics(serve: Serve) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        watch = Watch(service.state.desk, service.state.metrics)
        file = await upload(ask)
        jobs = [await ask.fine_tuning.jobs.create(model=BASE, training_file=file.id) for _ in range(3)]
        await ask.fine_tuning.jobs.cancel(jobs[2].id)
        queue_of(service).claim("worker", service.state.base.digest)
        await watch.look()
        for state, count in (("queued", 1), ("validating_files", 1), ("cancelled", 1), ("running", 0), ("failed", 0)):
            assert await service.metric("hotswap_jobs", state=state) == count, state
        assert await service.metric("hotswap_jobs_seconds", state="cancelled") >= 0
        assert await service.metric("hotswap_jobs_oldest_queued_seconds") >= 0


async def test_a_queue_that_is_away_leaves_the_metrics_as_they_were(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        watch = Watch(service.state.desk, service.state.metrics, 0.01)
        await ask.fine_tuning.jobs.create(model=BASE, training_file=(await upload(ask)).id)
        await watch.look()
        looked = 0

        def away(_: Queue) -> None:
            nonlocal looked
            looked += 1
            raise DatabaseAway("away")

        monkeypatch.setattr(Queue, "tally", away)
        watch.start()
        await until(lambda: looked > 1)
        await watch.close()
        assert await service.metric("hotswap_jobs", state="queued") == 1
