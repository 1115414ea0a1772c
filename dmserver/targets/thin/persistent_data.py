"""Trees of blocks that are never changed in place (Linux `drivers/md/persistent-data`: dm-btree, and of
dm-transaction-manager and dm-space-map the part that counts references).

A block is 4096 bytes; the first four are a checksum of the others, CRC-32C with a salt that tells what kind of block it
is. A change copies every block from the root down to the leaf, unless the transaction at hand made that block and
nobody shares it; so whatever the last superblock on disk refers to stays whole until the next one is written.

All blocks in use are kept in memory: changing a tree is no I/O. `Transaction.images` are the blocks to be written.
"""

from __future__ import annotations

import errno
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BLOCK_SIZE",
    "BTREE_SALT",
    "BTree",
    "Corrupt",
    "Counts",
    "Node",
    "Transaction",
    "checksum",
    "seal",
    "unseal",
]

BLOCK_SIZE = 4096

BTREE_SALT = 121107

_HEADER = struct.Struct("<IIQIIIxxxx")  # csum, flags, blocknr, nr_entries, max_entries, value_size
_INTERNAL, _LEAF = 1, 2
_U64 = struct.Struct("<Q")
_SEAL = struct.Struct("<IIQ")  # csum, flags or padding, blocknr: how every block begins

#: The most that two bits of a bitmap can count; it stands for "look into the tree of reference counts".
_MANY = 3

#: Entries of one bitmap: two bits each, behind the header.
PER_BITMAP = (BLOCK_SIZE - _SEAL.size) * 4


class Corrupt(Exception):
    """A block is not what it should be; the text says where and what was expected."""


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
        table.append(value)
    return table


_CRC = _table()


def checksum(data: bytes, salt: int) -> int:
    """`dm_bm_checksum`: CRC-32C, not inverted at the end, with a salt."""
    crc, table = 0xFFFFFFFF, _CRC
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ salt


def seal(image: bytearray, block: int, salt: int) -> bytes:
    """Put its number and its checksum into a block."""
    _U64.pack_into(image, 8, block)
    struct.pack_into("<I", image, 0, checksum(bytes(image[4:]), salt))
    return bytes(image)


def unseal(image: bytes, block: int, salt: int, what: str) -> bytes:
    """Check a block's number and checksum; Corrupt when one is wrong."""
    found, _, number = _SEAL.unpack_from(image)
    if number != block:
        raise Corrupt(f"{what} check failed: blocknr {number}: wanted {block}")
    if found != (expected := checksum(image[4:], salt)):
        raise Corrupt(f"{what} check failed: csum {expected}: wanted {found}")
    return image


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
        low = self.low[block]
        return self.many[block] if low == _MANY else low

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


@dataclass(slots=True)
class Node:
    """`struct btree_node`: keys in order, and as many values: what `layout` holds, or (not `leaf`) children."""

    leaf: bool
    layout: struct.Struct
    keys: list[int]
    values: list[Any]

    @property
    def max_entries(self) -> int:
        return (BLOCK_SIZE - _HEADER.size) // (8 + self.layout.size) // 3 * 3

    def pack(self, block: int) -> bytes:
        image = bytearray(BLOCK_SIZE)
        flags = _LEAF if self.leaf else _INTERNAL
        _HEADER.pack_into(image, 0, 0, flags, block, len(self.keys), self.max_entries, self.layout.size)
        struct.pack_into(f"<{len(self.keys)}Q", image, _HEADER.size, *self.keys)
        at = _HEADER.size + 8 * self.max_entries
        for value in self.values:
            self.layout.pack_into(image, at, *(value if isinstance(value, tuple) else (value,)))
            at += self.layout.size
        return seal(image, block, BTREE_SALT)

    @classmethod
    def unpack(cls, image: bytes, block: int, layout: struct.Struct) -> Node:
        _, flags, _, count, max_entries, value_size = _HEADER.unpack_from(
            unseal(image, block, BTREE_SALT, "btree_node")
        )
        leaf = bool(flags & _LEAF)
        node = cls(leaf, layout if leaf else _U64, [], [])
        if value_size != node.layout.size or max_entries != node.max_entries or count > max_entries:
            raise Corrupt(
                f"btree node {block}: {count} of {max_entries} entries of {value_size} bytes: "
                f"expected {node.max_entries} of {node.layout.size} bytes"
            )
        node.keys = list(struct.unpack_from(f"<{count}Q", image, _HEADER.size))
        at = _HEADER.size + 8 * max_entries
        values = node.layout.iter_unpack(image[at : at + count * value_size])
        node.values = [value if len(value) > 1 else value[0] for value in values]
        return node


class Transaction:
    """The blocks of one metadata device. `read(block)` gets one that is not in memory yet. Blocks are nodes, or
    bytes that are sealed already."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read
        self.pages: dict[int, Node | bytes] = {}
        self.fresh: set[int] = set()  #: blocks that no superblock on disk refers to
        self.counts = Counts()

    def node(self, block: int, layout: struct.Struct) -> Node:
        page = self.pages.get(block)
        if page is None:
            page = self.pages[block] = Node.unpack(self.read(block), block, layout)
        assert isinstance(page, Node)
        return page

    def raw(self, block: int) -> bytes:
        page = self.pages.get(block)
        if page is None:
            page = self.pages[block] = self.read(block)
        assert isinstance(page, bytes)
        return page

    def new(self, page: Node | bytes) -> int:
        """Allocate a block for `page`."""
        block = self.counts.allocate()
        self.pages[block] = page
        self.fresh.add(block)
        return block

    def drop(self, block: int) -> None:
        """One reference less to a block, or to the root of what nobody else needs."""
        self.counts.dec(block)
        if block in self.fresh and not self.counts[block]:
            self.fresh.discard(block)
            del self.pages[block]

    def renew(self, block: int | None) -> int:
        """A block to write in place of one that is no node; None: in place of nothing."""
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
        return [(block, page.pack(block) if isinstance(page, Node) else page) for block, page in pages]

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


class BTree:
    """What trees with one kind of value have in common; roots are block numbers, and each tree has its own.

    Values are what `layout` unpacks: an int, or a tuple. `inc` and `dec`: a value is referred to once more, once less.
    A root handed to a method that changes the tree is used up; the new root comes back.
    """

    def __init__(
        self,
        transaction: Transaction,
        layout: str,
        inc: Callable[[Any], None] = lambda value: None,
        dec: Callable[[Any], None] = lambda value: None,
    ) -> None:
        self.transaction = transaction
        self.layout = struct.Struct(layout)
        self._inc = inc
        self._dec = dec

    def _node(self, block: int) -> Node:
        return self.transaction.node(block, self.layout)

    def empty(self) -> int:
        """The root of a new tree."""
        return self.transaction.new(Node(True, self.layout, [], []))

    # -- looking ----------------------------------------------------------------------------------------

    def lookup(self, root: int, key: int) -> Any:
        """The value of `key`, or None."""
        node = self._node(root)
        while not node.leaf:
            at = bisect_right(node.keys, key) - 1
            if at < 0:
                return None
            node = self._node(node.values[at])
        at = bisect_left(node.keys, key)
        return node.values[at] if at < len(node.keys) and node.keys[at] == key else None

    def items(self, root: int, begin: int = 0, end: int = 1 << 64) -> Iterator[tuple[int, Any]]:
        """Keys from `begin` up to but not including `end`, with their values."""
        node = self._node(root)
        at = bisect_left(node.keys, begin) if node.leaf else max(bisect_right(node.keys, begin) - 1, 0)
        for key, value in zip(node.keys[at:], node.values[at:], strict=True):
            if key >= end:
                return
            if node.leaf:
                yield key, value
            else:
                yield from self.items(value, begin, end)

    def highest(self, root: int) -> int | None:
        """The highest key, None for an empty tree."""
        node = self._node(root)
        while not node.leaf:
            node = self._node(node.values[-1])
        return node.keys[-1] if node.keys else None

    # -- changing ---------------------------------------------------------------------------------------

    def update(self, root: int, key: int, change: Callable[[Any], Any]) -> int:
        """Set the value of `key` to `change(old)`; old is None for a new key. The way there is copied before."""
        root, node = self._shadow(root)
        split = self._update(node, key, change)
        if split is None:
            return root
        return self.transaction.new(Node(False, _U64, [node.keys[0], split[0]], [root, split[1]]))

    def insert(self, root: int, key: int, value: Any) -> int:
        return self.update(root, key, lambda _: value)

    def remove(self, root: int, key: int) -> int:
        """Remove a key that is there."""
        root, node = self._shadow(root)
        self._remove(node, key)
        while not node.leaf and len(node.keys) == 1:
            self.transaction.drop(root)
            root = node.values[0]
            node = self._node(root)
        return root

    def delete(self, root: int) -> None:
        """Remove a whole tree, as far as nobody shares it."""
        if self.transaction.counts[root] == 1:
            node = self._node(root)
            for value in node.values:
                (self._dec if node.leaf else self.delete)(value)
        self.transaction.drop(root)

    def _shadow(self, block: int) -> tuple[int, Node]:
        node, transaction = self._node(block), self.transaction
        shared = transaction.counts[block] > 1
        if block in transaction.fresh and not shared:
            return block, node
        copy = Node(node.leaf, node.layout, node.keys.copy(), node.values.copy())
        new = transaction.new(copy)
        if shared:
            for value in node.values:
                (self._inc if node.leaf else transaction.counts.inc)(value)
        transaction.drop(block)
        return new, copy

    def _update(self, node: Node, key: int, change: Callable[[Any], Any]) -> tuple[int, int] | None:
        """Below a shadowed node. Returns the first key and the block of its new right neighbour, if it was split."""
        if node.leaf:
            at = bisect_left(node.keys, key)
            if at < len(node.keys) and node.keys[at] == key:
                node.values[at] = change(node.values[at])
                return None
            value = change(None)
            node.keys.insert(at, key)
            node.values.insert(at, value)
        else:
            at = max(bisect_right(node.keys, key) - 1, 0)
            node.keys[at] = min(node.keys[at], key)
            node.values[at], child = self._shadow(node.values[at])
            split = self._update(child, key, change)
            if split is None:
                return None
            node.keys.insert(at + 1, split[0])
            node.values.insert(at + 1, split[1])
        return self._split(node) if len(node.keys) > node.max_entries else None

    def _split(self, node: Node) -> tuple[int, int]:
        half = len(node.keys) // 2
        right = Node(node.leaf, node.layout, node.keys[half:], node.values[half:])
        block = self.transaction.new(right)
        del node.keys[half:], node.values[half:]
        return right.keys[0], block

    def _remove(self, node: Node, key: int) -> None:
        if node.leaf:
            at = bisect_left(node.keys, key)
            if at == len(node.keys) or node.keys[at] != key:
                raise KeyError(key)
            self._dec(node.values[at])
            del node.keys[at], node.values[at]
            return
        at = bisect_right(node.keys, key) - 1
        if at < 0:
            raise KeyError(key)
        node.values[at], child = self._shadow(node.values[at])
        self._remove(child, key)
        if len(child.keys) < child.max_entries // 3 and len(node.keys) > 1:
            self._rebalance(node, max(at - 1, 0))

    def _rebalance(self, parent: Node, at: int) -> None:
        """Merge two neighbours, or share their entries equally."""
        parent.values[at], left = self._shadow(parent.values[at])
        parent.values[at + 1], right = self._shadow(parent.values[at + 1])
        keys, values = left.keys + right.keys, left.values + right.values
        if len(keys) <= 2 * (left.max_entries // 3):
            left.keys, left.values = keys, values
            self.transaction.drop(parent.values[at + 1])
            del parent.keys[at + 1], parent.values[at + 1]
            return
        half = len(keys) // 2
        left.keys, left.values, right.keys, right.values = keys[:half], values[:half], keys[half:], values[half:]
        parent.keys[at + 1] = right.keys[0]
