"""Partition tables as the kernel reads them: GPT, else MBR with logical partitions (Linux `block/partitions/efi.c`,
`msdos.c`, `core.c`).

What `read(block, count)` gives are logical blocks of the disk; numbers in the tables count them, all results count
sectors of 512 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from struct import Struct
from typing import NamedTuple
from zlib import crc32

__all__ = ["Entry", "read_table"]

MOST = 256  #: partitions of a disk
CHAIN = 100  #: links of a chain of logical partitions that lead to none

_MBR_ENTRY = Struct("<B3xB3xII")  # boot indicator, type, first block, blocks
_MBR_ENTRIES = 446
EXTENDED, PROTECTIVE = (0x05, 0x0F, 0x85), 0xEE

#: struct gpt_header: signature, revision, header size, its CRC, my_lba, alternate_lba, first and last usable block,
#: disk GUID, partition_entry_lba, number of entries, size of one, CRC of all.
_GPT_HEADER = Struct("<8sIII4xQQQQ16sQIII")
_GPT_ENTRY = Struct("<16s16sQQQ72s")  # type, GUID, first and last block, attributes, name
_GPT_MOST = 1 << 20  # bytes of entries that are looked at

Read = Callable[[int, int], bytes]


class Entry(NamedTuple):
    """A partition: `start` and `size` in sectors; `name` if the table has one."""

    number: int
    start: int
    size: int
    name: str = ""


def read_table(read: Read, sectors: int, block_size: int) -> list[Entry]:
    """The partitions of a disk of so many sectors, cut at its end; none where there is no table. OSError of `read`."""
    factor = block_size // 512
    blocks = sectors // factor

    def read_inside(block: int, count: int) -> bytes:
        return read(block, count) if block + count <= blocks else b""

    boot = read_inside(0, 1)
    if boot[510:512] != b"\x55\xaa":
        return []
    gpt = any(kind == PROTECTIVE for _, kind, _, _ in _mbr_entries(boot))
    entries = _gpt(read_inside, blocks, block_size) if gpt else _mbr(read_inside, boot, factor)
    return [
        Entry(number, start * factor, min(size * factor, sectors - start * factor), name)
        for number, start, size, name in islice(entries, MOST)
        if start < blocks
    ]


# -- GPT ----------------------------------------------------------------------------------------------------


def _gpt(read: Read, blocks: int, block_size: int) -> Iterable[Entry]:
    """By the header behind the MBR, or where that is damaged by the one in the last block."""
    for at in (1, blocks - 1):
        if (found := _gpt_entries(read, at, blocks, block_size)) is not None:
            return found
    return []


def _gpt_entries(read: Read, at: int, blocks: int, block_size: int) -> list[Entry] | None:
    """The entries of the header in block `at`, None when it or they are damaged."""
    if not 0 < at < blocks:
        return None
    block = read(at, 1)
    signature, _, size, crc, here, _, first, last, _, table, count, width, table_crc = _GPT_HEADER.unpack_from(block)
    if signature != b"EFI PART" or not _GPT_HEADER.size <= size <= len(block) or here != at:
        return None
    if crc32(block[:16] + bytes(4) + block[20:size]) != crc:
        return None
    if not first <= last < blocks or width != _GPT_ENTRY.size or count * width > _GPT_MOST:
        return None
    data = read(table, -(-count * width // block_size))[: count * width]
    if len(data) < count * width or crc32(data) != table_crc:
        return None
    entries = []
    for number, (kind, _, start, end, _, name) in enumerate(_GPT_ENTRY.iter_unpack(data), 1):
        if any(kind) and start <= last and end <= last and start <= end:
            text = name.decode("utf-16-le", "replace").partition("\0")[0]
            entries.append(Entry(number, start, end - start + 1, text))
    return entries


# -- MBR ----------------------------------------------------------------------------------------------------


def _mbr_entries(block: bytes) -> list[tuple[int, int, int, int]]:
    return [_MBR_ENTRY.unpack_from(block, _MBR_ENTRIES + slot * _MBR_ENTRY.size) for slot in range(4)]


def _mbr(read: Read, boot: bytes, factor: int) -> Iterator[Entry]:
    """Of an extended partition the kernel shows its first kilobyte, enough for a boot loader."""
    slots = _mbr_entries(boot)
    if any(indicator & 0x7F for indicator, _, _, _ in slots):
        return  # a file system's boot sector
    chains = []
    for number, (_, kind, start, size) in enumerate(slots, 1):
        if not size:
            continue
        if kind in EXTENDED:
            chains.append((start, size))
            size = min(size, max(1, 2 // factor))
        yield Entry(number, start, size)
    number = 5
    for start, size in chains:
        for entry in _logical(read, start, size):
            yield entry._replace(number=number)
            number += 1


def _logical(read: Read, first: int, size: int) -> Iterator[Entry]:
    """The logical partitions of an extended one: each link of the chain has one or more, and where the next link is,
    from the start of the extended partition."""
    link, link_size, barren = first, size, 0
    while barren < CHAIN:
        barren += 1
        block = read(link, 1)
        if block[510:512] != b"\x55\xaa":
            return
        following = None
        for slot, (_, kind, offset, length) in enumerate(_mbr_entries(block)):
            if not length:
                continue
            if kind in EXTENDED:
                following = following or (first + offset, length)
            elif slot < 2 or (offset + length <= link_size and first <= link + offset <= first + size - length):
                yield Entry(0, link + offset, length)
                barren = 0
        if following is None:
            return
        link, link_size = following
