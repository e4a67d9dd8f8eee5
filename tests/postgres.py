"""A real PostgreSQL server of this test session, on a unix socket of its own."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server on a unix socket in a directory of its own."""

    socket: Path

    def url(self, database: str) -> str:
        return f"postgresql://atoll@/{database}?host={self.socket}"

    def new_database(self) -> str:
        name = f"t{secrets.token_hex(6)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)


def binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
    if not found and (there := shutil.which("postgres")):
        found = [Path(there)]
    if not found:
        pytest.fail("PostgreSQL is not installed: apt-get install --no-install-recommends postgresql")
    return found[-1].parent


def account() -> str | None:
    """PostgreSQL refuses to run as root: the account to run it under instead."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="atoll-pg-"))
    user, prefix = account(), []
    if user:
        entry = pwd.getpwnam(user)
        shutil.chown(home, entry.pw_uid, entry.pw_gid)
        prefix = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    place, data = binaries(), home / "data"
    initdb = [place / "initdb", "-D", data, "-U", "atoll", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    subprocess.run([*prefix, *initdb], check=True, cwd=home, stdout=subprocess.DEVNULL, timeout=60)
    settings = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=50"]
    with (home / "log").open("wb") as log:
        command = [*prefix, place / "postgres", "-D", data, "-k", home, *settings]
        process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log)
    try:
        server = Server(home)
        wait_until_ready(server, process, home / "log")
        yield server
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(20)
        shutil.rmtree(home)


def wait_until_ready(server: Server, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(server.url("postgres"), connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start: {log.read_text()}")
            time.sleep(0.05)
