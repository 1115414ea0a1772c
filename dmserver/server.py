"""The socket: clients of all three forms on one Unix socket (specs/socket.md).

Theory of operation. Each wake-up of a connection reads once, handles every whole message that is there, and writes all
replies at once. A whole ioctl that came alone, as most do, takes the short way from the read to its handler and from
there to the write (`_lone_ioctl`); everything else goes through the stream. Rules:

1. A connection is busy with one message at a time, so replies come in order; one that waits (`parked`) holds up its
   own connection only.
2. While it is parked, or while more than `HIGH_WATER` bytes of replies wait for the peer to read them, a connection
   reads nothing: what a peer can make us keep is one message, one read and that much of replies.
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
from struct import Struct
from typing import Any

from dmproto import proplib
from dmproto.errors import BadMessage, BadPlist
from dmproto.objects import describe
from dmproto.stream import (
    NEED_DATA,
    BinaryRequest,
    JsonMessage,
    Malformed,
    PlistMessage,
    RequestStream,
    binary_reply,
)

from .control.session import Cancel, Session
from .host import Host
from .loop import Loop

__all__ = ["HIGH_WATER", "Policy", "Server"]

#: Bytes of replies that may wait for the peer.
HIGH_WATER = 1 << 20

_READ = 1 << 16
_IN, _GONE = select.EPOLLIN, select.EPOLLHUP | select.EPOLLERR
_ACCEPT_PAUSE = 0.1
_UCRED = Struct("3i")

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
        self.verbose = _log.isEnabledFor(logging.DEBUG)
        self._listener = listener
        self._policy = policy
        self._connections: dict[int, _Connection] = {}
        host.mapper.call_soon = loop.call_soon_threadsafe
        loop.add(listener.fileno(), select.EPOLLIN, self._acceptable)

    def close(self) -> None:
        """Take no more requests, answer those that wait with EINTR, and close all connections."""
        self.loop.remove(self._listener.fileno())
        for connection in list(self._connections.values()):
            connection.shut_down()

    def _acceptable(self, events: int) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as failure:
                _log.error("accept: %s; pausing", failure.strerror)
                self.loop.modify(self._listener.fileno(), 0)
                self.loop.call_later(_ACCEPT_PAUSE, self._accept_again)
                return
            self._admit(peer)

    def _accept_again(self) -> None:
        if self._listener.fileno() >= 0:
            self.loop.modify(self._listener.fileno(), select.EPOLLIN)

    def _admit(self, peer: socket.socket) -> None:
        pid, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        privileged = uid in self._policy.admins
        if not privileged and uid not in self._policy.readers:
            _log.warning("refused peer uid=%d pid=%d", uid, pid)
            peer.close()
            return
        peer.setblocking(False)
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
    bytes of both; `events` is what is waited for, `number` that of the last ioctl."""

    __slots__ = (
        "closing",
        "events",
        "fd",
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
        self.stream = RequestStream(plist_limit=server.limit, binary_limit=server.binary_limit)
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
            if self._lone_ioctl(data):
                return
            self.stream.receive_data(data)
        elif events & _GONE:
            self._close()
            return
        self._go_on()

    def _lone_ioctl(self, data: bytes) -> bool:
        """Answer what has arrived if it is one ioctl and no reply waits for the peer; False if not. (A connection that
        is parked or closing was not read from.)"""
        request = None if self.queued else self.stream.lone_request(data)
        if request is None:
            return False
        self.number, buffer = request
        try:
            self.parked = self.server.host.ioctl(self.session, self.number, buffer, self._written)
        except Exception:
            self._unforeseen()
            return True
        if self._send() and (self.waiting is not None or self.parked is not None):
            self._wait()
        return True

    def _go_on(self) -> None:
        """Handle what has arrived and send what has come of it."""
        more = True
        while more:
            more = self._handle_messages()
            if self.fd < 0 or not self._send():
                return
            more = more and self.queued < HIGH_WATER
        self._wait()

    def _handle_messages(self) -> bool:
        """Handle the messages that are there; True when there may be more that must wait for the peer to read."""
        while self.parked is None and not self.closing:
            if self.queued >= HIGH_WATER:
                return True
            event = self.stream.next_event()
            if event is NEED_DATA:
                break
            try:
                self._handle(event)
            except Exception:
                self._unforeseen()
                break
            if self.queued >= _READ and not self._send():
                break
        return False

    def _send(self) -> bool:
        """Write what there is; False when the peer is gone."""
        out = self.out
        if out:
            if self.server.before_replies is not None:
                self.server.before_replies()
            if self.waiting is not None:
                out.insert(0, self.waiting)
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
        elif self.waiting is not None:
            data = self.waiting
        else:
            return True
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

    def _wait(self) -> None:
        if self.closing and not self.waiting and self.parked is None:
            self._close()
            return
        events = select.EPOLLOUT if self.waiting else 0
        if self.parked is None and not self.closing and self.queued < HIGH_WATER:
            events |= select.EPOLLIN
        if events != self.events:
            self.events = events
            self.server.loop.modify(self.fd, events)

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        cancel, self.parked = self.parked, None
        self.server.forget(fd)
        if cancel is not None:
            cancel()

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
        """The answer to the message at hand, at once or after it was parked."""
        self.out.append(data)
        self.queued += len(data)
        if self.parked is not None:
            self.parked = None
            self._go_on()

    def _ioctl(self, number: int, buffer: bytes) -> None:
        self.number = number
        self.parked = self.server.host.ioctl(self.session, number, buffer, self._written)

    def _written(self, result: int, written: bytes) -> None:
        """The ioctl at hand is done."""
        if self.server.verbose:
            _log.debug("fd=%d ioctl=%#x result=%d", self.fd, self.number, result)
        self._reply(binary_reply(result, written))

    def _dictionary(self, message: PlistMessage | JsonMessage) -> None:
        json = isinstance(message, JsonMessage)

        def done(reply: dict[str, Any]) -> None:
            if self.server.verbose:
                told = {key: reply.get(key) for key in ("command", "name", "uuid", "minor", "errno") if key in reply}
                _log.debug("fd=%d %s", self.fd, told)
            self._reply(_encode(reply, json))

        try:
            limit = self.server.limit
            if isinstance(message, JsonMessage):
                request = proplib.loads_json(message.data, max_size=limit)
            else:
                request = proplib.loads(message.data, flavour="kernel", max_size=limit)
            if not isinstance(request, dict):
                raise BadPlist(f"expected a dictionary, got {describe(request)}")
        except BadMessage as wrong:
            self._reply(_encode(_failure(wrong), json))
            return
        self.parked = self.server.host.dictionary(self.session, request, done)

    def _malformed(self, event: Malformed) -> None:
        number = event.error.errno
        _log.info("fd=%d malformed: %s", self.fd, errno.errorcode.get(number, number))
        if event.form == "binary":
            self._reply(binary_reply(-number, b""))
        else:
            self._reply(_encode(_failure(event.error), event.form == "json"))
        self.closing = event.fatal


def _failure(wrong: BadMessage) -> dict[str, Any]:
    return {"errno": wrong.errno, "error": str(wrong)}


def _encode(reply: dict[str, Any], json: bool) -> bytes:
    dumps = proplib.dumps_json if json else proplib.dumps
    try:
        return dumps(reply)
    except BadMessage as wrong:
        return dumps(_failure(wrong))
