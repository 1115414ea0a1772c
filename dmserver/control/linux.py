"""Linux's device-mapper as binary clients meet it: entry checks, dispatch and copy-back (drivers/md/dm-ioctl.c 6.1:
ctl_ioctl(), copy_params(), validate_params()).

An ioctl goes through the checks below in the kernel's order, then a handler of `_HANDLERS` changes the model and the
`Call`. A handler returns None when it is done, or a `Cancel` when it has parked the call and will finish it later; it
raises `Refusal` to fail. The rooms next door: `linux_call` (the buffer), `linux_dev`, `linux_table`, `linux_message`
(the commands), `linux_uevent`, `linux_resolver`, `linux_stats`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from struct import Struct
from typing import TYPE_CHECKING

from dmproto.commands import BY_NAME, BY_NUMBER, DM_IOCTL, CommandFlag
from dmproto.flags import DmFlag
from dmproto.wire import DATA_OFFSET, MAX_DATA_SIZE

from ..model.mapper import Mapper
from .linux_call import CLEARED, VERSION, VERSION_BYTES, Call, Refusal, quick_status
from .session import Cancel, Session

if TYPE_CHECKING:
    from ..model.dm_dev import DmDev
    from ..targets.registry import TargetRegistry
    from .linux_status import Wait

__all__ = ["LinuxControl"]

Handler = Callable[[Call], Cancel | None]

_WORDS = Struct("<3I")
#: Major and minor of the versions that are accepted.
_VERSIONS = frozenset(_WORDS.pack(VERSION[0], minor, 0)[:8] for minor in range(VERSION[1] + 1))
_SECURE = int(DmFlag.SECURE_DATA)
#: Type and command, the bits of an ioctl number that count.
_VERSION, _DEV_STATUS = (BY_NAME[name].ioctl & 0xFFFF for name in ("VERSION", "DEV_STATUS"))

#: Rooms and functions.
_HANDLERS = {
    "REMOVE_ALL": ("linux_dev", "remove_all"),
    "LIST_DEVICES": ("linux_dev", "list_devices"),
    "DEV_CREATE": ("linux_dev", "dev_create"),
    "DEV_REMOVE": ("linux_dev", "dev_remove"),
    "DEV_RENAME": ("linux_dev", "dev_rename"),
    "DEV_SUSPEND": ("linux_dev", "dev_suspend"),
    "DEV_STATUS": ("linux_dev", "dev_status"),
    "DEV_WAIT": ("linux_status", "dev_wait"),
    "TABLE_LOAD": ("linux_table", "table_load"),
    "TABLE_CLEAR": ("linux_table", "table_clear"),
    "TABLE_DEPS": ("linux_status", "table_deps"),
    "TABLE_STATUS": ("linux_status", "table_status"),
    "LIST_VERSIONS": ("linux_status", "list_versions"),
    "TARGET_MSG": ("linux_message", "target_message"),
    "DEV_SET_GEOMETRY": ("linux_dev", "dev_set_geometry"),
    "DEV_ARM_POLL": ("linux_dev", "dev_arm_poll"),
    "GET_TARGET_VERSION": ("linux_status", "get_target_version"),
}

#: Commands whose name and uuid are not looked at.
_NAMELESS = {"REMOVE_ALL", "LIST_DEVICES", "LIST_VERSIONS"}


class _Entry:
    """One command as the entry checks see it."""

    def __init__(self, name: str, flags: CommandFlag) -> None:
        self.name = name
        self.params = CommandFlag.NO_PARAMS not in flags
        self.global_event = CommandFlag.GLOBAL_EVENT in flags
        self.nameless = name in _NAMELESS
        self.create = name == "DEV_CREATE"

    @cached_property
    def handler(self) -> Handler:
        """What carries it out. Its room comes in with the first command that needs it."""
        room, function = _HANDLERS[self.name]
        handler: Handler = getattr(import_module(f".{room}", __package__), function)
        return handler


_ENTRIES = {
    number: _Entry(command.name, command.flags) for number, command in BY_NUMBER.items() if command.name in _HANDLERS
}


class LinuxControl:
    """The control node of one `mapper`, with the target types of `registry`."""

    def __init__(self, mapper: Mapper, registry: TargetRegistry) -> None:
        self.mapper = mapper
        self.registry = registry
        self.waits: dict[DmDev, set[Wait]] = {}
        mapper.on_remove.append(self._removing)

    def ioctl(self, session: Session, number: int, buffer: bytes, done: Callable[[int, bytes], None]) -> Cancel | None:
        """Carry out one ioctl(2) on the caller's whole `buffer`; only type and command of `number` count.

        `done(result, written)` is called once, now or later: 0 or -errno, and the prefix of the buffer that is
        written back. A parked command returns a `Cancel`, which answers it with EINTR.
        """
        reply = self.quick(session, number, buffer)
        if reply is not None:
            done(0, reply)
            return None
        if not session.privileged:
            done(-errno.EACCES, b"")
            return None
        if number >> 8 & 0xFF != DM_IOCTL:
            done(-errno.ENOTTY, b"")
            return None
        if len(buffer) < 12:
            done(-errno.EFAULT, b"")
            return None
        command, number = number, number & 0xFF
        if buffer[:8] not in _VERSIONS:
            kernel, user = ("{}.{}.{}".format(*_WORDS.unpack_from(each)) for each in (VERSION_BYTES, buffer))
            self.complain(f"ioctl: ioctl interface mismatch: kernel({kernel}), user({user}), cmd({number})")
            done(-errno.EINVAL, VERSION_BYTES)
            return None
        if not number:
            done(0, VERSION_BYTES)
            return None
        entry = _ENTRIES.get(number)
        if entry is None:
            self.complain(f"ioctl: dm_ctl_ioctl: unknown command 0x{command:x}")
            done(-errno.ENOTTY, VERSION_BYTES)
            return None
        if len(buffer) < DATA_OFFSET:
            done(-errno.EFAULT, VERSION_BYTES)
            return None
        return self._run(entry, number, Call(self, session, buffer, done))

    def quick(self, session: Session, number: int, buffer: bytes) -> bytes | None:
        """What VERSION and DEV_STATUS of a named device write back, when nothing is wrong with them; None: that is for
        `ioctl` to tell."""
        if buffer[:8] not in _VERSIONS or not session.privileged:
            return None
        if number & 0xFFFF == _DEV_STATUS:
            return quick_status(self.mapper, buffer)
        return VERSION_BYTES if number & 0xFFFF == _VERSION and len(buffer) >= 12 else None

    def _removing(self, device: DmDev) -> None:
        """__hash_remove(): the last event of a device, while those who wait for it can still see its table."""
        if device.live is not None:
            device.event()
        for wait in tuple(self.waits.get(device, ())):
            wait.wake()
        if device.has_disk:
            from . import linux_uevent

            linux_uevent.removed(device)

    def complain(self, text: str) -> None:
        """A line of the kernel log."""
        self.mapper.events.log(f"device-mapper: {text}")

    def _run(self, entry: _Entry, number: int, call: Call) -> Cancel | None:
        size = call.size
        try:
            if not DATA_OFFSET <= size <= MAX_DATA_SIZE:
                raise Refusal(errno.EINVAL, f"Invalid data size in the ioctl structure: {size}")
            if not entry.params:
                call.size = DATA_OFFSET
            elif size > len(call.buffer):
                raise Refusal(errno.EFAULT)
            call.secure = bool(call.flags & _SECURE)
            call.flags &= CLEARED
            if not entry.nameless:
                call.check_names(number, create=entry.create)
            parked = entry.handler(call)
        except Refusal as refusal:
            if refusal.complaint:
                self.complain(f"ioctl: {refusal.complaint}")
            call.finish(-refusal.errno)
            return None
        if parked is not None:
            return parked
        if entry.global_event:
            self.mapper.events.bump()
        call.finish()
        return None
