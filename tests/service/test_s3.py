"""The service on a store over a network, which goes away and comes back."""

from __future__ import annotations

import pytest

from adapters.releases import NewRelease
from adapters.store import Store
from tests.s3 import S3Server
from tests.service.conftest import Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


async def test_a_release_in_a_bucket_is_served(serve: Serve, bucket: Store) -> None:
    async with serve(bucket) as service:
        assert (await service.predict("brief")).json()["adapter"]["version"] == 1
        bucket.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("brief").generation == 2)
        assert (await service.predict("brief")).json()["adapter"]["version"] == 2


async def test_while_the_bucket_is_away_the_service_goes_on_and_then_catches_up(
    serve: Serve, bucket: Store, s3: S3Server
) -> None:
    async with serve(bucket) as service:

        async def reachable() -> bool:
            ready = await service.client.get("/readyz")
            assert ready.status_code == 200
            return ready.json()["store_reachable"]

        assert await reachable()
        with s3.away():
            await until(lambda: not service.state.reconciler.store_reachable)
            assert not await reachable()
            assert (await service.predict("brief")).json()["adapter"]["version"] == 1
            told = await service.client.post("/v1/adapters/brief/releases", json={"stable": 2})
            assert (told.status_code, told.json()["code"]) == (503, "not_ready")
            assert await service.metric("hotswap_store_errors_total") > 0
        bucket.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("brief").generation == 2)
        assert await reachable()
