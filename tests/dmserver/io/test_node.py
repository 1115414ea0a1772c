"""Device nodes: bytes at any offset, cut short at the end, errors as the kernel's."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stacks import Stack, pattern

from dmserver.io import node
from dmserver.io.node import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE

SECTORS = 32
SIZE = SECTORS * 512


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    stack.ram(SECTORS)
    yield stack
    stack.close()


def errno_of(call: object, *arguments: object) -> int:
    with pytest.raises(OSError, match=r"/dev/dm-0") as failure:
        call(*arguments)
    return failure.value.errno or 0


@given(st.lists(st.tuples(st.integers(0, SIZE + 600), st.integers(1, 1500)), max_size=8))
def test_is_an_array_of_bytes(writes: list[tuple[int, int]]) -> None:
    stack = Stack()
    stack.ram(SECTORS)
    dev = stack.device("d", (0, 7, "linear", "1:0 0"), (7, SECTORS - 7, "linear", "1:0 7"))
    model = bytearray(pattern(1, 0, SECTORS))
    for number, (offset, length) in enumerate(writes):
        data = bytes([number + 1]) * length
        if offset >= SIZE:
            assert errno_of(node.write, dev, offset, memoryview(data)) == errno.ENOSPC
        else:
            count = node.write(dev, offset, memoryview(data))
            assert count == min(length, SIZE - offset)
            model[offset : offset + count] = data[:count]
        assert node.read(dev, offset, length) == model[offset : offset + length]
    assert node.read(dev, 0, SIZE + 1) == model
    stack.close()


def test_read_only_and_broken(stack: Stack) -> None:
    dev = stack.device("d", (0, 8, "linear", "1:0 0"), (8, 8, "error", ""), read_only=True)
    assert errno_of(node.write, dev, 0, memoryview(b"x")) == errno.EPERM
    assert errno_of(node.write, dev, 1 << 40, memoryview(b"x")) == errno.EPERM
    assert errno_of(node.fallocate, dev, ZERO_RANGE, 0, 512) == errno.EPERM
    assert errno_of(node.read, dev, 4095, 2) == errno.EIO
    node.fsync(dev)


def test_device_without_table(stack: Stack) -> None:
    dev = stack.mapper.create("d")
    assert node.read(dev, 0, 512) == b""
    assert errno_of(node.write, dev, 0, memoryview(b"x")) == errno.ENOSPC


@pytest.mark.parametrize(
    ("mode", "offset", "length", "error"),
    [
        (ZERO_RANGE, 512, 1024, 0),
        (ZERO_RANGE | KEEP_SIZE, SIZE - 512, 1024, 0),
        (ZERO_RANGE, SIZE - 512, 1024, errno.EINVAL),
        (ZERO_RANGE, SIZE, 512, errno.EINVAL),
        (ZERO_RANGE, 1, 512, errno.EINVAL),
        (ZERO_RANGE, 0, 100, errno.EINVAL),
        (PUNCH_HOLE | KEEP_SIZE, 0, 512, errno.EOPNOTSUPP),
        (0, 0, 512, errno.EOPNOTSUPP),
        (PUNCH_HOLE, 0, 512, errno.EOPNOTSUPP),
    ],
)
def test_fallocate(stack: Stack, mode: int, offset: int, length: int, error: int) -> None:
    dev = stack.device("d", (0, SECTORS, "linear", "1:0 0"))
    expected = bytearray(pattern(1, 0, SECTORS))
    if error:
        assert errno_of(node.fallocate, dev, mode, offset, length) == error
    else:
        node.fallocate(dev, mode, offset, length)
        expected[offset : offset + length] = bytes(min(length, SIZE - offset))
    assert node.read(dev, 0, SIZE) == expected
