"""era: a device that notes which of its blocks are written when (Linux `drivers/md/dm-era-target.c`).

Arguments: METADATA_DEVICE ORIGIN BLOCK_SIZE; BLOCK_SIZE in sectors. A metadata device that begins with a block of
zeroes is formatted when it is loaded. A block's first write in an era waits until that is on the metadata device.

One queue does all that changes the metadata, as the kernel's worker does: a job changes, and commits.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

from ...model.dm_target import (
    SECTOR_SIZE,
    Bio,
    DmPdev,
    MapResult,
    Op,
    QueueLimits,
    StatusType,
    Target,
    TargetError,
    is_suspended,
    parse_u32,
)
from ..persistent_data.block import BLOCK_SECTORS
from ..persistent_data.commit import write_commit
from ..persistent_data.device import block_reader, commit_now, metadata_blocks
from ..persistent_data.metadata import METADATA_FAILURES, MetadataError, errno_of, tell_why_not_opened
from ..serial import Job, SerialQueue
from ..steps import Step
from .metadata import EraMetadata

__all__ = ["Era"]

MIN_BLOCK_SIZE = 8


class Era(Target):
    name = "era"
    version = (1, 0, 0)
    num_flush_bios = num_discard_bios = 1
    flush_supported = True

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) != 3:
            raise self.refuse("Invalid argument count")
        self.metadata_dev = self._device(argv[0], "Error opening metadata device")
        self.origin_dev = self._device(argv[1], "Error opening data device")
        try:
            self.block_size = parse_u32(argv[2])
        except ValueError:
            raise self.refuse("Error parsing block size") from None
        if not self.block_size or self.block_size % MIN_BLOCK_SIZE:
            raise self.refuse("Invalid block size")
        self.max_io_len = self.block_size
        self._read = block_reader(self.metadata_dev.bdev)
        self.metadata = self._open()
        self._worker = SerialQueue()
        self._digest: Iterator[None] | None = None
        self._digest_queued = False
        self._suspended = True
        self._nr_blocks = 0
        self._lock = threading.Lock()
        self._deferred: list[Bio] = []

    def _device(self, path: str, complaint: str) -> DmPdev:
        try:
            return self.get_device(path)
        except TargetError:
            raise self.refuse(complaint) from None

    def _open(self) -> EraMetadata:
        """Open the metadata, or make some."""
        device = self.metadata_dev.bdev
        if self._is_held_up:
            raise self.refuse("Error reading metadata", errno.EAGAIN)
        try:
            metadata = EraMetadata(self._read, metadata_blocks(device), self.block_size)
            if metadata.changed:
                commit_now(metadata.prepare_commit(), device)
                metadata.committed()
            return metadata
        except (*METADATA_FAILURES, MetadataError) as failure:
            tell_why_not_opened(failure, self.name, "read_lock", self.printk)
            raise self.refuse("Error reading metadata", errno_of(failure)) from failure

    @property
    def _is_held_up(self) -> bool:
        return is_suspended(self.metadata_dev.bdev)

    # -- bios -------------------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        bio.bdev = self.origin_dev.bdev
        if bio.op is Op.FLUSH:
            return MapResult.REMAPPED
        bio.sector = self.offset(bio.sector)
        if bio.op is Op.READ or self.metadata.marked.issuperset(self._blocks(bio)):
            return MapResult.REMAPPED
        with self._lock:
            self._deferred.append(bio)
            first = len(self._deferred) == 1
        if first:
            self._worker.start(self._process_deferred(), lambda error: None)
        return MapResult.SUBMITTED

    def _blocks(self, bio: Bio) -> range:
        """What a bio writes; only a discard may be of several blocks."""
        return range(bio.sector // self.block_size, (bio.sector + bio.nr_sectors - 1) // self.block_size + 1)

    def _process_deferred(self) -> Job:
        """Mark what is to be written, commit, and let the writes go on."""
        self._kick_off_digest()
        with self._lock:
            bios, self._deferred = self._deferred, []
        error = 0
        if blocks := {block for bio in bios for block in self._blocks(bio)} - self.metadata.marked:
            error = self._change(partial(self._mark, blocks)) or (yield from self._commit())
        if not error:
            self.metadata.marked |= blocks
        for bio in bios:
            if error:
                bio.endio(errno.EIO)
            else:
                self.origin_dev.bdev.submit_bio(bio)
        return error

    def _mark(self, blocks: set[int]) -> None:
        for block in sorted(blocks):
            self.metadata.mark(block)

    # -- the metadata -----------------------------------------------------------------------------------

    def _run(self, *changes: Callable[[], None]) -> int:
        """`_call`, for commands: returns the errno."""
        return self._worker.run(self._call(*changes), self.metadata_dev.bdev)

    def _call(self, *changes: Callable[[], None]) -> Job:
        """Make changes, each a transaction of its own, up to the first that fails."""
        self._kick_off_digest()
        for change in changes:
            refused = self._change(change)
            error = yield from self._commit()
            if error or refused:
                return error or refused
        return 0

    def _change(self, change: Callable[[], None]) -> int:
        """Make a change; returns an errno."""
        try:
            change()
        except MetadataError as refusal:
            for message in refusal.messages:
                self.log(message)
            return refusal.errno
        except METADATA_FAILURES as failure:
            return self._give_up(failure)
        return 0

    def _commit(self) -> Generator[Step, int, int]:
        if not self.metadata.changed:
            return 0
        try:
            commit = self.metadata.prepare_commit()
        except METADATA_FAILURES as failure:
            return self._give_up(failure)
        error = yield partial(write_commit, commit, self.metadata_dev.bdev, [])
        if error:
            self.log(f"metadata_commit failed: {-error}")
        else:
            self.metadata.committed()
        return error

    def _give_up(self, failure: Exception) -> int:
        """Something could not be done to the metadata: they are as they were committed last."""
        self.log(f"metadata changes are lost: {failure}")
        self._digest = None
        self.metadata.abort()
        return errno_of(failure)

    # -- digestion --------------------------------------------------------------------------------------

    def _kick_off_digest(self) -> None:
        if self.metadata.archived and self._digest is None:
            self._digest = self.metadata.digest()
            self._digest_soon()

    def _digest_soon(self) -> None:
        if not self._digest_queued and not self._suspended:
            self._digest_queued = True
            self.queue_work(lambda: self._worker.start(self._digest_step(), lambda error: None))

    def _digest_step(self) -> Job:
        """What is digested is committed with the next change."""
        self._digest_queued = False
        if self._digest is not None and not self._suspended:
            if self._change(partial(self._take_step, self._digest)):
                self.log("process_old_eras: digest step failed, stopping digestion")
            elif self._digest is not None:
                self._digest_soon()
        yield from ()
        return 0

    def _take_step(self, digest: Iterator[None]) -> None:
        if next(digest, True):
            self._digest = None

    # -- suspend and resume -----------------------------------------------------------------------------

    def preresume(self) -> None:
        """Another era begins."""
        if self._is_held_up:
            raise TargetError(errno.EAGAIN)
        nr_blocks = -(-self.len // self.block_size)
        if self._nr_blocks != nr_blocks:
            self._catch_up()
            if error := self._run(partial(self.metadata.resize, nr_blocks)):
                self.log("era_preresume: metadata_resize failed")
                raise TargetError(error)
            self._nr_blocks = nr_blocks
        if error := self._run(self.metadata.rollover):
            self.log("era_preresume: metadata_era_rollover failed")
            raise TargetError(error)
        self._suspended = False
        if self._digest is not None:
            self._digest_soon()

    def _catch_up(self) -> None:
        """What another table did with the metadata since this one was loaded."""
        try:
            if not self.metadata.is_current(self._read(0)):
                self.metadata = self._open()
        except OSError as failure:
            raise TargetError(failure.errno or errno.EIO) from failure

    def postsuspend(self) -> None:
        """The era ends."""
        if not self._is_held_up and self._run(self.metadata.archive):
            self.log("era_postsuspend: couldn't archive current era")
        self._suspended = True

    # -- what it tells ----------------------------------------------------------------------------------

    def message(self, argv: Sequence[str]) -> str | None:
        if len(argv) != 1:
            self.log("incorrect number of message arguments")
            raise TargetError(errno.EINVAL)
        metadata = self.metadata
        changes = {
            "checkpoint": (metadata.rollover,),
            "take_metadata_snap": (metadata.prepare_snapshot, metadata.take_snapshot),
            "drop_metadata_snap": (metadata.drop_snapshot,),
        }
        if argv[0].lower() not in changes:
            self.log(f"unsupported message '{argv[0]}'")
            raise TargetError(errno.EINVAL)
        if self._is_held_up:
            raise TargetError(errno.EAGAIN)
        if error := self._run(*changes[argv[0].lower()]):
            raise TargetError(error)
        return None

    def status(self, kind: StatusType) -> str:
        """INFO commits, as in the kernel, where all that the worker does ends so."""
        if kind is StatusType.TABLE:
            return f"{self.metadata_dev.number} {self.origin_dev.number} {self.block_size}"
        if not self._is_held_up:
            self._run(lambda: None)
        metadata = self.metadata
        usage = f"{BLOCK_SECTORS} {metadata.used_metadata_blocks}/{metadata.metadata_blocks}"
        return f"{usage} {metadata.current_era} {metadata.snapshot or '-'}"

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.origin_dev, 0, self.origin_dev.bdev.size

    def io_hints(self, limits: QueueLimits) -> None:
        size = self.block_size * SECTOR_SIZE
        if limits.io_opt < size or limits.io_opt % size:
            limits.io_min = max(limits.logical_block_size, limits.physical_block_size)
            limits.io_opt = size
