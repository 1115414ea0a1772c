"""What of the origin is discarded, so that it need not be copied (the discard bitset of Linux
`drivers/md/dm-cache-target.c`)."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["Discards"]

_MOST_BLOCKS = 1 << 14


class Discards:
    """The blocks that are discarded as a whole: `members`, of `blocks` blocks of `block_size` sectors. They are as
    large as a cache block or, for there may be only so many, larger."""

    def __init__(self, cache_block_size: int, origin_sectors: int) -> None:
        self.block_size = cache_block_size
        while origin_sectors // self.block_size > _MOST_BLOCKS:
            self.block_size *= 2
        self.blocks = -(-origin_sectors // self.block_size)
        self.members: set[int] = set()

    def add(self, begin: int, end: int) -> None:
        """Sectors from `begin` up to but not including `end` are discarded."""
        self.members.update(range(-(-begin // self.block_size), min(end // self.block_size, self.blocks)))

    def clear(self, sector: int) -> None:
        """Something is written at `sector`."""
        self.members.discard(sector // self.block_size)

    def __contains__(self, sector: int) -> bool:
        return sector // self.block_size in self.members

    def load(self, block_size: int, members: list[int]) -> None:
        """Take those of another time, when blocks may have had another size."""
        self.members.clear()
        for begin, end in _runs(members):
            self.add(begin * block_size, end * block_size)


def _runs(members: list[int]) -> Iterator[tuple[int, int]]:
    """(first, behind the last) of numbers that follow each other."""
    begin = 0
    for at, member in enumerate(members, 1):
        if at == len(members) or members[at] != member + 1:
            yield members[begin], member + 1
            begin = at
