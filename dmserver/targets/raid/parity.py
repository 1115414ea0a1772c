"""Parity: raid4, raid5 and raid6 (Linux drivers/md/raid5.c).

Every write reconstructs: it reads the other data of its row, and writes its own with new parities. A row is locked
meanwhile, so that nobody sees it half written.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from ...model.dm_target import SECTOR_SIZE, Bio, MapResult, Op, Target
from ..steps import Step, gather
from .array import Array, Claim, Member, differing
from .geometry import Row, Striped, recover, syndromes

__all__ = ["Parity"]

Blocks = dict[int, bytes]
#: Sectors of a stripe as the kernel counts those whose parity is wrong (`RAID5_STRIPE_SECTORS`).
STRIPE = 8


class Parity(Array):
    """Sync space is each device."""

    def __init__(
        self,
        target: Target,
        members: list[Member],
        dev_sectors: int,
        geometry: Striped,
        shape: tuple[int, int, int],
    ) -> None:
        super().__init__(target, members, dev_sectors, dev_sectors, shape)
        self.geometry = geometry

    def enough(self, without: Member | None = None) -> bool:
        lost = sum(not (m.usable and m.in_sync) or m is without for m in self.members)
        return lost <= self.geometry.parity

    def _spare(self, member: Member) -> bool:
        return True

    def _locate(self, at: int) -> tuple[Row, Member, int]:
        """The row of an array's sector, the member that has it, and the sector there."""
        number, within = divmod(at, self.geometry.chunk)
        stripe, column = divmod(number, self.geometry.data)
        row = self.geometry.row(stripe)
        return row, self.members[row.data[column]], stripe * self.geometry.chunk + within

    def _read_blocks(
        self, devices: Iterable[int], sector: int, count: int, then: Callable[[Blocks], None], without: int = -1
    ) -> None:
        """`then` gets the blocks that could be read, by device."""
        readable = [d for d in devices if d != without and self.members[d].readable(sector + count)]
        buffers = [bytearray(count * SECTOR_SIZE) for _ in readable]

        def read(errors: list[int]) -> None:
            every = zip(readable, buffers, errors, strict=True)
            then({device: bytes(buffer) for device, buffer, error in every if not error})

        jobs = [
            self.job(Op.READ, self.members[device], sector, memoryview(buffer))
            for device, buffer in zip(readable, buffers, strict=True)
        ]
        gather(jobs, read)

    def _write_blocks(self, blocks: Blocks, sector: int, done: Callable[[], None], *, fua: bool = False) -> None:
        """To those members that take writes; the others, and those that fail, go without."""
        members = [self.members[device] for device in blocks if self.members[device].usable]

        def written(errors: list[int]) -> None:
            self.fail([member for member, error in zip(members, errors, strict=True) if error], done)

        jobs = [self.job(Op.WRITE, m, sector, memoryview(blocks[m.number]), fua=fua) for m in members]
        gather(jobs, written)

    # -- reads ------------------------------------------------------------------------------------------

    def read(self, bio: Bio) -> MapResult:
        row, member, sector = self._locate(bio.per_bio.at)
        if member.readable(sector + bio.nr_sectors):
            bio.per_bio.member = member
            bio.bdev, bio.sector = member.dev.bdev, sector
            return MapResult.REMAPPED
        self._reconstruct(bio, row, member, sector)
        return MapResult.SUBMITTED

    def retry(self, bio: Bio, member: Member) -> None:
        row, member, sector = self._locate(bio.per_bio.at)
        self._reconstruct(bio, row, member, sector)

    def _reconstruct(self, bio: Bio, row: Row, member: Member, sector: int) -> None:
        """Read what is on `member` from the others, and write it there if it takes writes."""
        assert bio.data is not None
        data = bio.data

        def finish(claim: Claim, error: int) -> None:
            self.ranges.unlock(claim)
            bio.endio(error)

        def locked(claim: Claim) -> None:
            devices = range(self.geometry.devices)
            self._read_blocks(devices, sector, bio.nr_sectors, lambda found: have(claim, found), member.number)

        def have(claim: Claim, found: Blocks) -> None:
            whole = recover(row, found)
            if whole is None:
                finish(claim, errno.EIO)
                return
            data[:] = whole[member.number]
            if member.usable and member.in_sync:
                self._write_blocks({member.number: whole[member.number]}, sector, lambda: finish(claim, 0))
            else:
                finish(claim, 0)

        self.ranges.lock(sector, sector + bio.nr_sectors, locked, exclusive=True)

    # -- writes -----------------------------------------------------------------------------------------

    def write(self, bio: Bio) -> None:
        row, member, sector = self._locate(bio.per_bio.at)
        end = sector + bio.nr_sectors
        self.ranges.lock(
            sector,
            end,
            lambda claim: self.logged(sector, end, lambda: self._update(bio, claim, row, member)),
            exclusive=True,
        )

    def _update(self, bio: Bio, claim: Claim, row: Row, member: Member) -> None:
        assert bio.data is not None
        new = bytes(bio.data)
        others = [device for device in row.data if device != member.number]
        count = bio.nr_sectors

        def have_others(found: Blocks) -> None:
            if len(found) == len(others):
                store(found)
            else:
                self._read_blocks(range(self.geometry.devices), claim.start, count, have_all)

        def have_all(found: Blocks) -> None:
            whole = recover(row, found)
            if whole is None:
                finish(errno.EIO)
            else:
                store(whole)

        def store(found: Blocks) -> None:
            whole = {**found, member.number: new}
            blocks = {member.number: new, **syndromes(row, whole)}
            self._write_blocks(blocks, claim.start, stored, fua=bio.fua)

        def stored() -> None:
            lost = sum(not m.readable(claim.end) for m in self.members)
            finish(0 if lost <= self.geometry.parity else errno.EIO)

        def finish(error: int) -> None:
            self.ranges.unlock(claim)
            bio.endio(error)

        self._read_blocks(others, claim.start, count, have_others)

    # -- resync -----------------------------------------------------------------------------------------

    def sync(self, start: int, end: int, action: str, done: Callable[[int], None]) -> None:
        chunk = self.geometry.chunk
        starts = [start, *range(start - start % chunk + chunk, end, chunk)] if start < end else []
        pieces = [(at, min(end, at + chunk - at % chunk)) for at in starts]
        mismatches = 0

        def piece(at: int, end: int) -> Step:
            def ended(found: int, then: Callable[[int], None]) -> None:
                nonlocal mismatches
                mismatches += found
                then(0)

            return lambda then: self._sync_row(at, end - at, action, lambda found: ended(found, then))

        gather([piece(*each) for each in pieces], lambda errors: done(mismatches))

    def _sync_row(self, sector: int, count: int, action: str, done: Callable[[int], None]) -> None:
        row = self.geometry.row(sector // self.geometry.chunk)

        def have(found: Blocks) -> None:
            whole = recover(row, found)
            if whole is None:
                self.unreadable = True
                done(0)
                return
            if action == "recover":
                self._write_blocks({m.number: whole[m.number] for m in self.recovering}, sector, lambda: done(0))
                return
            right = syndromes(row, whole)
            wrong = {device: block for device, block in right.items() if found.get(device, block) != block}
            mismatches = differing(STRIPE, *((found[device], block) for device, block in wrong.items()))
            if action == "check" or not wrong:
                done(mismatches)
            else:
                self._write_blocks(wrong, sector, lambda: done(mismatches))

        self._read_blocks(range(self.geometry.devices), sector, count, have)
