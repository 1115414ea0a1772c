"""Parity: raid4, raid5 and raid6 (Linux drivers/md/raid5.c).

Every write reconstructs: it reads the other data of its row, and writes its own with new parities. A row is locked
meanwhile, so that nobody sees it half written.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from ...model.dm_target import SECTOR_SIZE, Bio, MapResult, Op
from ..steps import Done, Step, gather
from .array import Array, Member, differing
from .geometry import Row, Striped, recover, syndromes
from .personality import Layout, Shape
from .ranges import Claim

__all__ = ["Parity"]

Blocks = dict[int, bytes]
#: Sectors of a stripe as the kernel counts those whose parity is wrong (`RAID5_STRIPE_SECTORS`).
STRIPE = 8


class Parity(Layout):
    """Sync space is each device."""

    def __init__(self, array: Array, shape: Shape, dev_sectors: int, offset: int) -> None:
        self.geometry = Striped.of(shape)
        self.stripe = shape.chunk * self.geometry.data
        size = dev_sectors // shape.chunk * self.stripe  # md uses whole chunks of each device
        super().__init__(array, shape, dev_sectors, offset, size, dev_sectors)

    @property
    def name(self) -> str:
        return "raid"

    def first(self, at: int) -> int:
        return at // self.stripe * self.shape.chunk

    def last(self, at: int) -> int:
        return -(-at // self.stripe) * self.shape.chunk

    def enough(self, without: Member | None = None) -> bool:
        lost = sum(not (m.usable and m.in_sync) or m is without for m in self.members)
        return lost <= self.geometry.parity

    def spare(self, member: Member) -> bool:
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
            self.array.fail([member for member, error in zip(members, errors, strict=True) if error], done)

        jobs = [self.job(Op.WRITE, m, sector, memoryview(blocks[m.number]), fua=fua) for m in members]
        gather(jobs, written)

    # -- reads ------------------------------------------------------------------------------------------

    def read(self, bio: Bio) -> MapResult:
        _, member, sector = self._locate(bio.per_bio.at)
        if member.readable(sector + bio.nr_sectors):
            bio.per_bio.member = member
            bio.bdev, bio.sector = member.dev.bdev, self.offset + sector
            return MapResult.REMAPPED
        self._reconstruct(bio.per_bio.at, bio.data)(bio.endio)
        return MapResult.SUBMITTED

    def retry(self, bio: Bio, member: Member) -> None:
        self._reconstruct(bio.per_bio.at, bio.data)(bio.endio)

    def fetch(self, at: int, data: memoryview) -> Step:
        _, member, sector = self._locate(at)

        def start(done: Done) -> None:
            if not member.readable(sector + len(data) // SECTOR_SIZE):
                self._reconstruct(at, data)(done)
                return
            self.job(Op.READ, member, sector, data)(
                lambda error: self._reconstruct(at, data)(done) if error else done(0)
            )

        return start

    def _reconstruct(self, at: int, data: memoryview | None) -> Step:
        """Read what one member has from the others, and write it there if it takes writes."""
        assert data is not None
        row, member, sector = self._locate(at)
        count = len(data) // SECTOR_SIZE

        def start(done: Done) -> None:
            def locked(claim: Claim) -> None:
                devices = range(self.geometry.devices)
                self._read_blocks(devices, sector, count, lambda found: have(claim, found), member.number)

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

            def finish(claim: Claim, error: int) -> None:
                self.ranges.unlock(claim)
                done(error)

            self.ranges.lock(sector, sector + count, locked, exclusive=True)

        return start

    # -- writes -----------------------------------------------------------------------------------------

    def store(self, op: Op, at: int, data: memoryview | int | None, *, fua: bool = False) -> Step:
        assert isinstance(data, memoryview)  # there are no discards
        sector = self._locate(at)[2]
        end = sector + len(data) // SECTOR_SIZE

        def start(done: Done) -> None:
            def locked(claim: Claim) -> None:
                self.array.logged(
                    sector, end, lambda: self._update(at, bytes(data), lambda error: finish(claim, error), fua=fua)
                )

            def finish(claim: Claim, error: int) -> None:
                self.ranges.unlock(claim)
                done(error)

            self.ranges.lock(sector, end, locked, exclusive=True)

        return start

    def _update(self, at: int, new: bytes, done: Done, *, fua: bool) -> None:
        """Write to a row that is locked."""
        row, member, sector = self._locate(at)
        count = len(new) // SECTOR_SIZE
        others = [device for device in row.data if device != member.number]

        def have_others(found: Blocks) -> None:
            if len(found) == len(others):
                store(found)
            else:
                self._read_blocks(range(self.geometry.devices), sector, count, have_all)

        def have_all(found: Blocks) -> None:
            whole = recover(row, found)
            if whole is None:
                done(errno.EIO)
            else:
                store(whole)

        def store(found: Blocks) -> None:
            whole = {**found, member.number: new}
            blocks = {member.number: new, **syndromes(row, whole)}
            self._write_blocks(blocks, sector, lambda: done(self._told(sector + count)), fua=fua)

        self._read_blocks(others, sector, count, have_others)

    def _told(self, end: int) -> int:
        """0 if what was written before `end` can be told, an errno if too many members failed."""
        lost = sum(not member.readable(end) for member in self.members)
        return 0 if lost <= self.geometry.parity else errno.EIO

    def lay(self, at: int, data: memoryview) -> Step:
        chunk = self.geometry.chunk

        def row(number: int, part: memoryview) -> Step:
            row = self.geometry.row(number)
            size = chunk * SECTOR_SIZE
            blocks = {device: bytes(part[at * size : (at + 1) * size]) for at, device in enumerate(row.data)}
            blocks |= syndromes(row, blocks)
            end = (number + 1) * chunk
            return lambda done: self._write_blocks(blocks, number * chunk, lambda: done(self._told(end)), fua=True)

        def start(done: Done) -> None:
            size = self.stripe * SECTOR_SIZE
            rows = [
                row(at // self.stripe + index, data[index * size : (index + 1) * size])
                for index in range(len(data) // size)
            ]
            gather(rows, lambda errors: done(max(errors)))

        return start

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
                self.array.unreadable = True
                done(0)
                return
            if action == "recover":
                self._write_blocks({m.number: whole[m.number] for m in self.array.recovering}, sector, lambda: done(0))
                return
            right = syndromes(row, whole)
            wrong = {device: block for device, block in right.items() if found.get(device, block) != block}
            mismatches = differing(STRIPE, *((found[device], block) for device, block in wrong.items()))
            if action == "check" or not wrong:
                done(mismatches)
            else:
                self._write_blocks(wrong, sector, lambda: done(mismatches))

        self._read_blocks(range(self.geometry.devices), sector, count, have)
