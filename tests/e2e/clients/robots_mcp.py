"""The official client of the Model Context Protocol finds the tool and moves the simulated arm; prints JSON."""

import asyncio
import json
import os
import sys

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


async def main() -> None:
    headers = {"authorization": f"Bearer {os.environ['ATOLL_KEY']}"}
    url = f"{os.environ['ATOLL_URL']}/atoll/v1/policies/arm/mcp"
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        [tool] = (await client.list_tools()).tools
        done = await client.call_tool(tool.name, json.loads(sys.argv[1]))
        text = done.content[0].text
        print(json.dumps({"tool": tool.name, "error": done.is_error, "text": text, "told": done.structured_content}))


asyncio.run(main())
