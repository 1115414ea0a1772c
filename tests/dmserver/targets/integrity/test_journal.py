from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmserver.targets.integrity.journal import Entry, Journal, JournalError
from dmserver.targets.integrity.journal_crypt import COMMIT_IDS
from dmserver.targets.integrity.layout import Layout, SbFlag
from dmserver.targets.shash import allocate

SECTIONS = 3


def journal(tag_size: int = 4, block: int = 1, *, mac: bool = False) -> tuple[Layout, Journal]:
    layout = Layout(
        0, tag_size, block, data_sectors=1 << 20, meta_sectors=1 << 20, separate=False, log2_buffer_sectors=7
    )
    layout.format(1, 32768, SbFlag.HAVE_JOURNAL_MAC if mac else SbFlag(0), bytes(16))
    layout.sb.journal_sections = SECTIONS
    layout.provide()
    layout.measure()
    return layout, Journal(layout, allocate("sha256") if mac else None)


def entry(layout: Layout, number: int) -> Entry:
    size = layout.sectors_per_block * 512
    return Entry(
        number * layout.sectors_per_block, bytes([number & 0xFF]) * size, bytes([number % 7]) * layout.tag_size
    )


@given(st.integers(1, 424), st.sampled_from([1, 2, 4, 8]), st.booleans(), st.integers(0, 3), st.data())
def test_a_section_holds_what_was_put_into_it(
    tag_size: int, block: int, mac: bool, seq: int, data: st.DataObject
) -> None:
    layout, ring = journal(tag_size, block, mac=mac)
    entries = [entry(layout, number) for number in range(data.draw(st.integers(0, min(layout.section_entries, 9))))]
    image = ring.build(2, seq, entries)
    assert list(ring.parse(2, memoryview(image))) == entries
    last = int.from_bytes(image[-8:], "little")
    assert last == COMMIT_IDS[seq] ^ 2 << 32 ^ layout.section_sectors - 1


@given(st.integers(0, 20), st.booleans())
def test_after_any_number_of_commits_the_ring_goes_on_where_it_was(commits: int, torn: bool) -> None:
    """What the last round of sections holds is replayed, oldest first, and nothing of a torn section."""
    layout, ring = journal()
    disk = dict(ring.format())
    for number in range(commits):
        section, image = ring.next([entry(layout, number)])
        disk[section] = image
    if torn:
        section, image = ring.next([entry(layout, 99)])
        disk[section][:512] = image[:512]
    found = Journal(layout, None)
    replay = found.read(memoryview(b"".join(disk[section] for section in range(SECTIONS))), keep=True)
    if torn:
        assert replay.clear
        assert entry(layout, 99) not in replay.entries
        return
    assert replay.entries == [entry(layout, number) for number in range(max(commits - SECTIONS, 0), commits)]
    assert not replay.clear
    assert (found.section, found.commit_seq) == (ring.section, ring.commit_seq)


def test_what_is_no_journal_is_refused_and_cleared() -> None:
    layout, ring = journal(mac=True)
    size = layout.section_sectors * 512
    with pytest.raises(JournalError, match="journal commit id"):
        ring.read(memoryview(bytearray(SECTIONS * size)), keep=True)
    disk = dict(ring.clear())
    assert (ring.section, ring.commit_seq) == (0, 3)
    section, image = ring.next([entry(layout, 1)])
    image[40] ^= 1  # a tag: not what the MAC is of
    disk[section] = image
    for part in disk.values():
        assert len(part) == size
    assert Journal(layout, ring.mac).read(memoryview(b"".join(disk[at] for at in range(SECTIONS))), keep=True).entries
    image[0] ^= 1
    with pytest.raises(JournalError, match="journal mac"):
        Journal(layout, ring.mac).read(memoryview(b"".join(disk[at] for at in range(SECTIONS))), keep=True)
