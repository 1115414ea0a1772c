"""Disks: files and memory, their errors, holes, and a file that shrinks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dmserver.io.bio import Op
from dmserver.io.disk import Disk, parse_size
from dmserver.io.submit import submit_and_wait


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 64)
    return path


@pytest.mark.parametrize(
    ("text", "size"), [("64M", 64 << 20), ("512k", 512 << 10), ("2048s", 1 << 20), ("7", 7), ("1T", 1 << 40)]
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "64X", "-1", "1.5G", "64MM"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        parse_size(text)


def test_read_write_zero(path: Path) -> None:
    disk = Disk("/dev/d", (7, 0), str(path))
    assert disk.size == 32
    disk.open()
    data = bytearray(1024)
    assert submit_and_wait(disk, Op.READ, 1, 2, memoryview(data)) == 0
    assert data == bytes(range(256)) * 4
    assert submit_and_wait(disk, Op.WRITE, 1, 1, memoryview(b"w" * 512), fua=True) == 0
    assert submit_and_wait(disk, Op.DISCARD, 2, 1) == 0
    assert submit_and_wait(disk, Op.WRITE_ZEROES, 3, 1) == 0
    assert submit_and_wait(disk, Op.FLUSH) == 0
    disk.close()
    assert disk.fd == -1
    assert path.read_bytes() == bytes(range(256)) * 2 + b"w" * 512 + bytes(1024) + bytes(range(256)) * 56


def test_past_the_end(path: Path) -> None:
    disk = Disk("/dev/d", (7, 0), str(path))
    disk.open()
    assert submit_and_wait(disk, Op.READ, 31, 2, memoryview(bytearray(1024))) == errno.EIO
    assert submit_and_wait(disk, Op.WRITE, 32, 1, memoryview(bytes(512))) == errno.EIO
    disk.close()


def test_file_that_shrinks(path: Path) -> None:
    disk = Disk("/dev/d", (7, 0), str(path))
    disk.open()
    os.truncate(path, 1000)
    assert submit_and_wait(disk, Op.READ, 0, 1, memoryview(bytearray(512))) == 0
    assert submit_and_wait(disk, Op.READ, 1, 1, memoryview(bytearray(512))) == errno.EIO
    disk.close()


def test_read_only(path: Path) -> None:
    disk = Disk("/dev/d", (7, 0), str(path), read_only=True)
    disk.open()
    for op in (Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES):
        assert submit_and_wait(disk, op, 0, 1, memoryview(bytes(512))) == errno.EPERM
    disk.close()


def test_ram_keeps_its_content_and_does_not_discard() -> None:
    disk = Disk("/dev/ram0", (1, 0), "ram:64k")
    disk.open()
    assert submit_and_wait(disk, Op.WRITE, 0, 1, memoryview(b"r" * 512)) == 0
    disk.close()
    disk.open()
    data = bytearray(512)
    assert submit_and_wait(disk, Op.READ, 0, 1, memoryview(data)) == 0
    assert data == b"r" * 512
    assert submit_and_wait(disk, Op.DISCARD, 0, 1) == errno.EOPNOTSUPP


def test_memory_lives_as_long_as_the_disk() -> None:
    disk = Disk("/dev/ram0", (1, 0), "ram:8M")
    fd, freed = disk.fd, Disk("/dev/ram1", (1, 1), "ram:8M")
    freed.free()
    freed.free()
    del disk
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_backing_must_be_a_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="neither a file nor a block device"):
        Disk("/dev/d", (7, 0), str(tmp_path))
    with pytest.raises(FileNotFoundError):
        Disk("/dev/d", (7, 0), str(tmp_path / "missing"))


def test_open_that_fails_counts_nothing(path: Path) -> None:
    disk = Disk("/dev/d", (7, 0), str(path))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        disk.open(holder="a")
    assert (disk.openers, disk.claims, disk.holder) == (0, 0, None)


def test_claim_has_one_holder(path: Path) -> None:
    disk = Disk("/dev/d", (7, 0), str(path))
    disk.open(holder="a")
    disk.open(holder="a")
    disk.open()
    with pytest.raises(OSError, match="busy"):
        disk.open(holder="b")
    disk.close(holder="a")
    disk.close(holder="a")
    disk.open(holder="b")
    disk.close(holder="b")
    disk.close()
    assert disk.openers == 0
