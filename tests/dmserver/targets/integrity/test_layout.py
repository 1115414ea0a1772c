from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmserver.targets.integrity.layout import Layout, SbFlag, Superblock


def layout(tag_size: int, block: int, size: int, *, meta: int = 0, start: int = 0) -> Layout:
    return Layout(
        start,
        tag_size,
        block,
        data_sectors=size,
        meta_sectors=meta or size,
        separate=bool(meta),
        log2_buffer_sectors=7,
    )


def test_the_recorded_superblock() -> None:
    """t_verity_etc: crc32c on 8 MiB."""
    found = layout(4, 1, 16384)
    found.format(128, 32768, SbFlag(0), bytes(16))
    found.sb.log2_blocks_per_bitmap_bit = 15
    assert found.sb.build()[:30].hex() == "696e746567727400010f040001000000483e00000000000000000000000f"
    assert Superblock.parse(found.sb.build()) == found.sb


@given(
    st.integers(1, 64),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(4096, 1 << 20),
    st.sampled_from([8, 64, 1024, 32768]),
    st.sampled_from([SbFlag(0), SbFlag.FIXED_PADDING]),
    st.integers(0, 100),
    st.data(),
)
def test_nothing_overlaps(
    tag_size: int, block: int, size: int, interleave: int, flags: SbFlag, start: int, data: st.DataObject
) -> None:
    found = layout(tag_size, block, size, start=start)
    try:
        found.format(64, interleave, flags, bytes(16))
    except ValueError:
        return
    found.provide()
    found.measure()
    sector = data.draw(st.integers(0, found.provided // block - 1)) * block
    area, _ = found.area(sector)
    begin = found.data_sector(area * interleave)
    tag = found.tag_position(sector)
    assert found.start + found.initial_sectors <= tag // 512
    assert begin - found.metadata_run <= tag // 512
    assert tag + tag_size <= begin * 512
    assert begin <= found.data_sector(sector) < begin + interleave
    assert found.data_sector(found.provided - 1) < size
    assert found.section_sector(found.sb.journal_sections) == found.start + found.initial_sectors


def test_metadata_on_a_device_of_their_own() -> None:
    found = layout(32, 8, 1 << 20, meta=16384)
    found.format(1 << 17, 32768, SbFlag.FIXED_PADDING, bytes(16))
    assert (found.provided, found.sb.version, found.sb.flags) == (1 << 20, 2, 0)
    assert found.sb.journal_sections > 1
    assert found.tag_position(found.provided - 8) + 32 <= 16384 * 512
    with pytest.raises(ValueError, match="too small"):
        layout(32, 1, 1 << 20, meta=16384).format(1 << 17, 32768, SbFlag(0), bytes(16))
