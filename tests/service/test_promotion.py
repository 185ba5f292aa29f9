"""Shadows, feedback, and canaries that raise themselves or are taken back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from adapters.releases import Guard, NewRelease, Release, Share
from adapters.store import Store
from service.engine.base import EngineRefused
from service.rollout.evidence import Counts, Tally
from service.rollout.promotion import Promotion
from service.serving.routing import Routing
from tests.conftest import LABELS
from tests.service.conftest import Running, Serve, until

pytestmark = pytest.mark.anyio
QUICK = Guard(steps=(20, 60), errors=0.3, slow=0.9, samples=5, seconds=0)
RELEASES = "/v1/adapters/mood/releases"


async def ask_until(service: Running, condition, **more) -> None:
    async with asyncio.timeout(60):
        asked = 0
        while not condition():
            await asyncio.gather(*(service.predict("mood", caller=f"{asked}-{n}", **more) for n in range(16)))
            asked += 1


async def test_a_good_canary_is_raised_step_by_step_until_everyone_has_it(serve: Serve, stocked: Store) -> None:
    stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=20), guard=QUICK, by="ann"))
    async with serve() as service:
        await ask_until(service, lambda: stocked.released("mood").stable == 2)
        steps = [(r.stable, r.canary.percent if r.canary else None, r.by) for r in stocked.history("mood")[1:]]
        assert steps == [(1, 20, "ann"), (1, 60, "guard"), (2, None, "guard")]
        assert "not worse than" in stocked.released("mood").why


async def test_a_canary_that_fails_is_taken_back_and_the_reason_is_in_the_record(
    serve: Serve, stocked: Store, monkeypatch
) -> None:
    async with serve() as service:
        generate = service.engine.generate

        def failing(prompt, sampling, adapter, *, stream=False):
            if adapter and adapter.startswith("mood@2") and service.state.routing.served("mood").canary:
                raise RuntimeError("the canary's own fault")
            return generate(prompt, sampling, adapter, stream=stream)

        stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=50), guard=QUICK))
        await until(lambda: service.state.routing.served("mood").canary is not None)
        monkeypatch.setattr(service.engine, "generate", failing)
        await ask_until(service, lambda: stocked.released("mood").guard is None)
        newest = stocked.released("mood")
        assert (newest.stable, newest.canary, newest.by) == (1, None, "guard")
        assert "of its answers failed" in newest.why
        await until(lambda: service.state.routing.served("mood").generation == newest.generation)
        assert (await service.predict("mood")).json()["adapter"]["version"] == 1


async def test_a_canary_that_feedback_calls_wrong_is_taken_back(serve: Serve, stocked: Store) -> None:
    guard = QUICK.model_copy(update={"samples": 10_000, "wrong": 0.3})
    stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=50), guard=guard))
    async with serve() as service:
        asked = 0
        async with asyncio.timeout(60):
            while stocked.released("mood").guard is not None:
                told = (await service.predict("mood", caller=f"c{asked}")).json()
                right = told["adapter"]["version"] == 1
                said = await service.client.post("/v1/feedback", json={"id": told["id"], "correct": right})
                assert said.status_code == 200
                asked += 1
        assert "wrong by feedback" in stocked.released("mood").why


async def test_someone_who_releases_in_between_is_not_overruled(serve: Serve, stocked: Store) -> None:
    stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=20), guard=QUICK))
    async with serve(poll_seconds=3600) as service:
        release = service.state.routing.served("mood")
        stocked.release("mood", NewRelease(stable=2, why="by hand"))
        promotion = service.state.supervisor._promotion
        await promotion._look("mood", release)
        promotion._tally.of("mood", 2).answers = 1000
        promotion._tally.of("mood", 2).failed = 1000
        promotion._tally.of("mood", 1).answers = 1000
        from adapters.errors import GenerationConflict

        with pytest.raises(GenerationConflict):
            await promotion._look("mood", release)
        assert stocked.released("mood").why == "by hand"


FINISHED, TAKEN_BACK = 2, 1


@pytest.mark.parametrize("end", [None, FINISHED, TAKEN_BACK])
async def test_rolling_back_a_guarded_promotion_undoes_all_its_steps(
    serve: Serve, stocked: Store, end: int | None
) -> None:
    stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=20), guard=QUICK))
    stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=60), guard=QUICK, step=True))
    if end:
        stocked.release("mood", NewRelease(stable=end, step=True))
    async with serve() as service:
        told = (await service.client.post("/v1/adapters/mood/rollback")).json()
        assert (told["stable"], told.get("canary"), told.get("guard")) == (1, None, None)


async def test_a_shadow_answers_copies_and_nobody_sees_them(serve: Serve, stocked: Store) -> None:
    async with serve() as service:
        body = {"stable": 1, "shadow": {"version": 2, "percent": 100}}
        assert (await service.client.post(RELEASES, json=body)).status_code == 201
        await until(lambda: service.state.routing.served("mood").shadow is not None)
        told = await service.client.post("/v1/predict", json={"adapter": "mood", "inputs": ["a film", "a play", " "]})
        assert told.json()["adapter"]["version"] == 1
        await service.until(lambda shown: shown >= 3, "hotswap_shadow_total", adapter="mood", version="2")
        assert await service.metric("hotswap_shadow_total", outcome="failed") == 0
        assert await service.metric("hotswap_requests_total", adapter="mood", version="2") == 0
        shown = (await service.client.get("/v1/adapters/mood")).json()
        assert shown["shadow"] == {"version": 2, "percent": 100}


async def test_a_shadow_gives_way_to_load_and_its_failures_reach_nobody(
    serve: Serve, stocked: Store, monkeypatch
) -> None:
    stocked.release("mood", NewRelease(stable=1, shadow=Share(version=2, percent=100)))
    async with serve(max_concurrency=4) as service:
        service.engine.gate.clear()
        asked = [asyncio.create_task(service.predict("mood")) for _ in range(8)]
        await until(lambda: service.engine.active == 4)
        service.engine.gate.set()
        assert {(await task).status_code for task in asked} == {200}
        shed = await service.metric("hotswap_shadow_total", outcome="shed")
        assert shed >= 4
        generate = service.engine.generate

        def failing(prompt, sampling, adapter, *, stream=False):
            if adapter and adapter.startswith("mood@2"):
                raise EngineRefused("not this one")
            return generate(prompt, sampling, adapter, stream=stream)

        monkeypatch.setattr(service.engine, "generate", failing)
        assert (await service.predict("mood")).status_code == 200
        await service.until(bool, "hotswap_shadow_total", outcome="failed")


async def test_feedback_by_label_is_compared_with_what_was_said_and_counted_once(serve: Serve) -> None:
    async with serve() as service:
        told = (
            await service.client.post("/v1/predict", json={"adapter": "mood", "inputs": ["a film", "a play"]})
        ).json()
        said = told["outputs"][1]["label"]
        for _ in range(2):
            taken = await service.client.post("/v1/feedback", json={"id": told["id"], "index": 1, "label": said})
            assert taken.json() == {"id": told["id"], "adapter": "mood", "version": 1, "correct": True}
        assert await service.metric("hotswap_feedback_total", adapter="mood", outcome="right") == 1


async def test_feedback_is_kept_to_train_on_where_there_is_a_log(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "kept" / "feedback.jsonl"
    async with serve(feedback_log=log) as service:
        told = (
            await service.client.post("/v1/predict", json={"adapter": "mood", "inputs": ["a film", "ein Stück"]})
        ).json()
        said = told["outputs"][1]["label"]
        better = next(label for label in LABELS if label != said)
        for _ in range(2):
            await service.client.post("/v1/feedback", json={"id": told["id"], "index": 1, "label": better})
    (line,) = log.read_text(encoding="utf-8").splitlines()
    kept = json.loads(line)
    assert (kept["adapter"], kept["version"], kept["text"]) == ("mood", 1, "ein Stück")
    assert (kept["answer"], kept["good"], kept["better"]) == (said, False, better)


async def test_a_streamed_summary_is_judged_and_kept_like_any_other(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "feedback.jsonl"
    async with serve(feedback_log=log) as service:
        body = {"adapter": "brief", "input": "A film.", "stream": True}
        events = (await service.client.post("/v1/summarize", json=body)).text
        data = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: {")]
        (prediction,) = [event for event in data if "id" in event]
        response = await service.client.post("/v1/feedback", json={"id": prediction["id"], "correct": True})
        assert response.status_code == 200
    record = json.loads(log.read_text())
    assert set(record) == {"at", "id", "adapter", "version", "task", "text", "answer", "good", "better"}
    assert (record["task"], record["text"], record["good"]) == ("summarization", "A film.", True)
    assert record["answer"] == prediction["outputs"][0]["summary"]


async def test_a_better_summary_is_kept_beside_the_one_given(serve: Serve, two_briefs: Store, tmp_path: Path) -> None:
    log = tmp_path / "feedback.jsonl"
    async with serve(feedback_log=log) as service:
        told = (await service.predict("brief")).json()
        taken = await service.client.post("/v1/feedback", json={"id": told["id"], "better": "What it is about"})
        assert taken.json()["correct"] is False
    kept = json.loads(log.read_text())
    assert (kept["answer"], kept["better"]) == (told["outputs"][0]["summary"], "What it is about")


async def test_a_log_that_cannot_be_written_costs_no_answer(serve: Serve, tmp_path: Path) -> None:
    async with serve(feedback_log=tmp_path) as service:
        told = (await service.predict("mood")).json()
        taken = await service.client.post("/v1/feedback", json={"id": told["id"], "correct": True})
        assert taken.status_code == 200
        assert await service.metric("hotswap_feedback_total", adapter="mood", outcome="right") == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"id": "pred_nobody", "correct": True}, 404, "prediction_not_found"),
        ({"better": "good"}, 422, "invalid_request"),
        ({"index": 1, "correct": True}, 422, "invalid_request"),
        ({"label": "so-so"}, 422, "invalid_request"),
        ({}, 422, "invalid_request"),
        ({"label": "positive", "correct": True}, 422, "invalid_request"),
        ({"correct": "yes"}, 422, "invalid_request"),
    ],
)
async def test_feedback_that_makes_no_sense_is_refused(serve: Serve, body: dict, status: int, code: str) -> None:
    async with serve() as service:
        made = (await service.predict("mood")).json()["id"]
        told = await service.client.post("/v1/feedback", json={"id": made, **body})
        assert (told.status_code, told.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    "body",
    [
        {"stable": 1, "guard": {}},
        {"stable": 1, "canary": {"version": 2, "percent": 5}, "guard": {"steps": [50, 20]}},
        {"stable": 1, "canary": {"version": 2, "percent": 5}, "guard": {"steps": []}},
        {"stable": 1, "canary": {"version": 2, "percent": 5}, "guard": {"disagreement": 0.1}},
        {"stable": 1, "shadow": {"version": 2, "percent": 0}},
    ],
)
async def test_a_guard_or_shadow_that_makes_no_sense_is_refused(serve: Serve, stocked: Store, body: dict) -> None:
    async with serve() as service:
        told = await service.client.post(RELEASES, json=body)
        assert (told.status_code, told.json()["code"]) == (422, "invalid_request")
        assert len(stocked.history("mood")) == 1


def test_what_is_counted_for_one_adapter_is_counted_for_no_other() -> None:
    from service.rollout.evidence import Tally

    tally = Tally()
    tally.answered("mood", 1, 0.1, failed=True)
    assert tally.of("mood", 1) == Counts()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("service.rollout.promotion.time", clock)
    return clock


class Watched:
    """A guarded canary with a shadow, and as many answers of both as the test says."""

    def __init__(self, store: Store, guard: Guard) -> None:
        self.store, self.routing, self.tally = store, Routing(), Tally()
        shares = {"canary": Share(version=2, percent=20), "shadow": Share(version=2, percent=10)}
        store.release("mood", NewRelease(stable=1, guard=guard, **shares))
        self._promotion = Promotion(self.routing, self, store, self, self.tally, 0)  # type: ignore[arg-type]
        self.wake()

    async def __call__(self, _: str, work, *args, **more):
        return work(*args, **more)

    def wake(self) -> None:
        """Serve what is released, as the reconciler would."""
        self.routing.flip("mood", self.store.released("mood"))

    def answers(self, number: int, *, failed: bool = False) -> None:
        for version in (1, 2):
            for _ in range(number):
                self.tally.answered("mood", version, 0.1, failed=failed and version == 2)

    async def looks(self) -> Release:
        """Return what is released after some looks."""
        work = asyncio.create_task(self._promotion.run())
        for _ in range(20):
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return self.store.released("mood")


GUARD = Guard(steps=(20, 60), errors=0.3, slow=0.9, samples=50, seconds=60)


async def test_a_step_lasts_its_least_seconds_and_has_its_samples(stocked: Store, clock: Clock) -> None:
    watched = Watched(stocked, GUARD)
    first = await watched.looks()
    watched.answers(1000)
    clock.now += 59.9
    assert await watched.looks() == first
    clock.now += 0.1
    second = await watched.looks()
    assert (second.canary, second.guard) == (Share(version=2, percent=60), GUARD)
    clock.now += 1000  # what was counted before the step does not count for it
    assert await watched.looks() == second
    watched.answers(49)
    assert await watched.looks() == second
    watched.answers(951)
    assert (await watched.looks()).stable == 2


async def test_a_shadow_goes_with_its_guard_however_that_ends(store: Store, stocked: Store, clock: Clock) -> None:
    watched = Watched(stocked, GUARD)
    await watched.looks()
    for shadow in (Share(version=2, percent=10), None):  # at the second step, and when everyone has it
        watched.answers(1000)
        clock.now += 60
        assert (await watched.looks()).shadow == shadow
    assert watched.store.released("mood").versions == (2,)


async def test_nor_does_a_canary_that_is_taken_back_leave_its_shadow(stocked: Store, clock: Clock) -> None:
    watched = Watched(stocked, GUARD)
    await watched.looks()
    watched.answers(100, failed=True)
    back = await watched.looks()  # at once: nobody waits for the least seconds to be rid of a bad one
    assert (back.stable, back.canary, back.shadow, back.guard) == (1, None, None, None)
    assert "100 of 100 of its answers failed, of the stable version's 0 of 100" in back.why
