"""Linux's commands on devices: create, remove, rename, suspend, list ... (drivers/md/dm-ioctl.c)."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from heapq import heappop, heappush
from struct import Struct

from dmproto.flags import DmFlag, NameListFlag
from dmproto.wire import DATA_OFFSET, DM_NAME_LEN, DM_UUID_LEN, huge_decode, to_text

from ..model.args import wrapped
from ..model.dm_dev import DmDev
from ..model.dm_target import TargetError
from . import linux_uevent
from .linux_call import Call, Refusal
from .linux_limits import fits
from .session import Cancel

__all__ = [
    "dev_arm_poll",
    "dev_create",
    "dev_remove",
    "dev_rename",
    "dev_set_geometry",
    "dev_status",
    "dev_suspend",
    "list_devices",
    "remove_all",
]

MINORS = 1 << 20

_NEXT = Struct("<I")
_HAS_UUID, _DOESNT_HAVE_UUID = NameListFlag.HAS_UUID.value, NameListFlag.DOESNT_HAVE_UUID.value
_GEOMETRY = re.compile(rb"\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\Z")


def _check_name(name: bytes) -> None:
    if b"/" in name:
        raise Refusal(errno.EINVAL, "invalid device name")


def dev_create(call: Call) -> None:
    """dev_create(): the minor is reserved first, then the names are looked at."""
    mapper = call.control.mapper
    name, uuid = call.name, call.uuid
    _check_name(name)
    minor: int | None = None
    if call.has(DmFlag.PERSISTENT_DEV):
        minor = huge_decode(call.dev)[1]
        if minor >= MINORS or not mapper.minors.reserve(minor):
            raise Refusal(errno.ENXIO)
    if mapper.by_name(to_text(name)) or (uuid and mapper.by_uuid(to_text(uuid))):
        if minor is not None:
            mapper.minors.free(minor)
        raise Refusal(errno.EBUSY)
    device = mapper.create(to_text(name), to_text(uuid), minor)
    call.clear(DmFlag.INACTIVE_PRESENT)
    call.status(device)


def dev_remove(call: Call) -> None:
    """dev_remove(): an open device stays, marked for removal if the request says so."""
    device = call.find_device()
    if device.openers:
        if not call.has(DmFlag.DEFERRED_REMOVE):
            raise Refusal(errno.EBUSY)
        device.deferred_remove = True
        return
    call.clear(DmFlag.DEFERRED_REMOVE)
    if device.has_disk:
        linux_uevent.removing(device, call.event_nr)
        call.set(DmFlag.UEVENT_GENERATED)
    device.mapper.remove(device)


def remove_all(call: Call) -> None:
    """dm_hash_remove_all(): always the first, by name, of those that are not open; open ones that a removal closes get
    their turn again. O(n log n)."""
    mapper = call.control.mapper
    turns = [(device.name_bytes, device) for device in mapper.sorted_by_name()]
    skipped: set[DmDev] = set()
    while turns:
        _, device = heappop(turns)
        if device.openers:
            device.deferred_remove |= call.has(DmFlag.DEFERRED_REMOVE)
            skipped.add(device)
            continue
        below = [pdev.bdev for table in device.slots if table for pdev in table.pdevs]
        mapper.remove(device)
        for bdev in below:
            if isinstance(bdev, DmDev) and bdev in skipped and not bdev.openers:
                skipped.remove(bdev)
                heappush(turns, (bdev.name_bytes, bdev))
    if skipped:
        call.control.complain(f"ioctl: remove_all left {len(skipped)} open device(s)")
    call.data_size = 0


def dev_rename(call: Call) -> None:
    """dev_rename(): a new name, or with the UUID flag a first uuid."""
    mapper = call.control.mapper
    set_uuid = call.has(DmFlag.UUID)
    what = "uuid" if set_uuid else "name"
    new = call.text_from(call.data_start) if call.data_start >= DATA_OFFSET else None
    if not new or len(new) >= (DM_UUID_LEN if set_uuid else DM_NAME_LEN):
        raise Refusal(errno.EINVAL, "Invalid new mapped device name or uuid string supplied.")
    if not set_uuid:
        _check_name(new)
    text, name = to_text(new), to_text(call.name)
    if mapper.by_uuid(text) if set_uuid else mapper.by_name(text):
        raise Refusal(
            errno.EBUSY, f"Unable to change {what} on mapped device {name} to one that already exists: {text}"
        )
    device = mapper.by_name(name)
    if device is None:
        prefix = "uuid " if set_uuid else ""
        raise Refusal(errno.ENXIO, f"Unable to rename non-existent device, {name} to {prefix}{text}")
    if not set_uuid:
        mapper.rename(device, text)
    elif device.uuid:
        raise Refusal(
            errno.EINVAL,
            f"Unable to change uuid of mapped device {name} to {text} because uuid is already set to {device.uuid}",
        )
    else:
        mapper.set_uuid(device, text)
    if device.live:
        device.event()
    if device.has_disk:
        linux_uevent.changed(device, call.event_nr)
        call.set(DmFlag.UEVENT_GENERATED)
    call.status(device)


def dev_status(call: Call) -> None:
    call.status(call.find_device())


def dev_suspend(call: Call) -> Cancel | None:
    """dev_suspend(): with the SUSPEND flag do_suspend(), else do_resume()."""
    device = call.find_device()
    if not call.has(DmFlag.SUSPEND):
        return _resume(call, device)
    return _suspended(call, device, lambda: call.status(device))


def _suspended(call: Call, device: DmDev, then: Callable[[], None]) -> Cancel | None:
    """Suspend the device unless it is, then go on; parked while bios are under way."""
    if device.suspended:
        then()
        return None
    parked = finished = False

    def suspended() -> None:
        nonlocal finished
        finished = True
        if parked:
            call.go_on(then)
        else:
            then()

    give_up = device.suspend(suspended, noflush=call.has(DmFlag.NOFLUSH))
    if finished:
        return None
    parked = True

    def interrupt() -> None:
        if give_up():
            call.finish(-errno.EINTR)

    return interrupt


def _resume(call: Call, device: DmDev) -> Cancel | None:
    new = device.inactive
    call.clear(DmFlag.INACTIVE_PRESENT)
    if new is None:
        _finish_resume(call, device)
        return None
    return _suspended(call, device, lambda: _finish_resume(call, device))


def _finish_resume(call: Call, device: DmDev) -> None:
    """do_resume() from where the device is suspended if it has to be: swap, resume, tell. A table that does not fit
    its devices any more is dropped, and the device stays suspended; so it does when a target refuses to resume."""
    old, resized = None, False
    new = device.inactive
    if new is not None:
        device.inactive = None
        if not fits(new):
            new.destroy()
            raise Refusal(errno.EINVAL)
        old_size, was_read_only = device.size, device.read_only
        device.inactive = new
        old = device.swap()
        resized = 0 < old_size != new.size > 0
        call.control.mapper.events.bump()
        if device.read_only != was_read_only:
            linux_uevent.disk_ro_changed(device)
    elif device.suspended and device.live is None:
        raise Refusal(errno.EINVAL)
    try:
        if device.suspended:
            _wake(call, device, resized)
    finally:
        if old is not None:
            old.destroy()
    call.status(device)


def _wake(call: Call, device: DmDev, resized: bool) -> None:
    try:
        device.resume()
    except TargetError as failure:
        raise Refusal(failure.errno) from failure
    linux_uevent.changed(device, call.event_nr, resized=resized)
    call.set(DmFlag.UEVENT_GENERATED)


def dev_set_geometry(call: Call) -> None:
    """dev_set_geometry(): "cylinders heads sectors start"."""
    device = call.find_device()
    text = call.text_from(call.data_start) if call.data_start >= DATA_OFFSET else None
    if text is None:
        raise Refusal(errno.EINVAL, "Invalid geometry supplied.")
    match = _GEOMETRY.match(text)
    if match is None:
        raise Refusal(errno.EINVAL, "Unable to interpret geometry settings.")
    cylinders, heads, sectors, start = map(wrapped, match.groups())
    if cylinders > 65535 or heads > 255 or sectors > 255:
        raise Refusal(errno.EINVAL, "Geometry exceeds range limits.")
    if start > cylinders * heads * sectors:
        call.control.complain("core: Start sector is beyond the geometry limits.")
        raise Refusal(errno.EINVAL)
    device.geometry = (cylinders, heads, sectors, start)
    call.data_size = 0


def dev_arm_poll(call: Call) -> None:
    """dev_arm_poll(): the node is readable once the global event number has moved on from here."""
    call.session.event_nr = call.control.mapper.events.global_nr


def list_devices(call: Call) -> None:
    """list_devices(): those whose names and uuids begin as the request's do, in the order of names; all or nothing.
    O(n) in the devices listed."""
    room = call.result_room()
    devices = call.control.mapper.sorted_by_name(call.name)
    if uuid_prefix := call.uuid:
        devices = [device for device in devices if device.uuid_bytes.startswith(uuid_prefix)]
    data = bytearray().join(_name_list(devices, with_uuid=call.has(DmFlag.UUID)))
    if room < max(len(data), 8):
        call.set(DmFlag.BUFFER_FULL)
        return
    at = call.data_start
    call.data_size = at + len(data)
    if call.buffer.count(0, at, call.data_size) < len(data):
        _keep_alignment(data, call.buffer[at : call.data_size])
    call.buffer[at : call.data_size] = data


def _name_list(devices: list[DmDev], *, with_uuid: bool) -> list[bytes]:
    """A `struct dm_name_list` for each, in one pack; the bytes of alignment are zero."""
    entries = []
    shapes: dict[int, tuple[Callable[..., bytes], int]] = {}
    uuid, flags = b"", 0
    for device in devices:
        name = device.name_bytes
        if with_uuid:
            uuid = device.uuid_bytes
            flags = _HAS_UUID if uuid else _DOESNT_HAVE_UUID
        lengths = len(name) << 8 | len(uuid)
        shape = shapes.get(lengths)
        if shape is None:
            shape = shapes[lengths] = _shape(len(name), len(uuid))
        pack, size = shape
        entries.append(pack(device.devt, size, name, device.event_nr, flags, uuid))
    if entries:
        last = bytearray(entries[-1])
        _NEXT.pack_into(last, 8, 0)
        entries[-1] = bytes(last)
    return entries


def _shape(name: int, uuid: int) -> tuple[Callable[..., bytes], int]:
    """What packs a record with a name and a uuid (0: none) of so many bytes, and its size."""
    names = (12 + name + 1 + 7 & ~7) - 12
    uuids = uuid + 1 + 7 & ~7 if uuid else 0
    record = Struct(f"<QI{names}sII{uuids}s")
    return record.pack, record.size


def _keep_alignment(data: bytearray, request: bytearray) -> None:
    """Put the caller's bytes back where records are aligned."""
    at = 0
    while at < len(data):
        end = data.index(0, at + 12) + 1
        info = end + 7 & ~7
        data[end:info] = request[end:info]
        at = info + 8
        if data[info + 4] & _HAS_UUID:
            end = data.index(0, at) + 1
            at = end + 7 & ~7
            data[end:at] = request[end:at]
