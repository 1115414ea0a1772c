"""Forward error correction for verity (Linux `drivers/md/dm-verity-fec.c`).

Data blocks, and the hash blocks behind them, are cut into columns of `rounds` blocks; byte n of all columns together is
the message of Reed-Solomon code n, whose parity of `roots` bytes lies at n * roots on the FEC device. So a block shares
its codes with one block of each other column.

A block known to be bad is an erasure. Alone, it is what the first syndrome says; several are found by a system of
equations, one syndrome each, for whole blocks at a time. When that mends nothing, because too many blocks are bad or
hash blocks are, too, each code is corrected by itself: its own errors may be few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...model.dm_target import SECTOR_SIZE, BlockDevice, DmPdev, Op, Target
from ..steps import Request, gather
from ..xor import xor
from .reed_solomon import correct, solve, syndrome

__all__ = ["MAX_ROOTS", "MIN_ROOTS", "Fec", "Layout"]

RSM = 255
MIN_ROOTS, MAX_ROOTS = 2, 24


@dataclass(frozen=True, slots=True)
class Layout:
    """What is protected: `data_blocks` of `data`, then the blocks of `hash` from `hash_start` on. `size` in bytes."""

    data: DmPdev
    data_blocks: int
    hash: DmPdev
    hash_start: int
    size: int


class Fec:
    """`blocks`: all that are protected; `start`: block of `dev` where parity begins; `roots`: its bytes per code."""

    def __init__(self, target: Target, dev: DmPdev, blocks: int, start: int, roots: int, layout: Layout) -> None:
        self.target = target
        self.dev = dev
        self.blocks = blocks
        self.start = start
        self.roots = roots
        self.layout = layout
        self.columns = RSM - roots
        self.rounds = -(-blocks // self.columns)

    def number_of_hash_block(self, block: int) -> int:
        """Its number among the protected blocks; that of a data block is its own."""
        return block - self.layout.hash_start + self.layout.data_blocks

    def members(self, number: int) -> range:
        """The protected blocks that share their codes with this one, itself included."""
        row = number % self.rounds
        return range(row, row + self.columns * self.rounds, self.rounds)

    def decode(
        self,
        number: int,
        is_bad: Callable[[int, bytes], bool],
        is_good: Callable[[bytes], bool],
        done: Callable[[bytes | None], None],
    ) -> None:
        """Mend a protected block: `done(data)`, None when it cannot be. `is_bad(block, data)` judges other data blocks,
        `is_good(data)` what comes out."""
        size = self.layout.size
        name = self.layout.data.number
        row, place = number % self.rounds, number // self.rounds
        members = self.members(number)

        def read(parts: list[bytes] | None) -> None:
            if parts is None:
                done(None)
                return
            parity = parts.pop()
            columns = [*parts, *(parity[root :: self.roots] for root in range(self.roots))]
            errors = [syndrome(0, columns, size)]
            if finish(columns[place], errors):
                return
            places = [place, *(at for at, block in enumerate(members) if at != place and is_bad(block, columns[at]))]
            syndromes = [syndrome(power, columns, size) for power in range(self.roots)]
            if 1 < len(places) <= self.roots and finish(columns[place], solve(places, syndromes[: len(places)])):
                return
            found = correct(syndromes)
            if not found or not finish(columns[place], [found.pop(place, bytes(size)), *found.values()]):
                done(None)

        def finish(bad: bytes, errors: Sequence[bytes]) -> bool:
            mended = xor(bad, errors[0])
            if not is_good(mended):
                return False
            corrected = sum(size - error.count(0) for error in errors)
            self.target.log(f"{name}: FEC {row * size}: corrected {corrected} errors", "verity-fec")
            done(mended)
            return True

        start = self.start * size + row * size * self.roots
        areas = [self._area(block) for block in members]
        _read_all([*areas, (self.dev.bdev, start, size * self.roots)], size, read)

    def _area(self, block: int) -> tuple[BlockDevice, int, int] | None:
        """(device, byte, bytes) of a protected block; None: it counts as zeroes."""
        layout = self.layout
        if block < layout.data_blocks:
            return layout.data.bdev, block * layout.size, layout.size
        if block < self.blocks:
            return layout.hash.bdev, (block - layout.data_blocks + layout.hash_start) * layout.size, layout.size
        return None


def _read_all(
    areas: Sequence[tuple[BlockDevice, int, int] | None], size: int, done: Callable[[list[bytes] | None], None]
) -> None:
    """Read all of `areas` at once; what is None, or lies behind its device's end, is `size` zeroes."""
    parts: list[bytes | bytearray] = [bytes(size) for _ in areas]
    reads = []
    for at, area in enumerate(areas):
        if area and area[1] + area[2] <= area[0].bytes:
            bdev, start, length = area
            parts[at] = bytearray(length)
            reads.append(Request(Op.READ, bdev, start // SECTOR_SIZE, memoryview(parts[at])))
    gather(reads, lambda errors: done(None if any(errors) else [bytes(part) for part in parts]))
