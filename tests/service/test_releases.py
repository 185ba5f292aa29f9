"""Releasing and rolling back over HTTP: what one replica is told, every replica does."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.signing import Signer, TrustedKeys
from adapters.store import Store
from tests.conftest import MakeAdapter, make_keys
from tests.service.conftest import Serve, until

pytestmark = pytest.mark.anyio
RELEASES, ROLLBACK = "/v1/adapters/brief/releases", "/v1/adapters/brief/rollback"


async def test_a_release_is_served_at_once_and_recorded(serve: Serve, two_briefs: Store) -> None:
    async with serve(poll_seconds=3600) as service:
        canary = {"version": 1, "percent": 10}
        body = {"stable": 2, "canary": canary, "expected_generation": 1, "why": "better"}
        told = await service.client.post(RELEASES, json=body)
        assert told.status_code == 201
        record = {"name": "brief", "generation": 2, "stable": 2, "canary": canary, "by": "anonymous", "why": "better"}
        assert {key: value for key, value in told.json().items() if key != "at"} == record
        await until(lambda: service.state.routing.served("brief").generation == 2)
        assert (await service.predict("brief@canary")).json()["adapter"]["version"] == 1
        assert two_briefs.history("brief")[-1].why == "better"


async def test_of_two_who_release_at_once_one_wins_and_the_other_loses_nothing(serve: Serve, two_briefs: Store) -> None:
    async with serve() as service:
        told = await asyncio.gather(
            *(service.client.post(RELEASES, json={"stable": v, "expected_generation": 1}) for v in (1, 2) * 4)
        )
        statuses = sorted(answer.status_code for answer in told)
        assert statuses == [201, *[409] * 7]
        assert {answer.json()["code"] for answer in told if answer.status_code == 409} == {"generation_conflict"}
        (won,) = [answer.json() for answer in told if answer.status_code == 201]
        assert [record.stable for record in two_briefs.history("brief")] == [1, won["stable"]]


async def test_a_rollback_is_the_previous_release_as_a_new_generation(serve: Serve, two_briefs: Store) -> None:
    async with serve() as service:
        await service.client.post(RELEASES, json={"stable": 2})
        late = await service.client.post(ROLLBACK, json={"expected_generation": 1})
        assert (late.status_code, late.json()["code"]) == (409, "generation_conflict")
        told = (await service.client.post(ROLLBACK)).json()
        assert (told["generation"], told["stable"], told["why"]) == (3, 1, "rollback of generation 2")
        await until(lambda: service.state.routing.served("brief").generation == 3)


async def test_there_is_nothing_to_roll_back_to_after_one_release(serve: Serve) -> None:
    async with serve() as service:
        told = await service.client.post(ROLLBACK)
        assert (told.status_code, told.json()["code"]) == (404, "version_not_found")


async def test_what_cannot_be_served_is_not_released(serve: Serve, two_briefs: Store, tmp_path: Path) -> None:
    (tmp_path / "store/brief/versions/2/adapter_model.safetensors").write_bytes(b"rubbish")
    async with serve() as service:
        told = await service.client.post(RELEASES, json={"stable": 2})
        assert (told.status_code, told.json()["code"]) == (422, "invalid_adapter")
        assert "damaged" in told.json()["detail"]
        told = await service.client.post(RELEASES, json={"stable": 1, "canary": {"version": 2, "percent": 5}})
        assert told.status_code == 422
        assert len(two_briefs.history("brief")) == 1


async def test_nor_is_it_rolled_back_to(serve: Serve, two_briefs: Store, tmp_path: Path) -> None:
    (tmp_path / "store/brief/versions/2/adapter_model.safetensors").write_bytes(b"rubbish")
    for version in (2, 1):
        two_briefs.release("brief", NewRelease(stable=version))
    async with serve() as service:
        told = await service.client.post(ROLLBACK)
        assert (told.status_code, told.json()["code"]) == (422, "invalid_adapter")


async def test_what_was_deleted_is_not_released_though_it_was_seen(
    serve: Serve, two_briefs: Store, tmp_path: Path
) -> None:
    async with serve() as service:
        assert (await service.predict("brief@2")).status_code == 200
        shutil.rmtree(tmp_path / "store/brief/versions/2")
        told = await service.client.post(RELEASES, json={"stable": 2})
        assert (told.status_code, told.json()["code"]) == (404, "version_not_found")
        assert str(tmp_path) not in told.text


async def test_where_keys_are_asked_for_an_unsigned_version_is_not_released_and_the_old_one_serves(
    serve: Serve, stocked: Store, make_adapter: MakeAdapter, summary_task, tiny, tmp_path: Path
) -> None:
    private, public = make_keys(tmp_path)
    for signer in (Signer(private), None):
        add_version(stocked, "signed", make_adapter(), summary_task, tiny, signer=signer)
    stocked.release("signed", NewRelease(stable=1))
    async with serve(Store(stocked.place, trusted=TrustedKeys(public))) as service:
        told = await service.client.post("/v1/adapters/signed/releases", json={"stable": 2})
        assert (told.status_code, told.json()["code"]) == (422, "invalid_adapter")
        assert "signed@2: it is not signed" in told.json()["detail"]
        stocked.release("signed", NewRelease(stable=2))  # by who may write to the store, past the service
        await until(lambda: service.state.residency.state("signed", 2)["state"] == "failed")
        assert (await service.predict("signed")).json()["adapter"]["version"] == 1
        assert (await service.predict("signed@2")).json()["code"] == "adapter_failed"


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/adapters/nope/releases", {"stable": 1}, 404, "adapter_not_found"),
        ("/v1/adapters/..%2Fbrief/releases", {"stable": 1}, 404, "not_found"),
        ("/v1/adapters/B%20R/releases", {"stable": 1}, 404, "adapter_not_found"),
        ("/v1/adapters/nope/rollback", {}, 404, "adapter_not_found"),
        (RELEASES, {"stable": 9}, 404, "version_not_found"),
        (RELEASES, {"stable": 1, "canary": {"version": 9, "percent": 5}}, 404, "version_not_found"),
        (RELEASES, {"stable": 1, "canary": {"version": 1, "percent": 101}}, 422, "invalid_request"),
        (RELEASES, {"stable": 1, "canary": {"version": 1, "percent": 5}}, 422, "invalid_request"),
        (RELEASES, {"stable": 1, "shadow": {"version": 1, "percent": 5}}, 422, "invalid_request"),
        (RELEASES, {"stable": "1"}, 422, "invalid_request"),
        (RELEASES, {"stable": 10**400}, 422, "invalid_request"),
        (RELEASES, {"stable": 1, "expected_generation": -1}, 422, "invalid_request"),
        (RELEASES, {"stable": 1, "reason": "misspelt"}, 422, "invalid_request"),
        (RELEASES, {"stable": 1, "why": "x" * 1001}, 422, "invalid_request"),
        (RELEASES, {}, 422, "invalid_request"),
    ],
)
async def test_a_release_that_makes_no_sense_is_refused_with_a_reason(
    serve: Serve, two_briefs: Store, tmp_path: Path, path: str, body: dict, status: int, code: str
) -> None:
    async with serve() as service:
        told = await service.client.post(path, json=body)
        assert (told.status_code, told.json()["code"]) == (status, code)
        assert str(tmp_path) not in told.text
        assert len(two_briefs.history("brief")) == 1
