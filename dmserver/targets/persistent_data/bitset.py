"""Sets of small numbers (Linux `drivers/md/persistent-data/dm-bitset.c`): arrays whose values are 64 bits each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .array import Array
from .transaction import Transaction

__all__ = ["Bitset"]

_WORD = 64


def _words(size: int) -> int:
    return -(-size // _WORD)


class Bitset:
    """What bitsets have in common; roots are block numbers, and each set has its own. `size`: in bits. A root handed to
    a method that changes the set is used up; the new root comes back."""

    def __init__(self, transaction: Transaction) -> None:
        self._array = Array(transaction, "Q")

    def empty(self) -> int:
        """The root of a set of no bits."""
        return self._array.empty()

    def new(self, size: int, members: Iterable[int]) -> int:
        """The root of a set in which `members` are."""
        words = [0] * _words(size)
        for member in members:
            words[member // _WORD] |= 1 << member % _WORD
        return self._array.new(words)

    def delete(self, root: int) -> None:
        """Remove a whole set, as far as nobody shares it."""
        self._array.delete(root)

    def resize(self, root: int, old: int, new: int) -> int:
        """From `old` to `new` bits, as far as words go: what is left in the last one stays."""
        return self._array.resize(root, _words(old), _words(new))

    def read(self, root: int) -> None:
        """Have a whole set in memory."""
        self._array.read(root)

    def members(self, root: int) -> Iterator[int]:
        """All members in order."""
        for number, word in enumerate(self._array.values(root)):
            while word:
                low = word & -word
                yield number * _WORD + low.bit_length() - 1
                word ^= low

    def add(self, root: int, member: int) -> int:
        return self._set(root, member // _WORD, 1 << member % _WORD, 0)

    def discard(self, root: int, member: int) -> int:
        """Without `member`, whether it was there or not."""
        return self._set(root, member // _WORD, 0, 1 << member % _WORD)

    def _set(self, root: int, number: int, on: int, off: int) -> int:
        word = self._array.get(root, number)
        changed = (word | on) & ~off
        return root if changed == word else self._array.set(root, number, changed)
