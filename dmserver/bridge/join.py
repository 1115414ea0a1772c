"""Joining a running server: its process supervises our program, so the program has all that the server has.

Beside its socket PATH a server listens on PATH.bridge. `dmserver run --socket PATH` sends the listener of its filter
there (SCM_RIGHTS with the one byte `b`) and gets one byte back. The server answers the program's system calls from then
on; it must be allowed to look into the program's memory (same user or root; see ptrace(2), /proc/PID/mem).
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable

from dmserver.acceptor import Acceptor
from dmserver.loop import Loop

__all__ = ["Doorway", "bridge_path", "join", "knock"]

_HELLO = b"b"


def bridge_path(path: str) -> str:
    """Where the server of `path` takes listeners."""
    return path + ".bridge"


class Doorway:
    """The server's end. `listener` is a listening, non-blocking socket; `supervise` gets each filter's listener, from
    peers whose uid `may` lets in."""

    def __init__(
        self, loop: Loop, listener: socket.socket, supervise: Callable[[int], None], may: Callable[[int], bool]
    ) -> None:
        self.loop = loop
        self._listener = listener
        self._supervise = supervise
        self._may = may
        self._peers: dict[int, socket.socket] = {}
        self._acceptor = Acceptor(loop, listener, self._admit)

    def close(self) -> None:
        self._acceptor.close()
        self._listener.close()
        for fd in tuple(self._peers):
            self._forget(fd)

    def _admit(self, peer: socket.socket, uid: int, pid: int) -> None:
        if not self._may(uid):
            peer.close()
            return
        fd = peer.fileno()
        self._peers[fd] = peer
        self.loop.add(fd, select.EPOLLIN, lambda events: self._greeted(fd))

    def _greeted(self, fd: int) -> None:
        peer = self._peers.get(fd)
        if peer is None:
            return
        try:
            message, fds, _, _ = socket.recv_fds(peer, 1, 1)
            if message == _HELLO and len(fds) == 1:
                os.set_inheritable(fds[0], False)
                self._supervise(fds.pop())
                peer.send(_HELLO)
            for left in fds:
                os.close(left)
        except OSError:
            pass
        self._forget(fd)

    def _forget(self, fd: int) -> None:
        self.loop.remove(fd)
        self._peers.pop(fd).close()


def knock(path: str) -> socket.socket:
    """Go to the server of `path`, before a program is started that needs it. OSError when there is none."""
    door = socket.socket(socket.AF_UNIX)
    try:
        door.connect(bridge_path(path))
    except OSError as failure:
        door.close()
        raise ConnectionError(f"no server at {path}: {failure.strerror or failure}") from None
    return door


def join(door: socket.socket, listener: int) -> None:
    """Hand a filter's listener to the server; closes ours. OSError when it does not take it."""
    try:
        socket.send_fds(door, [_HELLO], [listener])
        if door.recv(1) != _HELLO:
            raise ConnectionError("the server did not take the program")
    finally:
        os.close(listener)
