"""The socket: clients of all three forms on one Unix socket (specs/socket.md).

Theory of operation. Each wake-up of a connection reads once, handles the whole messages that are there, and writes
their replies at once. A whole ioctl that came alone, as most do, takes the short way from the read to its handler and
from there to the write (`_lone_ioctl`, `answers`); everything else goes through the stream. Rules:

1. A connection is busy with one message at a time, so replies come in order; one that waits (`parked`) holds up its
   own connection only. So does one with many messages, which are handled some at a turn, and one with long texts, which
   are parsed and written in a thread (`texts`).
2. While it is parked, or while more than `HIGH_WATER` bytes of replies wait for the peer to read them, a connection
   reads nothing: what a peer can make us keep is one message, one read and that much of replies; of one who may only
   look a small message (`READER_LIMIT`).
3. What the peer has sent before it shut down its side is still answered; when it is gone altogether, a parked
   command is given up.
4. The log tells who asked for what and what came of it, never the parameters of a table or a message: they may hold
   keys.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from dmproto.errors import BadMessage
from dmproto.stream import (
    NEED_DATA,
    BinaryRequest,
    JsonMessage,
    Malformed,
    PlistMessage,
    RequestStream,
    binary_reply,
)

from .acceptor import Acceptor
from .answers import Answers
from .control.session import Cancel, Session
from .host import Host
from .loop import Loop
from .texts import TextThread, decode, encode, failure, is_long

__all__ = ["HIGH_WATER", "READER_LIMIT", "Policy", "Server"]

#: Bytes of replies that may wait for the peer.
HIGH_WATER = 1 << 20

#: Bytes at which a message of one who may only look is refused: NetBSD's own limit.
READER_LIMIT = 131072

_READ = 1 << 16
_TURN = 128  #: messages that are handled before others have their turn
_IN, _OUT, _GONE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR

_Result = TypeVar("_Result")

_log = logging.getLogger("dmserver")


@dataclass(frozen=True)
class Policy:
    """Who may do what: `admins` everything, `readers` what NetBSD lets anyone do, other uids nothing."""

    admins: Collection[int]
    readers: Collection[int] = ()


class Server:
    """Serves `host` on `listener`, which must be listening and non-blocking.

    `limit`: bytes at which a property list is refused; `binary_limit` likewise for the caller's buffer.
    `before_replies` is called before any reply is sent.
    """

    def __init__(
        self,
        host: Host,
        loop: Loop,
        listener: socket.socket,
        policy: Policy,
        *,
        limit: int,
        binary_limit: int,
        before_replies: Callable[[], None] | None = None,
    ) -> None:
        self.host = host
        self.loop = loop
        self.limit = limit
        self.binary_limit = binary_limit
        self.before_replies = before_replies
        self.texts = TextThread(loop.call_soon_threadsafe)
        self.answers = Answers(host.mapper, host.quick)
        self.verbose = _log.isEnabledFor(logging.DEBUG)
        self._policy = policy
        self._connections: dict[int, _Connection] = {}
        host.mapper.call_soon = loop.call_soon_threadsafe
        self._acceptor = Acceptor(loop, listener, self._admit)

    def close(self) -> None:
        """Take no more requests, answer those that wait with EINTR, and close all connections."""
        self._acceptor.close()
        for connection in list(self._connections.values()):
            connection.shut_down()
        self.texts.close()

    def _admit(self, peer: socket.socket, uid: int, pid: int) -> None:
        privileged = uid in self._policy.admins
        if not privileged and uid not in self._policy.readers:
            _log.warning("refused peer uid=%d pid=%d", uid, pid)
            peer.close()
            return
        fd = peer.detach()
        _log.debug("connected fd=%d uid=%d pid=%d privileged=%s", fd, uid, pid, privileged)
        self._connections[fd] = connection = _Connection(self, fd, self.host.open(privileged=privileged))
        self.loop.add(fd, select.EPOLLIN, connection.ready)

    def forget(self, fd: int) -> None:
        """A connection closes."""
        del self._connections[fd]
        self.loop.remove(fd)
        os.close(fd)
        _log.debug("closed fd=%d", fd)


class _Connection:
    """One peer. `out` holds replies to be sent, `waiting` what of them the peer has not taken yet, `queued` counts the
    bytes of both; `events` is what is waited for, `number` that of the last ioctl; `answers` are known to those who may
    do everything."""

    __slots__ = (
        "answers",
        "closing",
        "events",
        "fd",
        "limit",
        "number",
        "out",
        "parked",
        "queued",
        "server",
        "session",
        "stream",
        "waiting",
    )

    def __init__(self, server: Server, fd: int, session: Session) -> None:
        self.server = server
        self.fd = fd
        self.session = session
        self.answers = server.answers if session.privileged and not server.verbose else None
        self.limit = server.limit if session.privileged else min(server.limit, READER_LIMIT)
        self.stream = RequestStream(plist_limit=self.limit, binary_limit=min(server.binary_limit, self.limit))
        self.out: list[bytes | memoryview] = []
        self.waiting: memoryview | None = None
        self.queued = 0
        self.number = 0
        self.parked: Cancel | None = None
        self.closing = False
        self.events = _IN

    # -- the wire ---------------------------------------------------------------------------------------

    def ready(self, events: int) -> None:
        """The descriptor can be read or written, or the peer is gone."""
        if events & _IN:
            try:
                data = os.read(self.fd, _READ)
            except BlockingIOError:
                return
            except OSError:
                self._close()
                return
            if not self.queued and self._lone_ioctl(data):
                return
            self.stream.receive_data(data)
        elif events & _GONE:
            self._close()
            return
        self._go_on()

    def _lone_ioctl(self, data: bytes) -> bool:
        """Answer `data` if it is one ioctl and nothing else is under way."""
        answers, stream = self.answers, self.stream
        reply = answers.get(data) if answers is not None and stream.idle else None
        if reply is None:
            lone = stream.lone_request(data)
            if lone is None:
                return False
            try:
                if answers is not None:
                    reply = answers.find(self.session, *lone, data)
                if reply is None:
                    self._ioctl(*lone)
            except OSError as failed:
                self._cannot(BinaryRequest(*lone), failed)
            except Exception:
                self._unforeseen()
                return True
        sent = self._send() if reply is None else self._write(reply)
        if sent and (self.waiting is not None or self.parked is not None):
            self._wait()
        return True

    def _go_on(self) -> None:
        """Handle what has arrived and send what has come of it, unless the connection is closed."""
        more = self.fd >= 0 and self._handle_messages()
        if self.fd >= 0 and self._send():
            self._wait(more)

    def _handle_messages(self) -> bool:
        """Handle the messages that are there; True when there may be more, for which it is not yet time."""
        for _ in range(_TURN):
            if self.parked is not None or self.closing:
                return False
            if self.queued >= HIGH_WATER:
                return True
            event = self.stream.next_event()
            if event is NEED_DATA:
                return False
            try:
                self._handle(event)
            except OSError as failed:
                self._cannot(event, failed)
            except Exception:
                self._unforeseen()
                return False
            if self.queued >= _READ and not self._send():
                return False
        return True

    def _send(self) -> bool:
        """Write what there is; False when the peer is gone."""
        out = self.out
        if self.waiting is not None:
            out.insert(0, self.waiting)
        if not out:
            return True
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return self._write(data)

    def _write(self, data: bytes | memoryview) -> bool:
        """Write all that is there to be sent; False when the peer is gone."""
        if self.server.before_replies is not None:
            self.server.before_replies()
        try:
            written = os.write(self.fd, data)
        except BlockingIOError:
            written = 0
        except OSError:
            self._close()
            return False
        self.queued = left = len(data) - written
        self.waiting = memoryview(data)[written:] if left else None
        return True

    def _wait(self, more: bool = False) -> None:
        """Wait for the peer to send or to read; with `more` messages at hand, for our next turn."""
        if self.closing and not self.waiting and self.parked is None:
            self._close()
            return
        events = _OUT if self.waiting or more else 0
        if not more and self.parked is None and not self.closing and self.queued < HIGH_WATER:
            events |= _IN
        if events != self.events:
            self.events = events
            self.server.loop.modify(self.fd, events)

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        cancel, self.parked = self.parked, None
        self.server.forget(fd)
        if cancel is not None:
            cancel()

    def _cannot(self, event: object, failed: OSError) -> None:
        """A command comes with modules that are read when it is asked for first; there may be no descriptor left."""
        reason = f"{failed.filename}: {failed.strerror}"
        _log.error("fd=%d: a request cannot be handled: %s", self.fd, reason)
        number = failed.errno or errno.EIO
        if isinstance(event, BinaryRequest):
            self._reply(binary_reply(-number, b""))
        else:
            self._reply(encode({"errno": number, "error": reason}, json=isinstance(event, JsonMessage)))

    def _unforeseen(self) -> None:
        _log.exception("fd=%d: a request failed in an unforeseen way", self.fd)
        self._close()

    def shut_down(self) -> None:
        """The server ends: a parked command is answered, as far as the peer takes it."""
        self.closing = True
        cancel, self.parked = self.parked, None
        if cancel is not None:
            cancel()
        if self.fd >= 0 and self._send():
            self._close()

    # -- messages ---------------------------------------------------------------------------------------

    def _handle(self, event: object) -> None:
        match event:
            case BinaryRequest():
                self._ioctl(event.number, event.buffer)
            case PlistMessage() | JsonMessage():
                self._dictionary(event)
            case Malformed():
                self._malformed(event)
            case _:
                self.closing = True

    def _reply(self, data: bytes) -> None:
        """The answer to the message at hand, at once or after it was parked. Then the loop goes on with the next one:
        not within the command, of another connection, that ended the wait."""
        self.out.append(data)
        self.queued += len(data)
        if self.parked is not None:
            self.parked = None
            self.server.loop.call_soon_threadsafe(self._go_on)

    def _ioctl(self, number: int, buffer: bytes) -> None:
        self.number = number
        self.parked = self.server.host.ioctl(self.session, number, buffer, self._written)

    def _written(self, result: int, written: bytes) -> None:
        """The ioctl at hand is done."""
        if self.server.verbose:
            _log.debug("fd=%d ioctl=%#x result=%d", self.fd, self.number, result)
        self._reply(binary_reply(result, written))

    def _dictionary(self, message: PlistMessage | JsonMessage) -> None:
        if is_long(message):
            self._meanwhile(lambda: decode(message, self.limit), lambda request: self._ask(message, request))
        else:
            self._ask(message, decode(message, self.limit))

    def _ask(self, message: PlistMessage | JsonMessage, request: dict[str, Any] | BadMessage) -> None:
        def done(reply: dict[str, Any]) -> None:
            if self.server.verbose:
                told = {key: reply.get(key) for key in ("command", "name", "uuid", "minor", "errno") if key in reply}
                _log.debug("fd=%d %s", self.fd, told)
            if is_long(message, reply):
                self._meanwhile(lambda: encode(reply, json=json), self._reply)
            else:
                self._reply(encode(reply, json=json))

        json = isinstance(message, JsonMessage)
        if isinstance(request, BadMessage):
            self._reply(encode(failure(request), json=json))
            return
        cancel = self.server.host.dictionary(self.session, request, done)
        if cancel is not None:
            self.parked = cancel

    def _meanwhile(self, work: Callable[[], _Result], then: Callable[[_Result], None]) -> None:
        """Park until the thread for texts has done `work`, then go on with its result."""

        def here() -> None:
            """Nothing to cancel: the result finds that nobody waits for it."""

        def worked(result: _Result) -> None:
            if self.parked is here:
                self.parked = None
                try:
                    then(result)
                except Exception:
                    self._unforeseen()
                else:
                    self._go_on()

        def failed() -> None:
            if self.parked is here:
                self._close()

        self.parked = here
        self.server.texts.run(work, worked, failed)

    def _malformed(self, event: Malformed) -> None:
        number = event.error.errno
        _log.info("fd=%d malformed: %s", self.fd, errno.errorcode.get(number, number))
        if event.form == "binary":
            self._reply(binary_reply(-number, b""))
        else:
            self._reply(encode(failure(event.error), json=event.form == "json"))
        self.closing = event.fatal
