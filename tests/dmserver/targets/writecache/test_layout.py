from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmserver.targets.writecache.layout import FREE, GRANULARITY, Metadata, Superblock, fit, metadata_size


@pytest.mark.parametrize(("size", "block_size", "blocks"), [(8 << 20, 4096, 2040), (8191, 4096, 0), (8192, 4096, 1)])
def test_fit(size: int, block_size: int, blocks: int) -> None:
    assert fit(size, block_size) == blocks


@given(st.integers(0, 1 << 40), st.sampled_from([512, 1024, 2048, 4096]))
def test_as_many_blocks_as_fit(size: int, block_size: int) -> None:
    blocks = fit(size, block_size)
    assert not blocks or metadata_size(blocks, block_size) + blocks * block_size <= size
    assert metadata_size(blocks + 1, block_size) + (blocks + 1) * block_size > size


def test_an_empty_cache() -> None:
    metadata = Metadata(2040, 4096)
    metadata.format()
    metadata.set_magic()
    words = "21934823 01000000 00100000 00000000 f807000000000000 0000000000000000"
    assert metadata.image[:64] == bytes.fromhex(words).ljust(64, b"\0")
    assert metadata.image[64:] == (b"\xff" * 16 * 2040).ljust(32704, b"\0")
    assert metadata.sectors == 64


def test_the_superblock_is_what_was_written() -> None:
    metadata = Metadata(5, 512)
    metadata.format()
    metadata.seq_count = 7
    found = Superblock(metadata.image)
    assert (found.magic, found.version, found.block_size, found.n_blocks, found.seq_count) == (0, 1, 512, 5, 7)
    assert metadata.seq_count == 7
    assert len(metadata.superblock()) == 512


def test_only_what_changed_is_written() -> None:
    metadata = Metadata(4 * GRANULARITY // 16, 512)
    metadata.put(0, 8, 1)
    assert not metadata.take_changed()
    metadata.mark(0)
    metadata.free(GRANULARITY // 16)
    metadata.free(GRANULARITY * 3 // 16)
    changed = [(sector, len(data)) for sector, data in metadata.take_changed()]
    assert changed == [(0, 2 * GRANULARITY), (3 * GRANULARITY // 512, GRANULARITY)]
    assert not metadata.take_changed()
    assert next(metadata.entries()) == (8, 1)
    metadata.forget()
    assert set(metadata.entries()) == {(FREE, FREE)}
