"""Feedback works on every replica: what was predicted, and what was said of it, is in a database."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from adapters.releases import Guard, NewRelease, Share
from adapters.store import Store
from service.http.keys import new_key
from service.monitoring import writer
from service.monitoring.database import Database
from service.monitoring.tables import judgements, predictions
from tests.conftest import LABELS
from tests.postgres import PostgresServer
from tests.service.conftest import Running, Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a database can be, and is not yet."""
    if request.param == "sqlite":
        return str(tmp_path / "kept" / "feedback.db")
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.make_database()


@pytest.fixture(autouse=True)
def _tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(writer, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(writer, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(writer, "VERDICT_SECONDS", 30.0)  # a busy machine's database takes its time


async def judge(service: Running, prediction: str, key: str = "", **said: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return await service.client.post("/v1/feedback", json={"id": prediction, **said}, headers=headers)


async def predicted(service: Running, adapter: str = "mood", **more: Any) -> dict[str, Any]:
    response = await service.predict(adapter, **more)
    assert response.status_code == 200, response.text
    return response.json()


async def counted(service: Running, outcome: str = "") -> float:
    return await service.metric("hotswap_feedback_total", **({"outcome": outcome} if outcome else {}))


async def written(service: Running, number: float) -> None:
    await service.until(lambda now: now == number, "hotswap_feedback_writes_total", outcome="written")


async def up(service: Running, value: float) -> None:
    await service.until(lambda now: now == value, "hotswap_feedback_database_up")


def rows(place: str, table: Any = predictions) -> list[dict[str, Any]]:
    kept = Database(place)
    with kept.reading() as connection:
        found = [dict(row._mapping) for row in connection.execute(select(table))]
    kept.close()
    return found


class TestEveryReplica:
    async def test_takes_feedback_about_what_another_one_answered(self, serve: Serve, place: str) -> None:
        async with serve(feedback_database=place) as one, serve(feedback_database=place) as other:
            told = await predicted(one)
            right = await judge(other, told["id"], label=told["outputs"][0]["label"])
            assert right.json() == {"id": told["id"], "adapter": "mood", "version": 1, "correct": True}
            assert (await counted(one), await counted(other, "right")) == (0, 1)

    async def test_takes_feedback_about_what_was_answered_before_a_restart(self, serve: Serve, place: str) -> None:
        async with serve(feedback_database=place) as service:
            told = await predicted(service)
        async with serve(feedback_database=place) as service:
            await up(service, 1)
            assert (await judge(service, told["id"], correct=False)).status_code == 200
            assert await counted(service, "wrong") == 1

    async def test_writes_what_waits_when_it_is_stopped(
        self, serve: Serve, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with serve(feedback_database=place) as service:
            await up(service, 1)
            monkeypatch.setattr(writer, "FLUSH_SECONDS", 30)
            made = [(await predicted(service))["id"] for _ in range(9)]
            monkeypatch.setattr(writer, "BATCH", 2)
        assert {row["id"] for row in rows(place)} == set(made)

    @pytest.mark.parametrize("first", [0, 1])
    async def test_counts_an_answer_once_whoever_was_told(self, serve: Serve, place: str, first: int) -> None:
        async with serve(feedback_database=place) as one, serve(feedback_database=place) as other:
            told = await predicted(one)
            replicas = (one, other, one, other) if first == 0 else (other, one, other, one)
            for service in replicas:
                assert (await judge(service, told["id"], correct=True)).status_code == 200
            assert await counted(one) + await counted(other) == 1
            assert len(rows(place, judgements)) == 1

    async def test_counts_a_prediction_once_as_evidence_about_a_canary(
        self, serve: Serve, stocked: Store, place: str
    ) -> None:
        patient = Guard(steps=(50,), samples=10**6, seconds=0)
        stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=50), guard=patient))
        async with serve(feedback_database=place) as one, serve(feedback_database=place) as other:
            tallies = [service.state.answering._tally for service in (one, other)]
            await until(lambda: all("mood" in tally._watched for tally in tallies))
            body = {"adapter": "mood", "inputs": ["a", "b", "c"]}
            told = (await one.client.post("/v1/predict", json=body)).json()
            version = told["adapter"]["version"]
            for index, service in enumerate((other, one, other)):
                assert (await judge(service, told["id"], index=index, correct=False)).status_code == 200
            assert sum(tally.of("mood", version).judged for tally in tallies) == 1
            assert await counted(one, "wrong") + await counted(other, "wrong") == 3

    async def test_refuses_what_makes_no_sense_as_the_one_that_answered_does(self, serve: Serve, place: str) -> None:
        async with serve(feedback_database=place) as one, serve(feedback_database=place) as other:
            told = await predicted(one)
            for said in ({"label": "so-so"}, {"index": 1, "correct": True}, {"better": "a summary"}):
                answers = [await judge(service, told["id"], **said) for service in (one, other)]
                assert [answer.status_code for answer in answers] == [422, 422]
                assert answers[0].json() == answers[1].json()
            assert await counted(other) == 0

    async def test_knows_nothing_of_another_tenants_predictions(self, serve: Serve, place: str, tmp_path: Path) -> None:
        (mine, line), (theirs, other_line) = new_key("name=a adapters=mood"), new_key("name=b adapters=bri*")
        (tmp_path / "keys").write_text(f"{line}\n{other_line}\n")
        settings = {"feedback_database": place, "api_keys": tmp_path / "keys"}
        async with serve(**settings) as one, serve(**settings) as other:
            bearer = {"Authorization": f"Bearer {mine}"}
            body = {"adapter": "mood", "input": "A film."}
            made = (await one.client.post("/v1/predict", json=body, headers=bearer)).json()["id"]
            for service in (one, other):
                hidden = await judge(service, made, theirs, correct=True)
                unknown = await judge(service, "pred_01JD0000000000000000000000", theirs, correct=True)
                assert (hidden.status_code, hidden.json()["code"]) == (404, "prediction_not_found")
                assert hidden.json() == unknown.json()
            assert (await judge(other, made, mine, correct=True)).status_code == 200

    async def test_takes_a_better_summary_whatever_is_kept_of_texts(self, serve: Serve, place: str) -> None:
        async with serve(feedback_database=place) as one, serve(feedback_database=place) as other:
            told = await predicted(one, "brief")
            said = await judge(other, told["id"], better="What it is about")
            assert said.json()["correct"] is False
            (kept,) = rows(place, judgements)
            assert kept["better"] is None, "texts are off"


@pytest.mark.parametrize(
    "prediction", ["pred_nobody", "", "pred_01JD0000000000000000000000\0", "é" * 64, "' OR 1=1 --"]
)
async def test_an_id_that_is_none_is_not_found(serve: Serve, place: str, prediction: str) -> None:
    async with serve(feedback_database=place) as service:
        assert (await judge(service, prediction, correct=True)).json()["code"] == "prediction_not_found"


async def test_without_a_setting_the_replicas_of_a_store_share_a_file_in_the_cache(
    serve: Serve, stocked: Store, tmp_path: Path
) -> None:
    copied = Store(shutil.copytree(stocked.place, tmp_path / "other-store"))
    default: dict[str, Any] = {"feedback_database": None}
    async with serve(**default) as one, serve(**default) as other, serve(copied, **default) as elsewhere:
        told = await predicted(one)
        await up(elsewhere, 1)
        answers = [await judge(service, told["id"], correct=True) for service in (other, elsewhere)]
        assert [answer.status_code for answer in answers] == [200, 404]


async def test_a_body_of_ten_megabytes_is_refused(serve: Serve, tmp_path: Path) -> None:
    async with serve(feedback_database=str(tmp_path / "feedback.db")) as service:
        assert (await judge(service, "pred_nobody", better="x" * 10_000_000)).status_code == 413


async def test_any_text_is_kept(serve: Serve, place: str) -> None:
    odd = 'NUL \0, \u2028, \U0001f600, a backslash \\u0000 and a quotation mark "'
    async with serve(feedback_database=place, feedback_texts="plain") as service:
        told = await predicted(service, "brief", text=odd, caller="c\0d")
        assert (await judge(service, told["id"], better="b\0c")).status_code == 200
        assert await service.metric("hotswap_feedback_writes_total", outcome="failed") == 0
    (kept,), (said,) = rows(place), rows(place, judgements)
    assert (kept["texts"], kept["caller"], said["better"]) == ([odd.replace("\0", "\ufffd")], "c\ufffdd", "b\ufffdc")


class TestTexts:
    SAID = "Ask ann@example.com about the moving film."

    @pytest.mark.parametrize(
        ("form", "kept"),
        [
            ("off", None),
            ("hashed", [f"sha256:{hashlib.sha256(SAID.encode()).hexdigest()}"]),
            ("redacted", ["Ask <EMAIL_ADDRESS> about the moving film."]),
            ("plain", [SAID]),
        ],
    )
    async def test_are_kept_in_the_form_of_the_setting(
        self, serve: Serve, tmp_path: Path, form: str, kept: list[str] | None
    ) -> None:
        path = tmp_path / "feedback.db"
        async with serve(feedback_database=str(path), feedback_texts=form) as service:
            told = await predicted(service, "brief", text=self.SAID)
            better = "Of ann@example.com"
            assert (await judge(service, told["id"], better=better)).status_code == 200
        (row,), (said,) = rows(str(path)), rows(str(path), judgements)
        assert (row["texts"], row["form"]) == (kept, form)
        everything = path.read_bytes()
        assert (b"moving film" in everything) is (form in ("redacted", "plain"))
        assert (b"ann@example.com" in everything) is (form == "plain")
        summary = told["outputs"][0]["summary"]
        assert (row["answers"] == [summary]) is (form == "plain")
        assert (said["better"] == better) is (form == "plain")

    async def test_labels_are_kept_in_any_case(self, serve: Serve, tmp_path: Path) -> None:
        path = str(tmp_path / "feedback.db")
        async with serve(feedback_database=path) as service:
            told = await predicted(service)
            other = next(label for label in LABELS if label != told["outputs"][0]["label"])
            assert (await judge(service, told["id"], label=other)).status_code == 200
        assert rows(path)[0]["answers"] == [told["outputs"][0]["label"]]
        assert rows(path, judgements)[0]["better"] == other

    @pytest.mark.parametrize("form", ["off", "hashed", "redacted", "plain"])
    async def test_of_any_form_tell_a_summary_that_is_the_same(self, serve: Serve, tmp_path: Path, form: str) -> None:
        settings = {"feedback_database": str(tmp_path / "feedback.db"), "feedback_texts": form}
        async with serve(**settings) as one, serve(**settings) as other:
            told = await predicted(one, "brief")
            same = await judge(other, told["id"], better=told["outputs"][0]["summary"])
            assert same.json()["correct"] is (form != "off")


class TestASample:
    async def test_of_nothing_leaves_feedback_to_memory(self, serve: Serve, tmp_path: Path) -> None:
        path = str(tmp_path / "feedback.db")
        async with serve(feedback_database=path, feedback_sample=0) as one:
            told = await predicted(one)
            assert (await judge(one, told["id"], correct=True)).status_code == 200
            assert await counted(one) == 1
            async with serve(feedback_database=path) as other:
                await up(other, 1)
                assert (await judge(other, told["id"], correct=True)).status_code == 404
        assert rows(path) == rows(path, judgements) == []

    async def test_of_a_half_is_a_half_and_judged_like_any(self, serve: Serve, tmp_path: Path) -> None:
        path = str(tmp_path / "feedback.db")
        async with serve(feedback_database=path, feedback_sample=0.5) as service:
            made = [(await predicted(service))["id"] for _ in range(60)]
            for prediction in made:
                assert (await judge(service, prediction, correct=True)).status_code == 200
            assert await counted(service) == 60
        kept = {row["id"] for row in rows(path)}
        assert 5 < len(kept) < 55
        assert {row["prediction"] for row in rows(path, judgements)} == kept


class TestRetention:
    @pytest.fixture(autouse=True)
    def _often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(writer, "SWEEP_SECONDS", 0.01)

    def age(self, path: Path, prediction: str, days: int) -> None:
        with sqlite3.connect(path) as connection:
            change = "UPDATE feedback_predictions SET at = datetime('now', ?) WHERE id = ?"
            connection.execute(change, (f"-{days} days", prediction))
        connection.close()

    async def test_deletes_what_is_too_old_with_what_was_said_of_it(
        self, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.monitoring.records.AT_ONCE", 2)
        path = tmp_path / "feedback.db"
        async with serve(feedback_database=str(path), feedback_days=7) as service:
            made = [(await predicted(service))["id"] for _ in range(7)]
            for prediction in made:
                await judge(service, prediction, correct=True)
            await written(service, 14)
            for prediction in made[:5]:
                self.age(path, prediction, 8)
            self.age(path, made[5], 6)
            await until(lambda: len(rows(str(path))) <= 2)
            assert {row["id"] for row in rows(str(path))} == set(made[5:])
            assert {row["prediction"] for row in rows(str(path), judgements)} == set(made[5:])

    async def test_waits_when_the_clock_jumps(
        self, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        from datetime import timedelta

        from service.monitoring import records

        path, now, ahead = tmp_path / "feedback.db", records.now, timedelta(0)
        monkeypatch.setattr(records, "now", lambda connection: now(connection) + ahead)
        async with serve(feedback_database=str(path), feedback_days=7) as service:
            await predicted(service)
            await written(service, 1)
            ahead = timedelta(days=3650)
            await until(lambda: "the clock was set" in caplog.text)
            await predicted(service)
            await written(service, 2)
        assert len(rows(str(path))) == 2

    async def test_of_a_file_that_is_full_forgets_the_oldest_that_nobody_judged(
        self, serve: Serve, tmp_path: Path
    ) -> None:
        path, most = tmp_path / "feedback.db", 400_000
        settings = {"feedback_database": str(path), "feedback_texts": "plain", "feedback_gib": most / 2**30}
        async with serve(**settings) as service:
            first = (await predicted(service))["id"]
            assert (await judge(service, first, correct=True)).status_code == 200
            made = [(await predicted(service, text="x" * 3000))["id"] for _ in range(200)]
            await written(service, 202)
        kept = [row["id"] for row in rows(str(path))]
        assert path.stat().st_size <= most
        assert (first in kept, made[0] in kept, made[-1] in kept) == (True, False, True)
