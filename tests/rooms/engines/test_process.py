"""The supervisor of child processes, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from atoll.core.errors import EngineFailed
from atoll.engines.process import Child, Spec, backoff, watch

SERVER = """
import http.server, json, os, signal, sys
from atoll.engines.process import exit_with_parent
exit_with_parent(1)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *a): pass
server = http.server.HTTPServer(("127.0.0.1", int(os.environ.get("ATOLL_PORT", 0))), Handler)
print("loading", flush=True)
print(json.dumps({"url": f"http://127.0.0.1:{server.server_port}"}), flush=True)
server.serve_forever()
"""


def spec(code: str = SERVER, **changes) -> Spec:
    given = {"name": "test child", "argv": [sys.executable, "-c", code], "env": dict(os.environ)}
    return Spec(**{**given, "delay": lambda deaths: 0.05, **changes})


async def until(condition, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_backoff_doubles_from_one_second_to_thirty():
    assert [backoff(n) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert backoff(10_000) == 30


async def test_a_killed_child_comes_back_at_the_same_url():
    exits, ready = [], []
    child = Child(spec(), on_exit=exits.append, on_ready=ready.append)
    url = await child.start()
    first = child.pid
    try:
        os.kill(first, signal.SIGKILL)
        await until(lambda: len(ready) == 2)
        assert exits == [-signal.SIGKILL]
        assert child.url == url and child.pid != first and child.restarts == 1
        assert child.status()["state"] == "running"
    finally:
        await child.stop()
    assert child.status()["state"] == "stopped" and not alive(first)


async def test_stop_ends_a_child_that_ignores_sigterm():
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER
    child = Child(spec(stubborn))
    await child.start()
    pid = child.pid
    await child.stop(grace=0.2)
    assert not alive(pid)
    await child.stop()


async def test_start_reports_why_the_child_ended():
    child = Child(spec("import sys; sys.exit('no such model file')"))
    with pytest.raises(EngineFailed, match=r"ended with 1 .*no such model file"):
        await child.start()
    assert child.pid is None


async def test_start_gives_up_at_the_deadline():
    child = Child(spec("import time; time.sleep(60)", ready_timeout=0.3))
    with pytest.raises(EngineFailed, match=r"not ready within 0\.3 s"):
        await child.start()
    assert child.pid is None


async def test_a_missing_program_is_named():
    with pytest.raises(EngineFailed, match="no-such-program"):
        await Child(spec(argv=["/no-such-program"])).start()


async def test_a_cancelled_start_leaves_no_process():
    child = Child(spec("import time; time.sleep(60)"))
    task = asyncio.create_task(child.start())
    await until(lambda: child.pid is not None)
    pid = child.pid
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pid)


async def test_a_child_that_floods_its_log_does_not_block():
    flood = SERVER.replace("server.serve_forever()", "print('x' * 3_000_000, flush=True); server.serve_forever()")
    child = Child(spec(flood))
    await child.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(child.url.rsplit(":", 1)[1]))
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"ok")
        writer.close()
        await writer.wait_closed()
    finally:
        await child.stop()


async def test_a_child_that_does_not_answer_is_replaced():
    child = Child(spec())
    await child.start()
    first = child.pid

    async def healthy(url: str) -> bool:
        return child.pid != first

    watcher = asyncio.create_task(watch(child, healthy, every=0.05, failures=2))
    try:
        await until(lambda: child.url and child.pid not in (None, first))
    finally:
        watcher.cancel()
        await child.stop()


async def test_the_child_dies_with_its_parent():
    parent = (
        "import asyncio, os, sys\n"
        "from atoll.engines.process import Child, Spec\n"
        "async def main():\n"
        f"    child = Child(Spec('c', [sys.executable, '-c', {SERVER!r}], dict(os.environ)))\n"
        "    await child.start(); print(child.pid, flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", parent, stdout=asyncio.subprocess.PIPE)
    pid = int(await asyncio.wait_for(process.stdout.readline(), 10))
    assert alive(pid)
    process.kill()
    await process.wait()
    await until(lambda: not alive(pid))
