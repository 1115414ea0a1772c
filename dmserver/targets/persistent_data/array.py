"""Arrays of numbers (Linux `drivers/md/persistent-data/dm-array.c`): blocks full of them, found by a tree."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat

from .block import BLOCK_SIZE, Corrupt, seal, unseal
from .btree import BTree
from .transaction import Transaction

__all__ = ["Array", "ArrayBlock"]

_HEADER = struct.Struct("<IIIIQ")  # csum, max_entries, nr_entries, value_size, blocknr
_BLOCKNR = 16
_SALT = 595846735


@dataclass(slots=True)
class ArrayBlock:
    """`struct array_block`; `code`: the format of one value, "I" or "Q"."""

    code: str
    values: list[int]

    def copy(self) -> ArrayBlock:
        return ArrayBlock(self.code, self.values.copy())

    def pack(self, block: int) -> bytes:
        image = bytearray(BLOCK_SIZE)
        size, count = struct.calcsize(self.code), len(self.values)
        _HEADER.pack_into(image, 0, 0, (BLOCK_SIZE - _HEADER.size) // size, count, size, block)
        struct.pack_into(f"<{count}{self.code}", image, _HEADER.size, *self.values)
        return seal(image, block, _SALT, _BLOCKNR)

    @classmethod
    def unpack(cls, image: bytes, block: int, code: str) -> ArrayBlock:
        _, most, count, size, _ = _HEADER.unpack_from(unseal(image, block, _SALT, "array_block", _BLOCKNR))
        expected = struct.calcsize(code)
        if size != expected or most != (BLOCK_SIZE - _HEADER.size) // expected or count > most:
            raise Corrupt(
                f"array block {block}: {count} of {most} values of {size} bytes: expected values of {expected} bytes"
            )
        return cls(code, list(struct.unpack_from(f"<{count}{code}", image, _HEADER.size)))


class Array:
    """What arrays with one kind of value have in common; roots are block numbers, and each array has its own.

    `code` is the format of a value: "I" for 32 bits, "Q" for 64. Whoever has a root also knows how many entries there
    are. A root handed to a method that changes the array is used up; the new root comes back. An index or a size beyond
    what there is raises Corrupt.
    """

    def __init__(self, transaction: Transaction, code: str) -> None:
        self.transaction = transaction
        self.per_block = (BLOCK_SIZE - _HEADER.size) // struct.calcsize(code)
        self._code = code
        self._tree = BTree(transaction, "<Q", transaction.counts.inc, transaction.drop)

    def _block(self, block: int) -> ArrayBlock:
        page = self.transaction.pages.get(block)
        if page is None:
            page = ArrayBlock.unpack(self.transaction.read(block), block, self._code)
            self.transaction.pages[block] = page
        if not isinstance(page, ArrayBlock) or page.code != self._code:
            raise Corrupt(f"block {block} is something else than a block of an array, too")
        return page

    def empty(self) -> int:
        """The root of an array without entries."""
        return self._tree.empty()

    def new(self, values: Iterable[int]) -> int:
        """The root of an array of these values."""
        return self._append(self.empty(), 0, iter(values))

    def _append(self, root: int, number: int, values: Iterator[int]) -> int:
        """Blocks with `values`, from block `number` of the array on."""
        while chunk := list(islice(values, self.per_block)):
            root = self._tree.insert(root, number, self.transaction.new(ArrayBlock(self._code, chunk)))
            number += 1
        return root

    def delete(self, root: int) -> None:
        """Remove a whole array, as far as nobody shares it."""
        self._tree.delete(root)

    def resize(self, root: int, old: int, new: int) -> int:
        """From `old` to `new` entries; the new ones are 0."""
        full, rest = divmod(min(old, new), self.per_block)
        for number in range(full + bool(rest), -(-old // self.per_block)):
            root = self._tree.remove(root, number)
        if old > new and rest:
            return self._change(root, full, lambda values: values[:rest])
        added = max(new - old, 0)
        if added and rest:
            fill = min(added, self.per_block - rest)
            root = self._change(root, full, lambda values: values + [0] * fill)
            added -= fill
        return self._append(root, full + bool(rest), repeat(0, added))

    def get(self, root: int, index: int) -> int:
        number, at = divmod(index, self.per_block)
        block = self._tree.lookup(root, number)
        values = self._block(block).values if block is not None else ()
        if at >= len(values):
            raise Corrupt(f"array {root}: no entry {index}")
        return values[at]

    def read(self, root: int) -> None:
        """Have a whole array in memory."""
        for _ in self._blocks(root):
            pass

    def values(self, root: int) -> Iterator[int]:
        """All entries in order."""
        for block in self._blocks(root):
            yield from block.values

    def _blocks(self, root: int) -> Iterator[ArrayBlock]:
        met: set[int] = set()
        for _, block in self._tree.items(root):
            if block in met:
                raise Corrupt(f"array {root}: block {block} is in it twice")
            met.add(block)
            yield self._block(block)

    def set(self, root: int, index: int, value: int) -> int:
        """Change one entry."""
        number, at = divmod(index, self.per_block)

        def change(values: list[int]) -> list[int]:
            if at >= len(values):
                raise Corrupt(f"array {root}: no entry {index}")
            values[at] = value
            return values

        return self._change(root, number, change)

    def _change(self, root: int, number: int, change: Callable[[list[int]], list[int]]) -> int:
        """Give a block other values; the way there is copied before."""

        def shadow(block: int | None) -> int:
            if block is None:
                raise Corrupt(f"array {root}: no block {number}")
            block, page, _ = self.transaction.shadow(block, self._block(block))
            page.values = change(page.values)
            return block

        return self._tree.update(root, number, shadow)
