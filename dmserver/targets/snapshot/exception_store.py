"""Where a snapshot keeps what was copied: the exception stores P and N (Linux `dm-exception-store.c`,
`dm-snap-persistent.c`, `dm-snap-transient.c`).

An exception says that chunk `old` of the origin lies in chunk `new` of the COW device. The persistent store writes::

    chunk 0            struct disk_header { __le32 magic "SnAp", valid, version (1), chunk_size (sectors) }
    chunk 1            area 0: pairs struct disk_exception { __le64 old_chunk, new_chunk }, ended by new_chunk 0
    chunks 2 ...       data, as many chunks as an area has pairs; then area 1 and its data, and so on

Rules of the persistent store:

1. Pairs are written once their data are on the disk, all that are committed by then at a time; an area's chunk is
   written with a flush before it and FUA. A full area is written after the next one was zeroed.
2. What `commit` queues is written by `pump`, which does I/O and so is called without the owner's lock; everything
   else that changes a store is called with it.
3. One area write is under way at a time. Its callbacks learn whether the store is still valid.
"""

from __future__ import annotations

import errno
import struct
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...model.dm_target import SECTOR_SIZE, BlockDevice, DmPdev, Op, Target, TargetError, do_io, parse_uint, submit
from ..steps import Done

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ExceptionStore", "PersistentStore", "TransientStore", "create"]

MAGIC = 0x70416E53
VERSION = 1
DEFAULT_CHUNK_SIZE = 32  #: sectors
HEADER_CHUNKS = 1
_HEADER = struct.Struct("<IIII")
_PAIR = struct.Struct("<QQ")
INT_MAX = (1 << 31) - 1

Committed = Callable[[bool], None]


class ExceptionStore(ABC):
    """`chunk_size` in sectors, 0 while unknown; `cow` the device the store is on."""

    can_merge: ClassVar[bool] = False
    overflow_supported = False

    def __init__(self, target: Target, origin: DmPdev, cow: DmPdev) -> None:
        self.target = target
        self.origin = origin
        self.cow = cow
        self.chunk_size = 0

    def set_chunk_size(self, size: int) -> None:
        """ValueError with the kernel's words when the devices do not take chunks of `size` sectors."""
        if not size or size & size - 1:
            raise ValueError("Chunk size is not a power of 2")
        for pdev in (self.cow, self.origin):
            if size % (pdev.bdev.limits.logical_block_size // SECTOR_SIZE):
                raise ValueError("Chunk size is not a multiple of device blocksize")
        if size > INT_MAX // SECTOR_SIZE:
            raise ValueError("Chunk size is too high")
        self.chunk_size = size

    def set_options(self, options: str) -> None:  # noqa: B027  # most types ignore them
        """What follows the letter of the type. ValueError when the type does not know it."""

    @property
    def device(self) -> BlockDevice:
        return self.cow.bdev

    @abstractmethod
    def read_metadata(self) -> tuple[bool, dict[int, int]]:
        """(whether the store is valid, its exceptions). TargetError with the errno when it cannot be read."""

    @abstractmethod
    def prepare(self) -> int | None:
        """The next free chunk; None when the device is full."""

    @abstractmethod
    def commit(self, old: int, new: int, valid: bool, done: Committed) -> None:
        """The data of an exception are on the device, or (not `valid`) could not be brought there. `done` is told,
        from `pump`, whether the exception holds."""

    @abstractmethod
    def pump(self) -> None:
        """Do the I/O that was queued."""

    @abstractmethod
    def drop(self, done: Done) -> None:
        """The snapshot is invalid from now on (`drop_snapshot`)."""

    @abstractmethod
    def usage(self) -> tuple[int, int]:
        """Sectors in use, metadata included, and sectors of metadata."""

    @abstractmethod
    def table(self) -> str:
        """TYPE CHUNK_SIZE, as a table line has them."""


class TransientStore(ExceptionStore):
    """N: exceptions in memory only, data from the start of the device on."""

    def __init__(self, target: Target, origin: DmPdev, cow: DmPdev) -> None:
        super().__init__(target, origin, cow)
        self._next = 0
        self._committed: deque[tuple[bool, Committed]] = deque()

    def read_metadata(self) -> tuple[bool, dict[int, int]]:
        return True, {}

    def prepare(self) -> int | None:
        if self.device.size < self._next + self.chunk_size:
            return None
        self._next += self.chunk_size
        return self._next // self.chunk_size - 1

    def commit(self, old: int, new: int, valid: bool, done: Committed) -> None:
        self._committed.append((valid, done))

    def pump(self) -> None:
        while self._committed:
            try:
                valid, done = self._committed.popleft()
            except IndexError:  # another thread was faster
                return
            done(valid)

    def drop(self, done: Done) -> None:
        done(0)

    def usage(self) -> tuple[int, int]:
        return self._next, 0

    def table(self) -> str:
        return f"N {self.chunk_size}"


@dataclass(slots=True)
class _AreaWrite:
    """An area as it was, where it goes, and who waits for it. `wipe`: the next area, to be zeroed first."""

    area: int
    image: bytes
    wipe: bool
    waiting: list[Committed]


class PersistentStore(ExceptionStore):
    """P, and PO: its user knows the word Overflow."""

    can_merge = True

    def __init__(self, target: Target, origin: DmPdev, cow: DmPdev) -> None:
        super().__init__(target, origin, cow)
        self.valid = True
        self.next_free = HEADER_CHUNKS + 1
        self.current_area = 0
        self.current_committed = 0
        self._pending = 0
        self._waiting: list[Committed] = []
        self._writes: deque[_AreaWrite] = deque()
        self._writing = False
        self._lock = threading.Lock()

    def set_options(self, options: str) -> None:
        if options:
            if options[0].upper() != "O":
                self._log(f"Unsupported persistent store option: {options}")
                raise ValueError(f"{options}: expected O")
            self.overflow_supported = True

    # -- reading ----------------------------------------------------------------------------------------

    def read_metadata(self) -> tuple[bool, dict[int, int]]:
        version = self._read_header()
        self.pairs_per_area = self.chunk_size * SECTOR_SIZE // _PAIR.size
        self._area = bytearray(self.chunk_size * SECTOR_SIZE)
        if version is None:
            self._check(do_io(Op.WRITE, self.device, 0, memoryview(self._header())), "write_header failed")
            sector = self._area_location(0) * self.chunk_size
            self._check(do_io(Op.WRITE, self.device, sector, memoryview(self._area)), "zero_disk_area(0) failed")
            return True, {}
        if version != VERSION:
            self._log(f"unable to handle snapshot disk version {version}")
            raise TargetError(errno.EINVAL)
        return self.valid, dict(self._read_exceptions()) if self.valid else {}

    def _read_header(self) -> int | None:
        """Learn the chunk size. Returns the version, None for a device without a store."""
        given = self.chunk_size
        if not given:
            self.chunk_size = max(DEFAULT_CHUNK_SIZE, self.device.limits.logical_block_size // SECTOR_SIZE)
        header = bytearray(self.chunk_size * SECTOR_SIZE)
        self._check(do_io(Op.READ, self.device, 0, memoryview(header)))
        magic, valid, version, size = _HEADER.unpack_from(header)
        if not magic:
            return None
        if magic != MAGIC:
            self._log("Invalid or corrupt snapshot")
            raise TargetError(errno.ENXIO)
        self.valid = bool(valid)
        if size != self.chunk_size:
            if given:
                self._log(f"chunk size {size} in device metadata overrides table chunk size of {given}.")
            try:
                self.set_chunk_size(size)
            except ValueError as complaint:
                self._log(f"invalid on-disk chunk size {size}: {complaint}.")
                raise TargetError(errno.EINVAL) from None
        return int(version)

    def _read_exceptions(self) -> Iterator[tuple[int, int]]:
        area, full = 0, True
        while full:
            sector = self._area_location(area) * self.chunk_size
            self._check(do_io(Op.READ, self.device, sector, memoryview(self._area)))
            for index, (old, new) in enumerate(_PAIR.iter_unpack(self._area)):
                if not new:
                    self.current_committed, full = index, False
                    break
                self.next_free = max(self.next_free, new + 1)
                yield old, new
            self.current_area = area
            area += 1
        self._skip_metadata()

    def _check(self, error: int, complaint: str = "") -> None:
        if error and complaint:
            self._log(complaint)
        if error:
            raise TargetError(error)

    def _log(self, text: str) -> None:
        self.target.log(text, "persistent snapshot")

    # -- the layout -------------------------------------------------------------------------------------

    def _area_location(self, area: int) -> int:
        return HEADER_CHUNKS + (self.pairs_per_area + 1) * area

    def _header(self) -> bytearray:
        header = bytearray(self.chunk_size * SECTOR_SIZE)
        _HEADER.pack_into(header, 0, MAGIC, self.valid, VERSION, self.chunk_size)
        return header

    def _skip_metadata(self) -> None:
        if self.next_free % (self.pairs_per_area + 1) == HEADER_CHUNKS:
            self.next_free += 1

    def usage(self) -> tuple[int, int]:
        metadata = (self.current_area + 1 + HEADER_CHUNKS) * self.chunk_size
        return self.next_free * self.chunk_size, metadata

    def table(self) -> str:
        return f"P{'O' if self.overflow_supported else ''} {self.chunk_size}"

    # -- new exceptions ---------------------------------------------------------------------------------

    def prepare(self) -> int | None:
        if self.device.size < (self.next_free + 1) * self.chunk_size:
            return None
        new = self.next_free
        self.next_free += 1
        self._skip_metadata()
        self._pending += 1
        return new

    def commit(self, old: int, new: int, valid: bool, done: Committed) -> None:
        self.valid &= valid
        _PAIR.pack_into(self._area, self.current_committed * _PAIR.size, old, new)
        self.current_committed += 1
        self._waiting.append(done)
        self._pending -= 1
        full = self.current_committed == self.pairs_per_area
        if self._pending and not full:
            return
        waiting, self._waiting = self._waiting, []
        with self._lock:
            self._writes.append(_AreaWrite(self.current_area, bytes(self._area), full, waiting))
        if full:
            self.current_committed = 0
            self.current_area += 1
            self._area = bytearray(len(self._area))

    def pump(self) -> None:
        with self._lock:
            if self._writing or not self._writes:
                return
            self._writing = True
        while write := self._take():
            if not self._perform(write):
                return  # its completion goes on

    def _take(self) -> _AreaWrite | None:
        with self._lock:
            if self._writes:
                return self._writes.popleft()
            self._writing = False
            return None

    def _perform(self, write: _AreaWrite) -> bool:
        """Zero, flush and write. True when all of it was done before this returned."""
        here = threading.get_ident()
        inline = True
        finished = False

        def wiped(error: int) -> None:
            self.valid &= not error
            if self.valid:
                self._write_area(write.area, write.image, written)
            else:
                written(0)

        def written(error: int) -> None:
            nonlocal finished
            self.valid &= not error
            for committed in write.waiting:
                committed(self.valid)
            if inline and threading.get_ident() == here:
                finished = True
                return
            with self._lock:
                self._writing = False
            self.pump()

        if write.wipe:
            sector = self._area_location(write.area + 1) * self.chunk_size
            submit(Op.WRITE, self.device, sector, memoryview(bytes(len(write.image))), wiped)
        else:
            wiped(0)
        inline = False
        return finished

    def _write_area(self, area: int, image: bytes, done: Done) -> None:
        """With a flush before it, and FUA."""
        sector = self._area_location(area) * self.chunk_size

        def flushed(error: int) -> None:
            if error:
                done(error)
            else:
                submit(Op.WRITE, self.device, sector, memoryview(image), done, fua=True)

        submit(Op.FLUSH, self.device, 0, None, flushed)

    def drop(self, done: Done) -> None:
        self.valid = False

        def dropped(error: int) -> None:
            if error:
                self._log("write header failed")
            done(error)

        submit(Op.WRITE, self.device, 0, memoryview(self._header()), dropped, fua=True)

    # -- merging ----------------------------------------------------------------------------------------

    def prepare_merge(self, done: Callable[[int, int, int, int], None]) -> None:
        """Find the last run of exceptions: `done(errno, how many, its last old chunk, its last new chunk)`; none when
        all is merged."""
        if self.current_committed:
            done(0, *self._last_run())
            return
        if not self.current_area:
            done(0, 0, 0, 0)
            return
        self.current_area -= 1

        def read(error: int) -> None:
            if error:
                done(error, 0, 0, 0)
                return
            self.current_committed = self.pairs_per_area
            done(0, *self._last_run())

        sector = self._area_location(self.current_area) * self.chunk_size
        submit(Op.READ, self.device, sector, memoryview(self._area), read)

    def _last_run(self) -> tuple[int, int, int]:
        last_old, last_new = self._pair(self.current_committed - 1)
        count = 1
        while count < self.current_committed:
            if self._pair(self.current_committed - 1 - count) != (last_old - count, last_new - count):
                break
            count += 1
        return count, last_old, last_new

    def _pair(self, index: int) -> tuple[int, int]:
        old, new = _PAIR.unpack_from(self._area, index * _PAIR.size)
        return old, new

    def commit_merge(self, count: int, done: Done) -> None:
        """The last `count` exceptions are merged: clear them on the disk."""
        end = self.current_committed * _PAIR.size
        self._area[end - count * _PAIR.size : end] = bytes(count * _PAIR.size)

        def written(error: int) -> None:
            if not error:
                self.current_committed -= count
                self.next_free = self._area_location(self.current_area) + self.current_committed + 1
            done(error)

        self._write_area(self.current_area, bytes(self._area), written)


def create(target: Target, origin: DmPdev, cow: DmPdev, argv: Sequence[str]) -> ExceptionStore:
    """`dm_exception_store_create` from TYPE CHUNK_SIZE. TargetError when it refuses."""
    kind, chunk_size = argv
    store: ExceptionStore
    try:
        size = parse_uint(chunk_size)
        if kind[0].upper() == "P":
            store = PersistentStore(target, origin, cow)
        elif kind[0].upper() == "N":
            store = TransientStore(target, origin, cow)
        else:
            raise ValueError(f"{kind}: expected P or N")
        if size:
            store.set_chunk_size(size)
        store.set_options(kind[1:])
    except ValueError:
        raise TargetError(errno.EINVAL) from None
    return store
