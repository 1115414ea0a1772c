"""What of the metadata a transaction changes (Linux `drivers/md/persistent-data`: dm-transaction-manager, and of
dm-space-map the part that counts references).

Blocks are never changed in place: a change copies every block from the root down to the leaf, unless the transaction at
hand made that block and nobody shares it; so whatever the last superblock on disk refers to stays whole until the next
one is written.

All blocks in use are kept in memory: changing a tree is no I/O. `Transaction.images` are the blocks to be written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Protocol, Self, TypeVar

from .block import BLOCK_SIZE, Corrupt

__all__ = ["PER_BITMAP", "Counts", "Page", "Transaction"]

#: The most that two bits of a bitmap can count; it stands for "look into the tree of reference counts".
_MANY = 3

#: Entries of one bitmap: two bits each, behind a header.
PER_BITMAP = (BLOCK_SIZE - 16) * 4


class Counts:
    """How often each block is referred to. A block that came free may be used again only after a commit."""

    def __init__(self) -> None:
        self.low = bytearray()
        self.many: dict[int, int] = {}  #: the counts from 3 on
        self.allocated = 0
        self.freed: set[int] = set()
        self.dirty: set[int] = set()  #: numbers of bitmaps that changed
        self.many_changed: set[int] = set()  #: blocks whose entry in `many` changed
        self._begin = 0

    def __len__(self) -> int:
        return len(self.low)

    def __getitem__(self, block: int) -> int:
        try:
            low = self.low[block]
            return self.many[block] if low == _MANY else low
        except LookupError:
            raise Corrupt(f"block {block} of {len(self.low)} is not counted") from None

    def __setitem__(self, block: int, count: int) -> None:
        old = self.low[block]
        if count >= _MANY:
            self.many[block] = count
            self.many_changed.add(block)
        elif old == _MANY:
            del self.many[block]
            self.many_changed.add(block)
        new = min(count, _MANY)
        if new == old:
            return
        self.low[block] = new
        self.dirty.add(block // PER_BITMAP)
        if not new:
            self.allocated -= 1
            self.freed.add(block)
        elif not old:
            self.allocated += 1
            self.freed.discard(block)

    def inc(self, block: int) -> None:
        self[block] += 1

    def dec(self, block: int) -> None:
        if not self[block]:
            raise Corrupt(f"block {block} is freed once more than it was used")
        self[block] -= 1

    def allocate(self) -> int:
        """A free block, the next one behind the last; it counts 1. OSError(ENOSPC) when there is none."""
        for begin, end in ((self._begin, len(self.low)), (0, self._begin)):
            block = self.low.find(0, begin, end)
            while block in self.freed:
                block = self.low.find(0, block + 1, end)
            if block >= 0:
                self._begin = block + 1
                self[block] = 1
                return block
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def extend(self, blocks: int) -> None:
        """Count `blocks` blocks from now on; none of the new ones is in use."""
        first = len(self.low) // PER_BITMAP
        self.low.extend(bytes(blocks - len(self.low)))
        self.dirty.update(range(first, -(-blocks // PER_BITMAP)))

    @property
    def free(self) -> int:
        """Blocks that can be allocated before the next commit."""
        return len(self.low) - self.allocated - len(self.freed)

    def committed(self) -> None:
        self.freed.clear()


class Page(Protocol):
    """A block that is taken apart while it is in memory."""

    def pack(self, block: int) -> bytes:
        """The image of it as block number `block`, sealed."""

    def copy(self) -> Self:
        """Another one, to be changed."""


P = TypeVar("P", bound=Page)


class Transaction:
    """The blocks of one metadata device. `read(block)` gets one that is not in memory yet. Blocks are pages, or
    bytes that are sealed already."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read
        self.pages: dict[int, Page | bytes] = {}
        self.fresh: set[int] = set()  #: blocks that no superblock on disk refers to
        self.counts = Counts()

    def raw(self, block: int) -> bytes:
        page = self.pages.get(block)
        if page is None:
            page = self.pages[block] = self.read(block)
        if not isinstance(page, bytes):
            raise Corrupt(f"block {block} is in use twice")
        return page

    def new(self, page: Page | bytes) -> int:
        """Allocate a block for `page`."""
        block = self.counts.allocate()
        self.pages[block] = page
        self.fresh.add(block)
        return block

    def shadow(self, block: int, page: P) -> tuple[int, P, bool]:
        """A block with `page` that may be changed, in place of `block`; True: that one stays as well, so what `page`
        refers to is referred to once more."""
        shared = self.counts[block] > 1
        if block in self.fresh and not shared:
            return block, page, False
        copy = page.copy()
        new = self.new(copy)
        self.drop(block)
        return new, copy, shared

    def drop(self, block: int) -> None:
        """One reference less to a block, or to the root of what nobody else needs."""
        self.counts.dec(block)
        if block in self.fresh and not self.counts[block]:
            self.fresh.discard(block)
            del self.pages[block]

    def renew(self, block: int | None) -> int:
        """A block to write in place of one that is no page; None: in place of nothing."""
        if block in self.fresh:
            assert block is not None
            return block
        new = self.new(b"")
        if block is not None:
            self.drop(block)
        return new

    def images(self) -> list[tuple[int, bytes]]:
        """What this transaction has to write, before the superblock."""
        pages = ((block, self.pages[block]) for block in sorted(self.fresh))
        return [(block, page if isinstance(page, bytes) else page.pack(block)) for block, page in pages]

    def committed(self) -> None:
        """A superblock that refers to all this is on the disk: another transaction begins."""
        for block in self.counts.freed:
            self.pages.pop(block, None)
        self.fresh.clear()
        self.counts.committed()

    def abort(self) -> None:
        """Forget the blocks of this transaction; `counts` is to be made anew."""
        for block in self.fresh:
            del self.pages[block]
        self.fresh.clear()
        self.counts = Counts()
