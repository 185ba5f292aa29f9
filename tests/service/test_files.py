"""Files to be learnt from, handed in by OpenAI's own client."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from service.http.keys import new_key
from tests.service.conftest import Running, Serve

pytestmark = pytest.mark.anyio


def chats(count: int = 12) -> list[dict[str, Any]]:
    """Return rows that OpenAI's documentation would call chats: one word of the text decides."""
    kinds = [("dull", "negative"), ("moving", "positive")]
    return [
        {
            "messages": [
                {"role": "user", "content": f"film {n} is {kinds[n % 2][0]}"},
                {"role": "assistant", "content": kinds[n % 2][1]},
            ]
        }
        for n in range(count)
    ]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@asynccontextmanager
async def client(service: Running, key: str = "none") -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0) as made:
        yield made


async def upload(ask: openai.AsyncOpenAI, content: bytes | None = None, name: str = "rows.jsonl") -> Any:
    return await ask.files.create(file=(name, jsonl(chats()) if content is None else content), purpose="fine-tune")


async def test_a_file_is_kept_shown_given_back_and_deleted(serve: Serve) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        file = await upload(ask)
        assert (file.object, file.purpose, file.filename, file.status) == (
            "file",
            "fine-tune",
            "rows.jsonl",
            "processed",
        )
        assert file.bytes == len(jsonl(chats()))
        assert (await ask.files.retrieve(file.id)) == file
        assert (await ask.files.content(file.id)).content == jsonl(chats())
        assert (await ask.files.delete(file.id)).deleted
        for call in (ask.files.retrieve, ask.files.content, ask.files.delete):
            with pytest.raises(openai.NotFoundError):
                await call(file.id)
        assert list(service.state.desk.place.files.iterdir()) == []


async def test_files_are_listed_in_pages_the_newest_first(serve: Serve) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        ids = [(await upload(ask)).id for _ in range(3)]
        assert [file.id async for file in ask.files.list(limit=1)] == ids[::-1]
        assert [file.id async for file in ask.files.list(limit=2, order="asc")] == ids
        assert [file.id async for file in ask.files.list(purpose="batch")] == []
        with pytest.raises(openai.NotFoundError):
            await ask.files.list(after="file-gone")


async def test_several_bad_lines_are_named_at_once_and_not_all_of_very_many(serve: Serve) -> None:
    async with serve(jobs="queue") as service, client(service) as ask:
        with pytest.raises(openai.BadRequestError) as refusal:
            await upload(ask, b"x\n" * 1000)
        assert "line 1 is not" in refusal.value.message
        assert "line 5 is not" in refusal.value.message
        assert "line 6" not in refusal.value.message
        assert refusal.value.param == "file"
        assert list(service.state.desk.place.files.iterdir()) == []


async def test_what_is_no_such_form_is_refused(serve: Serve) -> None:
    file = {"file": ("rows.jsonl", jsonl(chats()))}
    async with serve(jobs="queue") as service:
        post = service.client.post
        key = {"Authorization": "Bearer none"}
        answers = [
            await post("/v1/files", files=file, headers=key),
            await post("/v1/files", files=file, data={"purpose": "batch"}, headers=key),
            await post("/v1/files", data={"purpose": "fine-tune", "file": "text"}, headers=key),
            await post("/v1/files", files=file, data={"purpose": "fine-tune", "more": "1"}, headers=key),
            await post("/v1/files", files={**file, "other": b"x"}, data={"purpose": "fine-tune"}, headers=key),
            await post("/v1/files", json={"purpose": "fine-tune"}, headers=key),
            await post(
                "/v1/files", content=b"--x\r\nno", headers={**key, "Content-Type": "multipart/form-data; boundary=y"}
            ),
            await post("/v1/files", content=b"x", headers={**key, "Content-Type": "multipart/form-data"}),
            await post("/v1/files", files={"file": ("a", b"")}, data={"purpose": "fine-tune"}, headers=key),
        ]
        assert [answer.status_code for answer in answers] == [400] * len(answers)
        assert all(set(answer.json()["error"]) == {"message", "type", "param", "code"} for answer in answers)
        assert (await post("/v1/files", files=file, data={"purpose": "fine-tune"})).status_code == 403, (
            "as a page could"
        )


@pytest.mark.parametrize("announced", [True, False])
async def test_a_file_that_is_too_large_is_refused_and_not_kept(serve: Serve, announced: bool) -> None:
    content = jsonl(chats()) * 500

    async def pieces() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        yield content
        yield b"\r\n--x--\r\n"

    async with serve(jobs="queue", max_file_bytes=100_000) as service:
        body = {"files": {"file": ("a", content)}} if announced else {"content": pieces()}
        headers = {"Authorization": "Bearer none"}
        headers |= {} if announced else {"Content-Type": "multipart/form-data; boundary=x"}
        answer = await service.client.post("/v1/files", headers=headers, **body)  # type: ignore[arg-type]
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"


async def test_a_file_may_be_larger_than_other_bodies(serve: Serve) -> None:
    async with serve(jobs="queue", max_body_bytes=1000) as service, client(service) as ask:
        assert (await upload(ask, jsonl(chats(100)))).bytes > 1000


async def test_a_key_keeps_so_many_bytes(serve: Serve) -> None:
    size = len(jsonl(chats()))
    async with serve(jobs="queue", files_gib=1.5 * size / 2**30) as service, client(service) as ask:
        first = await upload(ask)
        with pytest.raises(openai.BadRequestError) as refusal:
            await upload(ask)
        assert refusal.value.code == "quota_exceeded"
        await ask.files.delete(first.id)
        await upload(ask)


async def test_a_full_disk_is_said_and_leaves_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with serve(jobs="queue") as service, client(service) as ask:
        with monkeypatch.context() as patch:
            patch.setattr("adapters.jobs.files.os.fsync", full)
            with pytest.raises(openai.InternalServerError) as told:
                await upload(ask)
        assert (told.value.status_code, told.value.code) == (507, "storage_full")
        assert [file async for file in ask.files.list()] == []
        assert list(service.state.desk.place.files.iterdir()) == []
        await upload(ask)


async def test_keys_see_their_own_files_and_an_admin_all(serve: Serve, tmp_path: Path) -> None:
    made = [new_key(f"name={name}") for name in ("ann scopes=train", "ben scopes=train", "boss scopes=admin", "reader")]
    (tmp_path / "keys").write_text("".join(f"{line}\n" for _, line in made))
    async with serve(jobs="queue", api_keys=tmp_path / "keys") as service:
        async with client(service, made[0][0]) as ann:
            file = await upload(ann, name="../../etc/rows.jsonl")
            assert file.filename == "rows.jsonl"
        async with client(service, made[1][0]) as ben:
            assert [each async for each in ben.files.list()] == []
            with pytest.raises(openai.NotFoundError):
                await ben.files.content(file.id)
        async with client(service, made[2][0]) as boss:
            assert [each.id async for each in boss.files.list()] == [file.id]
        async with client(service, made[3][0]) as reader:
            with pytest.raises(openai.PermissionDeniedError):
                await upload(reader)


async def test_where_jobs_are_off_it_is_said_what_to_set(serve: Serve) -> None:
    async with serve() as service, client(service) as ask:
        for call in (upload(ask), ask.fine_tuning.jobs.create(model="tiny-llama", training_file="file-x")):
            with pytest.raises(openai.NotFoundError) as refusal:
                await call
            assert refusal.value.code == "fine_tuning_off"
            assert "HOTSWAP_JOBS=local" in refusal.value.message
