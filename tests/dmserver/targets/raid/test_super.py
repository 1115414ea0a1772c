from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmserver.targets.raid.super import MAX_SECTOR, Bitmap, Superblock

u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, MAX_SECTOR)


failed, shape, delta = st.frozensets(st.integers(0, 252)), st.tuples(u32, u32, u32), st.integers(-253, 253)
superblocks = st.builds(
    Superblock,
    *(u32, u32, u64, failed, u64, u64, u32, u32, u32, u64, u64),
    *(u64, st.booleans(), shape, delta, u64, u64),
)


@given(superblocks)
def test_superblocks_come_back(superblock: Superblock) -> None:
    block = superblock.pack(512)
    assert len(block) == 512
    if superblock.reshape_position == MAX_SECTOR:
        superblock.backwards = False
    assert Superblock.unpack(block) == superblock


def test_where_the_fields_are() -> None:
    reshape = (1024, True, (5, 2, 64), -1, 16, 32)
    block = Superblock(2, 1, 7, frozenset({0, 65}), 5, 6, 1, 0, 0, 4096, 4096, *reshape).pack(4096)
    assert block[:16] == b"DmRd" + bytes([1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0])
    assert block[16:48] == b"".join(number.to_bytes(8, "little") for number in (7, 1, 5, 6))
    assert block[60:72] == bytes([3, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0])
    assert block[72:88] == bytes([5, 0, 0, 0, 2, 0, 0, 0, 64, 0, 0, 0, 255, 255, 255, 255])
    assert block[88:112] == b"".join(number.to_bytes(8, "little") for number in (4096, 16, 32))
    assert block[112:120] == (4096).to_bytes(8, "little")
    assert block[120:128] == (2).to_bytes(8, "little")
    assert Superblock.unpack(bytes(512)) is None


@given(st.sets(st.integers(0, 99)))
def test_bitmaps_come_back(dirty: set[int]) -> None:
    bitmap = Bitmap(6400, 64)
    for region in dirty:
        bitmap.dirty[region] = 1
    image = bitmap.pack(3)
    assert image[:4] == b"bitm"
    assert {at for at in range(100) if image[256 + at // 8] >> at % 8 & 1} == dirty
    other = Bitmap.unpack(image)
    assert other is not None
    assert (other.sectors, other.region_size, other.dirty) == (6400, 64, bitmap.dirty)


@pytest.mark.parametrize(("at", "value"), [(0, b"x"), (4, b"\7"), (40, b"\xff" * 8), (52, b"\3")])
def test_bitmaps_that_are_none(at: int, value: bytes) -> None:
    """With another magic, another version, too many regions, or such of an odd size."""
    image = Bitmap(6400, 64).pack(1)
    image[at : at + len(value)] = value
    assert Bitmap.unpack(image) is None


def test_a_long_bitmap_is_read_from_its_head() -> None:
    bitmap = Bitmap(1 << 23, 8)
    bitmap.dirty[-1] = 1
    image = bitmap.pack(1)
    head = Bitmap.unpack(image[:4096])
    assert head is not None
    assert (head.length, any(head.dirty)) == (len(image), False)
    whole = Bitmap.unpack(image)
    assert whole is not None
    assert whole.dirty == bitmap.dirty


@pytest.mark.parametrize(
    ("sectors", "region_size", "dirty"), [(1280, 64, [9]), (600, 64, [9]), (1280, 128, [4]), (640, 32, [18, 19])]
)
def test_the_bitmap_of_another_array(sectors: int, region_size: int, dirty: list[int]) -> None:
    old = Bitmap(640, 64)
    old.dirty[9] = 1
    bitmap = Bitmap(sectors, region_size)
    bitmap.take(old)
    assert [at for at, bit in enumerate(bitmap.dirty) if bit] == dirty
