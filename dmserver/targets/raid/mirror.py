"""Copies: raid0, raid1 and raid10 (Linux drivers/md/raid0.c, raid1.c, raid10.c)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from ...model.dm_target import SECTOR_SIZE, Bio, MapResult, Op
from ..steps import Done, Step, gather
from .array import Array, Member, differing
from .geometry import Copied
from .personality import Layout, Shape
from .ranges import Claim

__all__ = ["Copies"]

#: Sectors of a large read that one member serves before the next does.
TURN = 2048
#: Sectors of what a resync compares at a time, and counts when it differs (`RESYNC_BLOCK_SIZE`).
BLOCK = 128


class Copies(Layout):
    """Sync space is the array."""

    def __init__(self, array: Array, shape: Shape, dev_sectors: int, offset: int) -> None:
        self.geometry = Copied.of(shape, dev_sectors)
        size = self.geometry.size(dev_sectors)
        super().__init__(array, shape, dev_sectors, offset, size, size)
        self.stripe = shape.chunk

    def first(self, at: int) -> int:
        return self.geometry.first(at)

    def last(self, at: int) -> int:
        return self.geometry.last(at)

    def enough(self, without: Member | None = None) -> bool:
        return all(
            any(m.usable and m.in_sync and m is not without for m, _ in self._copies(chunk * self.geometry.chunk))
            for chunk in range(len(self.members) if self.geometry.chunk else 1)
        )

    def _copies(self, at: int) -> list[tuple[Member, int]]:
        return [(self.members[device], sector) for device, sector in self.geometry.locate(at)[0]]

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(sector, count) of each chunk, or part of one, between."""
        while start < end:
            count = min(self.geometry.locate(start)[1], end - start)
            yield start, count
            start += count

    def _readable(self, at: int, count: int) -> list[tuple[Member, int]]:
        """The copies that have the data, those that are mostly for writes last."""
        copies = [copy for copy in self._copies(at) if copy[0].readable(at + count)]
        return sorted(copies, key=lambda copy: copy[0].write_mostly)

    # -- reads ------------------------------------------------------------------------------------------

    def read(self, bio: Bio) -> MapResult:
        at = bio.per_bio.at
        copies = self._readable(at, bio.nr_sectors)
        if not copies:
            return MapResult.KILL
        turn = 0
        if self.array.resync_at >= at + bio.nr_sectors:
            preferred = sum(not member.write_mostly for member, _ in copies) or len(copies)
            turn = at // TURN % preferred
        member, sector = copies[turn]
        bio.per_bio.member = member
        bio.bdev, bio.sector = member.dev.bdev, self.offset + sector
        return MapResult.REMAPPED

    def retry(self, bio: Bio, member: Member) -> None:
        at, count = bio.per_bio.at, bio.nr_sectors
        assert bio.data is not None
        data = bio.data

        def finish(claim: Claim, error: int) -> None:
            self.ranges.unlock(claim)
            bio.endio(error)

        def locked(claim: Claim) -> None:
            left = [copy for copy in self._readable(at, count) if copy[0] is not member]
            back = next(sector for other, sector in self._copies(at) if other is member)
            self._read_any(left, data, lambda source: read(claim, source, back))

        def read(claim: Claim, source: Member | None, back: int) -> None:
            if source is None or not member.usable:
                finish(claim, 0 if source else errno.EIO)
                return
            self.job(Op.WRITE, member, back, data)(lambda error: rewritten(claim, error))

        def rewritten(claim: Claim, error: int) -> None:
            self.array.fail([member] if error else [], lambda: finish(claim, 0))

        self.ranges.lock(at, at + count, locked, exclusive=True)

    def fetch(self, at: int, data: memoryview) -> Step:
        def start(done: Done) -> None:
            copies = self._readable(at, len(data) // SECTOR_SIZE)
            self._read_any(copies, data, lambda source: done(0 if source else errno.EIO))

        return start

    def _read_any(
        self, copies: list[tuple[Member, int]], data: memoryview, done: Callable[[Member | None], None]
    ) -> None:
        """Fill `data` from the first copy that can be read; `done` gets its member, None: no copy can."""
        if not copies:
            done(None)
            return
        (member, sector), *rest = copies
        self.job(Op.READ, member, sector, data)(
            lambda error: self._read_any(rest, data, done) if error else done(member)
        )

    # -- writes -----------------------------------------------------------------------------------------

    def store(self, op: Op, at: int, data: memoryview | int | None, *, fua: bool = False) -> Step:
        end = at + (len(data) // SECTOR_SIZE if isinstance(data, memoryview) else data or 0)

        def start(done: Done) -> None:
            def finish(claim: Claim, error: int) -> None:
                self.ranges.unlock(claim)
                done(error)

            def send(claim: Claim) -> None:
                self._spread(op, at, end, data, lambda error: finish(claim, error), fua=fua)

            self.ranges.lock(at, end, lambda claim: self.array.logged(at, end, lambda: send(claim)), exclusive=False)

        return start

    def lay(self, at: int, data: memoryview) -> Step:
        def start(done: Done) -> None:
            steps = [piece(*each) for each in self._pieces(at, at + len(data) // SECTOR_SIZE)]
            gather(steps, lambda errors: done(max(errors)))

        def piece(sector: int, count: int) -> Step:
            part = data[(sector - at) * SECTOR_SIZE :][: count * SECTOR_SIZE]
            return lambda done: self._spread(Op.WRITE, sector, sector + count, part, done, fua=True)

        return start

    def _spread(
        self, op: Op, at: int, end: int, data: memoryview | int | None, done: Done, *, fua: bool = False
    ) -> None:
        """To all copies that take writes."""
        copies = [copy for copy in self._copies(at) if copy[0].usable]

        def written(errors: list[int]) -> None:
            failed = [member for (member, _), error in zip(copies, errors, strict=True) if error]
            good = any(m.readable(end) and not error for (m, _), error in zip(copies, errors, strict=True))
            if op is Op.DISCARD:
                done(0 if good else errno.EOPNOTSUPP)
            else:
                self.array.fail(failed, lambda: done(0 if good else errno.EIO))

        gather([self.job(op, member, sector, data, fua=fua) for member, sector in copies], written)

    # -- resync -----------------------------------------------------------------------------------------

    def sync(self, start: int, end: int, action: str, done: Callable[[int], None]) -> None:
        mismatches = 0

        def piece(at: int, count: int) -> Step:
            def ended(found: int, then: Callable[[int], None]) -> None:
                nonlocal mismatches
                mismatches += found
                then(0)

            step = self._compare if action in ("check", "repair") else self._copy
            return lambda then: step(at, count, action, lambda found: ended(found, then))

        gather([piece(*each) for each in self._pieces(start, end)], lambda errors: done(mismatches))

    def _copy(self, at: int, count: int, action: str, done: Callable[[int], None]) -> None:
        """From the first copy that can be read to the others, or to those that are recovering."""
        data = memoryview(bytearray(count * SECTOR_SIZE))

        def read(source: Member | None) -> None:
            if source is None:
                self.array.unreadable = True
                done(0)
                return
            others = [copy for copy in self._copies(at) if copy[0].usable and copy[0] is not source]
            if action == "recover":
                others = [copy for copy in others if not copy[0].in_sync]
            self._make_equal(others, data, lambda: done(0))

        self._read_any(self._readable(at, count), data, read)

    def _compare(self, at: int, count: int, action: str, done: Callable[[int], None]) -> None:
        copies = self._readable(at, count)
        blocks = [memoryview(bytearray(count * SECTOR_SIZE)) for _ in copies]

        def read(errors: list[int]) -> None:
            good = [number for number, error in enumerate(errors) if not error]
            found = {number: differing(BLOCK, (blocks[number], blocks[good[0]])) for number in good}
            mismatches = sum(found.values())
            if action == "repair" and mismatches:
                odd = [copies[number] for number in good if found[number]]
                self._make_equal(odd, blocks[good[0]], lambda: done(mismatches))
            else:
                done(mismatches)

        gather([self.job(Op.READ, *copy, block) for copy, block in zip(copies, blocks, strict=True)], read)

    def _make_equal(self, copies: list[tuple[Member, int]], data: memoryview, done: Callable[[], None]) -> None:
        def written(errors: list[int]) -> None:
            self.array.fail([member for (member, _), error in zip(copies, errors, strict=True) if error], done)

        gather([self.job(Op.WRITE, *copy, data) for copy in copies], written)
