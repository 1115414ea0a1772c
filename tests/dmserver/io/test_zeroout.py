"""Zeroing: holes where they can be made, zeroes where not, the first error."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stacks import Stack, pattern
from support.targets import read

from dmserver.io.blockdev import BlockDevice
from dmserver.io.zeroout import issue_zeroout


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.close()


def zeroout(bdev: BlockDevice, sector: int, count: int, *, unmap: bool = True) -> int:
    errors: list[int] = []
    issue_zeroout(bdev, sector, count, errors.append, unmap=unmap)
    (error,) = errors
    return error


@pytest.mark.parametrize("unmap", [False, True])
def test_file(stack: Stack, tmp_path: Path, unmap: bool) -> None:
    path = tmp_path / "disk"
    path.write_bytes(pattern(1, 0, 8192))
    disk = stack.file(str(path))
    disk.open()
    assert zeroout(disk, 8, 8000, unmap=unmap) == 0
    assert read(disk, 0, 8192) == pattern(1, 0, 8) + bytes(8000 * 512) + pattern(1, 8008, 184)
    holes = [hole for _, hole in disk.allocation(8, 8000)]
    assert holes == [unmap]
    disk.close()


def test_ram_is_written(stack: Stack) -> None:
    disk = stack.ram(4096)
    assert zeroout(disk, 1, 3000) == 0
    assert read(disk, 0, 4096) == pattern(1, 0, 1) + bytes(3000 * 512) + pattern(1, 3001, 1095)


def test_target_that_refuses_and_nothing_to_do(stack: Stack) -> None:
    stack.ram(8)
    dev = stack.device("d", (0, 8, "zero", ""), (8, 8, "error", ""))
    assert zeroout(dev, 0, 8) == 0
    assert zeroout(dev, 4, 8) == errno.EIO
    assert zeroout(dev, 4, 0) == 0
