"""One kernel's rules for the other system's spelling: a dictionary under Linux's rules, a buffer under NetBSD's."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace

from dmproto import linux
from dmproto.commands import BY_NUMBER, DM_IOCTL, Command
from dmproto.errors import BadMessage
from dmproto.flags import DmFlag
from dmproto.netbsd import build
from dmproto.records import Message
from dmproto.translate import EXTENSION_KEY, to_dictionary, to_message

from .linux import LinuxControl
from .netbsd import VERSION, NetbsdControl
from .netbsd_call import Call, Dictionary, Refusal
from .session import Cancel, Session

__all__ = ["dictionary_to_linux", "ioctl_to_netbsd"]

#: Room for the answer, in bytes: what libdevmapper takes, and where its doubling ends.
ROOM, MOST_ROOM = 16384, 1 << 28

_VERSION_BYTES = b"".join(number.to_bytes(4, "little") for number in VERSION)


def dictionary_to_linux(
    control: LinuxControl, session: Session, request: Dictionary, done: Callable[[Dictionary], None]
) -> Cancel | None:
    """A dictionary under Linux's rules. The reply is the request with the keys that the answer has; a failed one has
    `errno`, and `error` says what the kernel logged."""
    call = Call(request, done)
    try:
        message = to_message(request, major=control.mapper.major)
    except BadMessage as wrong:
        call.finish(Refusal(wrong.errno, str(wrong)))
        return None
    header = replace(message.header, data_size=0)  # the buffer is ours
    if "version" not in call.request:
        header = replace(header, version=message.command.since)
    return _Ioctl(control, session, replace(message, header=header, keys=()), call).run(ROOM)


class _Ioctl:
    """Asks again with more room while the answer does not fit."""

    def __init__(self, control: LinuxControl, session: Session, message: Message, call: Call) -> None:
        self._control = control
        self._session = session
        self._message = message
        self._call = call

    def run(self, room: int) -> Cancel | None:
        message = self._message
        try:
            needed = len(linux.build(replace(message, size=0)))
            buffer = linux.build(replace(message, size=max(room, needed + ROOM)))
        except BadMessage as wrong:
            self._call.finish(Refusal(wrong.errno, str(wrong)))
            return None
        complaints: list[str] = []
        stop = self._control.mapper.events.on_log(complaints.append)
        try:
            return self._control.ioctl(
                self._session,
                message.command.ioctl,
                buffer,
                lambda result, written: self._answer(result, written + buffer[len(written) :], room, complaints),
            )
        finally:
            stop()

    def _answer(self, result: int, buffer: bytes, room: int, complaints: list[str]) -> None:
        if result < 0:
            told = "; ".join(complaints) or os.strerror(-result)
            self._call.finish(Refusal(-result, told))
            return
        command = self._message.command
        reply = linux.parse(buffer, command, reply=True)
        if reply.header.flags & DmFlag.BUFFER_FULL and room < MOST_ROOM and command.name != "DEV_WAIT":
            self.run(room * 2)
            return
        keys = build(replace(reply, residue=()), major=self._control.mapper.major)
        self._call.request.update(keys, command=self._call.request["command"])
        self._call.finish()


def ioctl_to_netbsd(
    control: NetbsdControl, session: Session, number: int, buffer: bytes, done: Callable[[int, bytes], None]
) -> Cancel | None:
    """A buffer under NetBSD's rules: the errno is the one that the command meant; only the version comes back then."""
    command = BY_NUMBER.get(number & 0xFF) if number >> 8 & 0xFF == DM_IOCTL else None
    if command is None:
        done(-errno.ENOTTY, b"")
        return None
    try:
        request = to_dictionary(linux.parse(buffer, command), major=control.mapper.major)
    except BadMessage as wrong:
        done(-wrong.errno, _VERSION_BYTES if len(buffer) >= len(_VERSION_BYTES) else b"")
        return None
    request.pop(EXTENSION_KEY, None)
    room = linux.parse_header(buffer.ljust(linux.HEADER_SIZE, b"\0")).data_size
    return control.dictionary(
        session, request, lambda reply: done(*_written(reply, command, control.mapper.major, room))
    )


def _written(reply: Dictionary, command: Command, major: int, room: int) -> tuple[int, bytes]:
    """Result and bytes that a reply comes to in a buffer of `room` bytes."""
    if "errno" in reply:
        return -reply["errno"], _VERSION_BYTES
    try:
        message = replace(to_message(reply, reply=True, major=major), command=command, keys=())
        written = linux.build(message)
        if len(written) > room:
            full = replace(message.header, flags=message.header.flags | DmFlag.BUFFER_FULL)
            written = linux.build(replace(message, header=full, payload=None))
    except BadMessage as wrong:
        return -wrong.errno, _VERSION_BYTES
    return 0, written
