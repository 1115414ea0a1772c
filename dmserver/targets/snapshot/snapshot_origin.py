"""snapshot-origin: a device of which snapshots are kept (Linux `drivers/md/dm-snap.c`).

Argument: DEVICE. What is about to be overwritten goes to the snapshots of the device first.

The chunks into which writes are cut are those of the snapshots that are there when the origin is resumed. With a later
snapshot, only the first chunk of a larger write is kept, as on Linux: resume the origin after its snapshots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...model.dm_target import Bio, DmPdev, MapResult, Op, StatusType, Target
from ..actions import Actions, run
from .origins import Origins

__all__ = ["SnapshotOrigin"]


class SnapshotOrigin(Target):
    name = "snapshot-origin"
    version = (1, 9, 0)
    module = "dm-snapshot"
    num_flush_bios = 1
    splits_reads = False

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) != 1:
            raise self.refuse("origin: incorrect number of arguments")
        self.dev = self.get_device(argv[0], "Cannot get target device")
        self.origins = self.shared(Origins)

    def map(self, bio: Bio) -> MapResult:
        bio.bdev = self.dev.bdev
        if bio.op is not Op.WRITE:
            return MapResult.REMAPPED
        actions: Actions = []
        with self.origins.lock:
            wait = self.origins.write(self.dev.bdev, bio.sector, bio, actions)
        run(actions)
        return MapResult.SUBMITTED if wait else MapResult.REMAPPED

    def resume(self) -> None:
        with self.origins.lock:
            self.max_io_len = self.origins.minimum_chunk_size(self.dev.bdev)

    def status(self, kind: StatusType) -> str:
        return self.dev.number if kind is StatusType.TABLE else ""

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.dev, 0, self.len
