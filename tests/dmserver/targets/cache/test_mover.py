from __future__ import annotations

import errno

import pytest
from support.cache import BLOCK, load, make_cache, submit
from support.targets import Bench, FaultyDisk, message, pattern, read, start, status

from dmserver.io.bio import Bio, Op
from dmserver.model.dm_dev import DmDev

WHOLE = pattern(9, 0, BLOCK)


def counts(device: DmDev) -> dict[str, str]:
    """The numbers of a status line."""
    words = status(device).split()
    names = ("usage", "read_hits", "read_misses", "write_hits", "write_misses", "demotions", "promotions", "dirty")
    return dict(zip(names, words[3:], strict=False))


def heat(bench: Bench, device: DmDev, sector: int) -> None:
    """Read a block so often that it is promoted."""
    submit(bench, device, Op.READ, sector, 1)
    bench.work.advance(1)
    submit(bench, device, Op.READ, sector, 1)


def test_what_is_read_again_is_promoted() -> None:
    bench = Bench()
    bench.disks[0].write_from(memoryview(pattern(3, 0, 4096)), 0)
    device = make_cache(bench)
    heat(bench, device, 2 * BLOCK)
    assert counts(device) == {
        "usage": "1/8",
        "read_hits": "0",
        "read_misses": "2",
        "write_hits": "0",
        "write_misses": "0",
        "demotions": "0",
        "promotions": "1",
        "dirty": "0",
    }
    assert read(bench.disks[2], 0, BLOCK) == pattern(3, 2 * BLOCK, BLOCK)
    bench.disks[0].fail = lambda bio: True
    assert submit(bench, device, Op.READ, 2 * BLOCK + 5, 3) == pattern(3, 2 * BLOCK + 5, 3)
    assert counts(device)["read_hits"] == "1"


def test_a_write_of_a_whole_block_goes_to_the_cache_alone() -> None:
    bench = Bench()
    device = make_cache(bench)
    submit(bench, device, Op.WRITE, 3 * BLOCK, WHOLE)
    assert read(bench.disks[2], 0, BLOCK) == WHOLE
    assert read(bench.disks[0], 3 * BLOCK, BLOCK) == bytes(BLOCK * 512)
    found = counts(device)
    assert (found["usage"], found["promotions"], found["dirty"]) == ("1/8", "1", "1")
    assert (found["write_hits"], found["write_misses"]) == ("0", "0")


def test_an_idle_cache_is_written_back() -> None:
    """That the last dirty block is clean is an event."""
    bench = Bench()
    device = make_cache(bench)
    for block in range(3):
        submit(bench, device, Op.WRITE, block * BLOCK, WHOLE)
    bench.work.advance(1)
    assert (counts(device)["dirty"], device.event_nr) == ("3", 0)
    bench.work.advance(2)
    assert (counts(device)["dirty"], device.event_nr) == ("0", 1)
    assert read(bench.disks[0], 2 * BLOCK, BLOCK) == WHOLE


def test_a_low_threshold_stops_that() -> None:
    bench = Bench()
    device = make_cache(bench)
    message(device, f"migration_threshold {BLOCK - 1}")
    submit(bench, device, Op.WRITE, 0, WHOLE)
    bench.work.advance(5)
    assert counts(device)["dirty"] == "1"
    message(device, f"migration_threshold {BLOCK}")
    bench.work.advance(5)
    assert counts(device)["dirty"] == "0"


def test_what_cannot_be_written_back_stays_dirty() -> None:
    bench = Bench()
    device = make_cache(bench)
    submit(bench, device, Op.WRITE, 0, WHOLE)
    bench.disks[0].fail = lambda bio: bio.op is Op.WRITE
    bench.work.advance(5)
    assert counts(device)["dirty"] == "1"
    bench.disks[0].fail = lambda bio: False
    bench.work.advance(5)
    assert counts(device)["dirty"] == "0"
    assert read(bench.disks[0], 0, BLOCK) == WHOLE


def test_a_promotion_that_fails() -> None:
    bench = Bench()
    device = make_cache(bench)
    bench.disks[2].fail = lambda bio: bio.op is Op.WRITE
    heat(bench, device, 0)
    with pytest.raises(OSError, match="WRITE") as failure:
        submit(bench, device, Op.WRITE, BLOCK, WHOLE)
    assert failure.value.errno == errno.EIO
    assert (counts(device)["usage"], counts(device)["promotions"]) == ("0/8", "0")
    bench.disks[2].fail = lambda bio: False
    submit(bench, device, Op.WRITE, BLOCK, WHOLE)
    assert counts(device)["usage"] == "1/8"


def test_a_full_cache_makes_room() -> None:
    bench = Bench()
    device = make_cache(bench)
    for block in range(8):
        submit(bench, device, Op.WRITE, block * BLOCK, WHOLE)
    bench.work.advance(3)
    heat(bench, device, 20 * BLOCK)
    assert (counts(device)["demotions"], counts(device)["usage"]) == ("1", "7/8")
    submit(bench, device, Op.READ, 20 * BLOCK, 1)
    assert (counts(device)["promotions"], counts(device)["usage"]) == ("9", "8/8")


def test_bios_wait_for_a_block_that_is_moved() -> None:
    """So does a suspension."""
    bench = Bench()
    device = make_cache(bench)
    bench.disks[2].slow = True
    heat(bench, device, 0)
    ended = start(device, Op.WRITE, 1, b"x" * 512)
    elsewhere = start(device, Op.WRITE, BLOCK, b"y" * 512)
    bench.work.run()
    assert (ended, elsewhere) == ([], [0])
    suspended = bench.suspend(device)
    assert not suspended
    bench.disks[2].finish()
    bench.work.run()
    assert (ended, suspended) == ([0], [True])
    assert read(bench.disks[2], 1, 1) == b"x" * 512


def fua(bench: Bench, device: DmDev, sector: int, data: bytes) -> list[int]:
    ended: list[int] = []
    buffer = memoryview(bytearray(data))
    bio = Bio(Op.WRITE, sector, len(data) // 512, buffer, lambda bio: ended.append(bio.error), fua=True, bdev=device)
    device.submit_bio(bio)
    bench.work.run()
    return ended


def test_a_write_that_must_last_waits_for_the_mapping() -> None:
    bench = Bench()
    device = make_cache(bench)
    bench.disks[1].slow = True
    ended = fua(bench, device, 0, WHOLE)
    assert read(bench.disks[2], 0, BLOCK) == WHOLE
    assert not ended
    bench.disks[1].finish()
    bench.work.run()
    assert ended == [0]


def test_what_was_discarded_is_not_copied() -> None:
    bench = Bench()
    device = make_cache(bench)
    submit(bench, device, Op.DISCARD, 0, 2 * BLOCK)
    submit(bench, device, Op.WRITE, 3, b"x" * 512)
    assert counts(device)["promotions"] == "1"
    assert not [entry for entry in bench.disks[0].log if entry[0] is not Op.FLUSH]
    assert submit(bench, device, Op.READ, 3, 1) == b"x" * 512


def test_writes_through_go_to_both() -> None:
    bench = Bench()
    device = make_cache(bench, "1 writethrough")
    heat(bench, device, 0)
    submit(bench, device, Op.WRITE, 1, b"x" * 512)
    assert read(bench.disks[0], 1) == read(bench.disks[2], 1) == b"x" * 512
    assert (counts(device)["write_hits"], counts(device)["dirty"]) == ("1", "0")
    for disk in (bench.disks[0], bench.disks[2]):
        disk.fail = lambda bio: True
        with pytest.raises(OSError, match="WRITE"):
            submit(bench, device, Op.WRITE, 1, b"y" * 512)
        disk.fail = lambda bio: False


def test_writes_through_leave_dirty_blocks_dirty() -> None:
    """The origin lacks the rest of the block."""
    bench = Bench()
    device = make_cache(bench)
    submit(bench, device, Op.WRITE, 0, WHOLE)
    load(bench, "3 metadata2 writethrough no_discard_passdown smq 2 migration_threshold 0")
    submit(bench, device, Op.WRITE, 1, b"x" * 512)
    assert counts(device)["dirty"] == "1"
    assert read(bench.disks[0], 1) == bytes(512)


def test_a_write_past_the_cache_invalidates() -> None:
    bench = Bench()
    device = make_cache(bench, "1 writethrough")
    heat(bench, device, 0)
    load(bench, "1 passthrough smq 0")
    submit(bench, device, Op.READ, 0, 1)
    assert (counts(device)["read_hits"], counts(device)["usage"]) == ("1", "1/8")
    submit(bench, device, Op.WRITE, 1, b"x" * 512)
    assert read(bench.disks[0], 1) == b"x" * 512
    found = counts(device)
    assert (found["usage"], found["demotions"], found["write_hits"]) == ("0/8", "1", "1")
    submit(bench, device, Op.WRITE, 1, b"y" * 512)
    bench.work.advance(3)
    assert counts(device)["usage"] == "0/8"


def test_no_write_passes_a_cache_that_cannot_be_invalidated() -> None:
    bench = Bench()
    device = make_cache(bench, "1 writethrough")
    heat(bench, device, 0)
    load(bench, "1 passthrough smq 0")
    bench.disks[1].fail = lambda bio: bio.op is Op.WRITE
    with pytest.raises(OSError, match="WRITE"):
        submit(bench, device, Op.WRITE, 1, b"x" * 512)
    assert read(bench.disks[0], 1) == bytes(512)
    assert status(device) == "Fail"


def test_a_removal_waits_for_what_is_moved() -> None:
    bench = Bench()
    device = make_cache(bench)
    submit(bench, device, Op.WRITE, 0, WHOLE)
    bench.work.advance(1)
    queued, bench.work.queue = bench.work.queue, lambda work: None  # type: ignore[method-assign]  # a worker that is late
    bench.work.advance(2)
    bench.remove(device)
    bench.work.queue = queued  # type: ignore[method-assign]  # as above
    assert read(bench.disks[0], 0, BLOCK) == WHOLE
    bench.disks[0] = FaultyDisk(0)
    assert counts(load(bench, "0 smq 0"))["dirty"] == "0"
