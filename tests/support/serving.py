"""A server in a thread of the test, and as a program of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmserver.host import Host, Personality
from dmserver.loop import Loop
from dmserver.serve import listen
from dmserver.server import Policy, Server

__all__ = ["Served", "program", "served", "short_directory"]


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose path is short enough for a socket in it."""
    path = tempfile.mkdtemp(prefix="dm", dir="/tmp")
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path)


class Served:
    """A running server: `path` of its socket, `host` to be looked at while no request is under way."""

    def __init__(self, path: str, host: Host, loop: Loop) -> None:
        self.path = path
        self.host = host
        self.loop = loop

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(30)
        connection.connect(self.path)
        return connection

    def exchange(self, data: bytes) -> bytes:
        """All that comes back for `data`, once nothing more is sent."""
        with self.connect() as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@contextmanager
def served(
    personality: Personality = "auto",
    *,
    policy: Policy | None = None,
    limit: int = 64 << 20,
    binary_limit: int = 64 << 20,
) -> Iterator[Served]:
    with short_directory() as directory:
        path = str(directory / "s")
        host, loop, listener = Host(personality), Loop(), listen(path, everyone=False)
        policy = policy or Policy(admins={os.geteuid()})
        server = Server(host, loop, listener, policy, limit=limit, binary_limit=binary_limit)
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            yield Served(path, host, loop)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            listener.close()
            host.close()
            loop.close()


@contextmanager
def program(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`dmserver serve` with its standard output and error to be read; stopped by SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dmserver", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
