from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dmserver.targets.raid.super import MAX_SECTOR, Bitmap, Superblock

u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, MAX_SECTOR)


@given(st.builds(Superblock, u32, u32, u64, st.frozensets(st.integers(0, 252)), u64, u64, u32, u32, u32, u64, u64))
def test_superblocks_come_back(superblock: Superblock) -> None:
    block = superblock.pack(512)
    assert len(block) == 512
    assert Superblock.unpack(block) == superblock


def test_where_the_fields_are() -> None:
    block = Superblock(2, 1, 7, frozenset({0, 65}), 5, 6, 1, 0, 0, 4096, 4096).pack(4096)
    assert block[:16] == b"DmRd" + bytes([1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0])
    assert block[16:48] == b"".join(number.to_bytes(8, "little") for number in (7, 1, 5, 6))
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
    other = Bitmap(6400, 64)
    assert other.load(image)
    assert other.dirty == bitmap.dirty


def test_bitmaps_of_others_are_not_taken() -> None:
    assert not Bitmap(6400, 64).load(bytes(4096))
    assert not Bitmap(6400, 64).load(Bitmap(6400, 128).pack(1))


def test_the_bitmap_of_a_smaller_array() -> None:
    small = Bitmap(640, 64)
    small.dirty[9] = 1
    grown = Bitmap(1280, 64)
    assert grown.load(small.pack(1))
    assert [at for at, bit in enumerate(grown.dirty) if bit] == [9]
