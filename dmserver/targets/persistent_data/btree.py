"""B-trees of 64-bit keys (Linux `drivers/md/persistent-data/dm-btree.c`)."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .block import BLOCK_SIZE, Corrupt, seal, unseal
from .transaction import Transaction

__all__ = ["BTREE_SALT", "BTree", "Node"]

BTREE_SALT = 121107

_HEADER = struct.Struct("<IIQIIIxxxx")  # csum, flags, blocknr, nr_entries, max_entries, value_size
_INTERNAL, _LEAF = 1, 2
_MAX_DEPTH = 64
_U64 = struct.Struct("<Q")


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

    def copy(self) -> Node:
        return Node(self.leaf, self.layout, self.keys.copy(), self.values.copy())

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
        if not leaf and not count:
            raise Corrupt(f"btree node {block}: expected children")
        node.keys = list(struct.unpack_from(f"<{count}Q", image, _HEADER.size))
        at = _HEADER.size + 8 * max_entries
        values = node.layout.iter_unpack(image[at : at + count * value_size])
        node.values = [value if len(value) > 1 else value[0] for value in values]
        return node


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
        page = self.transaction.pages.get(block)
        if page is None:
            page = Node.unpack(self.transaction.read(block), block, self.layout)
            self.transaction.pages[block] = page
        if not isinstance(page, Node) or (page.leaf and page.layout.format != self.layout.format):
            raise Corrupt(f"block {block} is something else than a node of a tree, too")
        return page

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
        """Keys from `begin` up to but not including `end`, with their values. Corrupt where a node is met again."""
        return self._items(root, begin, end, set(), 1)

    def _items(self, block: int, begin: int, end: int, met: set[int], depth: int) -> Iterator[tuple[int, Any]]:
        if block in met or depth > _MAX_DEPTH:
            raise Corrupt(f"btree node {block}: expected to be met once, and no deeper than {_MAX_DEPTH} nodes")
        met.add(block)
        node = self._node(block)
        at = bisect_left(node.keys, begin) if node.leaf else max(bisect_right(node.keys, begin) - 1, 0)
        for key, value in zip(node.keys[at:], node.values[at:], strict=True):
            if key >= end:
                return
            if node.leaf:
                yield key, value
            else:
                yield from self._items(value, begin, end, met, depth + 1)

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
        """Remove a key that is there; Corrupt when it is not."""
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
        block, node, shared = self.transaction.shadow(block, self._node(block))
        if shared:
            for value in node.values:
                (self._inc if node.leaf else self.transaction.counts.inc)(value)
        return block, node

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
                raise Corrupt(f"btree: no key {key} in its leaf")
            self._dec(node.values[at])
            del node.keys[at], node.values[at]
            return
        at = bisect_right(node.keys, key) - 1
        if at < 0:
            raise Corrupt(f"btree: no child for key {key}")
        node.values[at], child = self._shadow(node.values[at])
        self._remove(child, key)
        if len(child.keys) < child.max_entries // 3 and len(node.keys) > 1:
            self._rebalance(node, max(at - 1, 0))

    def _rebalance(self, parent: Node, at: int) -> None:
        """Merge two neighbours, or share their entries equally."""
        parent.values[at], left = self._shadow(parent.values[at])
        parent.values[at + 1], right = self._shadow(parent.values[at + 1])
        if left.leaf is not right.leaf:
            raise Corrupt(f"btree nodes {parent.values[at]} and {parent.values[at + 1]}: only one of them is a leaf")
        keys, values = left.keys + right.keys, left.values + right.values
        if len(keys) <= 2 * (left.max_entries // 3):
            left.keys, left.values = keys, values
            self.transaction.drop(parent.values[at + 1])
            del parent.keys[at + 1], parent.values[at + 1]
            return
        half = len(keys) // 2
        left.keys, left.values, right.keys, right.values = keys[:half], values[:half], keys[half:], values[half:]
        parent.keys[at + 1] = right.keys[0]
