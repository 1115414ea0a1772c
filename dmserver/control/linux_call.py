"""One ioctl under way: the kernel's copy of the caller's buffer, and what every command does with it
(drivers/md/dm-ioctl.c: find_device(), __dev_status(), get_result_buffer()).

The buffer is changed in place, so whatever a command does not write keeps the caller's bytes.

`quick_status` is the exception: DEV_STATUS of a named device, which monitors ask all day, is answered without a `Call`
at half its price. What it does not foresee it leaves to the long way, and a test holds both together.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING

from dmproto.flags import DmFlag
from dmproto.wire import DATA_OFFSET, DM_NAME_LEN, DM_UUID_LEN, HEADER_SIZE, MAX_DATA_SIZE, huge_decode, to_text

from .session import Session

if TYPE_CHECKING:
    from ..model.dm_dev import DmDev
    from ..model.dm_table import DmTable
    from ..model.mapper import Mapper
    from .linux import LinuxControl

__all__ = ["CLEARED", "VERSION", "VERSION_BYTES", "Call", "Refusal", "quick_status"]

VERSION = (4, 47, 0)
VERSION_BYTES = Struct("<3I").pack(*VERSION)

_FIXED = Struct("<12x7IQ")  # data_size ... padding, dev
_REPLY = Struct("<12s7IQ")  # version ... padding, dev
#: data_size, data_start, flags, padding, dev, name, first byte of uuid
_NAMED = Struct(f"<12x2I8xI4xIQ{DM_NAME_LEN}sB")
_NAME = 48
_UUID = _NAME + DM_NAME_LEN
_LAST = _UUID + DM_UUID_LEN - 1

_READONLY, _SUSPEND = int(DmFlag.READONLY), int(DmFlag.SUSPEND)
_INTERNAL = int(DmFlag.INTERNAL_SUSPEND)
_ACTIVE, _INACTIVE = int(DmFlag.ACTIVE_PRESENT), int(DmFlag.INACTIVE_PRESENT)
_SECURE = int(DmFlag.SECURE_DATA)
_DEFERRED, _QUERY_INACTIVE = int(DmFlag.DEFERRED_REMOVE), int(DmFlag.QUERY_INACTIVE)
#: Bits that no request has a say in.
CLEARED = ~int(DmFlag.BUFFER_FULL | DmFlag.UEVENT_GENERATED | DmFlag.SECURE_DATA | DmFlag.DATA_OUT)
_UNSAID = CLEARED & ~_INACTIVE
_STATE = ~(_SUSPEND | _READONLY | _ACTIVE | _INTERNAL)


class Refusal(Exception):
    """A command failed with `errno`; `complaint` is what the kernel logs about it ("": nothing)."""

    def __init__(self, number: int, complaint: str = "") -> None:
        super().__init__(complaint or errno.errorcode.get(number, str(number)))
        self.errno = number
        self.complaint = complaint


class Call:
    """`request` is the caller's buffer, `buffer` its copy that becomes the reply; `size` is the request's data_size, in
    bytes."""

    __slots__ = (
        "buffer",
        "control",
        "data_size",
        "data_start",
        "dev",
        "done",
        "event_nr",
        "flags",
        "open_count",
        "padding",
        "request",
        "secure",
        "session",
        "size",
        "target_count",
    )

    def __init__(
        self, control: LinuxControl, session: Session, request: bytes, done: Callable[[int, bytes], None]
    ) -> None:
        self.control = control
        self.session = session
        self.request = request
        self.buffer = bytearray(request)
        self.done = done
        self.secure = False
        (
            self.size,
            self.data_start,
            self.target_count,
            self.open_count,
            self.flags,
            self.event_nr,
            self.padding,
            self.dev,
        ) = _FIXED.unpack_from(request)
        self.data_size = DATA_OFFSET

    @property
    def name(self) -> bytes:
        return self._text(_NAME, DM_NAME_LEN)

    @property
    def uuid(self) -> bytes:
        return self._text(_UUID, DM_UUID_LEN)

    def _text(self, start: int, length: int) -> bytes:
        end = self.buffer.find(0, start, start + length)
        return bytes(self.buffer[start : start + length if end < 0 else end])

    def has(self, flag: DmFlag) -> bool:
        return bool(self.flags & flag.value)

    def set(self, flag: DmFlag) -> None:
        self.flags |= flag.value

    def clear(self, flag: DmFlag) -> None:
        """Clear one flag; bits that nobody knows stay."""
        self.flags &= ~flag.value

    def check_names(self, number: int, *, create: bool) -> None:
        """What validate_params() demands of name and uuid; their last bytes become NUL."""
        buffer = self.buffer
        if create:
            if not buffer[_NAME]:
                raise Refusal(errno.EINVAL, "name not supplied when creating device")
        elif buffer[_NAME] and buffer[_UUID]:
            raise Refusal(errno.EINVAL, f"only supply one of name or uuid, cmd({number})")
        buffer[_UUID - 1] = buffer[_LAST] = 0

    def find_device(self) -> DmDev:
        """The device that the request names, its name and uuid written into the reply. ENXIO when there is none."""
        device = self._lookup()
        if device is None:
            raise Refusal(errno.ENXIO, self._contradiction())
        buffer, name, uuid = self.buffer, device.name_bytes, device.uuid_bytes
        if not buffer[_NAME]:
            buffer[_NAME : _NAME + len(name) + 1] = name + b"\0"
        if uuid and not buffer[_UUID]:
            buffer[_UUID : _UUID + len(uuid) + 1] = uuid + b"\0"
        if device.slots[1 - device.cur_active] is not None:
            self.flags |= _INACTIVE
        else:
            self.flags &= ~_INACTIVE
        return device

    def _lookup(self) -> DmDev | None:
        mapper = self.control.mapper
        request = self.request
        if request[_UUID]:
            return None if request[_NAME] or self.dev else mapper.uuids.get(self.uuid)
        if request[_NAME]:
            end = request.find(0, _NAME, _UUID - 1)  # check_names() put a NUL there
            return None if self.dev else mapper.names.get(request[_NAME : _UUID - 1 if end < 0 else end])
        major, minor = huge_decode(self.dev)
        return mapper.devices.get(minor) if self.dev and major == mapper.major else None

    def _contradiction(self) -> str:
        """The complaint about a request that tells a device by its number and by something else, too; else ""."""
        if not self.dev or not (self.request[_UUID] or self.request[_NAME]):
            return ""
        uuid = f"uuid {to_text(self.uuid)}, " if self.request[_UUID] else ""
        return f"Invalid ioctl structure: {uuid}name {to_text(self.name)}, dev {self.dev:x}"

    def status(self, device: DmDev) -> None:
        """Fill in the status fields."""
        self.flags, self.target_count = _state(device, self.flags)
        self.dev = device.devt
        self.open_count = device.openers
        self.event_nr = device.event_nr

    def table(self, device: DmDev) -> DmTable | None:
        """The live table, or the inactive one if the request asks for it."""
        return device.inactive if self.flags & _QUERY_INACTIVE else device.live

    def result_room(self) -> int:
        """Point data_start at the reply's data; returns how many bytes there are for it."""
        self.data_start = min(HEADER_SIZE, self.size)
        room: int = self.size - self.data_start
        return room

    def text_from(self, start: int) -> bytes | None:
        """The NUL-terminated string at `start`; None when it does not end before data_size."""
        end = self.buffer.find(0, start, self.size)
        return None if end < 0 else bytes(self.buffer[start:end])

    def go_on(self, then: Callable[[], None]) -> None:
        """Finish a parked call by doing what is left of it."""
        try:
            then()
        except Refusal as refusal:
            if refusal.complaint:
                self.control.complain(f"ioctl: {refusal.complaint}")
            self.finish(-refusal.errno)
        else:
            self.finish()

    def finish(self, result: int = 0) -> None:
        """Answer with 0 or -errno. On success the first `data_size` bytes go back, on failure the version only; a
        buffer with secure data was zeroed before the command ran, version included."""
        if result:
            reply = b"" if self.secure else VERSION_BYTES
        else:
            buffer = self.buffer
            size = self.data_size
            if size:
                _REPLY.pack_into(
                    buffer,
                    0,
                    VERSION_BYTES,
                    size,
                    self.data_start,
                    self.target_count,
                    self.open_count,
                    self.flags,
                    self.event_nr,
                    self.padding,
                    self.dev,
                )
                del buffer[size:]
                reply = bytes(buffer)
            else:
                reply = b"" if self.secure else VERSION_BYTES
        if self.secure:
            reply = reply.ljust(self.size, b"\0")
        self.done(result, reply)


def _state(device: DmDev, flags: int) -> tuple[int, int]:
    """__dev_status(): the flags, those of the request brought up to date, and the number of targets."""
    flags &= _STATE
    if device.suspended:
        flags |= _SUSPEND
    if device.internal_suspends:
        flags |= _INTERNAL
    if device.deferred_remove:
        flags |= _DEFERRED
    targets = 0
    live = device.slots[device.cur_active]
    if live is not None:
        flags |= _ACTIVE
        if not flags & _QUERY_INACTIVE:
            targets = len(live.targets)
            if device.read_only:
                flags |= _READONLY
    if flags & _QUERY_INACTIVE and (inactive := device.inactive) is not None:
        targets = len(inactive.targets)
        if inactive.read_only:
            flags |= _READONLY
    return flags, targets


def quick_status(mapper: Mapper, request: bytes) -> bytes | None:
    """What DEV_STATUS writes back for a request that tells an existing device by its name alone; None: it may be
    anything else."""
    if len(request) < DATA_OFFSET:
        return None
    size, start, flags, padding, dev, name, uuid = _NAMED.unpack_from(request)
    device = mapper.names.get(name[: name.find(0)])
    if device is None or uuid or dev or flags & _SECURE or not DATA_OFFSET <= size <= MAX_DATA_SIZE:
        return None
    if name[-1] or request[_LAST]:  # to be NULs
        return None
    if device.catch_up is not None:  # its openers may be fewer than it knows
        return None
    flags, targets = _state(device, flags & _UNSAID)
    if device.slots[1 - device.cur_active] is not None:
        flags |= _INACTIVE
    head = _REPLY.pack(
        VERSION_BYTES, DATA_OFFSET, start, targets, device.openers, flags, device.event_nr, padding, device.devt
    )
    if not device.uuid:
        return head + request[_NAME:DATA_OFFSET]
    told = device.uuid_bytes + b"\0"
    return head + request[_NAME:_UUID] + told + request[_UUID + len(told) : DATA_OFFSET]
