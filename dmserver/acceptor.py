"""Who knocks at a Unix socket that a loop listens to: accepted, and told by uid and pid (SO_PEERCRED)."""

from __future__ import annotations

import logging
import select
import socket
from collections.abc import Callable
from struct import Struct

from .loop import Loop

__all__ = ["Acceptor"]

#: Seconds without a look at the socket when no descriptor is left.
_PAUSE = 0.1
_UCRED = Struct("3i")

_log = logging.getLogger("dmserver")


class Acceptor:
    """Calls `admit(peer, uid, pid)` with each peer of `listener`, non-blocking both; `admit` owns the peer."""

    def __init__(self, loop: Loop, listener: socket.socket, admit: Callable[[socket.socket, int, int], None]) -> None:
        self._loop = loop
        self._listener = listener
        self._admit = admit
        self._pausing = False
        loop.add(listener.fileno(), select.EPOLLIN, self._acceptable)

    def close(self) -> None:
        """Accept no more; the listener stays open."""
        self._loop.remove(self._listener.fileno())

    def _acceptable(self, events: int) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as failure:
                if not self._pausing:
                    _log.error("accept: %s; pausing", failure.strerror)
                self._pausing = True
                self._loop.modify(self._listener.fileno(), 0)
                self._loop.call_later(_PAUSE, self._again)
                return
            self._pausing = False
            pid, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            peer.setblocking(False)
            self._admit(peer, uid, pid)

    def _again(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.modify(self._listener.fileno(), select.EPOLLIN)
