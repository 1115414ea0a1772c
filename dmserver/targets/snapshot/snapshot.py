"""snapshot: what a device was like, and what is written over it since (Linux `drivers/md/dm-snap.c`).

Arguments: ORIGIN COW TYPE CHUNK_SIZE [NUM FEATURE...]; TYPE as in `exception_store`, features discard_zeroes_cow and
discard_passdown_origin.

Theory of operation. A chunk has an exception once it lies in the COW device; until then it is read from the origin.
A write to the snapshot, or to the origin through snapshot-origin, first makes a `Pending` exception: the chunk is
copied (or, when a bio covers it, written) to the COW device, the store commits, and then the bios that wait go on:
those of the snapshot to the COW device, those of the origin to the origin. Exceptions are committed in the order in
which their chunks were handed out. An origin's write also waits for reads of its chunk through the snapshot.

A table that replaces another with the same COW device takes the exceptions over when it is resumed (`_hand_over`).
"""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ...model.dm_target import (
    SECTOR_SIZE,
    Arguments,
    Bio,
    DmPdev,
    Kcopyd,
    MapResult,
    Op,
    QueueLimits,
    StatusType,
    Target,
    TargetError,
)
from ..actions import Actions, run
from . import exception_store
from .origins import Origins

__all__ = ["Pending", "Snapshot"]

FEATURES = ("discard_zeroes_cow", "discard_passdown_origin")


@dataclass(slots=True, eq=False)
class Pending:
    """An exception that is being made (`struct dm_snap_pending_exception`)."""

    old: int
    new: int
    sequence: int
    started: bool = False
    snapshot_bios: list[Bio] = field(default_factory=list)
    origin_bios: list[Bio] = field(default_factory=list)
    full_bio: Bio | None = None


class _Carried:
    """The chunk that a bio is tracked in."""

    chunk: int | None = None


class Snapshot(Target):
    name = "snapshot"
    version = (1, 16, 0)
    module = "dm-snapshot"
    per_bio_data = _Carried
    num_flush_bios = 1
    is_merge: ClassVar[bool] = False

    # -- construction -----------------------------------------------------------------------------------

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) < 4:
            raise self.refuse("requires 4 or more arguments")
        self._parse_features(Arguments(argv[4:]))
        self.origin = self.get_device(argv[0], "Cannot get origin device")
        self.cow = self.get_device(argv[1], "Cannot get COW device")
        if self.cow.bdev is self.origin.bdev:
            raise self.refuse("COW device cannot be the same as origin device")
        try:
            self.store = exception_store.create(self, self.origin, self.cow, argv[2:4])
        except TargetError:
            raise self.refuse("Couldn't create exception store") from None
        self._check_merging(self.store)
        self.origins = self.shared(Origins)
        self.valid = True
        self.active = self.overflowed = self.merge_failed = False
        self.complete: dict[int, int] = {}
        self.pending: dict[int, Pending] = {}
        self.tracked: Counter[int] = Counter()
        self._drained: dict[int, Actions] = {}
        self._kcopyd = Kcopyd()
        self._next_sequence = self._next_commit = 0
        self._copied: dict[int, tuple[Pending, bool]] = {}
        with self.origins.lock:
            takes_over = self._check_handover()
            self.origins.register(self)
        if takes_over:
            self.store.chunk_size = 0  # that of the other one will count
            return
        try:
            self._read_metadata()
        except TargetError:
            self.origins.unregister(self)
            raise

    def _parse_features(self, args: Arguments) -> None:
        self.discard_zeroes_cow = self.discard_passdown_origin = False
        if not args:
            return
        try:
            count = args.group(0, 2)
        except ValueError:
            raise self.refuse("Invalid number of feature arguments") from None
        complaint = ""
        for feature in args.take(count):
            if feature.lower() not in FEATURES:
                complaint = "Unrecognised feature requested"
                break
            setattr(self, feature.lower(), True)
        if self.discard_passdown_origin and not self.discard_zeroes_cow:
            complaint = "discard_passdown_origin feature depends on discard_zeroes_cow"
        if complaint:
            raise self.refuse(complaint)
        self.num_discard_bios = self.discard_zeroes_cow + self.discard_passdown_origin

    def _check_handover(self) -> bool:
        """Whether the exceptions are to come from a snapshot that is running (`__validate_exception_handover`)."""
        count, source, destination, merging = self.origins.sharing_cow(self)
        if count == 2 or destination:
            raise self.refuse("Snapshot cow pairing for exception table handover failed")
        if source is None:
            return False
        if self.is_merge:
            if merging:
                raise self.refuse("A snapshot is already merging.")
            self._check_merging(source.store)
        return True

    def _check_merging(self, store: exception_store.ExceptionStore) -> None:
        if self.is_merge and not store.can_merge:
            raise self.refuse("Snapshot exception store does not support snapshot-merge.")

    def _read_metadata(self) -> None:
        try:
            self.valid, self.complete = self.store.read_metadata()
        except TargetError as failure:
            raise self.refuse("Failed to read snapshot metadata", failure.errno) from None
        if not self.valid:
            self.log("Snapshot is marked invalid.", "snapshots")
        if not self.store.chunk_size:
            raise self.refuse("Chunk size not set")
        self.max_io_len = self.store.chunk_size

    # -- the way of a bio -------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        if bio.op is Op.FLUSH:
            bio.bdev = self.cow.bdev
            return MapResult.REMAPPED
        actions: Actions = []
        with self.origins.lock:
            result = self._map(bio, actions)
        run(actions)
        return result

    def _map(self, bio: Bio, actions: Actions) -> MapResult:
        if not self.valid or (self.overflowed and bio.op is not Op.READ):
            return MapResult.KILL
        if bio.op is Op.DISCARD:
            return self._discard(bio, actions)
        chunk = bio.sector // self.store.chunk_size
        new = self.complete.get(chunk)
        if new is not None:
            self._remap(bio, new)
            return MapResult.REMAPPED
        if bio.op is Op.READ:
            bio.bdev = self.origin.bdev
            self._track(bio, chunk)
            return MapResult.REMAPPED
        pending = self.pending.get(chunk) or self._prepare(chunk)
        if pending is None:
            if not self.store.overflow_supported:
                self._invalidate("Unable to allocate exception.", actions)
            elif not self.overflowed:
                self.overflowed = True
                self.log("Snapshot overflowed: Unable to allocate exception.", "snapshots")
            return MapResult.KILL
        self._remap(bio, pending.new)
        if not pending.started and bio.nr_sectors == self.store.chunk_size:
            pending.started = True
            pending.full_bio = bio
            actions.append(lambda: self._write_whole(pending, bio))
            return MapResult.SUBMITTED
        pending.snapshot_bios.append(bio)
        if not pending.started:
            pending.started = True
            actions.append(self.copy_action(pending))
        return MapResult.SUBMITTED

    def _remap(self, bio: Bio, new: int) -> None:
        size = self.store.chunk_size
        bio.bdev, bio.sector = self.cow.bdev, new * size + bio.sector % size

    def _discard(self, bio: Bio, actions: Actions) -> MapResult:
        """The second copy goes to the origin; the first zeroes the exceptions of whole chunks."""
        if bio.target_bio_nr:
            bio.bdev = self.origin.bdev
            return MapResult.REMAPPED
        size = self.store.chunk_size
        chunks = range(-(-bio.sector // size), (bio.sector + bio.nr_sectors) // size)
        found = [self.complete[chunk] for chunk in chunks if chunk in self.complete]
        actions.append(lambda: self._zero(found, bio))
        return MapResult.SUBMITTED

    def _zero(self, chunks: list[int], bio: Bio, error: int = 0) -> None:
        if error or not chunks:
            bio.endio(error)
            return
        size = self.store.chunk_size
        zeroes = memoryview(bytes(size * SECTOR_SIZE))
        chunk = chunks.pop()
        self.submit(Op.WRITE, self.cow.bdev, chunk * size, zeroes, lambda error: self._zero(chunks, bio, error))

    def end_io(self, bio: Bio, error: int) -> int:
        if bio.per_bio.chunk is not None:
            self._untrack(bio.per_bio.chunk)
        return error

    def _track(self, bio: Bio, chunk: int) -> None:
        bio.per_bio.chunk = chunk
        self.tracked[chunk] += 1

    def _untrack(self, chunk: int) -> None:
        actions: Actions = []
        with self.origins.lock:
            self.tracked[chunk] -= 1
            if not self.tracked[chunk]:
                del self.tracked[chunk]
                actions = self._drained.pop(chunk, [])
        run(actions)

    def when_drained(self, chunk: int, action: Callable[[], None]) -> bool:
        """Under the lock: have `action` called once no tracked bio is in `chunk`. False when there is none."""
        if not self.tracked[chunk]:
            return False
        self._drained.setdefault(chunk, []).append(action)
        return True

    # -- making exceptions ------------------------------------------------------------------------------

    def _prepare(self, chunk: int) -> Pending | None:
        new = self.store.prepare()
        if new is None:
            return None
        pending = self.pending[chunk] = Pending(chunk, new, self._next_sequence)
        self._next_sequence += 1
        self.hold()
        return pending

    def exception_for_origin(self, sector: int, actions: Actions) -> Pending | None:
        """Under the lock: what a write to `sector` of the origin has to wait for."""
        if self.is_merge or sector >= self.table.size or not self.valid or not self.active:
            return None
        chunk = sector // self.store.chunk_size
        if chunk in self.pending:
            return self.pending[chunk]
        if chunk in self.complete:
            return None
        pending = self._prepare(chunk)
        if pending is None:
            self._invalidate("Unable to allocate exception.", actions)
        return pending

    def copy_action(self, pending: Pending) -> Callable[[], None]:
        """Copies the chunk from the origin to the COW device."""
        size = self.store.chunk_size
        sector = pending.old * size

        def copied(read_failed: bool, write_failed: frozenset[int]) -> None:
            self._copy_done(pending, not read_failed and not write_failed)

        def copy() -> None:
            count = min(size, self.origin.bdev.size - sector)
            destination = (self.cow.bdev, pending.new * size)
            self._kcopyd.copy((self.origin.bdev, sector), [destination], count, copied)

        return copy

    def _write_whole(self, pending: Pending, bio: Bio) -> None:
        """A bio that covers the chunk needs no copy."""
        self.submit(
            Op.WRITE,
            self.cow.bdev,
            bio.sector,
            bio.data,
            lambda error: self._copy_done(pending, not error),
            fua=bio.fua,
        )

    def _copy_done(self, pending: Pending, copied: bool) -> None:
        """Commit, in the order of `_prepare`."""
        with self.origins.lock:
            self._copied[pending.sequence] = pending, copied
            while item := self._copied.pop(self._next_commit, None):
                self._next_commit += 1
                self._commit(*item)
        self.store.pump()

    def _commit(self, pending: Pending, copied: bool) -> None:
        self.store.commit(pending.old, pending.new, copied, lambda valid: self._committed(pending, valid))

    def _committed(self, pending: Pending, valid: bool) -> None:
        """The chunk is safe, or the snapshot is lost (`pending_complete`)."""
        actions: Actions = []
        with self.origins.lock:
            if not valid:
                self._invalidate("Error reading/writing.", actions)
            failed = not self.valid
            if not failed:
                self.complete[pending.old] = pending.new
            if failed or not self.when_drained(pending.old, lambda: self._finish(pending, 0)):
                actions.append(lambda: self._finish(pending, errno.EIO if failed else 0))
        run(actions)

    def _finish(self, pending: Pending, error: int) -> None:
        """What waited goes on."""
        with self.origins.lock:
            del self.pending[pending.old]
            waiting, self.origins.waiting = self.origins.waiting, []
        if pending.full_bio is not None:
            pending.full_bio.endio(error)
        for bio in pending.snapshot_bios:
            if error:
                bio.endio(error)
            else:
                self.cow.bdev.submit_bio(bio)
        for bio in pending.origin_bios:
            self.origins.send(self.origin.bdev, bio)
        self.release()
        run(waiting)

    def _invalidate(self, why: str, actions: Actions) -> None:
        if not self.valid:
            return
        self.log(f"Invalidating snapshot: {why}", "snapshots")
        self.valid = False
        self.hold()

        def dropped(error: int) -> None:
            self.event()
            self.release()

        actions.append(lambda: self.store.drop(dropped))

    # -- suspend, resume, handover ----------------------------------------------------------------------

    def preresume(self) -> None:
        with self.origins.lock:
            _, source, destination, _ = self.origins.sharing_cow(self)
        if source is None or destination is None:
            return
        if self is source:
            self.log("Unable to resume snapshot source until handover completes.", "snapshots")
            raise TargetError(errno.EINVAL)
        if not source.table.device.suspended:
            self.log("Unable to perform snapshot handover until source is suspended.", "snapshots")
            raise TargetError(errno.EINVAL)

    def resume(self) -> None:
        while not self._try_resume():
            pass

    def _try_resume(self) -> bool:
        """False when the exceptions that were being made for the origin had to be waited for."""
        made = threading.Event()
        with self.origins.lock:
            _, source, destination, _ = self.origins.sharing_cow(self)
            takes_over = source is not None and destination is self
            if source is None or not takes_over or not source.pending:
                if source is not None and takes_over:
                    self._take_over(source)
                self.origins.unregister(self)
                self.origins.register(self)
                self.active = True
                return True
            self.origins.waiting.append(made.set)
        made.wait()
        return False

    def _take_over(self, source: Snapshot) -> None:
        """Exchange exceptions and store with a snapshot that is suspended (`__handover_exceptions`)."""
        for name in ("store", "complete"):
            mine, theirs = getattr(self, name), getattr(source, name)
            setattr(self, name, theirs)
            setattr(source, name, mine)
        self.store.target, source.store.target = self, source
        self.store.overflow_supported = source.store.overflow_supported
        self.max_io_len = self.store.chunk_size
        self.valid, self.overflowed = source.valid, source.overflowed
        source.valid = False

    def dtr(self) -> None:
        with self.origins.lock:
            _, source, destination, _ = self.origins.sharing_cow(self)
            if source is self and destination is not None:
                destination.valid = False
                self.log("Cancelling snapshot handover.", "snapshots")
            self.origins.unregister(self)

    # -- what it tells ----------------------------------------------------------------------------------

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.TABLE:
            words = [self.origin.number, self.cow.number, self.store.table()]
            features = [name for name in FEATURES if getattr(self, name)]
            return " ".join([*words, str(len(features)), *features] if features else words)
        if not self.valid:
            return "Invalid"
        if self.merge_failed:
            return "Merge failed"
        if self.overflowed:
            return "Overflow"
        used, metadata = self.store.usage()
        return f"{used}/{self.cow.bdev.size} {metadata}"

    def ima_status(self) -> str:
        return self.ima_line(
            {
                "snap_origin_name": self.origin.number,
                "snap_cow_name": self.cow.number,
                "snap_valid": self.valid,
                "snap_merge_failed": self.merge_failed,
                "snapshot_overflowed": self.overflowed,
            }
        )

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.origin, 0, self.len
        yield self.cow, 0, self.cow.bdev.size

    def io_hints(self, limits: QueueLimits) -> None:
        if self.discard_zeroes_cow:
            limits.discard_granularity = self.store.chunk_size * SECTOR_SIZE
