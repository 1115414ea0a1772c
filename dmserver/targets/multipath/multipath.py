"""multipath: one device reached by several paths (Linux `drivers/md/dm-mpath.c`).

Arguments: NUM FEATURE... NUM HW_HANDLER_ARGUMENT... GROUPS FIRST, then for each priority group SELECTOR NUM
SELECTOR_ARGUMENT... PATHS PATH_ARGUMENTS (DEVICE PATH_ARGUMENT...)...; selectors are those of `path_selectors`.

Bios take the paths of the current group. One that fails on its way makes its path fail and is mapped again; when no
path is left anywhere, bios fail, or wait (queue_if_no_path) until a path is reinstated. There are no hardware handlers.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ...model.dm_target import (
    Arguments,
    Bio,
    DmPdev,
    EndIo,
    MapResult,
    StatusType,
    Target,
    TargetError,
    TargetFeature,
    parse_u32,
)
from .path_selectors import SELECTORS, Path, PathSelector

__all__ = ["Multipath"]

PG_INIT_DELAY_DEFAULT = -1
#: Errors that another path would give as well (`blk_path_error`).
NOT_OF_THE_PATH = frozenset((errno.EOPNOTSUPP, errno.ENOSPC, errno.EREMOTEIO, errno.EBADE, errno.ENODATA, errno.EILSEQ))


@dataclass(slots=True, eq=False)
class PriorityGroup:
    number: int
    selector: PathSelector
    paths: list[Path] = field(default_factory=list)
    bypassed: bool = False


class _Carried:
    """The path that a bio is on, and its size (`struct dm_mpath_io`)."""

    path: Path | None = None
    nr_bytes = 0
    requeue = False


class Multipath(Target):
    name = "multipath"
    version = (1, 14, 0)
    features = TargetFeature.SINGLETON | TargetFeature.IMMUTABLE
    per_bio_data = _Carried
    num_flush_bios = num_discard_bios = num_write_zeroes_bios = 1

    # -- construction -----------------------------------------------------------------------------------

    def ctr(self, argv: Sequence[str]) -> None:
        args = Arguments(argv)
        self._lock = threading.RLock()
        self._queued: list[Bio] = []
        self.groups: list[PriorityGroup] = []
        self.current: PriorityGroup | None = None
        self.next: PriorityGroup | None = None
        self.queue_io = True  #: no path was looked for yet
        self._parse_features(args)
        self._parse_hw_handler(args)
        count = self._read(lambda: args.number(0, 1024), "invalid number of priority groups")
        first = self._read(lambda: args.number(0, 1024), "invalid initial priority group number")
        if bool(count) != bool(first):
            raise self.refuse("invalid initial priority group")
        while args:
            self.groups.append(self._parse_group(args, len(self.groups) + 1))
        if len(self.groups) != count:
            raise self.refuse("priority group count mismatch")
        if 0 < first <= count:
            self.next = self.groups[first - 1]

    def _read(self, read: Callable[[], int], complaint: str) -> int:
        try:
            return read()
        except ValueError:
            raise self.refuse(complaint) from None

    def _parse_features(self, args: Arguments) -> None:
        self.queue_if_no_path = self.saved_queue_if_no_path = self.retain_hw_handler = False
        self.pg_init_retries = 0
        self.pg_init_delay_msecs = PG_INIT_DELAY_DEFAULT
        self.request_based = True
        count = self._read(lambda: args.group(0, 8), "invalid number of feature args")
        end = len(args) - count
        while len(args) > end:
            feature = args.shift().lower()
            more = len(args) > end
            if feature == "queue_if_no_path":
                self.queue_if_no_path = True
            elif feature == "retain_attached_hw_handler":
                self.retain_hw_handler = True
            elif feature == "pg_init_retries" and more:
                complaint = "pg_init_retries must be between 1 and 50"
                self.pg_init_retries = self._read(lambda: args.number(1, 50), complaint)
            elif feature == "pg_init_delay_msecs" and more:
                complaint = "pg_init_delay_msecs must be between 0 and 60000"
                self.pg_init_delay_msecs = self._read(lambda: args.number(0, 60000), complaint)
            elif feature == "queue_mode" and more:
                mode = args.shift().lower()
                if mode not in ("bio", "rq", "mq"):
                    raise self.refuse("Unknown 'queue_mode' requested")
                self.request_based = mode != "bio"
            else:
                raise self.refuse("Unrecognised multipath feature request")
        self.retain_hw_handler |= not self.request_based

    def _parse_hw_handler(self, args: Arguments) -> None:
        self.hw_handler = ""
        count = self._read(lambda: args.group(0, 1024), "invalid number of hardware handler args")
        words = args.take(count)
        if words and self.request_based:
            self.hw_handler = words[0]
        elif words:
            self.log("bio-based multipath doesn't allow hardware handler args")

    def _parse_group(self, args: Arguments, number: int) -> PriorityGroup:
        if len(args) < 2:
            raise self.refuse("not enough priority group arguments")
        kind = SELECTORS.get(args.shift())
        if kind is None:
            raise self.refuse("unknown path selector type")
        args.take(self._read(lambda: args.group(0, 1024), "invalid number of path selector args"))
        group = PriorityGroup(number, kind())
        paths = self._read(lambda: args.number(1, 1024), "invalid number of paths")
        words = 1 + self._read(lambda: args.number(0, 1024), "invalid number of selector args")
        for _ in range(paths):
            if len(args) < words:
                raise self.refuse("not enough path parameters")
            group.paths.append(self._parse_path(group, *args.take(words)))
        return group

    def _parse_path(self, group: PriorityGroup, name: str, *argv: str) -> Path:
        path = Path(self.get_device(name, "error getting device"), group.number)
        if self.hw_handler:
            raise self.refuse("error attaching hardware handler", errno.ENODEV)
        selector = group.selector
        try:
            selector.add_path(path, argv, lambda text: self.log(text, f"multipath {selector.name}"))
        except ValueError as complaint:
            raise self.refuse(str(complaint)) from None
        return path

    # -- the way of a bio -------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        bio.per_bio.nr_bytes = len(bio.data) if bio.data is not None else 0
        return self._map(bio)

    def _map(self, bio: Bio) -> MapResult:
        with self._lock:
            path = self._choose_path(bio.per_bio.nr_bytes)
            if path is None:
                if self.queue_if_no_path:
                    self._queued.append(bio)
                    return MapResult.SUBMITTED
                return MapResult.REQUEUE if self.noflush_suspending else MapResult.KILL
            path.in_flight += 1
            path.in_flight_bytes += bio.per_bio.nr_bytes
        bio.per_bio.path = path
        bio.bdev = path.dev.bdev
        return MapResult.REMAPPED

    def _choose_path(self, nr_bytes: int) -> Path | None:
        """From the group that was asked for, else the current one, else the first with a path; those that are bypassed
        come last."""
        self.queue_io = False
        if self._nr_valid_paths():
            wanted, self.next = self.next, None
            ordered = sorted(self.groups, key=lambda group: group.bypassed)
            for group in (wanted, self.current, *ordered):
                if group is not None and (path := group.selector.select(nr_bytes)):
                    self.current = group
                    return path
        self.current = None
        return None

    def end_io(self, bio: Bio, error: int) -> int | EndIo:
        carried: _Carried = bio.per_bio
        path, carried.path = carried.path, None
        if path is None:  # it was queued
            return EndIo.REQUEUE if carried.requeue else error
        with self._lock:
            path.in_flight -= 1
            path.in_flight_bytes -= carried.nr_bytes
        if not error or error in NOT_OF_THE_PATH:
            return error
        self.fail_path(path)
        with self._lock:
            if not self._nr_valid_paths() and not self.queue_if_no_path:
                return EndIo.REQUEUE if self.noflush_suspending else errno.EIO
            self._queued.append(bio)
        self.queue_work(self._process_queued)
        return EndIo.INCOMPLETE

    @property
    def holds_bios(self) -> bool:
        return self.queue_if_no_path and not self._nr_valid_paths()

    def _process_queued(self) -> None:
        with self._lock:
            queued, self._queued = self._queued, []
        for bio in queued:
            result = self._map(bio)
            if result is MapResult.REMAPPED:
                assert bio.bdev is not None
                bio.bdev.submit_bio(bio)
            elif result is not MapResult.SUBMITTED:
                bio.per_bio.requeue = result is MapResult.REQUEUE
                bio.endio(errno.EIO)

    # -- paths ------------------------------------------------------------------------------------------

    def _nr_valid_paths(self) -> int:
        return sum(len(group.selector.valid) for group in self.groups)

    def _log_path(self, what: str, path: Path) -> None:
        major, minor = self.table.device.dev
        self.log(f"{major}:{minor}: {what} path {path.dev.number}.")

    def fail_path(self, path: Path) -> None:
        """No bio takes this path any more."""
        with self._lock:
            if not path.is_active:
                return
            self._log_path("Failing", path)
            self.groups[path.group - 1].selector.fail_path(path)
            path.is_active = False
            path.fail_count += 1
        self._path_event("PATH_FAILED", path)

    def reinstate_path(self, path: Path) -> None:
        """Bios may take this path again; if it is the only one, those that wait do so now."""
        with self._lock:
            if path.is_active:
                return
            self._log_path("Reinstating", path)
            self.groups[path.group - 1].selector.reinstate_path(path)
            path.is_active = True
            only = self._nr_valid_paths() == 1
        self._path_event("PATH_REINSTATED", path)
        if only:
            self.queue_work(self._process_queued)

    def _path_event(self, action: str, path: Path) -> None:
        """`dm_path_uevent`, which goes out with the event."""
        device = self.table.device
        device.uevent_seq += 1
        keys = {
            "DM_TARGET": self.name,
            "DM_ACTION": action,
            "DM_SEQNUM": str(device.uevent_seq),
            "DM_PATH": path.dev.number,
            "DM_NR_VALID_PATHS": str(self._nr_valid_paths()),
            "DM_NAME": device.name,
            "DM_UUID": device.uuid,
        }

        def event() -> None:
            self.uevent(**keys)
            self.event()

        self.queue_work(event)

    def _set_queueing(self, on: bool, *, save: bool = False) -> None:
        with self._lock:
            if save:
                self.saved_queue_if_no_path = self.queue_if_no_path
            elif not on:
                self.saved_queue_if_no_path = False
            self.queue_if_no_path = on
        if not on:
            self.queue_work(self._process_queued)

    def presuspend(self) -> None:
        if not self.request_based or not self.noflush_suspending:
            self._set_queueing(False, save=True)

    def presuspend_undo(self) -> None:
        self.resume()

    def resume(self) -> None:
        with self._lock:
            self.queue_if_no_path |= self.saved_queue_if_no_path
            self.saved_queue_if_no_path = False

    # -- messages ---------------------------------------------------------------------------------------

    def message(self, argv: Sequence[str]) -> str | None:
        if self.table.device.suspended:
            raise TargetError(errno.EBUSY)
        words = [argv[0].lower(), *argv[1:]]
        if words in (["queue_if_no_path"], ["fail_if_no_path"]):
            self._set_queueing(words[0] == "queue_if_no_path")
            return None
        if len(words) != 2:
            raise self._refuse(f"Invalid multipath message arguments. Expected 2 arguments, got {len(words)}.")
        action, argument = words
        if action in ("disable_group", "enable_group"):
            self._bypass_group(argument, action == "disable_group")
        elif action == "switch_group":
            self._switch_group(argument)
        elif action in ("fail_path", "reinstate_path"):
            self._act_on(argument, self.fail_path if action == "fail_path" else self.reinstate_path)
        else:
            raise self._refuse(f"Unrecognised multipath message received: {argv[0]}")
        return None

    def _refuse(self, text: str, number: int = errno.EINVAL) -> TargetError:
        self.log(text)
        return TargetError(number)

    def _group_number(self, text: str, where: str) -> int:
        try:
            number = parse_u32(text)
            if not 1 <= number <= len(self.groups):
                raise ValueError(f"{number}: expected a number from 1 to {len(self.groups)}")
        except ValueError:
            raise self._refuse(f"invalid PG number supplied to {where}") from None
        return number

    def _switch_group(self, text: str) -> None:
        number = self._group_number(text, "switch_pg_num")
        with self._lock:
            for group in self.groups:
                group.bypassed = False
            self.current, self.next = None, self.groups[number - 1]
        self.queue_work(self.event)

    def _bypass_group(self, text: str, bypassed: bool) -> None:
        number = self._group_number(text, "bypass_pg")
        with self._lock:
            self.groups[number - 1].bypassed = bypassed
            self.current = None
        self.queue_work(self.event)

    def _act_on(self, name: str, action: Callable[[Path], None]) -> None:
        try:
            dev = self.get_device(name)
        except TargetError as failure:
            raise self._refuse(f"message: error getting device {name}", failure.errno) from None
        paths = [path for group in self.groups for path in group.paths if path.dev is dev]
        self.put_device(dev)
        if not paths:
            raise TargetError(errno.EINVAL)
        for path in paths:
            action(path)

    # -- what it tells ----------------------------------------------------------------------------------

    def status(self, kind: StatusType) -> str:
        handler = f"1 {self.hw_handler}" if self.hw_handler and kind is StatusType.TABLE else "0"
        with self._lock:
            chosen = self.next or self.current
            number = chosen.number if chosen else int(bool(self.groups))
            first = f"2 {int(self.queue_io)} 0" if kind is StatusType.INFO else self._features()
            head = f"{first} {handler} {len(self.groups)} {number} "
            return head + "".join(self._group_status(group, kind) for group in self.groups)

    def _features(self) -> str:
        words = ["queue_if_no_path"] if self.queue_if_no_path else []
        if self.pg_init_retries:
            words += ["pg_init_retries", str(self.pg_init_retries)]
        if self.pg_init_delay_msecs != PG_INIT_DELAY_DEFAULT:
            words += ["pg_init_delay_msecs", str(self.pg_init_delay_msecs)]
        if self.retain_hw_handler:
            words.append("retain_attached_hw_handler")
        if not self.request_based:
            words += ["queue_mode", "bio"]
        return " ".join([str(len(words)), *words])

    def _state(self, group: PriorityGroup) -> str:
        return "D" if group.bypassed else "A" if group is self.current else "E"

    def _group_status(self, group: PriorityGroup, kind: StatusType) -> str:
        selector = group.selector
        if kind is StatusType.TABLE:
            head = f"{selector.name} 0 {len(group.paths)} {selector.table_args} "
            return head + "".join(f"{path.dev.number} {selector.status(path, kind)}" for path in group.paths)
        head = f"{self._state(group)} 0 {len(group.paths)} {selector.info_args} "
        return head + "".join(
            f"{path.dev.number} {'A' if path.is_active else 'F'} {path.fail_count} {selector.status(path, kind)}"
            for path in group.paths
        )

    def ima_status(self) -> str:
        values: dict[str, object] = {"nr_priority_groups": len(self.groups)}
        with self._lock:
            for at, group in enumerate(self.groups):
                values[f"pg_state_{at}"] = self._state(group)
                values[f"nr_pgpaths_{at}"] = len(group.paths)
                values[f"path_selector_name_{at}"] = group.selector.name
                for number, path in enumerate(group.paths):
                    values[f"path_name_{at}_{number}"] = path.dev.number
                    values[f"is_active_{at}_{number}"] = "A" if path.is_active else "F"
                    values[f"fail_count_{at}_{number}"] = path.fail_count
                    values[f"path_selector_status_{at}_{number}"] = ""
        return self.ima_line(values)

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        for group in self.groups:
            for path in group.paths:
                yield path.dev, self.begin, self.len
