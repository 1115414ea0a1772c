"""Loop devices for image files (linux/loop.h), of the bridge's own: losetup, kpartx and cryptsetup on a file.

A loop device is a disk whose backing file comes and goes; while it has none it stands on an empty file::

    struct loop_info64 {                             struct loop_config {
        __u64 lo_device, lo_inode, lo_rdevice;           __u32 fd;
        __u64 lo_offset, lo_sizelimit;                   __u32 block_size;
        __u32 lo_number, lo_encrypt_type;                struct loop_info64 info;
        __u32 lo_encrypt_key_size, lo_flags;             __u64 __reserved[8];
        __u8 lo_file_name[64], lo_crypt_name[64];    };
        __u8 lo_encrypt_key[32];
        __u64 lo_init[2];
    };
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING

from dmproto.wire import SECTOR_SIZE
from dmserver.io.blockdev import BlockDevice
from dmserver.io.disk import Disk
from dmserver.io.disks import LOOP_MAJOR

from .supervisor import Call
from .syscalls import machine

if TYPE_CHECKING:
    from dmserver.io.partition import Partitions

    from .caller import Caller
    from .devices import Devices

__all__ = ["CONTROL_IOCTLS", "LOOP_IOCTLS", "Loops"]

PAGE_SIZE = 4096
LO_FLAGS_READ_ONLY, LO_FLAGS_AUTOCLEAR, LO_FLAGS_PARTSCAN, LO_FLAGS_DIRECT_IO = 1, 4, 8, 16
LO_FLAGS = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN | LO_FLAGS_DIRECT_IO
_INFO = Struct("=5Q4I64s64s32s16x")
# struct loop_info: lo_number, lo_device, lo_inode, lo_rdevice, lo_offset, encryption (2), lo_flags, lo_name ...
_OLD_INFO = {"x86_64": Struct("=i4xQQQ4i64s56x"), "aarch64": Struct("=iIQI4i64s60x")}
_CONFIG_HEAD = Struct("=II")


class LoopDevice(Disk):
    """/dev/loopN. `empty` is the file that it stands on while nothing is bound."""

    def __init__(self, number: int, empty: str, partitions: Partitions) -> None:
        super().__init__(f"/dev/loop{number}", (LOOP_MAJOR, number), empty)
        self.empty = self.backing
        self.partitions = partitions
        #: The block device that it stands on, if that is no file.
        self.below: BlockDevice | None = None

    @property
    def bound(self) -> bool:
        return self.backing != self.empty

    def bind(self, backing: str, *, read_only: bool = False) -> None:
        """Stand on another file, open or not."""
        opened = self.fd >= 0
        fd = os.open(backing, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC) if opened else -1
        if opened:
            os.close(self.fd)
        self.backing, self.fd, self.read_only = backing, fd, read_only
        self._size = self._measure()

    def detach(self) -> None:
        """Stand on the empty file again. None of its partitions is open."""
        self.partitions.clear(self)
        self.autoclear = self.partscan = False
        self.offset = self.limit = 0
        self.below = None
        self.bind(self.empty)
        _set_block_size(self, SECTOR_SIZE)

    def last_close(self) -> None:
        super().last_close()
        if self.autoclear:
            self.detach()

    def set_status(self, offset: int, limit: int, flags: int) -> None:
        """Begin at the byte `offset` of the file, have at most `limit` bytes of it (0: all), and scan for partitions
        if that is new. OSError(EOVERFLOW, EAGAIN)."""
        _check_part(offset, limit)
        if (offset, limit) != (self.offset, self.limit):
            if self.claims:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            self.offset, self.limit = offset, limit
            self._size = self._measure()
        self.autoclear = bool(flags & LO_FLAGS_AUTOCLEAR)
        if flags & LO_FLAGS_PARTSCAN and not self.partscan:
            self.partscan = True
            with suppress(OSError):  # what cannot be read shows none (`loop_reread_partitions`)
                self.partitions.scan(self)


class Loops:
    """All loop devices, and /dev/loop-control. `empty()` makes the file that unbound devices stand on; `device_of`
    tells what block device is behind a caller's descriptor and its /proc link."""

    def __init__(
        self,
        devices: Devices,
        empty: Callable[[], str],
        device_of: Callable[[Caller, int, bytes], BlockDevice | None],
    ) -> None:
        self.devices = devices
        self.disks = devices.mapper.disks
        self._empty = empty
        self._device_of = device_of

    def control(self, call: Call) -> int:
        """An ioctl on /dev/loop-control."""
        row = CONTROL_IOCTLS.get(call.args[1] & 0xFFFFFFFF)
        return -errno.ENOTTY if row is None else row[1](self, call)

    def ioctl(self, call: Call, device: BlockDevice) -> int:
        """An ioctl of type 0x4c on a block device."""
        row = LOOP_IOCTLS.get(call.args[1] & 0xFFFFFFFF)
        if row is None or not isinstance(device, Disk) or device.dev[0] != LOOP_MAJOR:
            return -errno.ENOTTY
        return row[1](self, call, device)

    def get_free(self, call: Call) -> int:
        """The lowest unbound device; a new one where neither we nor the kernel have a node."""
        number = 0
        while True:
            found = self.disks.by_dev((LOOP_MAJOR, number))
            if isinstance(found, LoopDevice) and not found.bound:
                return number
            if found is None and not os.path.exists(f"/dev/loop{number}"):
                self.disks.add(LoopDevice(number, self._empty(), self.devices.partitions))
                return number
            number += 1

    def set_fd(self, call: Call, device: Disk) -> int:
        return self._bind(call, device, call.args[2] & 0xFFFFFFFF, SECTOR_SIZE, read_only=False)

    def configure(self, call: Call, device: Disk) -> int:
        data = call.caller.read_exactly(call.args[2], _CONFIG_HEAD.size + _INFO.size)
        fd, block_size = _CONFIG_HEAD.unpack_from(data)
        _, _, _, offset, limit, _, _, _, flags, *_ = _INFO.unpack_from(data, _CONFIG_HEAD.size)
        if flags & ~LO_FLAGS:
            return -errno.EINVAL
        _check_part(offset, limit)
        read_only = bool(flags & LO_FLAGS_READ_ONLY)
        result = self._bind(call, device, fd, block_size or SECTOR_SIZE, read_only=read_only)
        if not result and isinstance(device, LoopDevice):
            try:
                device.set_status(offset, limit, flags)
            except OSError:
                device.detach()
                raise
        return result

    def _bind(self, call: Call, device: Disk, fd: int, block_size: int, *, read_only: bool) -> int:
        if not isinstance(device, LoopDevice) or device.bound:
            return -errno.EBUSY
        if not _is_block_size(block_size):
            return -errno.EINVAL
        backing = call.caller.link(f"fd/{fd}")
        ours = call.caller.borrow(fd)
        try:
            writable = fcntl.fcntl(ours, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            if stat.S_IFMT(os.fstat(ours).st_mode) not in (stat.S_IFREG, stat.S_IFBLK):
                return -errno.EINVAL
        finally:
            os.close(ours)
        below = self._device_of(call.caller, fd, backing)
        if error := _stands_on(below, device):
            return -error
        device.bind(os.fsdecode(backing), read_only=read_only or not writable)
        device.below = below
        _set_block_size(device, block_size)
        return 0

    def clear(self, call: Call, device: Disk) -> int:
        """Now if only the caller has it open, else with the last close, as the kernel does."""
        if not isinstance(device, LoopDevice) or not device.bound:
            return -errno.ENXIO
        if device.openers > 1:
            device.autoclear = True
        else:
            device.detach()
        return 0

    def set_status64(self, call: Call, device: Disk) -> int:
        if not isinstance(device, LoopDevice) or not device.bound:
            return -errno.ENXIO
        _, _, _, offset, limit, _, _, _, flags, *_ = _INFO.unpack(call.caller.read_exactly(call.args[2], _INFO.size))
        device.set_status(offset, limit, flags)
        return 0

    def set_status(self, call: Call, device: Disk) -> int:
        """The older structure; whoever sends it sets the file's name only."""
        return 0 if isinstance(device, LoopDevice) and device.bound else -errno.ENXIO

    def get_status(self, call: Call, device: Disk) -> int:
        """The older structure, whose layout depends on the machine."""
        if isinstance(device, LoopDevice) and not device.bound:
            return -errno.ENXIO
        if device.offset >> 31:
            return -errno.EOVERFLOW
        name = os.fsencode(device.backing)[:63]
        numbers = (device.dev[1], 0, 0, 0, device.offset, 0, 0, _flags(device))
        call.write(call.args[2], _OLD_INFO[machine().name].pack(*numbers, name))
        return 0

    def get_status64(self, call: Call, device: Disk) -> int:
        if isinstance(device, LoopDevice) and not device.bound:
            return -errno.ENXIO
        found = os.stat(f"/proc/self/fd/{device.fd}" if device.fd >= 0 else device.backing)
        name = os.fsencode(device.backing)[:63]
        file = (found.st_dev, found.st_ino, found.st_rdev)
        part = (device.offset, device.limit, device.dev[1], 0, 0, _flags(device))
        call.write(call.args[2], _INFO.pack(*file, *part, name, b"", b""))
        return 0

    def set_capacity(self, call: Call, device: Disk) -> int:
        if not isinstance(device, LoopDevice) or not device.bound:
            return -errno.ENXIO
        device.bind(device.backing, read_only=device.read_only)
        return 0

    def set_block_size(self, call: Call, device: Disk) -> int:
        if isinstance(device, LoopDevice) and not device.bound:
            return -errno.ENXIO
        if not _is_block_size(call.args[2]):
            return -errno.EINVAL
        _set_block_size(device, call.args[2])
        return 0

    def nothing(self, call: Call, device: Disk) -> int:
        return 0


def _stands_on(below: BlockDevice | None, device: LoopDevice) -> int:
    """Why `device` cannot stand on `below` (`loop_validate_file`): EBADF when that leads back to it, EINVAL when it
    ends at a loop device without a file, else 0."""
    while below is not None and isinstance(loop := below.whole, LoopDevice):
        if loop is device:
            return errno.EBADF
        if not loop.bound:
            return errno.EINVAL
        below = loop.below
    return 0


def _check_part(offset: int, limit: int) -> None:
    if max(offset, limit) >> 63:
        raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))


def _flags(device: Disk) -> int:
    bits = {
        LO_FLAGS_READ_ONLY: device.read_only,
        LO_FLAGS_AUTOCLEAR: device.autoclear,
        LO_FLAGS_PARTSCAN: device.partscan,
    }
    return sum(bit for bit, is_set in bits.items() if is_set)


def _is_block_size(size: int) -> bool:
    """A power of two up to a page (`blk_validate_block_size`)."""
    return SECTOR_SIZE <= size <= PAGE_SIZE and not size & size - 1


def _set_block_size(device: Disk, size: int) -> None:
    limits = device.limits
    limits.logical_block_size = limits.physical_block_size = limits.io_min = size


#: Number: (name, handler).
CONTROL_IOCTLS: dict[int, tuple[str, Callable[[Loops, Call], int]]] = {0x4C82: ("LOOP_CTL_GET_FREE", Loops.get_free)}

LOOP_IOCTLS: dict[int, tuple[str, Callable[[Loops, Call, Disk], int]]] = {
    0x4C00: ("LOOP_SET_FD", Loops.set_fd),
    0x4C01: ("LOOP_CLR_FD", Loops.clear),
    0x4C02: ("LOOP_SET_STATUS", Loops.set_status),
    0x4C03: ("LOOP_GET_STATUS", Loops.get_status),
    0x4C04: ("LOOP_SET_STATUS64", Loops.set_status64),
    0x4C05: ("LOOP_GET_STATUS64", Loops.get_status64),
    0x4C07: ("LOOP_SET_CAPACITY", Loops.set_capacity),
    0x4C08: ("LOOP_SET_DIRECT_IO", Loops.nothing),
    0x4C09: ("LOOP_SET_BLOCK_SIZE", Loops.set_block_size),
    0x4C0A: ("LOOP_CONFIGURE", Loops.configure),
}
