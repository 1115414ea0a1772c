"""For test suites: a device-mapper of one's own, without root and without the kernel's.

A pytest plugin (entry point `pytest11`) with three fixtures::

    def test_linear(dm_run, dm, tmp_path):
        (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
        dm_run("dmsetup", "create", "vol", "--table", "0 2048 linear disk.img 0", cwd=tmp_path)
        assert [name for name, minor in dm.names()] == ["vol"]

* `dmserver`: a `PrivateServer`, gone after the test.
* `dm`: a `dmserver.client.Client` of it.
* `dm_run`: run a program on it, under the bridge; returns a `subprocess.CompletedProcess` with text output.

Nothing but the standard library is imported until a fixture is used.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from subprocess import Popen
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from dmserver.client import Client

__all__ = ["PrivateServer", "dm", "dm_run", "dmserver"]

T = TypeVar("T")

#: What a program gets to be done, in seconds.
TIMEOUT = 60.0


class PrivateServer:
    """A device-mapper that lives in a thread of this process: at a Unix socket, and for programs under the bridge.

    `socket` is its path, `host` the `dmserver.host.Host`; touch it only through `call`. A context manager.
    """

    def __init__(self) -> None:
        from dmserver.bridge.bridge import Bridge
        from dmserver.bridge.join import Doorway, bridge_path
        from dmserver.host import Host
        from dmserver.loop import Loop
        from dmserver.serve import LIMIT, listen
        from dmserver.server import Policy, Server

        self._directory = tempfile.mkdtemp(prefix="dm")
        self.socket = os.path.join(self._directory, "s")
        self._listener = listen(self.socket, everyone=False)
        self.host = Host()
        self._loop = Loop()
        policy = Policy(admins={0, os.geteuid()})
        self._server = Server(self.host, self._loop, self._listener, policy, limit=LIMIT, binary_limit=LIMIT)
        self._bridge = Bridge(self._loop, self.host)
        door = listen(bridge_path(self.socket), everyone=False)
        self._doorway = Doorway(self._loop, door, self._bridge.supervise, policy.admins.__contains__)
        self._thread = threading.Thread(target=self._loop.run, name="dmserver", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> T:
        """Call `function` in the server's thread; returns or raises what it does."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return future.result(TIMEOUT)

    def popen(self, *argv: str | os.PathLike[str], env: Mapping[str, str] | None = None, **options: Any) -> Popen[str]:
        """Start a program under the bridge. `env` is added to the environment; `options` are Popen's. OSError when
        the program is not found or the kernel refuses the filter."""
        from dmserver.bridge.launch import receive_listener

        words = [os.fspath(word) for word in argv]
        environment = {**os.environ, **(env or {})}
        path = shutil.which(words[0], path=environment.get("PATH"))
        if path is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), words[0])
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                command = [sys.executable, "-P", "-m", "dmserver.bridge.launch", str(theirs.fileno()), path, *words[1:]]
                options.setdefault("text", True)
                process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], **options)
            try:
                listener = receive_listener(ours)
            except OSError:
                process.wait()
                raise
        self.call(lambda: self._bridge.supervise(listener))
        return process

    def run(
        self,
        *argv: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        input: str = "",
        check: bool = True,
        timeout: float = TIMEOUT,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program under the bridge to its end. CalledProcessError when it fails and `check` is true, with
        a note of its standard error and of the kernel's log; TimeoutExpired (the program is killed) after `timeout`
        seconds."""
        process = self.popen(
            *argv, env=env, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with process:
            try:
                stdout, stderr = process.communicate(input, timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        result = subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)
        if check and result.returncode:
            failure = subprocess.CalledProcessError(result.returncode, result.args, stdout, stderr)
            failure.add_note("\n".join([stderr.rstrip(), *self.host.mapper.events.lines]))
            raise failure
        return result

    def close(self) -> None:
        """Stop; devices are forgotten, programs that still run lose their device-mapper."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()
        self._doorway.close()
        self._bridge.close()
        self.host.close()
        self._loop.close()
        self._listener.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> PrivateServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@pytest.fixture
def dmserver() -> Iterator[PrivateServer]:
    """A private device-mapper, gone after the test."""
    with PrivateServer() as server:
        yield server


@pytest.fixture
def dm(dmserver: PrivateServer) -> Iterator[Client]:
    """A client of the private device-mapper."""
    from dmserver.client import Client

    with Client(dmserver.socket) as client:
        yield client


@pytest.fixture
def dm_run(dmserver: PrivateServer) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`PrivateServer.run`: run a program on the private device-mapper."""
    return dmserver.run
