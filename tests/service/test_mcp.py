"""Adapters as tools: the MCP package's own client, over standard input and output, as an assistant runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp import ClientSession, stdio_client
from mcp.client.stdio import StdioServerParameters

from adapters.base_model import Base
from adapters.intake import add_version
from adapters.store import Store
from adapters.tasks import SummarizationTask
from service.http.keys import new_key
from tests.conftest import MakeAdapter
from tests.service.conftest import Running, Serve

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
TEXT = "A moving film."


@asynccontextmanager
async def session(service: Running, key: str = "") -> AsyncIterator[ClientSession]:
    environment = {**os.environ, "HOTSWAP_API_KEY": key}
    command = StdioServerParameters(command=sys.executable, args=["-m", "service.mcp", service.url], env=environment)
    async with stdio_client(command) as (reading, writing), ClientSession(reading, writing) as made:
        await made.initialize()
        yield made


async def call(asked: ClientSession, name: str, **arguments: Any) -> tuple[bool, str, dict[str, Any] | None]:
    result = await asked.call_tool(name, arguments)
    return bool(result.is_error), result.content[0].text, result.structured_content


async def test_an_adapter_is_a_tool_that_says_what_it_does_and_who_answered(
    serve: Serve, stocked: Store, make_adapter: MakeAdapter, summary_task: SummarizationTask, tiny: Base
) -> None:
    add_version(stocked, "draft", make_adapter(seed=8), summary_task, tiny)  # nothing is released of it
    async with serve() as service, session(service) as asked:
        tools = {tool.name: tool for tool in (await asked.list_tools()).tools}
        assert set(tools) == {"mood", "brief"}
        assert tools["mood"].description == "Says which label fits the text: positive, negative."
        failed, said, content = await call(asked, "mood", text=TEXT)
        assert (failed, said in ("positive", "negative"), content["adapter"]) == (False, True, "mood@1")
        assert sum(content["scores"].values()) == pytest.approx(1)
        failed, said, _ = await call(asked, "brief", text=TEXT)
        assert said.startswith("[brief@1]")
        for name, arguments, told in (("mood", {"text": " "}, "empty"), ("nobody", {"text": TEXT}, "nobody")):
            failed, said, _ = await call(asked, name, **arguments)
            assert failed
            assert told in said
        service.engine.die()
        assert (await call(asked, "mood", text=TEXT))[0]


async def test_a_key_sees_its_own(serve: Serve, tmp_path: Any) -> None:
    key, line = new_key("name=team scopes=predict adapters=br*")
    (tmp_path / "keys").write_text(line + "\n")
    async with serve(api_keys=tmp_path / "keys") as service, session(service, key) as asked:
        assert [tool.name for tool in (await asked.list_tools()).tools] == ["brief"]
        assert (await call(asked, "mood", text=TEXT))[0]
