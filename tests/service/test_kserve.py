"""The Open Inference Protocol, asked by Triton's client and by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from adapters.errors import StoreUnavailable
from service.http.keys import new_key
from tests.conftest import LABELS
from tests.service.conftest import Running, Serve

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
TEXTS = ["A moving film.", "The plot is dull — très."]


def asked(service: Running, *, binary: bool, name: str = "mood", version: str = "", **parameters: Any) -> Any:
    """Ask as a program would that serves on Triton today."""
    texts = triton.InferInput("text", [len(TEXTS)], "BYTES")
    texts.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=object), binary_data=binary)
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as client:
        return client.infer(name, [texts], model_version=version, parameters=parameters or None)


@pytest.mark.parametrize("binary", [False, True])
async def test_a_classifier_gives_a_label_a_score_and_all_scores_of_each_text(serve: Serve, binary: bool) -> None:
    async with serve() as service:
        told = await asyncio.to_thread(asked, service, binary=binary)
        plain = (await service.client.post("/v1/predict", json={"adapter": "mood", "inputs": TEXTS})).json()["outputs"]
        assert told.as_numpy("label").tolist() == [output["label"] for output in plain]
        assert told.as_numpy("score") == pytest.approx([output["score"] for output in plain])
        labels = told.as_numpy("labels").tolist()
        assert sorted(labels) == sorted(LABELS)
        scores = [[output["scores"][label] for label in labels] for output in plain]
        assert told.as_numpy("scores") == pytest.approx(np.array(scores))
        assert told.get_response()["model_version"] == "1"


async def test_a_summarizer_gives_summaries_of_a_given_version_within_its_parameters(serve: Serve) -> None:
    async with serve() as service:
        told = await asyncio.to_thread(asked, service, binary=False, name="brief", version="1", max_words=2)
        assert [len(summary.split()) for summary in told.as_numpy("summary")] == [2, 2]


async def test_the_client_learns_what_there_is(serve: Serve) -> None:
    def learn(service: Running) -> tuple[Any, ...]:
        with triton.InferenceServerClient(service.url.removeprefix("http://")) as client:
            ready = client.is_server_live(), client.is_server_ready(), client.is_model_ready("mood")
            return *ready, client.is_model_ready("nobody"), client.get_model_metadata("mood", "1")

    async with serve() as service:
        live, ready, model, nobody, about = await asyncio.to_thread(learn, service)
        assert (live, ready, model, nobody) == (True, True, True, False)
        assert (about["versions"], about["platform"]) == (["1", "2"], "hotswap_classification")
        assert [output["name"] for output in about["outputs"]] == ["label", "score", "scores", "labels"]


async def test_only_the_outputs_that_are_asked_for(serve: Serve) -> None:
    async with serve() as service:
        body = {"inputs": [tensor(["x"])], "outputs": [{"name": "score"}], "id": "mine"}
        told = (await service.client.post("/v2/models/mood/infer", json=body)).json()
        assert ([output["name"] for output in told["outputs"]], told["id"]) == (["score"], "mine")


def tensor(data: Any, shape: list[int] | None = None, **more: Any) -> dict[str, Any]:
    return {"name": "text", "shape": shape or [len(data)], "datatype": "BYTES", "data": data, **more}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("nobody", {"inputs": [tensor(["x"])]}, 404, "No adapter is called 'nobody'"),
        ("mood/versions/9", {"inputs": [tensor(["x"])]}, 404, "no such version"),
        ("mood@1/versions/1", {"inputs": [tensor(["x"])]}, 400, "Give the version once"),
        ("Mood", {"inputs": [tensor(["x"])]}, 400, "name"),
        ("mood", {}, 400, "inputs"),
        ("mood", [], 400, "must be a JSON object"),
        ("mood", {"inputs": [tensor(["x"], [2])]}, 400, "is of 2 texts, and it has 1"),
        ("mood", {"inputs": [tensor([], [0])]}, 400, "1 to 256 texts"),
        ("mood", {"inputs": [tensor(["x"] * 257)]}, 400, "1 to 256 texts"),
        ("mood", {"inputs": [tensor([7])]}, 400, "BYTES hold texts"),
        ("mood", {"inputs": [tensor(["x"]), tensor(["y"])]}, 400, "inputs"),
        ("mood", {"inputs": [tensor(["x"], datatype="FP32")]}, 400, "BYTES"),
        ("mood", {"inputs": [tensor(["fine", " "])]}, 400, "text 1: The text is empty"),
        ("mood", {"inputs": [tensor(["x"])], "outputs": [{"name": "logits"}]}, 400, "no output 'logits'"),
        ("mood", {"inputs": [tensor(["x"])], "parameters": {"max_words": "many"}}, 400, "max_words"),
    ],
)
async def test_what_cannot_be_answered_is_said_in_the_protocols_shape(
    serve: Serve, path: str, body: Any, status: int, said: str
) -> None:
    async with serve() as service:
        answer = await service.client.post(f"/v2/models/{path}/infer", json=body)
        assert answer.status_code == status, answer.text
        assert set(answer.json()) == {"error"}
        assert said in answer.json()["error"]


@pytest.mark.parametrize(
    ("length", "tail", "said"),
    [
        ("9999", b"", "no length of a part of the body"),
        ("x", b"", "no length of a part of the body"),
        (None, b"\x05\0\0\0hel", "ends within a text"),
        (None, b"\x05\0", "ends within a length"),
        (None, b"\x01\0\0\0\xff", "not UTF-8"),
    ],
)
async def test_binary_data_that_is_broken_is_refused(serve: Serve, length: str | None, tail: bytes, said: str) -> None:
    head = b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": %d}}]}'
    head = head % len(tail)
    async with serve() as service:
        headers = {"Inference-Header-Content-Length": length or str(len(head))}
        answer = await service.client.post("/v2/models/mood/infer", content=head + tail, headers=headers)
        assert (answer.status_code, said in answer.json()["error"]) == (400, True), answer.text


async def test_keys_and_rights_hold(serve: Serve, tmp_path: Any) -> None:
    key, line = new_key("name=team scopes=predict adapters=brief")
    (tmp_path / "keys").write_text(line + "\n")
    async with serve(api_keys=tmp_path / "keys") as service:
        with pytest.raises(InferenceServerException, match="An API key is needed"):
            await asyncio.to_thread(asked, service, binary=True)
        headers = {"authorization": f"Bearer {key}"}
        for path in ("mood", "mood/ready"):
            assert (await service.client.get(f"/v2/models/{path}", headers=headers)).status_code == 404
        assert (await service.client.get("/v2/models/brief", headers=headers)).status_code == 200
        assert (await service.client.get("/v2/health/ready")).json() == {"ready": True}


async def test_without_its_store_what_is_served_is_still_known(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(name: str) -> None:
        raise StoreUnavailable("the store is away")

    async with serve() as service:
        monkeypatch.setattr(service.state.reconciler, "refresh", away)
        for path in ("/v2/models/mood", "/v2/models/mood/ready", "/v1/models/mood", "/v1/adapters/mood"):
            assert (await service.client.get(path)).status_code == 200, path
        assert (await service.client.get("/v2/models/nobody/ready")).status_code == 503
