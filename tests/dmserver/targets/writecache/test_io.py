from __future__ import annotations

import pytest
from support.targets import FaultyDisk, read, write

from dmserver.io.bio import Op
from dmserver.targets.serial import Job
from dmserver.targets.writecache.cache import Cache
from dmserver.targets.writecache.io import InFlight, WritecacheIo
from dmserver.targets.writecache.layout import Metadata


@pytest.fixture
def disks() -> tuple[FaultyDisk, FaultyDisk]:
    return FaultyDisk(0), FaultyDisk(1)


def make(disks: tuple[FaultyDisk, FaultyDisk], log: list[str], start: int = 8) -> WritecacheIo:
    cache = Cache(Metadata(100, 512))
    io = WritecacheIo(cache, *disks, start, now=lambda: 0.0, report=log.append)
    assert io.turns.run(io.format()) == 0
    assert io.turns.run(io.load()) == 0
    io.stopped = False
    return io


def fill(io: WritecacheIo, disk: FaultyDisk, sectors: range) -> None:
    for sector in sectors:
        entry = io.cache.allocate(sector, 0)
        assert entry is not None
        write(disk, io.block_sector(entry), bytes([sector]) * 512)


def test_a_job_waits_for_bios_under_way() -> None:
    in_flight, ended = InFlight(), []
    in_flight.idle(ended.append)
    in_flight.begin()
    in_flight.begin()
    in_flight.idle(ended.append)
    in_flight.end()
    assert ended == [0]
    in_flight.end()
    assert ended == [0, 0]


def test_a_commit_writes_the_superblock_last(disks: tuple[FaultyDisk, FaultyDisk]) -> None:
    io = make(disks, [])
    fill(io, disks[1], range(3))
    disks[1].log.clear()
    assert io.turns.run(io.flush()) == 0
    assert disks[1].log == [(Op.WRITE, 8, 4), (Op.FLUSH, 0, 0), (Op.WRITE, 8, 4)]
    disks[1].log.clear()
    assert io.turns.run(io.flush()) == 0
    assert not disks[1].log
    io.cache.overwrote = True
    assert io.turns.run(io.flush()) == 0
    assert disks[1].log == [(Op.FLUSH, 0, 0)]


def test_a_commit_waits_for_data(disks: tuple[FaultyDisk, FaultyDisk]) -> None:
    io, ended = make(disks, []), []
    fill(io, disks[1], range(1))
    io.writes.begin()
    io.turns.start(io.flush(), ended.append)
    assert not ended
    io.writes.end()
    assert ended == [0]


def test_no_more_is_copied_at_once_than_allowed(disks: tuple[FaultyDisk, FaultyDisk]) -> None:
    io, ended = make(disks, []), []
    io.jobs = 2
    fill(io, disks[1], range(0, 10, 2))
    origin = disks[0]
    origin.slow = True
    io.writebacks.start(io.write_back(everything=True), ended.append)
    assert [bio.sector for bio in origin.held] == [0, 2]
    held, origin.held = origin.held, []
    origin.slow = False
    held[0].endio()
    assert [sector for _, sector, _ in origin.log] == [4, 6, 8]
    assert not ended
    held[1].endio()
    assert (ended, io.cache.free) == ([0], 100)
    assert read(origin, 8) == bytes([8]) * 512


def test_blocks_beyond_the_end_of_the_origin_are_dropped(disks: tuple[FaultyDisk, FaultyDisk]) -> None:
    io = make(disks, [])
    fill(io, disks[1], range(1))
    io.cache.allocate(disks[0].size, 0)
    assert io.writebacks.run(io.drain(everything=True)) == 0
    assert io.cache.free == 100


@pytest.mark.parametrize(
    ("device", "op", "text"),
    [
        (1, Op.WRITE, "error writing metadata"),
        (1, Op.FLUSH, "error flushing metadata: -5"),
        (0, Op.WRITE, "copy error"),
        (0, Op.FLUSH, "error flushing metadata: -5"),
    ],
)
def test_an_error_ends_it_all(disks: tuple[FaultyDisk, FaultyDisk], device: int, op: Op, text: str) -> None:
    log: list[str] = []
    io = make(disks, log)
    fill(io, disks[1], range(2))
    disks[device].fail = lambda bio: bio.op is op
    assert io.writebacks.run(io.drain(everything=True)) == 5
    assert log == [text]
    assert io.failed == 5


def test_metadata_that_cannot_be_read(disks: tuple[FaultyDisk, FaultyDisk]) -> None:
    log: list[str] = []
    io = make(disks, log)
    fill(io, disks[1], range(2))
    io.turns.run(io.flush())
    disks[1].fail = lambda bio: bio.op is Op.READ
    io.turns.run(io.load())
    assert log == ["unable to read metadata: -5"]
    assert io.cache.free == 100


def test_a_job_of_writebacks_takes_turns_of_its_own(disks: tuple[FaultyDisk, FaultyDisk]) -> None:
    io, order = make(disks, []), []
    fill(io, disks[1], range(1))
    disks[0].slow = True
    io.writebacks.start(io.write_back(everything=True), order.append)

    def job() -> Job:
        order.append("a turn")
        yield from ()
        return 0

    io.turns.run(job())
    disks[0].finish()
    assert order == ["a turn", 0]
