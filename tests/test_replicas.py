"""Three replicas behind either router that is shipped: whatever befalls one, no request is lost, no answer wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loadtests.replicas.__main__ import FAULTS, measure
from loadtests.replicas.fleet import ROUTERS

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
@pytest.mark.parametrize("router", ROUTERS)
def test_no_fault_of_one_replica_loses_a_request_or_makes_an_answer_wrong(
    router: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "")  # what the harness sets is gone afterwards
    faults = [name for name in FAULTS if name != "nothing"]
    table = asyncio.run(measure(tmp_path, faults, "s3", "fake", rate=10, seconds=6, router=router))
    assert [row["fault"] for row in table] == faults
    for row in table:
        assert row["asked"] > 30, row
        assert (row["lost"], row["wrong"]) == (0, 0), row
