"""mirror: the same data on several devices (Linux `drivers/md/dm-raid1.c`).

Arguments: LOG NUM LOG_ARGUMENT... LEGS (DEVICE START)... [NUM FEATURE...]; logs are those of `dirty_log`, features
handle_errors and keep_log.

A mirror is cut into regions; `region_hash` tells what may be done to each, `dirty_log` which are in sync. Writes
are sent from the thread that brings them; `_do_mirror` sees to recovery and failures in a worker. A failed write
makes its region NOSYNC. Without handle_errors it then counts as done; with it, it is held until a suspension:
someone is expected to see the event and load a better table. A suspension waits for the worker and the log, so
that a resume finds nothing going on, and the log on its disk as it is in memory.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence

from ...model.dm_target import (
    Arguments,
    Bio,
    DmPdev,
    EndIo,
    Kcopyd,
    MapResult,
    Op,
    StatusType,
    Target,
    TargetError,
    parse_sector,
    parse_u32,
)
from ..steps import Request, gather
from . import dirty_log
from .legs import Leg, Legs
from .region_hash import Region, RegionHash, State

__all__ = ["Mirror"]

MAX_LEGS = 9


class _Carried:
    """`sector` in the target; `leg` that a read was mapped to; `region` that a write was counted in."""

    sector = 0
    leg: Leg | None = None
    region: Region | None = None
    nosync = False
    requeue = False


class Mirror(Target):
    name = "mirror"
    version = (1, 14, 0)
    per_bio_data = _Carried
    num_flush_bios = num_discard_bios = 1

    # -- construction -----------------------------------------------------------------------------------

    def ctr(self, argv: Sequence[str]) -> None:
        args = Arguments(argv)
        self.region_log = self._create_log(args)
        count = self._number(args, "Invalid number of mirrors")
        if not 2 <= count <= MAX_LEGS:
            raise self.refuse("Invalid number of mirrors")
        if len(args) < 2 * count:
            raise self.refuse("Too few mirror arguments")
        self.legs = Legs(self._leg(*args.take(2)) for _ in range(count))
        self.max_io_len = self.region_log.region_size
        self._parse_features(args)
        if args:
            raise self.refuse("Too many mirror arguments")
        self._lock = threading.RLock()
        self._kcopyd = Kcopyd()
        self._regions = RegionHash(self.region_log)
        self._recovered: list[tuple[Region, bool]] = []
        self._unlogged: list[Bio] = []
        self._failures: list[Bio] = []
        self._holds: list[Bio] = []
        self._logging = self._scheduled = self._dead = False
        self._recovery_allowed = self.suspending = False
        self.log_failure = self.leg_failure = False
        self.in_sync = self.region_log.sync_count == self.region_log.region_count

    def _number(self, args: Arguments, complaint: str) -> int:
        try:
            return parse_u32(args.shift())
        except ValueError:
            raise self.refuse(complaint) from None

    def _create_log(self, args: Arguments) -> dirty_log.CoreLog:
        if len(args) < 2:
            raise self.refuse("Insufficient mirror log arguments")
        kind = args.shift()
        count = self._number(args, "Invalid mirror log argument count")
        if len(args) < count:
            raise self.refuse("Insufficient mirror log arguments")
        try:
            return dirty_log.create(self, kind, args.take(count), self._flush_legs)
        except TargetError:
            raise self.refuse("Error creating mirror dirty log") from None

    def _leg(self, path: str, start: str) -> Leg:
        try:
            offset = parse_sector(start)
        except ValueError:
            raise self.refuse("Invalid offset") from None
        return Leg(self.get_device(path, "Device lookup failure"), offset)

    def _parse_features(self, args: Arguments) -> None:
        self.handle_errors = self.keep_log = False
        if not args:
            return
        count = self._number(args, "Invalid number of features")
        if count > len(args):
            raise self.refuse("Not enough arguments to support feature count")
        for feature in args.take(count):
            if feature not in ("handle_errors", "keep_log"):
                raise self.refuse("Unrecognised feature requested")
            setattr(self, feature, True)
        if self.keep_log and not self.handle_errors:
            raise self.refuse("keep_log feature requires the handle_errors feature")

    def dtr(self) -> None:
        self._update_states()
        self._dead = True

    # -- the way of a bio -------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        bio.per_bio.sector = self.offset(bio.sector)
        if bio.op is Op.READ:
            if not self.region_log.in_sync(bio.per_bio.sector // self.region_log.region_size):
                self._read(bio)
                return MapResult.SUBMITTED
            leg = self.legs.choose()
            if leg is None:
                return MapResult.KILL
            bio.per_bio.leg = leg
            bio.bdev, bio.sector = leg.dev.bdev, leg.offset + bio.per_bio.sector
            return MapResult.REMAPPED
        if bio.op is Op.WRITE:
            self._write(bio)
        else:
            with self._lock:
                self._unlogged.append(bio)
            self._flush_log()
        return MapResult.SUBMITTED

    def end_io(self, bio: Bio, error: int) -> int | EndIo:
        carried: _Carried = bio.per_bio
        if bio.op is Op.READ:
            leg, carried.leg = carried.leg, None
            if error and leg is None:
                self.log("Mirror read failed.", "raid1")
            elif error and leg is not None:
                self.log(f"Mirror read failed from {leg.dev.number}. Trying alternative device.", "raid1")
                self._fail_leg(leg, "R")
                if self._readable(carried.sector):
                    self._read(bio)
                    return EndIo.INCOMPLETE
                self.log("All replicated volumes dead, failing I/O", "raid1")
            return error
        region, carried.region = carried.region, None
        if region is not None:
            with self._lock:
                self._regions.leave(region)
            self._wake()
        return EndIo.REQUEUE if carried.requeue else error

    # -- reads ------------------------------------------------------------------------------------------

    def _readable(self, sector: int) -> bool:
        """Some good leg has what is at `sector`."""
        if not self.legs.default.errors:
            return True
        return self.region_log.in_sync(sector // self.region_log.region_size) and self.legs.choose() is not None

    def _read(self, bio: Bio) -> None:
        sector = bio.per_bio.sector
        if self.region_log.in_sync(sector // self.region_log.region_size):
            leg = self.legs.choose()
        else:
            leg = None if self.legs.default.errors else self.legs.default
        if leg is None:
            bio.endio(errno.EIO)
            return

        def done(error: int) -> None:
            if not error:
                bio.endio()
                return
            self._fail_leg(leg, "R")
            if self._readable(sector):
                self.log(f"Read failure on mirror device {leg.dev.number}. Trying alternative device.", "raid1")
                self._read(bio)
            else:
                self.log(f"Read failure on mirror device {leg.dev.number}.  Failing I/O.", "raid1")
                bio.endio(errno.EIO)

        self.submit(Op.READ, leg.dev.bdev, leg.offset + sector, bio.data, done)

    # -- writes -----------------------------------------------------------------------------------------

    def _write(self, bio: Bio) -> None:
        """Count a write in, and send it once the log knows; unless its region is being copied."""
        with self._lock:
            region = self._regions.enter(bio.per_bio.sector // self.region_log.region_size, bio)
            if region is None:
                return
            bio.per_bio.region = region
            bio.per_bio.nosync = region.state is State.NOSYNC
            self._unlogged.append(bio)
        self._flush_log()

    def _flush_log(self) -> None:
        """Bring the log to the disk, then send the writes that waited for that; one flush at a time."""
        while True:
            with self._lock:
                if self._logging:
                    return
                flush = self.region_log.begin_flush()
                batch, self._unlogged = self._unlogged, []
                if flush is None and not batch:
                    return
                self._logging = flush is not None
            if flush is not None:
                self.hold()
                flush(lambda error, batch=batch: self._logged(batch, error))  # type: ignore[misc]  # its default
                return
            for bio in batch:
                self._dispatch(bio)

    def _logged(self, batch: list[Bio], error: int) -> None:
        with self._lock:
            self._logging = False
            self.log_failure |= bool(error)
        for bio in batch:
            self._dispatch(bio)
        self._flush_log()
        self.release()

    def _dispatch(self, bio: Bio) -> None:
        if bio.per_bio.nosync:
            if self.leg_failure and self.handle_errors and not self.keep_log:
                self._fail(bio)
            else:
                leg = self.legs.default
                self.submit(bio.op, leg.dev.bdev, leg.offset + bio.per_bio.sector, bio.data, bio.endio, fua=bio.fua)
        elif self.log_failure and self.handle_errors:
            self._fail(bio)
        else:
            self._send(bio)

    def _send(self, bio: Bio) -> None:
        """To all legs."""
        data: memoryview | int | None = bio.data
        if bio.op is Op.DISCARD:
            data = bio.nr_sectors

        def done(failed: set[Leg]) -> None:
            if not failed:
                bio.endio()
            elif bio.op is Op.DISCARD:
                bio.endio(errno.EOPNOTSUPP)
            else:
                for leg in failed:
                    self._fail_leg(leg, "D")
                self._fail(bio)

        sector = 0 if bio.op is Op.FLUSH else bio.per_bio.sector
        self._on_all_legs(bio.op, sector, data, done, fua=bio.fua)

    def _on_all_legs(
        self, op: Op, sector: int, data: memoryview | int | None, done: Callable[[set[Leg]], None], *, fua: bool = False
    ) -> None:
        def ended(errors: list[int]) -> None:
            done({leg for leg, error in zip(self.legs, errors, strict=True) if error})

        places = [(leg.dev.bdev, 0 if op is Op.FLUSH else leg.offset + sector) for leg in self.legs]
        gather([Request(op, bdev, at, data, fua) for bdev, at in places], ended)

    def _flush_legs(self, done: Callable[[int], None]) -> None:
        def flushed(failed: set[Leg]) -> None:
            for leg in failed:
                self._fail_leg(leg, "F")
            done(errno.EIO if failed else 0)

        self._on_all_legs(Op.FLUSH, 0, None, flushed)

    # -- failures ---------------------------------------------------------------------------------------

    def _fail_leg(self, leg: Leg, how: str) -> None:
        with self._lock:
            self.leg_failure = True
            known = how in leg.errors
            leg.errors.add(how)
            if known or not self.handle_errors:
                return
            if leg is self.legs.default:
                if not self.in_sync and not self.keep_log:
                    number = leg.dev.number
                    self.log(f"Primary mirror ({number}) failed while out-of-sync: Reads may fail.", "raid1")
                elif valid := self.legs.valid():
                    self.legs.default = valid
                else:
                    self.log("All sides of mirror have failed.", "raid1")
        self.queue_work(self.event)

    def _fail(self, bio: Bio) -> None:
        with self._lock:
            self._failures.append(bio)
        self._wake()

    def _do_failures(self, failures: list[Bio]) -> None:
        for bio in failures:
            if not self.log_failure:
                self.in_sync = False
                self._mark_nosync(bio)
            if self.legs.valid() is None or (self.keep_log and self.log_failure):
                bio.endio(errno.EIO)
            elif self.handle_errors and not self.keep_log:
                self._hold(bio)
            else:
                bio.endio()

    def _mark_nosync(self, bio: Bio) -> None:
        with self._lock:
            region = bio.per_bio.region
            if region is None:
                self._regions.flush_failure |= bio.op is Op.FLUSH
                return
            recovered = self._regions.mark_nosync(region)
        if recovered:
            self._complete_recovery(region, False)

    def _hold(self, bio: Bio) -> None:
        """Keep a failed write until a suspension, which gives it back."""
        with self._lock:
            if not self.suspending:
                self._holds.append(bio)
                return
        bio.per_bio.requeue = self.noflush_suspending
        bio.endio(errno.EIO)

    # -- the worker: recovery and failures --------------------------------------------------------------

    def _wake(self) -> None:
        with self._lock:
            if self._scheduled:
                return
            self._scheduled = True
            self.hold()
        self.queue_work(self._do_mirror)

    def _do_mirror(self) -> None:
        with self._lock:
            self._scheduled = False
            failures, self._failures = self._failures, []
        if not self._dead:
            self._update_states()
            self._do_recovery()
        self._do_failures(failures)
        self.release()

    def _update_states(self) -> None:
        with self._lock:
            self._regions.clean()
            recovered, self._recovered = self._recovered, []
        for region, success in recovered:
            if success:
                with self._lock:
                    self.region_log.clear_region(region.key)
            self._complete_recovery(region, success or not self.handle_errors)
        self._flush_log()

    def _do_recovery(self) -> None:
        with self._lock:
            if self._recovery_allowed and self._regions.prepare_recovery():
                self.hold()
            region = self._regions.start_recovery()
            complete = not self.in_sync and self.region_log.sync_count == self.region_log.region_count
            self.in_sync |= complete
            if complete:
                for leg in self.legs:
                    leg.errors.clear()
                self.leg_failure = False
        if complete:
            self.event()
        if region is not None:
            self._recover(region)

    def _recover(self, region: Region) -> None:
        sector = region.key * self.region_log.region_size
        source = self.legs.default
        others = [leg for leg in self.legs if leg is not source]

        def done(read_failed: bool, write_failed: frozenset[int]) -> None:
            if read_failed:
                self.log("Unable to read primary mirror during recovery", "raid1")
                self._fail_leg(source, "S")
            if write_failed:
                self.log(f"Write error during recovery (error = {sum(1 << n for n in write_failed):#x})", "raid1")
                for number in write_failed:
                    self._fail_leg(others[number], "S")
            with self._lock:
                self._recovered.append((region, not read_failed and not write_failed))
            self._wake()

        self._kcopyd.copy(
            (source.dev.bdev, source.offset + sector),
            [(leg.dev.bdev, leg.offset + sector) for leg in others],
            min(self.region_log.region_size, self.len - sector),
            done,
        )

    def _complete_recovery(self, region: Region, success: bool) -> None:
        """Its writes go on (`complete_resync_work`)."""
        with self._lock:
            delayed = self._regions.end_recovery(region, success)
        for bio in delayed:
            self._write(bio)
        self.release()
        self._wake()

    # -- suspend and resume -----------------------------------------------------------------------------

    def presuspend(self) -> None:
        with self._lock:
            self.suspending = True
            self._recovery_allowed = False
            holds, self._holds = self._holds, []
        for bio in holds:
            self._hold(bio)

    def presuspend_undo(self) -> None:
        self.suspending = False
        self._recovery_allowed = True
        self._wake()

    def resume(self) -> None:
        if self.region_log.resume():
            self.log("log resume failed", "raid1")
        self.presuspend_undo()

    # -- what it tells ----------------------------------------------------------------------------------

    def status(self, kind: StatusType) -> str:
        log = self.region_log.status(kind)
        if kind is StatusType.INFO:
            names = " ".join(leg.dev.number for leg in self.legs)
            health = "".join(leg.health for leg in self.legs)
            return (
                f"{len(self.legs)} {names} {self.region_log.sync_count}/{self.region_log.region_count} 1 {health} {log}"
            )
        words = [log, str(len(self.legs)), *(f"{leg.dev.number} {leg.offset}" for leg in self.legs)]
        features = [name for name in ("handle_errors", "keep_log") if getattr(self, name)]
        return " ".join([*words, str(len(features)), *features] if features else words)

    def ima_status(self) -> str:
        values: dict[str, object] = {"nr_mirrors": len(self.legs)}
        for number, leg in enumerate(self.legs):
            values[f"mirror_device_{number}"] = leg.dev.number
            values[f"mirror_device_{number}_status"] = leg.health
        values |= {"handle_errors": self.handle_errors, "keep_log": self.keep_log, "log_type_status": ""}
        return self.ima_line(values)

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        for leg in self.legs:
            yield leg.dev, leg.offset, self.len
