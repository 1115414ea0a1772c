"""The acceptor: who knocks, and what happens when no descriptor is left."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmserver.acceptor import Acceptor
from dmserver.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class Door(socket.socket):
    """A listening socket whose `accept` fails so many times."""

    failures = 0

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(24, "Too many open files")
        return super().accept()


@pytest.mark.parametrize("failures", [0, 2])
def test_peers_come_in_with_their_uid_and_pid(
    loop: Loop, tmp_path: Path, failures: int, caplog: pytest.LogCaptureFixture
) -> None:
    admitted: list[tuple[int, int]] = []

    def admit(peer: socket.socket, uid: int, pid: int) -> None:
        assert not peer.getblocking()
        peer.close()
        admitted.append((uid, pid))
        if len(admitted) == 2:
            loop.stop()

    with Door(socket.AF_UNIX) as door, socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        door.bind(os.fspath(tmp_path / "s"))
        door.listen()
        door.setblocking(False)
        door.failures = failures
        acceptor = Acceptor(loop, door, admit)
        one.connect(door.getsockname())
        two.connect(door.getsockname())
        loop.call_later(60, loop.stop)
        loop.run()
        acceptor.close()
    assert admitted == [(os.geteuid(), os.getpid())] * 2
    assert not door.failures
    assert len(caplog.messages) == bool(failures)  # it is said once for as long as it lasts
