"""snapshot-merge: a snapshot that is written back into its origin (Linux `drivers/md/dm-snap.c`).

Arguments: those of snapshot; it stands in the place of the snapshot-origin. From the last exception backwards, runs of
chunks that follow each other in both devices are copied to the origin and then struck from the store. Writes to the
chunks under way wait; other chunks are read and written wherever they are by then.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import ClassVar

from ...model.dm_target import Bio, MapResult, Op
from ..actions import Actions, run
from .exception_store import PersistentStore
from .snapshot import Snapshot

__all__ = ["SnapshotMerge"]


class SnapshotMerge(Snapshot):
    name = "snapshot-merge"
    version = (1, 5, 0)
    num_flush_bios = 2
    is_merge: ClassVar[bool] = True

    def ctr(self, argv: Sequence[str]) -> None:
        self.merging = range(0)
        self.queued: list[Bio] = []
        self.running = self.shutdown = False
        super().ctr(argv)

    # -- the way of a bio -------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        if bio.op is Op.FLUSH:
            bio.bdev = self.cow.bdev if bio.target_bio_nr else self.origin.bdev
            return MapResult.REMAPPED
        return super().map(bio)

    def _map(self, bio: Bio, actions: Actions) -> MapResult:
        if bio.op is Op.DISCARD:  # of no use any more
            actions.append(bio.endio)
            return MapResult.SUBMITTED
        chunk = bio.sector // self.store.chunk_size
        new = self.complete.get(chunk) if self.valid else None
        if new is None:
            bio.bdev = self.origin.bdev
            if bio.op is Op.WRITE and self.origins.write(self.origin.bdev, bio.sector, bio, actions):
                return MapResult.SUBMITTED
            return MapResult.REMAPPED
        if bio.op is Op.WRITE:
            if chunk in self.merging:
                bio.bdev = self.origin.bdev
                self.queued.append(bio)
                return MapResult.SUBMITTED
            self._track(bio, chunk)
        self._remap(bio, new)
        return MapResult.REMAPPED

    # -- merging ----------------------------------------------------------------------------------------

    def resume(self) -> None:
        super().resume()
        with self.origins.lock:
            self.max_io_len = self.origins.minimum_chunk_size(self.origin.bdev)
            self.shutdown = False
            start, self.running = not self.running, True
        if start:
            self.queue_work(self._next_run)

    def presuspend(self) -> None:
        self.shutdown = True

    def presuspend_undo(self) -> None:
        self.resume()

    def dtr(self) -> None:
        self.shutdown = True
        super().dtr()

    def _next_run(self) -> None:
        with self.origins.lock:
            self.running = not self.shutdown and self.valid and not self.merge_failed
            if not self.running:
                if not self.valid:
                    self.log("Snapshot is invalid: can't merge", "snapshots")
                return
            self.hold()
        assert isinstance(self.store, PersistentStore)
        self.store.prepare_merge(self._found)

    def _found(self, error: int, count: int, last_old: int, last_new: int) -> None:
        if error:
            self._fail("Read error in exception store: shutting down merge")
        elif not count:
            self._end()
        else:
            self._prepare_run(range(last_old + 1 - count, last_old + 1), last_new + 1 - count)

    def _end(self) -> None:
        self.running = False
        self.release()

    def _prepare_run(self, chunks: range, new: int) -> None:
        """Have the other snapshots keep what is about to be overwritten, and the writes to these chunks end; then
        copy."""
        size = self.store.chunk_size
        actions: Actions = []

        def again() -> None:
            self.queue_work(lambda: self._prepare_run(chunks, new))

        with self.origins.lock:
            step = self.origins.minimum_chunk_size(self.origin.bdev)
            sectors = range(chunks.start * size, chunks.stop * size, step)
            needed = [self.origins.write(self.origin.bdev, sector, None, actions) for sector in sectors]
            if any(needed):
                self.origins.waiting.append(again)
            else:
                self.merging = chunks
                if not any(self.when_drained(chunk, again) for chunk in chunks):
                    actions.append(lambda: self._copy(chunks, new))
        run(actions)

    def _copy(self, chunks: range, new: int) -> None:
        size = self.store.chunk_size
        sector = chunks.start * size
        count = min(len(chunks) * size, self.origin.bdev.size - sector)

        def copied(read_failed: bool, write_failed: frozenset[int]) -> None:
            if read_failed or write_failed:
                self._fail(f"{'Read' if read_failed else 'Write'} error: shutting down merge.")
            else:
                self.submit(Op.FLUSH, self.origin.bdev, 0, None, flushed)

        def flushed(error: int) -> None:
            assert isinstance(self.store, PersistentStore)
            if error:
                self._fail("Flush after merge failed: shutting down merge")
            else:
                self.store.commit_merge(len(chunks), committed)

        def committed(error: int) -> None:
            if error:
                self._fail("Write error in exception store: shutting down merge")
            else:
                self._merged(chunks)

        self._kcopyd.copy((self.cow.bdev, new * size), [(self.origin.bdev, sector)], count, copied)

    def _merged(self, chunks: range) -> None:
        with self.origins.lock:
            for chunk in chunks:
                del self.complete[chunk]
            queued = self._take_queued()
        for bio in queued:
            self.origin.bdev.submit_bio(bio)
        self.queue_work(self._next_run)
        self.release()

    def _take_queued(self) -> list[Bio]:
        self.merging = range(0)
        queued, self.queued = self.queued, []
        return queued

    def _fail(self, why: str) -> None:
        self.log(why, "snapshots")
        with self.origins.lock:
            self.merge_failed = True
            queued = self._take_queued()
        for bio in queued:
            bio.endio(errno.EIO)
        self._end()
