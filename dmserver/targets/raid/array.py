"""A raid's devices, and what is common to its levels: locks on ranges, failures, superblocks, the bitmap.

Source: Linux drivers/md/md.c and md-bitmap.c. Positions are in *sync space*, in which a resync walks: sectors of the
array where there are copies, sectors of each device where there is parity.

Bits of the bitmap are set, and on the disk, before a write goes out; they are cleared when the raid is suspended, not
by a daemon in between: after an unclean stop all regions written since the last resume are made equal again.
"""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...model.dm_target import SECTOR_SIZE, Bio, DmPdev, MapResult, Op, Target
from ..steps import Request, Step, gather
from .super import BITMAP_AT, MAX_SECTOR, PAGE, Bitmap, Superblock

__all__ = ["Array", "Carried", "Claim", "Member", "differing"]

Done = Callable[[], None]
Buffer = bytes | memoryview


@dataclass(slots=True, eq=False)
class Member:
    """`struct md_rdev`. `recovered`: up to there, in sync space, a device that is not `in_sync` has its data."""

    number: int
    meta: DmPdev | None
    data: DmPdev | None
    in_sync: bool = True
    faulty: bool = False
    write_mostly: bool = False
    recovered: int = MAX_SECTOR
    superblock: Superblock | None = None

    @property
    def usable(self) -> bool:
        """It takes writes."""
        return self.data is not None and not self.faulty

    def readable(self, end: int) -> bool:
        """It has what lies before `end`."""
        return self.usable and (self.in_sync or end <= self.recovered)

    @property
    def dev(self) -> DmPdev:
        assert self.data is not None
        return self.data


def differing(block: int, *pairs: tuple[Buffer, Buffer]) -> int:
    """Sectors of the blocks, of `block` sectors each, in which one of the pairs of equally long buffers differs."""
    unlike = [pair for pair in pairs if pair[0] != pair[1]]
    size, step = len(unlike[0][0]) if unlike else 0, block * SECTOR_SIZE
    starts = (
        at for at in range(0, size, step) if any(one[at : at + step] != other[at : at + step] for one, other in unlike)
    )
    return sum(min(step, size - at) for at in starts) // SECTOR_SIZE


class Carried:
    """`at`: a bio's sector in the target; `member`: that a read was mapped to."""

    at = 0
    member: Member | None = None


@dataclass(slots=True, eq=False)
class Claim:
    """A range of sync space that is locked."""

    start: int
    end: int
    exclusive: bool
    run: Callable[[Claim], None]

    def bars(self, other: Claim) -> bool:
        return self.start < other.end and other.start < self.end and (self.exclusive or other.exclusive)


class Ranges:
    """Locks on ranges, shared or exclusive, in the order of asking."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[Claim] = []
        self._waiting: list[Claim] = []
        self._ready: deque[Claim] = deque()
        self._starting = False

    def lock(self, start: int, end: int, run: Callable[[Claim], None], *, exclusive: bool) -> None:
        """Call `run(claim)` once the range is free."""
        with self._lock:
            self._waiting.append(Claim(start, end, exclusive, run))
        self._start()

    def unlock(self, claim: Claim) -> None:
        with self._lock:
            self._held.remove(claim)
        self._start()

    def _start(self) -> None:
        """Run what may; one thread at a time does, so that nobody's stack grows."""
        with self._lock:
            still: list[Claim] = []
            for claim in self._waiting:
                if any(other.bars(claim) for other in (*self._held, *still)):
                    still.append(claim)
                else:
                    self._held.append(claim)
                    self._ready.append(claim)
            self._waiting = still
            if self._starting:
                return
            self._starting = True
        while ready := self._next():
            ready.run(ready)

    def _next(self) -> Claim | None:
        with self._lock:
            if self._ready:
                return self._ready.popleft()
            self._starting = False
            return None


class Array(ABC):
    """`struct mddev`. `resync_at` (`recovery_cp`): up to there all members agree, MAX_SECTOR when they all do.
    `sync_max`: the size of sync space; `dev_sectors`: what is used of each device; `shape`: level, layout, chunk."""

    personality = "raid"

    def __init__(
        self, target: Target, members: list[Member], dev_sectors: int, sync_max: int, shape: tuple[int, int, int]
    ) -> None:
        self.target = target
        self.members = members
        self.dev_sectors = dev_sectors
        self.sync_max = sync_max
        self.shape = shape
        self.resync_at = MAX_SECTOR
        self.events = 1
        #: What a resync found that it cannot go on: nobody has the data.
        self.unreadable = False
        #: The bitmap that was found has bits of writes that an unclean stop cut short.
        self.unclean = False
        self.bitmap: Bitmap | None = None
        self.ranges = Ranges()
        self._lock = threading.RLock()
        self._stable = b""
        self._unlogged: list[Done] = []
        self._logging = False

    # -- what a level defines ---------------------------------------------------------------------------

    @abstractmethod
    def read(self, bio: Bio) -> MapResult:
        """`bio.per_bio.at` says where; sets `bio.per_bio.member` when it remaps."""

    @abstractmethod
    def retry(self, bio: Bio, member: Member) -> None:
        """A read from `member` failed: get the data elsewhere, write them back there, and end the bio."""

    @abstractmethod
    def write(self, bio: Bio) -> None:
        """WRITE or DISCARD."""

    @abstractmethod
    def sync(self, start: int, end: int, action: str, done: Callable[[int], None]) -> None:
        """Make sync space equal, or compare; `done` gets the sectors that were not. The range is locked."""

    @abstractmethod
    def enough(self, without: Member | None = None) -> bool:
        """All data can be told, even without that member."""

    # -- reading and writing ----------------------------------------------------------------------------

    def job(self, op: Op, member: Member, sector: int, data: memoryview | int | None, *, fua: bool = False) -> Step:
        """A bio to a member."""
        return Request(op, member.dev.bdev, sector, data, fua)

    def flush(self, bio: Bio) -> None:
        """To all members (`md_flush_request`)."""
        members = [member for member in self.members if member.usable]

        def flushed(errors: list[int]) -> None:
            failed = [member for member, error in zip(members, errors, strict=True) if error]
            ok = len(failed) < len(members)
            self.fail(failed, lambda: bio.endio(0 if ok else errno.EIO))

        gather([self.job(Op.FLUSH, member, 0, None) for member in members], flushed)

    # -- failures ---------------------------------------------------------------------------------------

    def fail(self, members: Sequence[Member], done: Done) -> None:
        """Members that could not be written are faulty, unless nothing would be left; `done` once the others know."""
        newly = []
        with self._lock:
            for member in members:
                if not member.faulty and (not member.in_sync or self._spare(member)):
                    member.faulty, member.in_sync = True, False
                    newly.append(member)
        if not newly:
            done()
            return
        for member in newly:
            name = os.path.basename(member.dev.path)
            left = sum(other.in_sync and other.usable for other in self.members)
            self.printk(f"Disk failure on {name}, disabling device.")
            self.printk(f"Operation continuing on {left} devices.")
        self.target.queue_work(self.target.event)
        self.write_superblocks(done)

    def _spare(self, member: Member) -> bool:
        return self.enough(member)

    def printk(self, text: str) -> None:
        self.target.printk(f"md/{self.personality}:mdX: {text}")

    @property
    def recovering(self) -> list[Member]:
        """Members whose data are not there yet."""
        return [member for member in self.members if member.usable and not member.in_sync]

    # -- superblocks ------------------------------------------------------------------------------------

    def superblock(self, member: Member) -> Superblock:
        """As it is now (`super_sync`). A recovery that does not end begins again with the next table."""
        level, layout, chunk = self.shape
        return Superblock(
            devices=len(self.members),
            position=member.number,
            events=self.events,
            failed=frozenset(other.number for other in self.members if other.data is None or other.faulty),
            recovery_offset=MAX_SECTOR if member.in_sync else 0,
            resync_offset=self.resync_at,
            level=level,
            layout=layout,
            chunk=chunk,
            array_sectors=self.target.len,
            sectors=self.dev_sectors,
        )

    def write_superblocks(self, done: Done) -> None:
        """To all metadata devices, stable; one that cannot be written makes its member faulty."""
        with self._lock:
            self.events += 1
            images = [
                (member, self.superblock(member).pack(member.meta.bdev.limits.logical_block_size))
                for member in self.members
                if member.usable and member.meta
            ]
        self._write_metadata(0, images, done)

    def _write_metadata(self, sector: int, images: Sequence[tuple[Member, bytearray]], done: Done) -> None:
        def write(member: Member, image: bytearray) -> Step:
            assert member.meta is not None
            bdev = member.meta.bdev
            return lambda ended: self.target.submit(Op.WRITE, bdev, sector, memoryview(image), ended, fua=True)

        def written(errors: list[int]) -> None:
            self.fail([member for (member, _), error in zip(images, errors, strict=True) if error], done)

        gather([write(member, image) for member, image in images], written)

    # -- the bitmap -------------------------------------------------------------------------------------

    def load_bitmap(self) -> None:
        """Read it from the member with most events; if that has none, all is to be made equal again."""
        if self.bitmap is None:
            return
        known = [(m.superblock.events, m) for m in self.members if m.usable and m.superblock]
        for _, member in sorted(known, key=lambda each: each[0], reverse=True):
            image = self._read_bitmap(member, PAGE)
            found = Bitmap.unpack(image) if image else None
            if found and found.length > PAGE:
                image = self._read_bitmap(member, found.length)
                found = Bitmap.unpack(image) if image else None
            if found:
                self.bitmap.take(found)
                self.unclean = any(self.bitmap.dirty)
                return
            if image:
                self.resync_at = 0
                break
        self.target.printk("mdX: bitmap file is out of date, doing full recovery")

    def _read_bitmap(self, member: Member, length: int) -> bytearray | None:
        """The first `length` bytes of a member's bitmap; None: it cannot be read."""
        assert member.meta is not None
        image = bytearray(length)
        return None if self.target.do_io(Op.READ, member.meta.bdev, BITMAP_AT, memoryview(image)) else image

    def save(self) -> None:
        """Bitmap and superblocks as they are now; waits."""
        ended = threading.Event()
        self.store_bitmap(lambda: self.write_superblocks(ended.set))
        ended.wait()

    def store_bitmap(self, done: Done) -> None:
        if self.bitmap is None:
            done()
            return
        with self._lock:
            self._stable = bytes(self.bitmap.dirty)
            image = self.bitmap.pack(self.events)
        images = [(member, image) for member in self.members if member.usable and member.meta]
        self._write_metadata(BITMAP_AT, images, done)

    def clear_bitmap(self) -> None:
        """The members that are there are equal; the others get everything when they come back."""
        if self.bitmap is not None and not self.unclean and self.resync_at == MAX_SECTOR:
            self.bitmap.dirty = bytearray(len(self.bitmap.dirty))

    def logged(self, start: int, end: int, run: Done) -> None:
        """`run` once the bitmap on the disk says that there may be writes from `start` to `end` of sync space."""
        with self._lock:
            if self.bitmap is None or all(map(self._stable.__getitem__, self.bitmap.regions(start, end))):
                ready = True
            else:
                ready = False
                for region in self.bitmap.regions(start, end):
                    self.bitmap.dirty[region] = 1
                self._unlogged.append(run)
        if ready:
            run()
        else:
            self._log()

    def _log(self) -> None:
        """Write the bitmap for those who wait; one write at a time."""
        with self._lock:
            if self._logging or not self._unlogged or self.bitmap is None:
                return
            self._logging = True
            batch, self._unlogged = self._unlogged, []
            snapshot, image = bytes(self.bitmap.dirty), self.bitmap.pack(self.events)

        def written() -> None:
            with self._lock:
                self._stable = snapshot
                self._logging = False
            for run in batch:
                run()
            self._log()
            self.target.release()

        self.target.hold()
        images = [(member, image) for member in self.members if member.usable and member.meta]
        self._write_metadata(BITMAP_AT, images, written)
