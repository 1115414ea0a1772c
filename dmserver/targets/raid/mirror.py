"""Copies: raid0, raid1 and raid10 (Linux drivers/md/raid0.c, raid1.c, raid10.c)."""

from __future__ import annotations

import errno
from collections.abc import Callable

from ...model.dm_target import SECTOR_SIZE, Bio, MapResult, Op, Target
from ..steps import Step, gather
from .array import Array, Claim, Member, differing
from .geometry import Near

__all__ = ["Copies"]

#: Sectors of a large read that one member serves before the next does.
TURN = 2048
#: Sectors of what a resync compares at a time, and counts when it differs (`RESYNC_BLOCK_SIZE`).
BLOCK = 128


class Copies(Array):
    """Sync space is the array."""

    def __init__(
        self,
        target: Target,
        members: list[Member],
        dev_sectors: int,
        geometry: Near,
        shape: tuple[int, int, int],
    ) -> None:
        super().__init__(target, members, dev_sectors, target.len, shape)
        self.geometry = geometry
        self.personality = f"raid{shape[0]}"

    def enough(self, without: Member | None = None) -> bool:
        return all(
            any(m.usable and m.in_sync and m is not without for m, _ in self._copies(chunk * self.geometry.chunk))
            for chunk in range(len(self.members) if self.geometry.chunk else 1)
        )

    def _copies(self, at: int) -> list[tuple[Member, int]]:
        return [(self.members[device], sector) for device, sector in self.geometry.locate(at)[0]]

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
        if self.resync_at >= at + bio.nr_sectors:
            preferred = sum(not member.write_mostly for member, _ in copies) or len(copies)
            turn = at // TURN % preferred
        member, sector = copies[turn]
        bio.per_bio.member = member
        bio.bdev, bio.sector = member.dev.bdev, sector
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
            self.fail([member] if error else [], lambda: finish(claim, 0))

        self.ranges.lock(at, at + count, locked, exclusive=True)

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

    def write(self, bio: Bio) -> None:
        at = bio.per_bio.at
        end = at + bio.nr_sectors
        self.ranges.lock(at, end, lambda claim: self.logged(at, end, lambda: self._send(bio, claim)), exclusive=False)

    def _send(self, bio: Bio, claim: Claim) -> None:
        copies = [copy for copy in self._copies(claim.start) if copy[0].usable]
        data = bio.data if bio.op is Op.WRITE else bio.nr_sectors

        def written(errors: list[int]) -> None:
            failed = [member for (member, _), error in zip(copies, errors, strict=True) if error]
            good = any(m.readable(claim.end) and not error for (m, _), error in zip(copies, errors, strict=True))
            if bio.op is Op.DISCARD:
                finish(0 if good else errno.EOPNOTSUPP)
            else:
                self.fail(failed, lambda: finish(0 if good else errno.EIO))

        def finish(error: int) -> None:
            self.ranges.unlock(claim)
            bio.endio(error)

        gather([self.job(bio.op, member, sector, data, fua=bio.fua) for member, sector in copies], written)

    # -- resync -----------------------------------------------------------------------------------------

    def sync(self, start: int, end: int, action: str, done: Callable[[int], None]) -> None:
        pieces = []
        while start < end:
            count = min(self.geometry.locate(start)[1], end - start)
            pieces.append((start, count))
            start += count
        mismatches = 0

        def piece(at: int, count: int) -> Step:
            def ended(found: int, then: Callable[[int], None]) -> None:
                nonlocal mismatches
                mismatches += found
                then(0)

            step = self._compare if action in ("check", "repair") else self._copy
            return lambda then: step(at, count, action, lambda found: ended(found, then))

        gather([piece(at, count) for at, count in pieces], lambda errors: done(mismatches))

    def _copy(self, at: int, count: int, action: str, done: Callable[[int], None]) -> None:
        """From the first copy that can be read to the others, or to those that are recovering."""
        data = memoryview(bytearray(count * SECTOR_SIZE))

        def read(source: Member | None) -> None:
            if source is None:
                self.unreadable = True
                done(0)
                return
            others = [copy for copy in self._copies(at) if copy[0].usable and copy[0] is not source]
            if action == "recover":
                others = [copy for copy in others if not copy[0].in_sync]
            self._spread(others, data, lambda: done(0))

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
                self._spread(odd, blocks[good[0]], lambda: done(mismatches))
            else:
                done(mismatches)

        gather([self.job(Op.READ, *copy, block) for copy, block in zip(copies, blocks, strict=True)], read)

    def _spread(self, copies: list[tuple[Member, int]], data: memoryview, done: Callable[[], None]) -> None:
        def written(errors: list[int]) -> None:
            self.fail([member for (member, _), error in zip(copies, errors, strict=True) if error], done)

        gather([self.job(Op.WRITE, *copy, data) for copy in copies], written)
