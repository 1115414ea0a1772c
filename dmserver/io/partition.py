"""Partitions of disks: block devices of their own (Linux `block/partitions/core.c`, `block/bdev.c`).

The number of `/dev/sdXN` is 8:16*X+N, as long as N fits; all others have the major 259 (`BLOCK_EXT_MAJOR`).
"""

from __future__ import annotations

import errno
import os

from dmproto.wire import SECTOR_SIZE, Dev

from .bio import Bio, Op
from .blockdev import BlockDevice, BlockDevices
from .disks import SD_MAJOR
from .partition_table import Entry, read_table
from .submit import submit_and_wait

__all__ = ["EXT_MAJOR", "Partition", "Partitions"]

EXT_MAJOR = 259
SD_PARTITIONS = 16

#: The holder of a disk whose partitions have holders (`bd_may_claim`).
_PARTITIONS = object()


class Partition(BlockDevice):
    """`size` sectors of a disk from `start` on. An open of it is one of the disk, and a claim keeps others from
    claiming the disk."""

    def __init__(self, disk: BlockDevice, entry: Entry, dev: Dev) -> None:
        self.disk = disk
        self.number, self.start, self._size, self.name = entry
        self._read_only = False
        infix = "p" if disk.path[-1].isdigit() else ""
        super().__init__(f"{disk.path}{infix}{self.number}", dev)
        self.limits = disk.limits
        self.request_based = disk.request_based

    @property
    def whole(self) -> BlockDevice:
        return self.disk

    @property
    def read_only(self) -> bool:
        """It was set so itself, or the disk is (`bdev_read_only`)."""
        return self._read_only or self.disk.read_only

    @read_only.setter
    def read_only(self, value: bool) -> None:
        self._read_only = value

    @property
    def size(self) -> int:
        return self._size

    def resize(self, size: int) -> None:
        """Another number of sectors."""
        self._size = size

    def open(self, *, holder: object | None = None) -> None:
        whole = _PARTITIONS if holder is not None else None
        self.disk.open(holder=whole)
        try:
            super().open(holder=holder)
        except OSError:
            self.disk.close(holder=whole)
            raise

    def close(self, *, holder: object | None = None) -> None:
        super().close(holder=holder)
        self.disk.close(holder=_PARTITIONS if holder is not None else None)

    def submit_bio(self, bio: Bio) -> None:
        if bio.op is not Op.FLUSH:
            if bio.sector < 0 or bio.sector + bio.nr_sectors > self._size:
                bio.endio(errno.EIO)
                return
            bio.sector += self.start
        bio.bdev = self.disk
        self.disk.submit_bio(bio)


class Partitions:
    """The partitions of all disks among `devices`. Errors are OSError, as of BLKPG and BLKRRPART."""

    def __init__(self, devices: BlockDevices) -> None:
        self._devices = devices
        self._of: dict[BlockDevice, list[Partition]] = {}

    def of(self, disk: BlockDevice) -> tuple[Partition, ...]:
        """Those of one disk, in the order in which they came."""
        return tuple(self._of.get(disk, ()))

    def add(self, disk: BlockDevice, number: int, start: int, size: int) -> None:
        """BLKPG_ADD_PARTITION: EBUSY when the number or one of the sectors is taken."""
        others = self.of(disk)
        if any(other.number == number or _overlaps(other, start, size) for other in others):
            raise _error(errno.EBUSY, disk)
        self._create(disk, Entry(number, start, size))

    def delete(self, disk: BlockDevice, number: int) -> None:
        """BLKPG_DEL_PARTITION: ENXIO when there is none, EBUSY while it is open."""
        partition = self._find(disk, number)
        if partition.openers:
            raise _error(errno.EBUSY, partition)
        self._remove(partition)

    def resize(self, disk: BlockDevice, number: int, start: int, size: int) -> None:
        """BLKPG_RESIZE_PARTITION: EINVAL when it does not start there, EBUSY when another has some of the sectors."""
        partition = self._find(disk, number)
        if partition.start != start:
            raise _error(errno.EINVAL, partition)
        if any(other is not partition and _overlaps(other, start, size) for other in self.of(disk)):
            raise _error(errno.EBUSY, partition)
        partition.resize(size)

    def clear(self, disk: BlockDevice) -> None:
        """Forget all. EBUSY, and nothing happens, while one is open."""
        partitions = self.of(disk)
        for partition in partitions:
            if partition.openers:
                raise _error(errno.EBUSY, partition)
        for partition in partitions:
            self._remove(partition)

    def scan(self, disk: BlockDevice) -> None:
        """BLKRRPART: those that the disk's table tells of, instead of those that there were. EBUSY while one is open;
        EIO ... when the disk cannot be read."""
        self.clear(disk)
        block_size = disk.limits.logical_block_size

        def read(block: int, count: int) -> bytes:
            data = memoryview(bytearray(count * block_size))
            sector, sectors = block * block_size // SECTOR_SIZE, len(data) // SECTOR_SIZE
            if error := submit_and_wait(disk, Op.READ, sector, sectors, data):
                raise _error(error, disk)
            return bytes(data)

        disk.open()
        try:
            for entry in read_table(read, disk.size, block_size):
                self._create(disk, entry)
        finally:
            disk.close()

    def _create(self, disk: BlockDevice, entry: Entry) -> None:
        major, minor = disk.dev
        dev = (major, minor + entry.number)
        if major != SD_MAJOR or entry.number >= SD_PARTITIONS or self._devices.by_dev(dev) is not None:
            dev = (EXT_MAJOR, self._devices.free_minor(EXT_MAJOR))
        partition = Partition(disk, entry, dev)
        self._devices.add(partition)
        self._of.setdefault(disk, []).append(partition)

    def _remove(self, partition: Partition) -> None:
        self._devices.remove(partition)
        self._of[partition.disk].remove(partition)

    def _find(self, disk: BlockDevice, number: int) -> Partition:
        for partition in self.of(disk):
            if partition.number == number:
                return partition
        raise _error(errno.ENXIO, disk)


def _overlaps(partition: Partition, start: int, size: int) -> bool:
    return partition.start < start + size and start < partition.start + partition.size


def _error(number: int, device: BlockDevice) -> OSError:
    return OSError(number, os.strerror(number), device.path)
