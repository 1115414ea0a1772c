"""Routes: the flattened way gives what the ordinary way gives, stays bounded, and is retired in time."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stacks import Line, Stack, pattern

from dmserver.io.bio import Bio, Op
from dmserver.io.extents import DEPTH, PIECES, Route
from dmserver.io.submit import submit_and_wait
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_pdev import DmPdev
from dmserver.model.dm_target import Extent, MapResult, Target


class Chunks(Target):
    """`chunks CHUNK DEV...`: chunks in turn from each device, as striped lays them out."""

    name = "chunks"
    version = (1, 0, 0)

    def ctr(self, argv: Sequence[str]) -> None:
        self.max_io_len = self.chunk = int(argv[0])
        self.devs = [self.get_device(name) for name in argv[1:]]

    def remap(self, sector: int) -> Extent:
        chunk, inside = divmod(self.offset(sector), self.chunk)
        row, column = divmod(chunk, len(self.devs))
        return Extent(self.devs[column].bdev, row * self.chunk + inside, self.chunk - inside)

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        for dev in self.devs:
            yield dev, 0, self.len // len(self.devs)


class Kill(Target):
    name = "kill"
    version = (1, 0, 0)

    def ctr(self, argv: Sequence[str]) -> None:
        pass

    def map(self, bio: Bio) -> MapResult:
        return MapResult.KILL


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack(Chunks, Kill)
    yield stack
    stack.close()


@st.composite
def tables(draw: st.DrawFn, below: list[tuple[str, int]]) -> list[Line]:
    """A table on some of the devices `below` (number, size)."""
    lines: list[Line] = []
    begin = 0
    for _ in range(draw(st.integers(1, 4))):
        number, size = draw(st.sampled_from(below))
        length = draw(st.integers(1, min(size, 40)))
        kind = draw(st.sampled_from(["linear", "linear", "chunks", "kill"]))
        if kind == "linear":
            params = f"{number} {draw(st.integers(0, size - length))}"
        elif kind == "chunks":
            chunk = draw(st.integers(1, 9))
            params = f"{chunk} {number} {draw(st.sampled_from([name for name, other in below if other >= size]))}"
        else:
            params = ""
        lines.append((begin, length, kind, params))
        begin += length
    return lines


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_route_equals_the_ordinary_way(data: st.DataObject) -> None:
    stack = Stack(Chunks, Kill)
    disks = [stack.ram(64), stack.ram(64)]
    below = [("1:0", 64), ("1:1", 64)]
    dev = None
    for level in range(data.draw(st.integers(1, 3))):
        dev = stack.device(f"d{level}", *data.draw(tables(below)))
        below.append((f"253:{dev.minor}", dev.size))
    assert dev is not None
    sector = data.draw(st.integers(0, dev.size - 1))
    sectors = data.draw(st.integers(1, min(24, dev.size - sector)))
    results = []
    for routed in (False, True):
        for number, disk in enumerate(disks):
            disk.write_from(memoryview(pattern(number + 1, 0, 64)), 0)
        with pytest.MonkeyPatch.context() as patch:
            if not routed:
                patch.setattr("dmserver.io.mapped.MappedIo.enter", lambda self: None)
            buffer = memoryview(bytearray(sectors * 512))
            read = submit_and_wait(dev, Op.READ, sector, sectors, buffer)
            # every sector alike: two may be one sector of a disk, and which part comes last is nobody's promise
            written = submit_and_wait(dev, Op.WRITE, sector, sectors, memoryview(pattern(9, 0, 1) * sectors))
        after = memoryview(bytearray(2 * 64 * 512))
        for number, disk in enumerate(disks):
            disk.read_into(after[number * 32768 :][:32768], 0)
        results.append((read, bytes(buffer) if not read else b"", written, bytes(after) if not written else b""))
    assert results[0] == results[1]
    stack.close()


def entered(dev: DmDev) -> Route:
    route = dev.io.enter()
    assert route is not None
    return route


def test_stack_is_one_segment(stack: Stack) -> None:
    disk = stack.ram()
    below = "1:0"
    for level in range(10):
        dev = stack.device(f"d{level}", (0, 500, "linear", f"{below} 1"), (500, 400, "linear", f"{below} 501"))
        below = f"253:{dev.minor}"
    route = entered(dev)
    assert route.pieces(7, 600) == [(disk, 17, 600)], "neighbours are one piece"
    route.leave()


def test_many_chunks_stay_a_formula(stack: Stack) -> None:
    disks = [stack.ram(), stack.ram()]
    under = stack.device("under", (0, 16384, "linear", "1:1 0"))
    stack.device("wide", (0, 8 * PIECES, "chunks", f"1 1:0 253:{under.minor}"))
    top = stack.device("top", (0, 4 * PIECES, "linear", "253:1 3"))
    route = entered(top)
    assert route.pieces(0, 3) == [(disks[1], 1, 1), (disks[0], 2, 1), (disks[1], 2, 1)]
    assert route._top is not None
    assert len(route._top.segments) == 1
    route.leave()


def test_other_targets_take_the_ordinary_way(stack: Stack) -> None:
    stack.ram()
    dev = stack.device("d", (0, 8, "linear", "1:0 0"), (8, 8, "kill", ""))
    route = entered(dev)
    assert route.pieces(0, 8)
    assert route.pieces(7, 2) is None
    assert route.pieces(16, 1) is None, "past the end"
    route.leave()


@pytest.mark.parametrize("level", [0, 1, 2])
def test_suspension_anywhere_holds_and_waits(stack: Stack, level: int) -> None:
    stack.ram()
    devs = [stack.device(f"d{n}", (0, 64, "linear", f"{f'253:{n - 1}' if n else '1:0'} 0")) for n in range(3)]
    route = entered(devs[2])
    drained = stack.suspend(devs[level])
    assert not drained.is_set(), "a request is inside"
    ended: list[int] = []
    devs[2].submit_bio(Bio(Op.READ, 0, 1, memoryview(bytearray(512)), lambda bio: ended.append(bio.error)))
    assert ended == []
    others = [stack.suspend(dev) for dev in devs if dev is not devs[level]]
    assert not any(other.is_set() for other in others)
    route.leave()
    assert drained.wait(10)
    for dev in devs:
        dev.io.unblock()
    assert ended == [0]


def test_new_table_below_is_seen(stack: Stack) -> None:
    stack.ram(), stack.ram()
    low = stack.device("low", (0, 64, "linear", "1:0 0"))
    top = stack.device("top", (0, 64, "linear", "253:0 0"))
    data = bytearray(512)
    for minor in (0, 1, 0):
        stack.load(low, [(0, 64, "linear", f"1:{minor} 5")])
        stack.activate(low)
        assert submit_and_wait(top, Op.READ, 1, 1, memoryview(data)) == 0
        assert data == pattern(minor + 1, 6, 1)


def test_read_only_device_below_still_refuses(stack: Stack) -> None:
    stack.ram()
    stack.device("low", (0, 64, "linear", "1:0 0"), read_only=True)
    top = stack.device("top", (0, 64, "linear", "253:0 0"))
    assert submit_and_wait(top, Op.WRITE, 0, 1, memoryview(bytes(512))) == errno.EPERM
    assert submit_and_wait(top, Op.READ, 0, 1, memoryview(bytearray(512))) == 0


def test_retired_route_lets_nobody_in(stack: Stack) -> None:
    stack.ram()
    dev = stack.device("d", (0, 64, "linear", "1:0 0"))
    route = entered(dev)
    route.leave()
    stack.activate(dev)
    assert not route.enter()
    assert dev.io.in_flight == 0
    assert stack.suspend(dev).is_set()


def test_enter_and_leave_from_many_threads(stack: Stack) -> None:
    stack.ram()
    dev = stack.device("d", (0, 64, "linear", "1:0 0"))

    def work() -> None:
        for _ in range(2000):
            if route := dev.io.enter():
                route.leave()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        stack.activate(dev)
    for thread in threads:
        thread.join()
    assert dev.io.in_flight == 0
    assert len(dev.io.routes) <= 1


def test_a_very_deep_stack_does_not_recurse_too_deep() -> None:
    stack = Stack()
    stack.ram()
    below = "1:0"
    for level in range(500):
        device = stack.device(f"level{level}", (0, 8, "linear", f"{below} 0"))
        below = f"253:{device.minor}"
        if level == DEPTH + 20:
            assert submit_and_wait(device, Op.READ, 0, 1, memoryview(bytearray(512))) == 0
    assert submit_and_wait(device, Op.READ, 0, 1, memoryview(bytearray(512))) == errno.EIO
