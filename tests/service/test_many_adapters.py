"""Hundreds of adapters cost one listing, and reads of what changed alone."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore
import pytest

from adapters import listing
from adapters.releases import NewRelease
from adapters.store import Store
from tests.service.conftest import Running, Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
ADAPTERS, VERSIONS = 300, 3


def write(folder: Path, name: str, versions: int, releases: int, sample: Path) -> None:
    """Put an adapter into a store as plain files: as somebody's copying would."""
    manifest = json.loads((sample / "manifest.json").read_text())
    for version in range(1, versions + 1):
        target = folder / name / "versions" / str(version)
        target.mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (target / file).hardlink_to(sample / file)
        (target / "manifest.json").write_text(json.dumps(manifest | {"name": name, "version": version}))
    (folder / name / "releases").mkdir()
    for generation in range(1, releases + 1):
        record = {"stable": 1 + generation % versions, "by": "ann", "at": "2026-01-01T00:00:00Z", "why": ""}
        (folder / name / "releases" / f"{generation}.json").write_text(json.dumps(record))


@pytest.fixture
def large(stocked: Store) -> Store:
    """``stocked``, with hundreds of adapters more."""
    assert stocked.folder is not None
    for n in range(ADAPTERS):
        write(stocked.folder, f"team-{n % 3}-{n:03}", VERSIONS, 1, stocked.folder / "mood/versions/1")
    return stocked


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count listings of the whole store, and reads of what is in it."""
    counts: Counter[str] = Counter()
    get, list_all = obstore.get, listing.list_all

    def noted_get(objects: Any, path: str, **options: Any) -> Any:
        counts[path.split("/")[-2] if "/" in path else path] += 1
        return get(objects, path, **options)

    def noted_list(*arguments: Any) -> Any:
        counts["listings"] += 1
        return list_all(*arguments)

    with patch.context() as patched:
        patched.setattr(obstore, "get", noted_get)
        patched.setattr("adapters.store.list_all", noted_list)
        yield counts


def test_a_look_at_the_store_is_one_listing_and_reads_what_changed(large: Store, monkeypatch) -> None:
    with counted(monkeypatch) as counts:
        first = large.catalogue()
    assert len(first) == ADAPTERS + 2
    assert counts == {"listings": 1, "releases": ADAPTERS + 2}
    with counted(monkeypatch) as counts:
        again = large.catalogue(first)
    assert counts == {"listings": 1}
    assert again == first
    large.release("mood", NewRelease(stable=2))
    with counted(monkeypatch) as counts:
        newer = large.catalogue(again)
    assert counts == {"listings": 1, "releases": 1}
    assert newer.get("mood").release.stable == 2


def test_a_bucket_is_listed_in_pages_of_a_thousand(bucket: Store, s3, monkeypatch) -> None:
    first = bucket.catalogue()
    s3.requests.clear()
    assert bucket.catalogue(first) == first
    assert len(s3.requests) == 1


async def test_releases_are_followed_and_idle_looks_list_nothing(serve: Serve, large: Store, monkeypatch) -> None:
    async with serve(large, sweep_seconds=3600) as service:
        await until(lambda: len(service.state.routing.releases) == ADAPTERS + 2)  # the service opens before that
        with counted(monkeypatch) as counts:
            await until(lambda: counts[".pulse"] > 10)
        assert set(counts) == {".pulse"}
        large.release("team-0-000", NewRelease(stable=3))
        await until(lambda: service.state.routing.served("team-0-000").generation == 2)
        assert (await service.predict("team-0-000")).json()["adapter"]["version"] == 3
        assert (await service.predict("team-2-299@2")).json()["adapter"]["version"] == 2
        assert await service.metric("hotswap_served_generation", adapter="team-2-299") == 1


async def pages(service: Running, headers: dict[str, str] | None = None, **query: Any) -> list[list[str]]:
    """Return the names in each page, following ``next``."""
    names, after = [], ""
    while after is not None:
        response = await service.client.get("/v1/adapters", params={**query, "after": after}, headers=headers)
        assert response.status_code == 200, response.text
        body = response.json()
        names.append([adapter["name"] for adapter in body["adapters"]])
        after = body.get("next")
    return names


@pytest.mark.parametrize("limit", [1, 7, 100, 302, 1000])
async def test_a_list_comes_in_pages(serve: Serve, large: Store, limit: int) -> None:
    names = sorted(large.names())
    expected = [names[n : n + limit] for n in range(0, len(names), limit)]
    if limit == 1:  # one by one takes its time; the ends say enough
        expected, names = expected[:3], names[:3]
    async with serve(large) as service:
        if limit > 1:
            assert await pages(service, limit=limit) == expected
        else:
            first = (await service.client.get("/v1/adapters", params={"limit": 1})).json()
            assert ([a["name"] for a in first["adapters"]], first["next"]) == (expected[0], names[0])
        last = (await service.client.get("/v1/adapters", params={"after": "zzz"})).json()
        assert (last["adapters"], last.get("next")) == ([], None)


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1001}, {"limit": "all"}, {"after": "x" * 101}])
async def test_a_page_that_makes_no_sense_is_refused(serve: Serve, query: dict[str, Any]) -> None:
    async with serve() as service:
        refused = await service.client.get("/v1/adapters", params=query)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")


async def test_a_key_sees_pages_of_its_own_adapters_and_no_others(serve: Serve, large: Store, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret name=one adapters=team-1-*,mood\n")
    async with serve(large, api_keys=tmp_path / "keys") as service:
        told = await pages(service, {"Authorization": "Bearer secret"}, limit=40)
        assert [len(page) for page in told] == [40, 40, 21]
        assert [name for page in told for name in page] == [
            "mood",
            *sorted(f"team-1-{n:03}" for n in range(1, ADAPTERS, 3)),
        ]


async def test_of_thousands_of_releases_the_newest_counts(serve: Serve, stocked: Store) -> None:
    assert stocked.folder is not None
    write(stocked.folder, "busy", VERSIONS, 2000, stocked.folder / "mood/versions/1")
    async with serve() as service:
        assert (await service.predict("busy")).json()["adapter"]["version"] == 1 + 2000 % VERSIONS
        for path, body in (("releases", {"stable": 1}), ("rollback", {})):
            response = await service.client.post(f"/v1/adapters/busy/{path}", json=body)
            assert response.status_code == 201, response.text
        assert response.json()["generation"] == 2002
        assert response.json()["stable"] == 1 + 2000 % VERSIONS
        shown = await service.client.get("/v1/adapters/busy")
        assert shown.json()["generation"] == 2002
    shutil.rmtree(stocked.folder / "busy")
