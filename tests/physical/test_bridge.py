"""What bridges share: their connections to a cloud, which may be full, silent or gone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from served import policies
from support import OTHER_SECRET, SECRET
from websockets.asyncio.server import serve as websocket_server

from atoll.core.errors import DeadlineExceeded, EngineFailed, InvalidRequest, Overloaded
from atoll.physical.serve.adapters import bridge as bridges
from atoll.physical.serve.adapters.bridge import Cloud, serve
from atoll.physical.serve.wire import pack

OBSERVATION = {"joints": [0.0, 0.0], "goal": [0.5, -0.5]}


async def test_a_bridge_that_lends_its_key_is_for_this_machine_only():
    with pytest.raises(InvalidRequest, match="loopback only"):
        await serve(Cloud("ws://nowhere", SECRET), "lerobot", "0.0.0.0")
    with pytest.raises(InvalidRequest, match="groot, lerobot"):
        await serve(Cloud("ws://nowhere"), "ros", "127.0.0.1")


async def test_a_bridge_has_one_connection_a_key_and_forgets_idle_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with policies(tmp_path) as (made, url):
        cloud, lines = Cloud(url, consent=True), made.served("arm").lines
        first, same = await asyncio.gather(cloud.robot(SECRET), cloud.robot(SECRET))
        assert first is same
        assert len(lines) == 1
        monkeypatch.setattr(bridges, "MAX_KEYS", 1)
        with pytest.raises(Overloaded):
            await cloud.robot(OTHER_SECRET)
        monkeypatch.setattr(bridges, "IDLE_S", 0.0)
        await cloud.robot(OTHER_SECRET)
        assert first.gone
        await cloud.close()


async def test_a_cloud_that_does_not_answer_is_told_and_asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with policies(tmp_path) as (made, url):
        cloud, given = Cloud(url, consent=True), {"observation": OBSERVATION, "images": {}}
        robot = await cloud.robot(SECRET)
        monkeypatch.setattr(bridges, "ANSWER_S", 0.05)
        [line] = made.served("arm").lines
        monkeypatch.setattr(line, "observe", lambda _: None)
        with pytest.raises(DeadlineExceeded):
            await cloud.act(SECRET, given, 1.0)
        monkeypatch.undo()
        again, told = await cloud.act(SECRET, given, 2.0)
        assert again is not robot
        assert told.safe == ""
        await cloud.close()


async def test_what_is_no_policy_socket_is_told(monkeypatch: pytest.MonkeyPatch):
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"SSH-2.0\r\n\r\n")
        writer.close()

    async def silent(socket: Any) -> None:
        await socket.send(pack({"type": "metadata"}))
        await socket.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for url in (f"ws://127.0.0.1:{port}", "nowhere"):
        with pytest.raises(EngineFailed, match="no service answers"):
            await Cloud(url).robot(SECRET)
    server.close()
    async with websocket_server(lambda socket: socket.close(1012, "going away"), "127.0.0.1", 0) as mute:
        port = mute.sockets[0].getsockname()[1]
        with pytest.raises(EngineFailed, match="going away"):
            await Cloud(f"ws://127.0.0.1:{port}").robot(SECRET)
    monkeypatch.setattr(bridges, "ANSWER_S", 0.2)
    async with websocket_server(silent, "127.0.0.1", 0) as mute:
        with pytest.raises(DeadlineExceeded):
            await Cloud(f"ws://127.0.0.1:{mute.sockets[0].getsockname()[1]}", consent=True).robot(SECRET)
