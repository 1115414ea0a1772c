"""The target interface: what a target type is, and all that it may use (Linux `struct target_type`).

A target is a class. `ctr` reads the arguments, `map` says where a bio goes, the rest is optional::

    class Upper(Target):
        name = "upper"
        version = (1, 0, 0)

        def ctr(self, argv):
            if len(argv) != 1:
                raise self.refuse("Invalid argument count")
            self.dev = self.get_device(argv[0])

        def map(self, bio):
            bio.bdev, bio.sector = self.dev.bdev, self.offset(bio.sector)
            return MapResult.REMAPPED

        def status(self, kind):
            return self.dev.number if kind is StatusType.TABLE else ""
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum, Flag, auto
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

from dmproto.wire import SECTOR_SIZE

from ..io.bio import Bio, Op
from ..io.blockdev import BlockDevice
from ..io.kcopyd import Kcopyd
from ..io.limits import IntegrityProfile, QueueLimits
from ..io.submit import TURN, is_suspended, run_apart, wait_for
from .args import Arguments, parse_sector, parse_u32, parse_uint, split_args, wrapped
from .dm_pdev import DmPdev

if TYPE_CHECKING:
    from .dm_table import DmTable

__all__ = [
    "SECTOR_SIZE",
    "TURN",
    "Arguments",
    "Bio",
    "BlockDevice",
    "DmPdev",
    "EndIo",
    "Extent",
    "IntegrityProfile",
    "Kcopyd",
    "MapResult",
    "Op",
    "QueueLimits",
    "StatusType",
    "Target",
    "TargetError",
    "TargetFeature",
    "do_io",
    "is_suspended",
    "parse_sector",
    "parse_u32",
    "parse_uint",
    "split_args",
    "submit",
    "wait_for",
    "wrapped",
]

Shared = TypeVar("Shared")


class MapResult(Enum):
    """What `map` did with a bio (`DM_MAPIO_*`)."""

    SUBMITTED = 0  #: the target has it and will call `bio.endio`
    REMAPPED = 1  #: `bio.bdev` and `bio.sector` are set; send it there
    REQUEUE = 2  #: hold it until the next resume
    KILL = 4  #: fail it with EIO


class EndIo(Enum):
    """What `end_io` may return instead of an errno (`DM_ENDIO_*`)."""

    INCOMPLETE = 1  #: the target has the bio again and will call `bio.endio`
    REQUEUE = 2  #: map it again after the next resume


class StatusType(Enum):
    """`status_type_t`."""

    INFO = "info"
    TABLE = "table"


class TargetFeature(Flag):
    """`DM_TARGET_*`."""

    NONE = 0
    SINGLETON = auto()  #: must be the only target of its table
    ALWAYS_WRITEABLE = auto()  #: refuses a read-only table
    IMMUTABLE = auto()  #: no other type may replace it in a live device
    WILDCARD = auto()  #: may replace an immutable type


class Extent(NamedTuple):
    """Where a sector lies: `device`, its `sector` there, and for how many sectors on (`length`) that holds."""

    device: BlockDevice
    sector: int
    length: int


class TargetError(Exception):
    """A constructor's, message's or resume's refusal: an errno and the kernel's words (`ti->error`)."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or errno.errorcode.get(number, str(number)))
        self.errno = number
        self.message = message


class Target:
    """One target of a table. `begin` and `len` in sectors of the mapped device; `table` is the table it is in.

    The class attributes say what the type is; the fields that `ctr` may set say how bios are cut and copied to
    it: `max_io_len` (sectors, 0: no limit; a bio is split at its multiples, a read only if `splits_reads`),
    `num_flush_bios`, `num_discard_bios`, `num_write_zeroes_bios` (0: unsupported), `flush_supported`,
    `discards_supported` (take discards even if the devices underneath do not). `request_based`: wants devices that
    are so, too, and cannot replace, or be replaced by, bio-based targets.
    """

    name: ClassVar[str]
    version: ClassVar[tuple[int, int, int]]
    features: ClassVar[TargetFeature] = TargetFeature.NONE
    #: The kernel module that brings the type; "" stands for dm-NAME, dm-mod is always there.
    module: ClassVar[str] = ""
    #: A type; `bio.per_bio` is a new instance of it for each bio mapped.
    per_bio_data: ClassVar[type | None] = None

    max_io_len = 0
    splits_reads = True
    num_flush_bios = 0
    num_discard_bios = 0
    num_write_zeroes_bios = 0
    flush_supported = False
    discards_supported = False
    request_based = False

    def __init__(self, table: DmTable, begin: int, length: int) -> None:
        self.table = table
        self.begin = begin
        self.len = length

    # -- what a type defines ----------------------------------------------------------------------------

    def ctr(self, argv: Sequence[str]) -> None:
        """Construct from the argument vector, or raise `refuse(...)`; devices taken by then are given back."""
        if argv:
            raise self.refuse("No arguments required")

    def dtr(self) -> None:
        """Undo what `ctr` did, except for devices: the table gives those back."""

    def remap(self, sector: int) -> Extent | None:
        """For a type that only remaps: where `sector` (of the mapped device) lies. None: it does more."""
        return None

    def map(self, bio: Bio) -> MapResult:
        """Say where a bio goes. It lies inside this target and crosses no multiple of `max_io_len`.

        This one asks `remap`; a FLUSH goes to the device, of those of `iterate_devices`, whose number it has.
        """
        if bio.op is Op.FLUSH:
            pdev, _, _ = next(islice(self.iterate_devices(), bio.target_bio_nr, None))
            bio.bdev = pdev.bdev
            return MapResult.REMAPPED
        extent = self.remap(bio.sector)
        if extent is None:
            return MapResult.KILL
        bio.bdev, bio.sector = extent.device, extent.sector
        return MapResult.REMAPPED

    def end_io(self, bio: Bio, error: int) -> int | EndIo:
        """A bio that was REMAPPED came back; return the errno to report (0: success), or an `EndIo`."""
        return error

    @property
    def holds_bios(self) -> bool:
        """Bios wait here for a command, and so would those who wait for them."""
        return False

    def refresh_status(self) -> None:
        """Bring up to date what the status line (INFO) tells. Not called when the command says not to (NOFLUSH)."""

    def status(self, kind: StatusType) -> str:
        """The status line (INFO) or the parameters that would build this target again (TABLE)."""
        return ""

    def ima_status(self) -> str:
        """What the kernel's integrity measurement records of the target (`STATUSTYPE_IMA`); "" for most types."""
        return ""

    def message(self, argv: Sequence[str]) -> str | None:
        """Take a message; a returned string goes back to the caller. TargetError(EINVAL) by default."""
        raise TargetError(errno.EINVAL)

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        """Each device used, with start and length in sectors of the area used on it."""
        return iter(())

    def io_hints(self, limits: QueueLimits) -> None:
        """Adjust the limits that the mapped device shows."""

    def presuspend(self) -> None:
        """Suspension begins; bios still come."""

    def presuspend_undo(self) -> None:
        """The suspension was given up."""

    def postsuspend(self) -> None:
        """Suspended: no bio is under way."""

    def preresume(self) -> None:
        """About to resume; TargetError refuses."""

    def resume(self) -> None:
        """Bios come again."""

    def ima_name(self) -> str:
        """How an `ima_status` begins (`DMEMIT_TARGET_NAME_VERSION`)."""
        return "target_name={},target_version={}.{}.{}".format(self.name, *self.version)

    def ima_line(self, values: Mapping[str, object]) -> str:
        """An `ima_status`: KEY=value pairs; truths are y or n."""
        words = [f"{key}={'ny'[value] if isinstance(value, bool) else value}" for key, value in values.items()]
        return ",".join([self.ima_name(), *words]) + ";"

    # -- what a type may use ----------------------------------------------------------------------------

    def refuse(self, message: str, number: int = errno.EINVAL) -> TargetError:
        """The error for `ctr` to raise: the kernel's words and errno."""
        return TargetError(number, message)

    def get_device(self, path: str, complaint: str = "Device lookup failed") -> DmPdev:
        """Take a device by the name that the table gives (`dm_get_device`); raises `refuse(complaint, errno)`."""
        try:
            return self.table.get_device(path)
        except OSError as failure:
            raise self.refuse(complaint, failure.errno or errno.ENODEV) from failure

    def put_device(self, pdev: DmPdev) -> None:
        """Give one reference back before `dtr` (`dm_put_device`)."""
        self.table.put_device(pdev)

    def offset(self, sector: int) -> int:
        """`dm_target_offset`: sectors from the start of this target."""
        return sector - self.begin

    def event(self) -> None:
        """`dm_table_event`: the device's event number goes up and its waiters wake."""
        self.table.device.event()

    def uevent(self, **keys: str) -> None:
        """Send a change uevent of the mapped device with these keys (`kobject_uevent_env`)."""
        self.table.device.uevent("change", **keys)

    def queue_work(self, work: Callable[[], None]) -> None:
        """Run `work` soon, in a worker thread (`queue_work`)."""
        self.table.device.mapper.work.queue(work)

    def call_later(self, seconds: float, work: Callable[[], None]) -> None:
        """Run `work` in a worker thread once `seconds` have passed."""
        self.table.device.mapper.work.later(seconds, work)

    def now(self) -> float:
        """Seconds on the clock of `call_later`; only differences mean something."""
        return self.table.device.mapper.work.now()

    def submit(
        self,
        op: Op,
        bdev: BlockDevice,
        sector: int,
        data: memoryview | int | None,
        done: Callable[[int], None],
        *,
        fua: bool = False,
    ) -> None:
        """Send a bio of the target's own; `done(errno)` may be called before this returns, or later, in any thread.
        `data`: a buffer, the number of sectors (DISCARD, WRITE_ZEROES), or None (FLUSH)."""
        submit(op, bdev, sector, data, done, fua=fua)

    def do_io(self, op: Op, bdev: BlockDevice, sector: int, data: memoryview | int | None, *, fua: bool = False) -> int:
        """`submit` and wait; returns the errno, EAGAIN when that might be for ever (`is_suspended`). Never in the way
        of a bio: for `ctr`, `resume` and their like only."""
        return do_io(op, bdev, sector, data, fua=fua)

    def shared(self, kind: type[Shared]) -> Shared:
        """The one instance of `kind` in this device-mapper: what targets of a type have in common."""
        found = self.table.device.mapper.shared.setdefault(kind, kind())
        assert isinstance(found, kind)
        return found

    def hold(self) -> None:
        """I/O of the target's own begins: a suspension waits until `release` says that it ended."""
        self.table.device.io.hold()

    def release(self) -> None:
        """The I/O that `hold` announced is over."""
        self.table.device.io.release()

    @property
    def noflush_suspending(self) -> bool:
        """The suspension under way lets bios be held until the next resume (`dm_noflush_suspending`)."""
        return self.table.device.io.noflush

    def log(self, text: str, prefix: str = "") -> None:
        """A line of the kernel log: `device-mapper: TYPE: TEXT`, with another `prefix` than the type if given."""
        self.printk(f"device-mapper: {prefix or self.name}: {text}")

    def printk(self, line: str) -> None:
        """A whole line of the kernel log."""
        self.table.device.mapper.events.log(line)


def submit(
    op: Op,
    bdev: BlockDevice,
    sector: int,
    data: memoryview | int | None,
    done: Callable[[int], None],
    *,
    fua: bool = False,
) -> None:
    """`Target.submit` for helpers that are no target."""
    buffer = data if isinstance(data, memoryview) else None
    count = data if isinstance(data, int) else len(buffer) // SECTOR_SIZE if buffer is not None else 0
    bdev.submit_bio(Bio(op, sector, count, buffer, lambda bio: done(bio.error), fua=fua, bdev=bdev))


def do_io(op: Op, bdev: BlockDevice, sector: int, data: memoryview | int | None, *, fua: bool = False) -> int:
    """`Target.do_io` for helpers that are no target."""
    if is_suspended(bdev):
        return errno.EAGAIN
    return wait_for(lambda done: run_apart(lambda: submit(op, bdev, sector, data, done, fua=fua)), bdev)
