"""The Model Context Protocol, as far as a server of tools needs it: JSON-RPC 2.0, one answer a POST, no session.

Source: modelcontextprotocol.io, specification 2025-11-25, "Streamable HTTP", "Lifecycle" and "Tools". Newer clients,
which first ask to discover, are told that this is unknown and go on with `initialize`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from atoll import __version__
from atoll.core.errors import AtollError, InvalidRequest

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26")
INVALID, UNKNOWN, BAD = -32600, -32601, -32602

Call = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Toolbox:
    """`tools` are as in a chat request; `call` runs one by its name. What it raises is told to the model."""

    tools: Sequence[Mapping[str, Any]]
    call: Call
    instructions: str = ""


async def answer(box: Toolbox, message: Any) -> dict[str, Any] | None:
    """The answer to one JSON-RPC message; None to a notification."""
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0" or not isinstance(message.get("method"), str):
        return _error(None, INVALID, "a message is a JSON-RPC 2.0 request or notification")
    if "id" not in message:
        return None
    if isinstance(message["id"], bool) or not isinstance(message["id"], str | int | float | None):
        return _error(None, INVALID, "'id' is a word or a number")
    method, params = METHODS.get(message["method"]), message.get("params") or {}
    if method is None:
        return _error(message["id"], UNKNOWN, f"there is no method '{message['method']}'")
    if not isinstance(params, dict):
        return _error(message["id"], BAD, "'params' is a map")
    try:
        return {"jsonrpc": "2.0", "id": message["id"], "result": await method(box, params)}
    except InvalidRequest as error:
        return _error(message["id"], BAD, error.message)


async def _initialize(box: Toolbox, params: Mapping[str, Any]) -> dict[str, Any]:
    wanted = params.get("protocolVersion")
    return {
        "protocolVersion": wanted if wanted in VERSIONS else VERSIONS[0],
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "atoll", "version": __version__},
        "instructions": box.instructions,
    }


async def _ping(box: Toolbox, params: Mapping[str, Any]) -> dict[str, Any]:
    return {}


async def _list(box: Toolbox, params: Mapping[str, Any]) -> dict[str, Any]:
    functions = [tool["function"] for tool in box.tools]
    tools = [{"name": f["name"], "description": f["description"], "inputSchema": f["parameters"]} for f in functions]
    return {"tools": tools}


async def _call(box: Toolbox, params: Mapping[str, Any]) -> dict[str, Any]:
    name, arguments = params.get("name"), params.get("arguments") or {}
    if not isinstance(name, str) or name not in {tool["function"]["name"] for tool in box.tools}:
        raise InvalidRequest(f"there is no tool '{name}'" if isinstance(name, str) else "'name' is a word")
    if not isinstance(arguments, dict):
        raise InvalidRequest("'arguments' is a map")
    try:
        result = await box.call(name, arguments)
    except AtollError as error:
        return {"content": [{"type": "text", "text": error.message}], "isError": True}
    text = orjson.dumps(result).decode()
    return {"content": [{"type": "text", "text": text}], "structuredContent": result, "isError": False}


METHODS = {"initialize": _initialize, "ping": _ping, "tools/list": _list, "tools/call": _call}


def _error(id: Any, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}
