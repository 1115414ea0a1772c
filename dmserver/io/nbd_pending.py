"""NBD requests that bios do: each is answered whenever its bio ends, by the connection's writer thread, so that a
suspended device or a slow target keeps nothing else waiting.

Requests that wait own at most `MAX_WAITING` bytes of buffers; beyond that nothing more is read.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from .nbd_proto import Command
from .nbd_replies import Replies

__all__ = ["Pending", "Request"]

MAX_WAITING = 64 << 20


@dataclass(slots=True)
class Request:
    """A request that a bio does. `size`: bytes of buffer that it owns."""

    kind: int
    cookie: int
    offset: int
    size: int
    data: memoryview | None = None
    error: int = 0


class Pending:
    """The requests under way of one connection; made in the connection's own thread."""

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self._thread = threading.get_ident()
        self._answered: list[Request] = []
        self._gone: Callable[[], None] | None = None
        #: 0: nothing is under way, and nobody but the connection's own thread sends.
        self.waiting = 0
        self._interrupted = False
        self._room = threading.Condition()
        self._ended: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None

    # -- the connection's thread ------------------------------------------------------------------------

    def begin(self, request: Request) -> None:
        """Count a request in, once there is room for it. EOFError when interrupted."""
        if self.waiting and self.waiting + request.size > MAX_WAITING:
            self._replies.flush()
            self.wait_until(lambda: not self.waiting or self.waiting + request.size <= MAX_WAITING)
        with self._room:
            self.waiting += request.size + 1

    def collect(self) -> None:
        """Answer what ended in this thread."""
        while self._answered:
            request = self._answered[0]
            self._replies.put(*self._encode(request))
            del self._answered[0]
            self._finish(request)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds, which is asked again after each `wake`. EOFError when interrupted."""
        with self._room:
            self._room.wait_for(lambda: condition() or self._interrupted)
        if self._interrupted:
            raise EOFError

    def close(self, idle: Callable[[], None]) -> None:
        """Nobody is answered any more; `idle` is called, in any thread, once nothing is under way."""
        with self._room:
            self._thread = 0
            self._gone = idle
            self.waiting -= sum(request.size + 1 for request in self._answered)
            waiting = self.waiting
            if self._writer is not None:
                self._ended.put(None)
        if not waiting:
            idle()

    # -- any thread -------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """End all waiting."""
        self._interrupted = True
        self.wake(lambda: None)

    def wake(self, change: Callable[[], None]) -> None:
        """Change something that `wait_until` waits for."""
        with self._room:
            change()
            self._room.notify_all()

    def done(self, request: Request, error: int) -> None:
        """A bio ended; what ends in the connection's own thread is answered with the rest of the batch."""
        request.error = error
        if threading.get_ident() == self._thread:
            self._answered.append(request)
            return
        with self._room:
            if self._gone is None:
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write_replies, name="nbd-writer", daemon=True)
                    self._writer.start()
                self._ended.put(request)
                return
        self._finish(request)

    def _encode(self, request: Request) -> tuple[bytes, memoryview | bytes]:
        """Header and data of a reply."""
        if request.kind == Command.READ and not request.error and request.data is not None:
            return self._replies.data_header(request.cookie, request.offset, request.size), request.data
        return self._replies.status(request.kind, request.cookie, request.error), b""

    def _finish(self, request: Request) -> None:
        with self._room:
            self.waiting -= request.size + 1
            self._room.notify_all()
            idle = None if self.waiting else self._gone
        if idle is not None:
            idle()

    def _write_replies(self) -> None:
        gone = False
        while (request := self._ended.get()) is not None:
            try:
                if not gone:
                    with self._replies.sending:
                        for part in self._encode(request):
                            self._replies.send(part)
            except OSError:
                gone = True  # the client left; its thread sees that, too
            self._finish(request)
