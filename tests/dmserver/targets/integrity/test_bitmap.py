"""Mode B: the bitmap tells what to recalculate after a crash, and nothing after a good end."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.targets import Bench, discard, flush, pattern, read, status, write

from dmserver.io.bio import Op
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import StatusType
from dmserver.targets.integrity.bitmap import Bitmap, Bits
from dmserver.targets.integrity.integrity import Integrity
from dmserver.targets.integrity.layout import SbFlag, Superblock

SIZE = 8192
CRC = "internal_hash:crc32c"
BITS = f"1:0 0 - B 2 {CRC} sectors_per_bit:64"


def load(bench: Bench, params: str = BITS) -> DmDev:
    return bench.load("i", (Integrity, SIZE, params))


def superblock(bench: Bench) -> Superblock:
    return Superblock.parse(read(bench.disks[0], 0))


def bits(bench: Bench) -> list[int]:
    """Those on the disk, as long as there is data."""
    value = int.from_bytes(read(bench.disks[0], 8, 8), "little")
    return [bit for bit in range(15944 // 64 + 1) if value >> bit & 1]


@given(st.integers(1, 9), st.lists(st.tuples(st.booleans(), st.integers(0, 90), st.integers(0, 40)), max_size=8))
def test_bits_are_set_and_cleared_by_ranges(granule: int, steps: list[tuple[bool, int, int]]) -> None:
    found, wanted = Bits(granule), set[int]()
    for is_set, sector, sectors in steps:
        touched = {at // granule for at in range(sector, sector + sectors)}
        wanted = wanted | touched if is_set else wanted - touched
        (found.set if is_set else found.clear)(sector, sectors)
        assert found.value == sum(1 << bit for bit in wanted)
        assert found.all_clear(3, 20) is wanted.isdisjoint(at // granule for at in range(3, 23))
        assert found.all_set(3, 20) is wanted.issuperset(at // granule for at in range(3, 23))


def test_blocks_of_a_bitmap() -> None:
    bitmap = Bitmap(8, 8 * 32768 + 1)
    assert (bitmap.blocks, bitmap.max_io_len) == (2, 262144)
    bitmap.disk.set(bitmap.max_io_len, 1)
    assert bitmap.block_of(bitmap.max_io_len) == 1
    assert bitmap.image(1, 1) == b"\1".ljust(4096, b"\0")
    other = Bitmap(8, bitmap.sectors)
    other.load(bitmap.image(0, 2))
    assert other.disk.value == 1 << 32768


def test_a_bit_is_on_the_disk_before_what_it_stands_for() -> None:
    bench = Bench()
    device = load(bench)
    assert (superblock(bench).version, superblock(bench).flags) == (3, SbFlag.DIRTY_BITMAP)
    assert bits(bench) == []
    bench.disks[0].log.clear()
    write(device, 100, pattern(1, 100, 60))
    assert bench.disks[0].log[0] == (Op.WRITE, 8, 8)
    assert bits(bench) == [1, 2]
    bench.disks[0].log.clear()
    write(device, 64, pattern(1, 64, 8))
    assert (Op.WRITE, 8, 8) not in bench.disks[0].log


def test_time_and_a_good_end_clear_bits() -> None:
    bench = Bench()
    device = load(bench, f"1:0 0 - B 3 {CRC} sectors_per_bit:64 bitmap_flush_interval:2000")
    write(device, 640, pattern(1, 640, 8))
    flush(device)
    assert bits(bench) == [10]
    bench.work.advance(2)
    assert bits(bench) == []
    write(device, 640, pattern(2, 640, 8))
    assert bits(bench) == [10]
    bench.remove(device)
    assert not superblock(bench).flags
    device = load(bench)
    assert status(device) == "0 15944 -"
    assert read(device, 640, 8) == pattern(2, 640, 8)


def write_often(device: DmDev) -> None:
    for _ in range(6):
        write(device, 32, pattern(2, 32, 100))
        write(device, 1000, pattern(2, 1000, 8))


@pytest.mark.parametrize("mode", "BJD")
@pytest.mark.parametrize("survived", range(6))
def test_after_a_crash_what_might_be_wrong_is_recalculated(survived: int, mode: str) -> None:
    bench = Bench()
    device = load(bench)
    write(device, 0, pattern(1, 0, 300))
    bench.work.advance(10)
    bench.disks[0].crash_after(survived)
    with pytest.raises(OSError, match="write"):
        write_often(device)
    bench.remove(device)
    bench.disks[0].fail = lambda bio: False
    device = load(bench, BITS.replace(" B ", f" {mode} "))
    assert bool(superblock(bench).flags & SbFlag.DIRTY_BITMAP) is (mode == "B")
    bench.work.run()
    bench.work.advance(10)
    found = read(device, 0, 300)
    for sector in range(300):
        versions = [pattern(seed, sector) for seed in (1, 2)]
        assert found[sector * 512 : (sector + 1) * 512] in versions
    assert status(device).startswith("0 ")
    if mode == "B":
        assert bits(bench) in ([], [15944 // 64])


def test_what_is_stale_is_not_checked() -> None:
    bench = Bench()
    device = load(bench)
    write(device, 0, pattern(1, 0, 64))
    bench.disks[0].fail = lambda bio: True
    bench.remove(device)
    bench.disks[0].fail = lambda bio: False
    assert bits(bench) == [0]
    device = load(bench)
    layout = device.live.targets[0].layout  # type: ignore[union-attr]  # it is live, and of this type
    for sector in (0, 640):
        write(bench.disks[0], layout.data_sector(sector), pattern(9, sector))
    assert read(device, 0) == pattern(9, 0)
    bench.work.run()
    assert read(device, 0) == pattern(9, 0)
    with pytest.raises(OSError, match=f"{errno.EILSEQ}"):
        read(device, 640)


@pytest.mark.parametrize("options", ["sectors_per_bit:128", "reset_recalculate"])
def test_another_bitmap_begins_with_all_set(options: str) -> None:
    bench = Bench()
    device = load(bench)
    bench.disks[0].fail = lambda bio: True
    bench.remove(device)
    bench.disks[0].fail = lambda bio: False
    options = options if "bit" in options else f"{options} sectors_per_bit:64"
    device = load(bench, f"1:0 0 - B {1 + len(options.split())} {CRC} {options}")
    assert status(device) == "0 15944 0"
    bench.work.run()
    assert status(device) == "0 15944 15944"
    bench.remove(device)
    assert not superblock(bench).flags & SbFlag.DIRTY_BITMAP


def test_recalculation_with_a_bitmap() -> None:
    bench = Bench()
    bench.disks[0].limits.discard = True
    device = load(bench, f"1:0 0 - B 3 {CRC} sectors_per_bit:64 recalculate")
    layout = device.live.targets[0].layout  # type: ignore[union-attr]  # it is live, and of this type
    write(bench.disks[0], layout.data_sector(8), pattern(1, 8, 8))
    assert read(device, 8, 8) == pattern(1, 8, 8)
    bench.work.run()
    assert status(device) == "0 15944 15944"
    assert read(device, 8, 8) == pattern(1, 8, 8)
    write(device, 8, pattern(2, 8, 8))
    bench.remove(device)
    device = load(bench, f"1:0 0 - B 3 {CRC} sectors_per_bit:64 allow_discards")
    discard(device, 8, 8)
    assert bits(bench) == [0]


def test_table_line() -> None:
    bench = Bench()
    device = load(bench, f"1:0 0 - B 3 {CRC} block_size:4096 sectors_per_bit:100")
    assert status(device, StatusType.TABLE) == (
        "1:0 0 4 B 7 block_size:4096 journal_sectors:392 interleave_sectors:32768 buffer_sectors:128 "
        f"sectors_per_bit:64 bitmap_flush_interval:10000 {CRC}"
    )


def test_a_bit_stands_for_more_where_the_journal_is_small() -> None:
    bench = Bench()
    device = load(bench, f"1:0 0 - B 3 {CRC} journal_sectors:1 sectors_per_bit:1")
    line = status(device, StatusType.TABLE)
    assert "sectors_per_bit:1 " in line
    assert device.live is not None
    assert device.live.targets[0].max_io_len == 32768
