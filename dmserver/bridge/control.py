"""Control nodes of clients: each is a pipe whose reading end the client holds.

So poll(2) on it works in the kernel: a byte is in the pipe while the global event number differs from the session's
(`dm_poll`). The last close shows as EPOLLERR at our end.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from struct import unpack_from
from typing import Protocol

from dmproto.commands import BY_NUMBER, CommandFlag
from dmproto.wire import DATA_OFFSET, HEADER_SIZE, MAX_DATA_SIZE, VERSION_SIZE
from dmserver.control.session import Cancel, Session
from dmserver.loop import Loop
from dmserver.model.events import Events

from .caller import Caller, Fault
from .supervisor import ANSWERED, CONTINUE, Call, Outcome

__all__ = ["ControlNodes"]

ARM_POLL = 16
_PARAMS = {n for n, c in BY_NUMBER.items() if CommandFlag.NO_PARAMS not in c.flags}


class Door(Protocol):
    """The device-mapper behind the nodes: a `Host` of our own, or a running server."""

    def open(self, *, privileged: bool = True) -> Session: ...

    def quick(self, session: Session, number: int, buffer: bytes) -> bytes | None: ...

    def ioctl(
        self, session: Session, number: int, buffer: bytes, done: Callable[[int, bytes], None]
    ) -> Cancel | None: ...


class _Node:
    """An open node: our end of the pipe, and whether a byte is in it."""

    __slots__ = ("full", "session", "write_fd")

    def __init__(self, session: Session, write_fd: int) -> None:
        self.session = session
        self.write_fd = write_fd
        self.full = False


def _answer(call: Call, result: int, written: bytes) -> None:
    try:
        call.write(call.args[2], written)
    except Fault:
        result = -errno.EFAULT
    call.finish(result)


class ControlNodes:
    """All open control nodes. `observe(number, request, reply)` sees each command that succeeded;
    `locate(caller, path)` finds what a table names."""

    def __init__(
        self,
        loop: Loop,
        door: Door,
        events: Events,
        observe: Callable[[int, bytes, bytes], None],
        locate: Callable[[Caller, str], str],
    ) -> None:
        self.loop = loop
        self.door = door
        self.events = events
        self.observe = observe
        self.locate = locate
        self._nodes: dict[bytes, _Node] = {}
        self._unsubscribe = events.on_bump(lambda: loop.call_soon_threadsafe(self._refresh))

    def close(self) -> None:
        self._unsubscribe()
        for name in tuple(self._nodes):
            self._drop(name)

    def open(self, call: Call, *, cloexec: bool) -> Outcome:
        """Answer an open of the node."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        name = b"pipe:[%d]" % os.fstat(write_fd).st_ino
        node = self._nodes[name] = _Node(self.door.open(), write_fd)
        self.loop.add(write_fd, 0, lambda events: self._drop(name))
        try:
            fd = call.hand_over(read_fd, cloexec=cloexec)
        except OSError:
            self._drop(name)
            raise
        finally:
            os.close(read_fd)
        if fd is not None:
            call.caller.sessions[fd] = node.session
        return ANSWERED

    def is_node(self, link: bytes) -> bool:
        """What a link in /proc/PID/fd leads to is one of our nodes."""
        return link in self._nodes

    def ioctl(self, call: Call) -> int | Outcome:
        """A device-mapper command; other descriptors than ours are the kernel's."""
        caller, args = call.caller, call.args
        session = caller.sessions.get(args[0]) or self._session(caller, call.fd(0))
        if session is None:
            return CONTINUE
        number, address = args[1], args[2]
        request = caller.read(address, HEADER_SIZE if number & 0xFF else VERSION_SIZE)
        written = self.door.quick(session, number, request)
        if written is None:
            return self._command(call, session, number, request)
        call.write(address, written)
        return 0

    def _command(self, call: Call, session: Session, number: int, request: bytes) -> Outcome:
        """A command that may fail, wait, or change something."""
        caller, command, address = call.caller, number & 0xFF, call.args[2]
        if command in _PARAMS and len(request) >= DATA_OFFSET:
            size: int = unpack_from("<I", request, 12)[0]
            if len(request) < size <= MAX_DATA_SIZE:
                request = caller.read(address, size)
        answered = False

        def done(result: int, written: bytes) -> None:
            nonlocal answered
            answered = True
            if result >= 0:
                self.observe(command, request, written)
                if command == ARM_POLL:
                    self._refresh()
            _answer(call, result, written)

        session.locate = partial(self.locate, caller)
        cancel = self.door.ioctl(session, number & 0xFFFFFFFF, request, done)
        if cancel is not None and not answered:
            call.park(cancel)
        return ANSWERED

    def _session(self, caller: Caller, fd: int) -> Session | None:
        node = self._nodes.get(caller.link(f"fd/{fd}"))
        if node is None:
            return None
        caller.sessions[fd] = node.session
        return node.session

    def _refresh(self) -> None:
        """Put a byte into each pipe, or take it out, as `dm_poll` demands."""
        for name, node in tuple(self._nodes.items()):
            full = node.session.event_nr != self.events.global_nr
            if full and not node.full:
                try:
                    os.write(node.write_fd, b"\1")
                except BrokenPipeError:  # closed, and EPOLLERR not seen yet
                    self._drop(name)
            elif node.full and not full:
                fd = os.open(f"/proc/self/fd/{node.write_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.read(fd, 1)
                os.close(fd)
            node.full = full

    def _drop(self, name: bytes) -> None:
        if node := self._nodes.pop(name, None):
            self.loop.remove(node.write_fd)
            os.close(node.write_fd)
