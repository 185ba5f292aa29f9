"""What a web page, a probe or a passer-by may do and learn."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.http.keys import new_key
from tests.service.conftest import Serve

pytestmark = pytest.mark.anyio
FORM = "application/x-www-form-urlencoded"
CHANGES = ["/v1/adapters/mood/releases", "/v1/adapters/mood/rollback", "/v1/feedback"]
PAGES = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://["},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("page", PAGES, ids=str)
@pytest.mark.parametrize("path", [*CHANGES, "/v1/predict"])
async def test_without_keys_no_other_page_has_its_way(serve: Serve, path: str, page: dict[str, str]) -> None:
    async with serve() as service:
        for content in ({"json": {"stable": 2}}, {"headers": {"Content-Type": FORM}}, {}):
            sent = {**content, "headers": {**content.get("headers", {}), **page}}
            response = await service.client.post(path, **sent)
            assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        assert service.state.routing.served("mood").generation == 1


@pytest.mark.parametrize("kind", [FORM, "text/plain", "multipart/form-data; boundary=x", None])
@pytest.mark.parametrize("path", CHANGES)
async def test_without_keys_what_a_form_can_send_changes_nothing(serve: Serve, path: str, kind: str | None) -> None:
    async with serve() as service:
        headers = {"Content-Type": kind} if kind else {}
        response = await service.client.post(path, content=b'{"stable": 2}', headers=headers)
        assert response.status_code == 403
        assert "Content-Type: application/json" in response.json()["detail"]


async def test_the_operator_at_this_machine_is_obeyed(serve: Serve) -> None:
    async with serve() as service:
        release = await service.client.post("/v1/adapters/mood/releases", json={"stable": 2})
        assert release.status_code == 201
        back = await service.client.post("/v1/adapters/mood/rollback")
        assert (back.status_code, back.json()["stable"]) == (201, 1)
        own = {"Origin": service.url, "Sec-Fetch-Site": "same-origin"}
        assert (await service.client.post("/v1/adapters/mood/rollback", headers=own)).status_code == 201


async def test_a_question_sent_as_a_form_is_told_what_to_do(serve: Serve) -> None:
    async with serve() as service:
        response = await service.client.post(
            "/v1/predict", content=b'{"adapter": "mood", "input": "x"}', headers={"Content-Type": FORM}
        )
        assert response.status_code == 422
        assert "Content-Type: application/json" in response.json()["detail"]


async def test_only_named_origins_may_call_from_a_browser(serve: Serve) -> None:
    mine, other = "https://app.example", "https://evil.example"
    asked = {"adapter": "mood", "input": "A film."}
    async with serve(cors_origins=(mine,)) as service:
        for origin, allowed in ((mine, mine), (other, None)):
            preflight = await service.client.options(
                "/v1/predict",
                headers={
                    "Origin": origin,
                    "Access-Control-Request-Method": "POST",
                    "Access-Control-Request-Headers": "authorization,content-type",
                },
            )
            assert preflight.headers.get("access-control-allow-origin") == allowed
            response = await service.client.post("/v1/predict", json=asked, headers={"Origin": origin})
            assert response.status_code == (200 if allowed else 403)
            assert response.headers.get("access-control-allow-origin") == allowed
        exposed = (await service.client.post("/v1/predict", json=asked, headers={"Origin": mine})).headers
        assert {"X-Request-Id", "RateLimit-Remaining"} <= set(exposed["access-control-expose-headers"].split(", "))
    async with serve() as service:
        response = await service.client.get("/v1/adapters", headers={"Origin": mine})
        assert "access-control-allow-origin" not in response.headers


@pytest.fixture
def team(tmp_path: Path) -> dict[str, dict[str, str]]:
    """Return the headers of each key by its scope; the file ``keys`` has their lines."""
    keys = {scope: new_key(f"scopes={scope}") for scope in ("predict", "admin", "metrics")}
    limited = new_key("name=limited rate=3/day")
    (tmp_path / "keys").write_text("\n".join([line for _, line in keys.values()] + [limited[1]]))
    return {scope: {"Authorization": f"Bearer {key}"} for scope, (key, _) in {**keys, "limited": limited}.items()}


async def test_where_keys_are_set_metrics_need_one_and_readiness_says_little(
    serve: Serve, team: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    async with serve(api_keys=tmp_path / "keys") as service:
        statuses = {
            scope: (await service.client.get("/metrics", headers=team.get(scope, {}))).status_code
            for scope in ("nobody", "predict", "admin", "metrics")
        }
        assert statuses == {"nobody": 401, "predict": 403, "admin": 200, "metrics": 200}
        for probe, known in (("/readyz", {"status": "ready"}), ("/livez", {"status": "ok"})):
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                response = await service.client.get(probe, headers=headers)
                assert (response.status_code, response.json()) == (200, known)
        assert (await service.client.get("/readyz", headers=team["predict"])).json()["store_reachable"] is True
        metrics_only = await service.client.get("/v1/adapters", headers=team["metrics"])
        assert metrics_only.status_code == 403


async def test_who_asks_is_found_out_before_the_body_is_read(
    serve: Serve, team: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    async with serve(api_keys=tmp_path / "keys") as service:
        for path in ("/v1/predict", "/v1/nothing"):
            response = await service.client.post(path, content=b"{", headers={"Content-Type": "application/json"})
            assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_a_body_that_is_refused_is_counted_against_the_rate(
    serve: Serve, team: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    async with serve(api_keys=tmp_path / "keys") as service:

        async def status(body: bytes) -> int:
            headers = {**team["limited"], "Content-Type": "application/json"}
            return (await service.client.post("/v1/predict", content=body, headers=headers)).status_code

        bodies = [b"{", b'{"adapter": "mood", "nput": "x"}', b'{"a": NaN}', b"{", b'{"adapter": "mood", "input": "x"}']
        assert [await status(body) for body in bodies] == [400, 422, 400, 429, 429]


async def test_an_unexpected_failure_is_counted_and_carries_what_every_answer_does(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as service:
        monkeypatch.setattr(service.state.keys, "caller", lambda _: 1 / 0)
        response = await service.client.get("/v1/adapters", headers={"X-Request-Id": "mine"})
        assert (response.status_code, response.json()["code"]) == (500, "internal")
        assert "ZeroDivision" not in response.text
        assert response.headers["X-Request-Id"] == "mine"
        assert (response.headers["X-Content-Type-Options"], response.headers["Cache-Control"]) == (
            "nosniff",
            "no-store",
        )
        assert await service.metric("hotswap_http_responses_total", status="500") == 1
        assert await service.metric("hotswap_http_responses_total", status="499") == 0


async def test_the_page_of_the_endpoints_loads_nothing_from_elsewhere(serve: Serve) -> None:
    async with serve() as service:
        page = await service.client.get("/docs")
        assert page.status_code == 200
        assert "//" not in page.text.replace("<!DOCTYPE", "")
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        for part in page.text.split('"'):
            if part.startswith("docs/"):
                assert (await service.client.get(f"/{part}")).status_code == 200
        assert (await service.client.get("/docs/nothing")).status_code == 404
        assert (await service.client.get("/redoc")).status_code == 404


async def test_no_answer_names_a_folder_of_this_machine_or_moves_a_cursor(serve: Serve) -> None:
    async with serve() as service:
        folder = service.state.store.folder / "mood/versions/7"
        folder.mkdir()
        (folder / "manifest.json").write_text('{"x\\n\\u001b[31m": 1}')
        response = await service.predict("mood@7")
        assert response.status_code >= 400
        assert str(service.state.store.folder) not in response.text
        assert response.json()["detail"].isprintable()
