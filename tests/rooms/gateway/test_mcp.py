"""The Model Context Protocol, message by message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from atoll.core.errors import Forbidden
from atoll.gateway.mcp import Toolbox, answer

FUNCTION = {"name": "move_arm", "description": "Move", "parameters": {"type": "object", "properties": {}}}


async def call(name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    if not arguments:
        raise Forbidden("nobody has agreed that the robot moves")
    return {"success": True, **arguments}


BOX = Toolbox([{"type": "function", "function": FUNCTION}], call, "Ask first.")


async def ask(method: str, params: dict[str, Any] | None = None) -> Any:
    told = await answer(BOX, {"jsonrpc": "2.0", "id": 7, "method": method, "params": params})
    assert told is not None
    assert told["id"] == 7
    return told.get("result") or told.get("error")


async def test_a_conversation():
    begun = await ask("initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {}})
    assert (begun["protocolVersion"], begun["capabilities"]) == ("2025-06-18", {"tools": {}})
    assert await answer(BOX, {"jsonrpc": "2.0", "method": "notifications/initialized"}) is None
    [tool] = (await ask("tools/list"))["tools"]
    assert (tool["name"], tool["inputSchema"]) == ("move_arm", FUNCTION["parameters"])
    done = await ask("tools/call", {"name": "move_arm", "arguments": {"x": 1}})
    assert done["structuredContent"] == {"success": True, "x": 1}
    assert (done["content"][0]["text"], done["isError"]) == ('{"success":true,"x":1}', False)


async def test_what_a_tool_refuses_is_told_to_the_model():
    done = await ask("tools/call", {"name": "move_arm"})
    assert done["isError"]
    assert "agreed" in done["content"][0]["text"]


async def test_a_version_that_is_not_known_gets_the_newest_that_is():
    assert (await ask("initialize", {"protocolVersion": "1999-01-01"}))["protocolVersion"] == "2025-11-25"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"jsonrpc": "2.0", "id": 1, "method": "server/discover"}, -32601),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "fly"}}, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": [1]}, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": []}}, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": {"a": 1}}}, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "move_arm", "arguments": [1]}}, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": 5}, -32602),
        ({"jsonrpc": "2.0", "id": [1], "method": "ping"}, -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": []}, -32600),
        ({"id": 1, "method": "ping"}, -32600),
        ([], -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": 5}, -32600),
    ],
)
async def test_what_is_no_request_of_the_protocol_is_an_error(message: Any, code: int):
    told = await answer(BOX, message)
    assert told is not None
    assert told["error"]["code"] == code
