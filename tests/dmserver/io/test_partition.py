from __future__ import annotations

import errno

import pytest

from dmserver.io.bio import Bio, Op
from dmserver.io.blockdev import BlockDevices
from dmserver.io.disk import Disk
from dmserver.io.partition import EXT_MAJOR, Partitions


@pytest.fixture
def disk() -> Disk:
    return Disk("/dev/sda", (8, 0), "ram:1M")


@pytest.fixture
def partitions(disk: Disk) -> Partitions:
    devices = BlockDevices()
    devices.add(disk)
    return Partitions(devices)


def refused(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


def test_numbers_and_names(disk: Disk, partitions: Partitions) -> None:
    for number, start in ((1, 0), (16, 64)):
        partitions.add(disk, number, start, 64)
    assert [(part.path, part.dev) for part in partitions.of(disk)] == [
        ("/dev/sda1", (8, 1)),
        ("/dev/sda16", (EXT_MAJOR, 0)),
    ]


@pytest.mark.parametrize("place", [(1, 100, 10), (2, 0, 1), (2, 63, 2)])
def test_a_number_or_sector_that_is_taken(disk: Disk, partitions: Partitions, place: tuple[int, int, int]) -> None:
    partitions.add(disk, 1, 0, 64)
    with refused(errno.EBUSY):
        partitions.add(disk, *place)


def test_resize_and_delete(disk: Disk, partitions: Partitions) -> None:
    partitions.add(disk, 1, 64, 64)
    partitions.add(disk, 2, 256, 64)
    partitions.resize(disk, 1, 64, 192)
    assert partitions.of(disk)[0].size == 192
    for number, start, size, error in ((1, 64, 193, errno.EBUSY), (1, 0, 8, errno.EINVAL), (3, 0, 8, errno.ENXIO)):
        with refused(error):
            partitions.resize(disk, number, start, size)
    first = partitions.of(disk)[0]
    first.open()
    for remove in (lambda: partitions.delete(disk, 1), lambda: partitions.clear(disk), lambda: partitions.scan(disk)):
        with refused(errno.EBUSY):
            remove()
        assert len(partitions.of(disk)) == 2
    first.close()
    partitions.delete(disk, 1)
    partitions.clear(disk)
    assert not partitions.of(disk)


def test_what_is_read_only(disk: Disk, partitions: Partitions) -> None:
    partitions.add(disk, 1, 0, 64)
    (partition,) = partitions.of(disk)
    told = []
    for own, whole in ((False, False), (False, True), (True, False)):
        partition.read_only, disk.read_only = own, whole
        told.append(partition.read_only)
    assert told == [False, True, True]


def test_claims_exclude_those_of_the_disk(disk: Disk, partitions: Partitions) -> None:
    partitions.add(disk, 1, 0, 64)
    partitions.add(disk, 2, 64, 64)
    one, two = partitions.of(disk)
    mine, others = object(), object()
    one.open(holder=mine)
    two.open(holder=others)
    for device in (one, disk):
        with refused(errno.EBUSY):
            device.open(holder=others)
    one.close(holder=mine)
    two.close(holder=others)
    assert not disk.openers
    disk.open(holder=others)
    with refused(errno.EBUSY):
        one.open(holder=mine)
    assert (one.openers, disk.openers) == (0, 1)


@pytest.mark.parametrize(("sector", "error"), [(0, 0), (62, 0), (63, errno.EIO), (-1, errno.EIO)])
def test_bios_go_to_the_disk(disk: Disk, partitions: Partitions, sector: int, error: int) -> None:
    partitions.add(disk, 1, 128, 64)
    (partition,) = partitions.of(disk)
    partition.open()
    data = memoryview(bytearray(b"x" * 1024))
    bio = Bio(Op.WRITE, sector, 2, data)
    partition.submit_bio(bio)
    assert bio.error == error
    read = Bio(Op.READ, 128 + max(sector, 0), 2, memoryview(bytearray(1024)))
    disk.submit_bio(read)
    assert (read.data == data) is (not error)
    flush = Bio(Op.FLUSH, 0, 0)
    partition.submit_bio(flush)
    assert not flush.error
