"""What lies in a store and should not concerns its own adapter at most, and is named once in the log."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.releases import NewRelease
from adapters.store import Store
from tests.service.conftest import Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def raw(folder: Path, path: bytes) -> bytes:
    return os.fsencode(folder) + b"/" + path


def link(folder: Path, path: str, target: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).symlink_to(target)


def file(folder: Path, path: str, content: str = "x") -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(content)


# Nobody's business: what it lies beside works as before.
HARMLESS: dict[str, Callable[[Path], object]] = {
    "a release's name in Latin-1": lambda f: os.close(os.open(raw(f, b"brief/releases/caf\xe9.json"), os.O_CREAT)),
    "a version's name in Latin-1": lambda f: os.mkdir(raw(f, b"brief/versions/\xe9")),
    "an adapter's name in Latin-1": lambda f: os.mkdir(raw(f, b"\xe9")),
    "a file's name in Latin-1": lambda f: os.close(os.open(raw(f, b"\xe9.txt"), os.O_CREAT)),
    "a link in a circle": lambda f: link(f, "loop", "."),
    "a link in a circle below a name": lambda f: link(f, "brief/versions/loop", ".."),
    "a link to nothing": lambda f: link(f, "dangling", "/nonexistent"),
    "a release that is a link to nothing": lambda f: link(f, "brief/releases/901.json", "/nonexistent"),
    "a manifest that is a link to nothing": lambda f: link(f, "brief/versions/9/manifest.json", "/nonexistent"),
    "a link to itself": lambda f: link(f, "brief/releases/self.json", "self.json"),
    "a release that is a folder": lambda f: file(f, "brief/releases/900.json/x"),
    "a manifest that is a folder": lambda f: file(f, "brief/versions/8/manifest.json/x"),
    "a file for an adapter": lambda f: file(f, "brief2"),
    "a file for versions": lambda f: file(f, "brief3/versions"),
    "a line break": lambda f: file(f, "brief/releases/a\nb.json"),
    "a percent sign": lambda f: file(f, "brief/releases/a%2Fb.json"),
    "a hash sign": lambda f: file(f, "brief/releases/#1.json"),
    "a number too large": lambda f: file(f, "brief/releases/99999999999999999999.json"),
    "a number with a zero in front": lambda f: file(f, "brief/releases/02.json"),
    "a number in other digits": lambda f: os.mkdir(f / "brief/versions/٣"),
    "a superscript": lambda f: file(f, "brief/releases/².json"),
    "a pipe": lambda f: os.mkfifo(f / "brief/releases/902.json"),
    "somebody's notes": lambda f: file(f, "README.md"),
    "the finder's": lambda f: file(f, "brief/.DS_Store"),
    "a folder of lost and found": lambda f: os.mkdir(f / "lost+found"),
}
# The adapter's own matter: it stays as it was, and the log names it.
HARMFUL: dict[str, Callable[[Path], object]] = {
    "a record that is no JSON": lambda f: file(f, "brief/releases/2.json", "{"),
    "an empty record": lambda f: file(f, "brief/releases/2.json", ""),
    "a record of another kind": lambda f: file(f, "brief/releases/2.json", '{"stable": "one"}'),
    "a record in another encoding": lambda f: (f / "brief/releases/2.json").write_bytes(b"\xff\xfe{\x00"),
    "a record in folders of its own": lambda f: file(f, "brief/releases/2.json", "[" * 100_000),
    "a record that cannot be read": lambda f: link(f, "brief/releases/2.json", "/proc/self/mem"),
}


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    def of(word: str) -> list[str]:
        return [message for record in caplog.records if word in (message := record.getMessage())]

    return of


async def test_what_is_none_of_a_store_s_concerns_nobody(serve: Serve, stocked: Store) -> None:
    assert stocked.folder is not None
    async with serve(sweep_seconds=0.05) as service:
        for odd, put in HARMLESS.items():
            put(stocked.folder)
            for name, version in (("mood", 2), ("brief", 1)):
                generation = stocked.release(name, NewRelease(stable=version, why=odd)).generation
                await until(lambda name=name, n=generation: service.state.routing.served(name).generation == n)
                assert (await service.predict(name)).json()["adapter"]["version"] == version, odd
            listed = (await service.client.get("/v1/adapters")).json()["adapters"]
            assert [adapter["name"] for adapter in listed] == ["brief", "mood"], odd
            assert (await service.client.get("/readyz")).json()["store_reachable"], odd
    async with serve() as again:  # and at the start
        assert (await again.predict("brief")).status_code == 200


@pytest.mark.parametrize("odd", HARMFUL)
async def test_a_record_that_cannot_be_read_leaves_its_adapter_as_it_was_and_others_alone(
    serve: Serve, stocked: Store, warnings: Callable[[str], list[str]], odd: str
) -> None:
    assert stocked.folder is not None
    async with serve(sweep_seconds=0.02) as service:
        HARMFUL[odd](stocked.folder)
        await until(lambda: bool(warnings("brief")))
        stocked.release("mood", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("mood").stable == 2)
        assert (await service.predict("brief")).json()["adapter"]["version"] == 1
        assert (await service.client.get("/v1/adapters")).status_code == 200
        assert (await service.client.get("/v1/adapters/brief")).status_code == 200
        assert (await service.client.get("/readyz")).json()["store_reachable"]
        sweeps = 0
        catalogue = stocked.catalogue

        def counted(*arguments):
            nonlocal sweeps
            sweeps += 1
            return catalogue(*arguments)

        stocked.catalogue = counted  # type: ignore[method-assign]
        await until(lambda: sweeps > 5)
        assert len(warnings("What it serves stays.")) == 1, "logged once, not at every look"
        stocked.release("brief", NewRelease(stable=1, why="mended"))
        await until(lambda: service.state.routing.served("brief").generation == 3)
    async with serve() as again:
        assert (await again.predict("brief")).status_code == 200
        assert (await again.predict("mood")).json()["adapter"]["version"] == 2


@pytest.mark.parametrize("odd", HARMFUL)
async def test_a_start_with_a_record_that_cannot_be_read_serves_what_a_replica_that_was_not_restarted_serves(
    serve: Serve, stocked: Store, odd: str
) -> None:
    assert stocked.folder is not None
    HARMFUL[odd](stocked.folder)
    async with serve() as service:
        assert (await service.predict("mood")).status_code == 200
        assert (await service.predict("brief")).json()["adapter"]["version"] == 1
        assert await service.metric("hotswap_adapters_behind") == 1
        assert (await service.predict("brief@1")).status_code == 200


async def test_a_manifest_that_cannot_be_read_is_its_version_s_matter(serve: Serve, stocked: Store) -> None:
    assert stocked.folder is not None
    manifest = stocked.folder / "mood/versions/2/manifest.json"
    content = json.loads(manifest.read_text())
    for spoilt in ("", "{", "null", json.dumps({**content, "name": "brief"}), json.dumps({**content, "x": "\x1b[31m"})):
        manifest.write_text(spoilt)
        stocked._manifests.clear()
        async with serve() as service:
            refused = await service.predict("mood@2")
            assert (refused.status_code, refused.json()["code"]) == (503, "adapter_failed"), spoilt
            assert (await service.predict("mood")).status_code == 200
            view = (await service.client.get("/v1/adapters/mood")).json()
            assert [version["state"] for version in view["versions"]] == ["resident", "failed"]


async def test_odd_names_are_logged_once(serve: Serve, stocked: Store, warnings: Callable[[str], list[str]]) -> None:
    assert stocked.folder is not None
    (stocked.folder / "Ünï code").mkdir()
    async with serve(sweep_seconds=0.01) as service:
        for _ in range(3):
            generation = stocked.release("mood", NewRelease(stable=2)).generation
            await until(lambda n=generation: service.state.routing.served("mood").generation == n)
        await asyncio.sleep(0)
    assert len(warnings("no names of adapters")) == 1


async def test_what_is_served_stays_when_its_own_record_is_damaged_later(serve: Serve, stocked: Store) -> None:
    assert stocked.folder is not None
    async with serve(sweep_seconds=0.02) as service:
        stocked.release("mood", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("mood").generation == 2)
        (stocked.folder / "mood/releases/2.json").write_text("{")
        assert (await service.client.get("/v1/adapters/mood")).is_success, "which reads the record again"
        await service.until(lambda behind: behind == 1, "hotswap_adapters_behind")
        assert service.state.routing.served("mood").generation == 2
        assert (await service.predict("mood")).json()["adapter"]["version"] == 2


async def test_what_is_learnt_while_everything_is_looked_at_is_not_forgotten(serve: Serve, stocked: Store) -> None:
    assert stocked.folder is not None
    seen, go, looks = threading.Event(), threading.Event(), 0
    catalogue = stocked.catalogue

    def slow(*arguments):
        nonlocal looks
        found, looks = catalogue(*arguments), looks + 1
        seen.set()
        go.wait(10)
        return found

    async with serve(sweep_seconds=0.02) as service:
        stocked.catalogue = slow  # type: ignore[method-assign]
        await until(seen.is_set)
        (stocked.folder / "mood/releases/1.json").write_text("{")
        assert (await service.client.get("/v1/adapters/mood")).is_success
        go.set()
        await until(lambda: looks > 3)
        assert await service.metric("hotswap_adapters_behind") == 1
        assert (await service.predict("mood")).json()["adapter"]["version"] == 1
