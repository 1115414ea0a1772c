"""A raid's devices, and what is common to its levels: failures, superblocks, the bitmap.

Source: Linux drivers/md/md.c and md-bitmap.c.

Bits of the bitmap are set, and on the disk, before a write goes out; they are cleared when the raid is suspended, not
by a daemon in between: after an unclean stop all regions written since the last resume are made equal again.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...model.dm_target import SECTOR_SIZE, Bio, DmPdev, Op, Target
from ..steps import Request, Step, gather
from .personality import Layout, Personality
from .reshape import Reshape
from .super import BITMAP_AT, MAX_SECTOR, PAGE, Bitmap, Superblock

__all__ = ["Array", "Carried", "Member", "differing"]

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


class Array:
    """`struct mddev`. `resync_at` (`recovery_cp`): up to there all members agree, MAX_SECTOR when they all do.
    `plan`: makes the reshape that the first resume is to begin; None: it cannot. `waiting`: that goes on with the next
    table. `unmarked`: no bitmap is on the disk that is of any use."""

    #: Set before anything else is done.
    personality: Personality

    def __init__(self, target: Target, members: list[Member]) -> None:
        self.target = target
        self.members = members
        self.plan: Callable[[], Reshape | None] | None = None
        self.waiting = self.unmarked = False
        self.resync_at = MAX_SECTOR
        self.events = 1
        #: What a resync found that it cannot go on: nobody has the data.
        self.unreadable = False
        #: The bitmap that was found has bits of writes that an unclean stop cut short.
        self.unclean = False
        self.bitmap: Bitmap | None = None
        self._lock = threading.RLock()
        self._stable = b""
        self._unlogged: list[Done] = []
        self._logging = False

    @property
    def reshape(self) -> Reshape | None:
        """That which is under way."""
        return self.personality if isinstance(self.personality, Reshape) else None

    @property
    def now(self) -> Layout:
        """Where the data are; those that a reshape has not moved."""
        now = self.personality
        if isinstance(now, Reshape):
            return now.old
        assert isinstance(now, Layout)
        return now

    def begin_reshape(self) -> None:
        """What was planned, if anything (`rs_start_reshape`)."""
        plan, self.plan = self.plan, None
        if plan is None:
            return
        if reshape := plan():
            self.personality, self.waiting = reshape, True
        else:
            self.target.log("Failed to check/start reshape, continuing without change")

    def end_reshape(self) -> None:
        """All is in the new shape (`md_finish_reshape`)."""
        reshape = self.reshape
        assert reshape is not None
        self.personality = reshape.new
        for member in self.members[self.personality.shape.devices :]:
            member.in_sync = False
        if reshape.new.sync_max > reshape.sync_max:  # what was added behind copies
            self.resync_at = reshape.sync_max
            if self.bitmap:
                self.bitmap.grow(reshape.new.sync_max)

    def flush(self, bio: Bio) -> None:
        """To all members (`md_flush_request`)."""
        members = [member for member in self.members if member.usable]

        def flushed(errors: list[int]) -> None:
            failed = [member for member, error in zip(members, errors, strict=True) if error]
            ok = len(failed) < len(members)
            self.fail(failed, lambda: bio.endio(0 if ok else errno.EIO))

        gather([Request(Op.FLUSH, member.dev.bdev, 0, None) for member in members], flushed)

    # -- failures ---------------------------------------------------------------------------------------

    def fail(self, members: Sequence[Member], done: Done) -> None:
        """Members that could not be written are faulty, unless nothing would be left; `done` once the others know."""
        newly = []
        with self._lock:
            for member in members:
                if not member.faulty and (not member.in_sync or self.personality.spare(member)):
                    member.faulty, member.in_sync = True, False
                    newly.append(member)
        if not newly:
            done()
            return
        for member in newly:
            name = os.path.basename(member.dev.path)
            left = sum(other.in_sync and other.usable for other in self.personality.members)
            self.printk(f"Disk failure on {name}, disabling device.")
            self.printk(f"Operation continuing on {left} devices.")
        self.target.queue_work(self.target.event)
        self.write_superblocks(done)

    def printk(self, text: str) -> None:
        self.target.printk(f"md/{self.personality.name}:mdX: {text}")

    @property
    def recovering(self) -> list[Member]:
        """Members whose data are not there yet."""
        return [member for member in self.personality.members if member.usable and not member.in_sync]

    # -- superblocks ------------------------------------------------------------------------------------

    def superblock(self, member: Member) -> Superblock:
        """As it is now (`super_sync`). A recovery that does not end begins again with the next table."""
        now, old, reshape = self.personality, self.now, self.reshape
        new = reshape.new if reshape else old
        return Superblock(
            devices=new.shape.devices,
            position=member.number,
            events=self.events,
            failed=frozenset(other.number for other in self.members if other.data is None or other.faulty),
            recovery_offset=MAX_SECTOR if member.in_sync else 0,
            resync_offset=self.resync_at,
            level=old.shape.level,
            layout=old.shape.layout,
            chunk=old.shape.chunk,
            array_sectors=min(self.target.len, now.size),
            sectors=now.dev_sectors,
            reshape_position=reshape.position if reshape else MAX_SECTOR,
            backwards=reshape is not None and reshape.backwards,
            new=(new.shape.level, new.shape.layout, new.shape.chunk),
            delta=new.shape.devices - old.shape.devices,
            data_offset=old.offset,
            new_data_offset=new.offset,
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
        if self.bitmap is None or self.unmarked:
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
