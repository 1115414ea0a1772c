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
from struct import Struct

from dmserver.loop import Loop

__all__ = ["Doorway", "bridge_path", "join"]

_HELLO = b"b"
_UCRED = Struct("3i")


def bridge_path(path: str) -> str:
    """Where the server of `path` takes listeners."""
    return path + ".bridge"


class Doorway:
    """The server's end. `listener` is a listening socket; `supervise` gets each filter's listener, from peers whose
    uid `may` lets in."""

    def __init__(
        self, loop: Loop, listener: socket.socket, supervise: Callable[[int], None], may: Callable[[int], bool]
    ) -> None:
        self.loop = loop
        self._listener = listener
        self._supervise = supervise
        self._may = may
        self._peers: dict[int, socket.socket] = {}
        loop.add(listener.fileno(), select.EPOLLIN, self._acceptable)

    def close(self) -> None:
        self.loop.remove(self._listener.fileno())
        self._listener.close()
        for fd in tuple(self._peers):
            self._forget(fd)

    def _acceptable(self, events: int) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        _, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if not self._may(uid):
            peer.close()
            return
        peer.setblocking(False)
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


def join(path: str, listener: int) -> None:
    """Hand a filter's listener to the server of `path`; closes ours. OSError when it does not take it."""
    with socket.socket(socket.AF_UNIX) as door:
        try:
            door.connect(bridge_path(path))
            socket.send_fds(door, [_HELLO], [listener])
            if door.recv(1) != _HELLO:
                raise OSError(f"{path}: the server did not take the program")
        finally:
            os.close(listener)
