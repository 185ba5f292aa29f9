"""The adapters of a running service as tools of the Model Context Protocol, over standard input and output.

    HOTSWAP_API_KEY=hs_… python -m service.mcp http://127.0.0.1:8000

A tool is an adapter that is released and that the key may use; it takes a text, and its answer names the version.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import Any

import httpx2
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

PAGE, SECONDS = 100, 120.0
DOES = {
    "classification": "Says which label fits the text: {labels}.",
    "summarization": "Summarizes the text.",
    "generation": "Answers the text.",
}
INPUT = {
    "type": "object",
    "properties": {"text": {"type": "string", "description": "the text to work on"}},
    "required": ["text"],
    "additionalProperties": False,
}


class Tools:
    """Lists adapters and asks them. What the service refuses is an answer too, of a tool that failed."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    def server(self) -> Server[Any]:
        return Server("hotswap", on_list_tools=self._list, on_call_tool=self._call)

    async def _list(self, _: Any, params: PaginatedRequestParams | None) -> ListToolsResult:
        asked = {"limit": PAGE} | ({"after": params.cursor} if params and params.cursor else {})
        answer = await self._client.get("/v1/adapters", params=asked)
        answer.raise_for_status()
        page = answer.json()
        tools = [_tool(adapter) for adapter in page["adapters"] if adapter.get("stable") and adapter.get("task")]
        return ListToolsResult(tools=tools, next_cursor=page.get("next"))

    async def _call(self, _: Any, params: CallToolRequestParams) -> CallToolResult:
        text = (params.arguments or {}).get("text")
        if not isinstance(text, str):
            return _said("It takes one text, as 'text'.", failed=True)
        try:
            answer = await self._client.post("/v1/predict", json={"adapter": params.name, "input": text})
            body = answer.json()
        except (httpx2.HTTPError, ValueError):
            return _said("The service cannot be reached.", failed=True)
        if answer.status_code != 200:
            return _said(body.get("detail") or body.get("title") or "It was refused.", failed=True)
        (output,) = body["outputs"]
        used = body["adapter"]
        words = next(output[key] for key in ("label", "summary", "answer") if key in output)
        return _said(words, {**output, "adapter": f"{used['name']}@{used['version']}", "id": body["id"]})


def _tool(adapter: dict[str, Any]) -> Tool:
    does = DOES[adapter["task"]].format(labels=", ".join(adapter.get("labels") or ()))
    about = " ".join(filter(None, [adapter.get("description"), does]))
    hints = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    return Tool(name=adapter["name"], description=about, input_schema=INPUT, annotations=hints)


def _said(text: str, content: dict[str, Any] | None = None, *, failed: bool = False) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=text)], structured_content=content, is_error=failed)


async def _serve(url: str, key: str | None) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        httpx2.AsyncClient(base_url=url, headers=headers, timeout=SECONDS) as client,
        stdio_server() as (reading, writing),
    ):
        server = Tools(client).server()
        await server.run(reading, writing, server.create_initialization_options())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service.mcp", description=__doc__.partition("\n")[0])
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000", help="of the service")
    asyncio.run(_serve(parser.parse_args().url, os.environ.get("HOTSWAP_API_KEY")))


if __name__ == "__main__":
    main()
