"""Linux's commands that tell about tables and target types: status, wait, deps, versions (drivers/md/dm-ioctl.c)."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from struct import Struct

from dmproto.flags import DmFlag
from dmproto.wire import huge_encode, to_bytes, to_text

from ..model.dm_dev import DmDev
from ..model.dm_target import StatusType, Target
from .linux_call import Call, Refusal
from .session import Cancel

__all__ = ["Wait", "dev_wait", "get_target_version", "list_versions", "table_deps", "table_status"]

_SPEC = Struct("<QQiI")  # sector_start, length, status, next; target_type[16] follows
_SPEC_SIZE = 40
_NEXT = Struct("<I")
_TYPE_WRITTEN = 15  # strncpy() leaves the last byte of target_type alone
_VERSIONS = Struct("<4I")


def table_status(call: Call) -> None:
    """table_status()."""
    device = call.find_device()
    call.status(device)
    _retrieve_status(call, device)


def dev_wait(call: Call) -> Cancel | None:
    """dev_wait(): the table's status, once the device's event number is not the request's."""
    device = call.find_device()
    wait = Wait(call, device)
    if device.event_nr != call.event_nr:
        wait.report()
        return None
    return wait.park()


class Wait:
    """A DEV_WAIT that sleeps on a device's events. Any number of them may."""

    def __init__(self, call: Call, device: DmDev) -> None:
        self.call = call
        self.device = device

    def report(self) -> None:
        self.call.status(self.device)
        _retrieve_status(self.call, self.device)

    def park(self) -> Cancel:
        device = self.device
        self.call.control.waits.setdefault(device, set()).add(self)
        self._stop = device.on_event(lambda: device.mapper.call_soon(self.wake))
        if device.event_nr != self.call.event_nr:  # since it was looked at, by another thread
            device.mapper.call_soon(self.wake)
        return self._interrupt

    def wake(self) -> None:
        """Answer, unless that has happened already."""
        if self._end():
            self.call.go_on(self.report)

    def _interrupt(self) -> None:
        if self._end():
            self.call.finish(-errno.EINTR)

    def _end(self) -> bool:
        waits = self.call.control.waits.get(self.device, set())
        if self not in waits:
            return False
        waits.remove(self)
        if not waits:
            del self.call.control.waits[self.device]
        self._stop()
        return True


def _retrieve_status(call: Call, device: DmDev) -> None:
    """retrieve_status(): as many whole lines as fit. `next` counts from the first spec on."""
    table = call.table(device)
    if table is None:
        return
    room = call.result_room()
    buffer, start = call.buffer, call.data_start
    used = at = 0
    for target in table.targets:
        if room - at <= _SPEC_SIZE:
            call.set(DmFlag.BUFFER_FULL)
            break
        text = to_bytes(_status(call, target))
        end = at + _SPEC_SIZE + len(text) + 1
        if end >= room:
            call.set(DmFlag.BUFFER_FULL)
            break
        following = end + 7 & ~7
        spec = start + at
        last = following > room
        _pack_spec(buffer, spec, target, 0 if last else following)
        buffer[spec + _SPEC_SIZE : start + end] = text + b"\0"
        used = start + end
        if last:
            call.set(DmFlag.BUFFER_FULL)
            break
        at = following
    if used:
        call.data_size = used
    call.target_count = len(table.targets)


def _status(call: Call, target: Target) -> str:
    if call.has(DmFlag.STATUS_TABLE):
        return target.status(StatusType.TABLE)
    if call.has(DmFlag.IMA_MEASUREMENT):
        return target.ima_status()
    if not call.has(DmFlag.NOFLUSH):
        target.refresh_status()
    return target.status(StatusType.INFO)


def _pack_spec(buffer: bytearray, spec: int, target: Target, following: int) -> None:
    """`following` 0 leaves `next` alone."""
    if not following:
        (following,) = _NEXT.unpack_from(buffer, spec + 20)
    _SPEC.pack_into(buffer, spec, target.begin, target.len, 0, following)
    name = target.name.encode()[:_TYPE_WRITTEN]
    buffer[spec + 24 : spec + 24 + _TYPE_WRITTEN] = name.ljust(_TYPE_WRITTEN, b"\0")


def table_deps(call: Call) -> None:
    """table_deps(): the devices that a table uses, last used first. All or nothing."""
    device = call.find_device()
    call.status(device)
    table = call.table(device)
    if table is None:
        return
    room = call.result_room()
    devices = [huge_encode(pdev.bdev.dev) for pdev in reversed(table.pdevs)]
    needed = 8 + 8 * len(devices)
    if room < needed:
        call.set(DmFlag.BUFFER_FULL)
        return
    at = call.data_start
    _NEXT.pack_into(call.buffer, at, len(devices))
    Struct(f"<{len(devices)}Q").pack_into(call.buffer, at + 8, *devices)
    call.data_size = at + needed


def list_versions(call: Call) -> None:
    """list_versions(): every registered type, newest first."""
    _versions(call, call.control.registry)


def get_target_version(call: Call) -> None:
    """get_target_version(): the type that the request's name tells; its module is loaded."""
    kind = call.control.registry.get(to_text(call.name))
    if kind is None:
        raise Refusal(errno.EINVAL)
    _versions(call, [kind])


def _versions(call: Call, kinds: Iterable[type[Target]]) -> None:
    """__list_versions(): data_size counts the alignment of each entry whether needed or not. All or nothing."""
    names = [(kind.version, kind.name.encode()) for kind in kinds]
    needed = sum(_VERSIONS.size + len(name) + 1 + 7 for _, name in names)
    room = call.result_room()
    if room < needed:
        call.set(DmFlag.BUFFER_FULL)
        return
    buffer, at = call.buffer, call.data_start
    call.data_size = at + needed
    for version, name in names:
        size = _VERSIONS.size + len(name) + 1 + 7 & ~7
        following = 0 if (version, name) == names[-1] else size
        _VERSIONS.pack_into(buffer, at, following, *version)
        buffer[at + 16 : at + 17 + len(name)] = name + b"\0"
        at += size
