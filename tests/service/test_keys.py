"""Who may do what: keys as hashes in a file, scopes, and the adapters that a key may know of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest

from adapters.errors import HotswapError
from service.http.keys import Caller, Keys, anonymous, new_key
from tests.service.conftest import Running, Serve

pytestmark = pytest.mark.anyio
NOBODY = Caller("anonymous")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def team(tmp_path: Path) -> dict[str, str]:
    """Return keys by their holder's name; the file ``keys`` has their lines."""
    rights = {"writer": "scopes=predict adapters=bri*", "boss": "scopes=predict,admin", "robot": "scopes=admin"}
    made = {name: new_key(f"name={name} {given}") for name, given in rights.items()}
    (tmp_path / "keys").write_text("# who may do what\n" + "\n".join(line for _, line in made.values()) + "\n")
    return {name: key for name, (key, _) in made.items()}


@pytest.fixture
def guarded(serve: Serve, team: dict[str, str], tmp_path: Path) -> AbstractAsyncContextManager[Running]:
    return serve(api_keys=tmp_path / "keys")


async def test_what_a_key_may_not_use_does_not_exist_for_it(guarded, team) -> None:
    async with guarded as service:
        mine = {"headers": bearer(team["writer"])}
        listed = (await service.client.get("/v1/adapters", **mine)).json()["adapters"]
        assert [adapter["name"] for adapter in listed] == ["brief"]
        for hidden, missing in (("mood", "nope"), ("mood@1", "nope@1"), ("mood@canary", "nope@canary")):
            body = {"input": "A film."}
            told = await service.client.post("/v1/predict", json={**body, "adapter": hidden}, **mine)
            same = await service.client.post("/v1/predict", json={**body, "adapter": missing}, **mine)
            assert (told.status_code, told.json()["code"]) == (404, "adapter_not_found")
            assert told.text.replace("mood", "nope") == same.text
        assert (await service.client.get("/v1/adapters/mood", **mine)).status_code == 404
        asked = await service.client.post("/v1/predict", json={"adapter": "brief", "input": "A film."}, **mine)
        assert asked.status_code == 200


async def test_each_scope_opens_its_own_routes(guarded, team) -> None:
    async with guarded as service:
        ask = {"adapter": "brief", "input": "A film."}
        for holder, predict, release in (("writer", 200, 403), ("boss", 200, 201), ("robot", 403, 201)):
            headers = bearer(team[holder])
            assert (await service.client.post("/v1/predict", json=ask, headers=headers)).status_code == predict
            told = await service.client.post("/v1/adapters/brief/releases", json={"stable": 1}, headers=headers)
            assert told.status_code == release
            if release == 403:
                assert told.json()["code"] == "forbidden"
                assert "'admin'" in told.json()["detail"]


async def test_a_release_says_whose_key_made_it(guarded, team) -> None:
    async with guarded as service:
        told = await service.client.post(
            "/v1/adapters/brief/releases", json={"stable": 1, "why": "again"}, headers=bearer(team["boss"])
        )
        assert (told.json()["by"], told.json()["why"]) == ("boss", "again")


async def test_a_key_has_its_share_of_texts_and_is_told_what_is_left(serve: Serve, tmp_path: Path) -> None:
    (mine, line), (other, free) = new_key("name=a rate=5/day"), new_key("name=b")
    (tmp_path / "keys").write_text(f"{line}\n{free}\n")
    async with serve(api_keys=tmp_path / "keys") as service:

        async def ask(key: str, texts: int) -> httpx.Response:
            body = {"adapter": "brief", "inputs": ["A film."] * texts}
            return await service.client.post("/v1/predict", json=body, headers=bearer(key))

        first = await ask(mine, 3)
        assert first.status_code == 200
        assert (first.headers["RateLimit-Limit"], first.headers["RateLimit-Remaining"]) == ("5", "2")
        refused = await ask(mine, 3)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert "2 are left" in refused.json()["detail"]
        assert 0 < int(refused.headers["Retry-After"]) <= 86400
        assert (await ask(mine, 2)).status_code == 200  # being refused has cost nothing
        too_many = await ask(mine, 6)
        assert (too_many.status_code, "at most 5 at once" in too_many.json()["detail"]) == (429, True)
        unlimited = await ask(other, 8)
        assert (unlimited.status_code, "RateLimit-Limit" in unlimited.headers) == (200, False)


async def test_keys_come_and_go_without_a_restart(guarded, team, tmp_path: Path) -> None:
    async with guarded as service:
        key, line = new_key("name=late")

        async def status(key: str) -> int:
            return (await service.client.get("/v1/adapters", headers=bearer(key))).status_code

        assert (await status(key), await status(team["boss"])) == (401, 200)
        replaced = tmp_path / "new"
        replaced.write_text(line + "\n")
        replaced.replace(tmp_path / "keys")
        assert (await status(key), await status(team["boss"])) == (200, 401)


@pytest.mark.parametrize("damage", ["sha256:00 scope=admin", "key name=a name=b", "\udcff", None])
def test_a_file_that_cannot_be_read_changes_nothing_while_serving(tmp_path: Path, damage: str | None) -> None:
    path = tmp_path / "keys"
    key, line = new_key("name=a")
    path.write_text(line)
    keys = Keys(path, NOBODY)
    path.unlink()
    if damage is not None:
        path.write_bytes(damage.encode(errors="surrogateescape"))
    assert keys.caller({"authorization": f"Bearer {key}"}).name == "a"


def test_an_emptied_file_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key, line = new_key("name=a")
    path.write_text(line)
    keys = Keys(path, NOBODY)
    path.write_text("# all revoked\n")
    with pytest.raises(Exception, match="not valid"):
        keys.caller({"authorization": f"Bearer {key}"})


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("secret-key scope=admin", "line 2: after the key come"),
        ("secret-key scopes=predict,root", "scopes are predict, feedback, admin, metrics, train, not root"),
        ("secret-key name=a/b", "a name is made of"),
        ("secret-key name=a name=b", "each at most once"),
        ("secret-kéy", "use ASCII"),
        ("secret-key rate=many", "'many' is no rate"),
        ("# nothing", "holds no key"),
    ],
)
def test_a_mistake_in_the_file_stops_the_start_and_is_said_without_the_key(
    tmp_path: Path, line: str, fault: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# keys\n{line}\n")
    with pytest.raises(HotswapError, match=re.escape(fault)) as told:
        Keys(path, NOBODY)
    assert "secret" not in str(told.value)


def test_a_key_in_plain_text_works_and_is_warned_about_without_being_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    path.write_text("secret-a adapters=legal-*\n")
    caller = Keys(path, NOBODY).caller({"authorization": "Bearer secret-a"})
    assert caller.scopes == {"predict"}
    assert caller.may_use("legal-summary")
    assert not caller.may_use("sentiment")
    assert "in plain text" in caplog.text
    assert "secret-a" not in caplog.text + caller.name


def test_without_keys_strangers_get_in_only_if_told_and_release_nothing(tmp_path: Path) -> None:
    assert "admin" in anonymous("127.0.0.1", None, False).scopes
    assert "admin" in anonymous("::1", None, False).scopes
    with pytest.raises(HotswapError, match="HOTSWAP_ALLOW_ANONYMOUS=true"):
        anonymous("0.0.0.0", None, False)
    assert anonymous("0.0.0.0", None, True).scopes == {"predict"}


def test_the_server_makes_keys() -> None:
    command = [sys.executable, "-m", "service", "--new-key"]
    done = subprocess.run([*command, "name=a adapters=legal-*"], capture_output=True, text=True)
    assert done.returncode == 0
    assert re.search(r"hs_\S{43}\n", done.stdout)
    assert re.search(r"sha256:[0-9a-f]{64} name=a adapters=legal-\*\n", done.stdout)
    wrong = subprocess.run([*command, "nme=a"], capture_output=True, text=True, env={**os.environ})
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "203.0.113.9"},
        {"Forwarded": "for=203.0.113.9"},
        {"X-Real-IP": "203.0.113.9"},
        {"Via": "1.1 proxy"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8000"},
        {"Host": "127.0.0.1.evil.example"},
    ],
)
async def test_without_keys_whoever_comes_through_a_proxy_or_by_another_name_may_ask_and_not_release(
    serve: Serve, headers: dict[str, str]
) -> None:
    async with serve() as service:
        asked = {"adapter": "mood", "input": "A film."}
        assert (await service.client.post("/v1/predict", json=asked, headers=headers)).status_code == 200
        told = await service.client.post("/v1/adapters/mood/releases", json={"stable": 2}, headers=headers)
        assert (told.status_code, told.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "localhost", "127.0.0.1"])
async def test_without_keys_whoever_is_at_this_machine_may_release(serve: Serve, host: str) -> None:
    async with serve() as service:
        told = await service.client.post("/v1/adapters/mood/releases", json={"stable": 2}, headers={"Host": host})
        assert told.status_code == 201


async def test_a_key_for_some_adapters_releases_no_other(serve: Serve, tmp_path: Path) -> None:
    key, line = new_key("name=writer scopes=predict,admin adapters=bri*")
    (tmp_path / "keys").write_text(line)
    async with serve(api_keys=tmp_path / "keys") as service:
        for path, body in (("releases", {"stable": 2}), ("rollback", {})):
            hidden, missing = [
                await service.client.post(f"/v1/adapters/{name}/{path}", json=body, headers=bearer(key))
                for name in ("mood", "nope")
            ]
            assert (hidden.status_code, hidden.json()["code"]) == (404, "adapter_not_found")
            assert hidden.text.replace("mood", "nope") == missing.text
        assert service.state.routing.served("mood").stable == 1


async def test_what_a_key_may_not_use_it_may_not_judge(serve: Serve, tmp_path: Path) -> None:
    (mine, line), (other, theirs) = new_key("name=a adapters=mood"), new_key("name=b adapters=bri*")
    (tmp_path / "keys").write_text(f"{line}\n{theirs}\n")
    async with serve(api_keys=tmp_path / "keys") as service:
        body = {"adapter": "mood", "input": "A film."}
        prediction = (await service.client.post("/v1/predict", json=body, headers=bearer(mine))).json()
        judged = []
        for key, known in ((other, prediction["id"]), (other, "pred_nobody"), (mine, prediction["id"])):
            feedback = {"id": known, "correct": True}
            judged.append(await service.client.post("/v1/feedback", json=feedback, headers=bearer(key)))
        assert [response.status_code for response in judged] == [404, 404, 200]
        assert judged[0].json() == judged[1].json()
        assert judged[0].json()["code"] == "prediction_not_found"


async def test_a_key_is_in_no_log(serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, line = new_key("name=a scopes=predict,admin")
    (tmp_path / "keys").write_text(line)
    with caplog.at_level("DEBUG", logger="hotswap"):
        async with serve(api_keys=tmp_path / "keys") as service:
            for sent in (key, key + "x", key.upper()):
                for path, body in (
                    ("predict", {"adapter": "mood", "input": "A film."}),
                    ("adapters/mood/rollback", {}),
                ):
                    await service.client.post(f"/v1/{path}", json=body, headers=bearer(sent))
            (tmp_path / "keys").write_text(f"{key} scope=wrong")
            await service.client.get("/v1/adapters", headers=bearer(key))
    assert "stay valid" in caplog.text
    assert key.removeprefix("hs_").lower() not in caplog.text.lower()
