"""ioctls of block devices (linux/fs.h, linux/hdreg.h, linux/blkzoned.h, linux/loop.h).

`IOCTLS` is the table; specs/bridge.md shows it. Any other ioctl of a looked-at type gets ENOTTY.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import Struct, calcsize, pack
from typing import NamedTuple

from dmserver.io.bio import Bio, Op
from dmserver.io.blockdev import BlockDevice
from dmserver.io.disk import Disk
from dmserver.io.disks import SD_MAJOR
from dmserver.io.zeroout import issue_zeroout
from dmserver.loop import Loop

from .devices import Devices, has_partscan
from .supervisor import ANSWERED, Call, Outcome
from .sysfs import read_ahead_sectors

__all__ = ["IOCTLS", "BlockIoctl", "BlockIoctls"]

BLOCK_SIZE = 4096
MAX_SECTORS = 255
PAGE_SECTORS = 8
_RANGE = Struct("=QQ")  # bytes: offset, length
_BLKPG = Struct("=i4x4x4xQ")  # op, flags, datalen, data
_BLKPG_PARTITION = Struct("=qqi")  # start, length, pno, names that nobody reads
BLKPG_ADD_PARTITION, BLKPG_DEL_PARTITION, BLKPG_RESIZE_PARTITION = 1, 2, 3


class BlockIoctl(NamedTuple):
    """One row. `value` is written back in the layout `form` (struct module); `act` does something, returns 0 or -errno,
    or answers later."""

    rung: int
    name: str
    answer: str
    form: str = ""
    value: Callable[[BlockDevice], object] | None = None
    act: Callable[[BlockIoctls, Call, BlockDevice], int | Outcome] | None = None


class BlockIoctls:
    """Answers `IOCTLS`."""

    def __init__(self, loop: Loop, devices: Devices) -> None:
        self.loop = loop
        self.devices = devices

    def answer(self, call: Call, device: BlockDevice) -> int | Outcome:
        row = IOCTLS.get(call.args[1] & 0xFFFFFFFF)
        if row is None:
            return -errno.ENOTTY
        if row.act is not None:
            return row.act(self, call, device)
        assert row.value is not None
        value = row.value(device)
        if value is None:
            return -errno.ENOTTY
        call.write(call.args[2], pack("=" + row.form, *(value if isinstance(value, tuple) else (value,))))
        return 0

    def later(self, call: Call) -> Callable[[int], None]:
        """What a request calls with its errno, in any thread, to answer `call`."""
        return lambda error: self.loop.call_soon_threadsafe(lambda: call.finish(-error))


def _range(call: Call, device: BlockDevice) -> tuple[int, int]:
    """The (offset, length) argument in sectors. OSError(EINVAL) unless it is aligned and inside the device."""
    offset, length = _RANGE.unpack(call.caller.read_exactly(call.args[2], _RANGE.size))
    if (offset | length) % device.limits.logical_block_size or not length or offset + length > device.bytes:
        raise OSError(errno.EINVAL, "range of bytes")
    return offset // 512, length // 512


def _discard(ioctls: BlockIoctls, call: Call, device: BlockDevice) -> int | Outcome:
    if not device.limits.discard:
        return -errno.EOPNOTSUPP
    sector, count = _range(call, device)
    done = ioctls.later(call)
    device.submit_bio(Bio(Op.DISCARD, sector, count, None, lambda bio: done(bio.error), bdev=device))
    return ANSWERED


def _zeroout(ioctls: BlockIoctls, call: Call, device: BlockDevice) -> int | Outcome:
    sector, count = _range(call, device)
    issue_zeroout(device, sector, count, ioctls.later(call))
    return ANSWERED


def _flush(ioctls: BlockIoctls, call: Call, device: BlockDevice) -> int | Outcome:
    done = ioctls.later(call)
    device.submit_bio(Bio(Op.FLUSH, 0, 0, None, lambda bio: done(0), bdev=device))
    return ANSWERED


def _set_read_only(ioctls: BlockIoctls, call: Call, device: BlockDevice) -> int:
    device.read_only = any(call.caller.read_exactly(call.args[2], calcsize("i")))
    return 0


def _set_read_ahead(ioctls: BlockIoctls, call: Call, device: BlockDevice) -> int:
    device.read_ahead = call.args[2] // PAGE_SECTORS * PAGE_SECTORS
    return 0


def _change_partitions(ioctls: BlockIoctls, call: Call, device: BlockDevice) -> int:
    """BLKPG: struct blkpg_ioctl_arg points to a struct blkpg_partition, in bytes."""
    if not isinstance(device, Disk):
        return -errno.EINVAL
    operation, address = _BLKPG.unpack(call.caller.read_exactly(call.args[2], _BLKPG.size))
    start, length, number = _BLKPG_PARTITION.unpack(call.caller.read_exactly(address, _BLKPG_PARTITION.size))
    partitions = ioctls.devices.partitions
    if number <= 0:
        return -errno.EINVAL
    if operation == BLKPG_DEL_PARTITION:
        partitions.delete(device, number)
        return 0
    if start < 0 or length <= 0 or (start | length) % device.limits.logical_block_size:
        return -errno.EINVAL
    if start + length > device.bytes or operation not in (BLKPG_ADD_PARTITION, BLKPG_RESIZE_PARTITION):
        return -errno.EINVAL
    change = partitions.add if operation == BLKPG_ADD_PARTITION else partitions.resize
    change(device, number, start // 512, length // 512)
    return 0


def _read_partitions(ioctls: BlockIoctls, call: Call, device: BlockDevice) -> int:
    if not isinstance(device, Disk) or not has_partscan(device):
        return -errno.EINVAL
    ioctls.devices.partitions.scan(device)
    return 0


def _refuse(number: int) -> Callable[[BlockIoctls, Call, BlockDevice], int]:
    return lambda ioctls, call, device: -number


def _nothing(ioctls: BlockIoctls, call: Call, device: BlockDevice) -> int:
    return 0


def _geometry(device: BlockDevice) -> tuple[int, ...] | None:
    io = device.mapped_io
    if io is None:
        return None
    cylinders, heads, sectors, start = io.device.geometry
    return heads, sectors, cylinders, start


def _idlun(device: BlockDevice) -> tuple[int, ...] | None:
    return (0, 0) if device.dev[0] == SD_MAJOR else None


_I = BlockIoctl

IOCTLS: dict[int, BlockIoctl] = {
    0x1268: _I(2, "BLKSSZGET", "logical block size", "i", lambda d: d.limits.logical_block_size),
    0x80081272: _I(2, "BLKGETSIZE64", "size in bytes", "Q", lambda d: d.bytes),
    0x1260: _I(2, "BLKGETSIZE", "size in sectors", "Q", lambda d: d.size),
    0x0301: _I(2, "HDIO_GETGEO", "geometry of a mapped device, else ENOTTY", "BBH4xQ", _geometry),
    0x125E: _I(3, "BLKROGET", "1 when read-only", "i", lambda d: int(d.read_only)),
    0x125D: _I(3, "BLKROSET", "sets read-only", act=_set_read_only),
    0x1263: _I(3, "BLKRAGET", "read-ahead in sectors", "Q", read_ahead_sectors),
    0x1262: _I(3, "BLKRASET", "sets read-ahead, whole pages, until another table is live", act=_set_read_ahead),
    0x80041284: _I(3, "BLKGETZONESZ", "0: not zoned", "I", lambda d: 0),
    0x80041285: _I(3, "BLKGETNRZONES", "0: not zoned", "I", lambda d: 0),
    0x127B: _I(3, "BLKPBSZGET", "physical block size", "I", lambda d: d.limits.physical_block_size),
    0x127F: _I(3, "BLKZEROOUT", "zeroes the range", act=_zeroout),
    0x1261: _I(3, "BLKFLSBUF", "flushes", act=_flush),
    0x1278: _I(4, "BLKIOMIN", "minimum I/O size", "I", lambda d: d.limits.io_min),
    0x1279: _I(4, "BLKIOOPT", "optimal I/O size", "I", lambda d: d.limits.io_opt),
    0x127A: _I(4, "BLKALIGNOFF", "0", "i", lambda d: 0),
    0x80081270: _I(8, "BLKBSZGET", "4096", "i", lambda d: BLOCK_SIZE),
    0x40081271: _I(8, "BLKBSZSET", "0", act=_nothing),
    0x1267: _I(8, "BLKSECTGET", "255", "H", lambda d: MAX_SECTORS),
    0x127C: _I(8, "BLKDISCARDZEROES", "0", "I", lambda d: 0),
    0x127E: _I(8, "BLKROTATIONAL", "whether it turns", "H", lambda d: int(d.limits.rotational)),
    0x1277: _I(8, "BLKDISCARD", "discards the range; EOPNOTSUPP", act=_discard),
    0x127D: _I(8, "BLKSECDISCARD", "EOPNOTSUPP", act=_refuse(errno.EOPNOTSUPP)),
    0x5382: _I(8, "SCSI_IOCTL_GET_IDLUN", "0:0:0:0 for /dev/sdX, else ENOTTY", "II", _idlun),
    0x125F: _I(8, "BLKRRPART", "reads the partition table again; EINVAL on mapped devices", act=_read_partitions),
    0x1269: _I(8, "BLKPG", "adds, resizes or deletes a partition; EINVAL on mapped devices", act=_change_partitions),
}
