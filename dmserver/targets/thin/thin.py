"""thin: a device whose blocks a pool provides when they are first written (Linux `drivers/md/dm-thin.c`).

Arguments: POOL DEVICE_ID [EXTERNAL_ORIGIN]. The pool is a mapped device with a `thin-pool` target; the origin is read
where nothing was written yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...model.dm_target import (
    SECTOR_SIZE,
    Bio,
    DmPdev,
    EndIo,
    Extent,
    MapResult,
    Op,
    QueueLimits,
    StatusType,
    Target,
    parse_uint,
)
from ..persistent_data.metadata import MetadataError
from .pool import Pool
from .pool_state import Mode
from .pools import Pools

__all__ = ["Thin", "parse_device_id"]

_MAX_DEVICE_ID = (1 << 24) - 1


def parse_device_id(text: str) -> int:
    """ValueError for what is none."""
    number = parse_uint(text, 64)
    if number > _MAX_DEVICE_ID:
        raise ValueError(f"{text}: expected at most {_MAX_DEVICE_ID}")
    return number


class _Carried:
    """The data `block` that a bio goes to."""

    block: int | None = None
    requeue = False


class Thin(Target):
    name = "thin"
    version = (1, 22, 0)
    module = "dm-thin-pool"
    per_bio_data = _Carried
    num_flush_bios = 1
    flush_supported = True

    # -- construction -----------------------------------------------------------------------------------

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) not in (2, 3):
            raise self.refuse("Invalid argument count")
        self.origin: DmPdev | None = None
        if len(argv) == 3:
            if argv[0] == argv[2]:
                raise self.refuse("Error setting origin device")
            self.origin = self.get_device(argv[2], "Error opening origin device")
        self.pool_dev = self.get_device(argv[0], "Error opening pool device")
        try:
            self.dev_id = parse_device_id(argv[1])
        except ValueError:
            raise self.refuse("Invalid device id") from None
        self.requeueing = False
        self._origin_size = 0
        self._open(self._find_pool())

    def _find_pool(self) -> Pool:
        if self.pool_dev.bdev.mapped_io is None:
            raise self.refuse("Couldn't get pool mapped device")
        pool = self.shared(Pools).of(self.pool_dev.bdev.mapped_io.device)
        if pool is None:
            raise self.refuse("Couldn't find pool object")
        if pool.mode is Mode.FAIL:
            raise self.refuse("Couldn't open thin device, Pool is in fail mode")
        return pool

    def _open(self, pool: Pool) -> None:
        self.pool = pool
        with pool.lock:
            try:
                self.device = pool.metadata.open_device(self.dev_id)
            except MetadataError as failure:
                raise self.refuse("Couldn't open thin internal device", failure.errno) from None
            if pool.suspended:
                pool.metadata.close_device(self.device)
                raise self.refuse("Unable to activate thin device while pool is suspended")
        self.shared(Pools).take(pool)
        pool.thins.append(self)
        self.max_io_len = pool.block_size
        if pool.features.discard_enabled:
            self.discards_supported = True
            self.num_discard_bios = 1

    def dtr(self) -> None:
        self.pool.thins.remove(self)
        if self.pool.suspended:
            self.table.device.internal_suspends -= 1
        with self.pool.lock:
            self.pool.metadata.close_device(self.device)
        self.shared(Pools).release(self.pool)

    # -- the way of a bio -------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        if bio.op in (Op.READ, Op.WRITE) and not bio.fua:
            with self.pool.lock:
                if self.pool.remap(self, bio):
                    return MapResult.REMAPPED
        self.pool.defer(self, bio)
        return MapResult.SUBMITTED

    def end_io(self, bio: Bio, error: int) -> int | EndIo:
        carried: _Carried = bio.per_bio
        if carried.block is not None:
            self.pool.leave(carried.block)
        return EndIo.REQUEUE if carried.requeue else error

    def read_origin(self, bio: Bio) -> None:
        """Read what was never written: the external origin, and zeroes where that has ended."""
        assert bio.data is not None
        sector = self.offset(bio.sector)
        inside = max(min(self._origin_size - sector, bio.nr_sectors), 0)
        bio.data[inside * SECTOR_SIZE :] = bytes((bio.nr_sectors - inside) * SECTOR_SIZE)
        if self.origin is None or not inside:
            bio.endio()
        else:
            self.submit(Op.READ, self.origin.bdev, sector, bio.data[: inside * SECTOR_SIZE], bio.endio)

    def origin_extent(self, virtual: int) -> Extent | None:
        """What of the external origin a new block begins with."""
        size = self.pool.block_size
        length = min(self._origin_size - virtual * size, size)
        if self.origin is None or length <= 0:
            return None
        return Extent(self.origin.bdev, virtual * size, length)

    # -- suspension -------------------------------------------------------------------------------------

    def presuspend(self) -> None:
        if not self.noflush_suspending:
            return
        self.requeueing = True
        for bio in self.pool.take_back(self):
            bio.per_bio.requeue = True
            bio.endio()

    def presuspend_undo(self) -> None:
        self.requeueing = False

    def postsuspend(self) -> None:
        self.requeueing = False

    def preresume(self) -> None:
        if self.origin is not None:
            self._origin_size = self.origin.bdev.size

    # -- what it shows ----------------------------------------------------------------------------------

    def status(self, kind: StatusType) -> str:
        pool = self.pool
        if pool.mode is Mode.FAIL:
            return "Fail"
        if kind is StatusType.TABLE:
            origin = f" {self.origin.number}" if self.origin else ""
            return f"{self.pool_dev.number} {self.dev_id}{origin}"
        with pool.lock:
            highest = pool.metadata.highest(self.device)
            last = "-" if highest is None else (highest + 1) * pool.block_size - 1
            return f"{self.device.mapped_blocks * pool.block_size} {last}"

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        size = self.pool_dev.bdev.size
        if blocks := size // self.pool.block_size:
            yield self.pool_dev, 0, blocks * self.pool.block_size

    def io_hints(self, limits: QueueLimits) -> None:
        if self.pool.features.discard_enabled:
            limits.discard_granularity = self.pool.block_size * SECTOR_SIZE
