"""How dm-integrity reads and writes (Linux `drivers/md/dm-integrity.c`), as jobs of a `SerialQueue`.

With a journal, writes stay in memory until a flush, a FUA write, the commit timer, or until they fill the journal up to
the watermark; then they go to the journal, from there to where they belong, and what the device caches is flushed.
With a bitmap, a bit is on the disk before the blocks that it stands for are written; a timer clears it again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import wraps
from typing import Any, ParamSpec

from ...model.dm_target import SECTOR_SIZE, BlockDevice, Op
from ..serial import Job
from ..shash import Shash
from ..steps import Request
from .bitmap import BLOCK_SECTORS, Bitmap
from .journal import Entry, Journal, JournalError
from .layout import Layout, SbFlag

__all__ = ["IntegrityIo"]

PAGE_SIZE = 4096
DISCARD_FILLER = b"\xf6"
#: Sectors of one step of a recalculation, and after how many the super block tells how far it got.
RECALC_SECTORS = 2048
RECALC_WRITE_SUPER = 16

P = ParamSpec("P")
Steps = Generator[Request, int, None]


def _job(body: Callable[P, Steps]) -> Callable[P, Job]:
    """For methods: the errno of an OSError, or of what failed before, is the job's result."""

    @wraps(body)
    def job(*args: P.args, **kwargs: P.kwargs) -> Job:
        owner: Any = args[0]
        if not owner.failed:
            try:
                yield from body(*args, **kwargs)
            except OSError as failure:
                return failure.errno or errno.EIO
        return int(owner.failed)

    return job


class IntegrityIo:
    """`data` and `meta`: the devices, which may be one. `digest` None: tags are not ours to make. `limit`: so many
    blocks wait in memory before they are committed; 0: no journal is used. `report` takes a line of the log, `disk` is
    the name that it uses. `failed`: an errno that ended it all; `mismatches`: how many tags were wrong."""

    def __init__(
        self,
        layout: Layout,
        data: BlockDevice,
        meta: BlockDevice,
        digest: Shash | None,
        journal: Journal,
        bitmap: Bitmap | None = None,
        *,
        limit: int,
        discard: bool,
        disk: str,
        report: Callable[[str], None],
    ) -> None:
        self._layout = layout
        self._data = data
        self._meta = meta
        self._hash = digest
        self._journal = journal
        self._bitmap = bitmap
        self._limit = limit
        self._discard = discard
        self._disk = disk
        self._report = report
        self.failed = 0
        self.mismatches = 0
        self.pending: dict[int, Entry] = {}
        self._recalculated = 0

    def _fail(self, what: str, error: int) -> OSError:
        """`dm_integrity_io_error`."""
        if error == errno.EILSEQ:
            self.mismatches += 1
        if not self.failed:
            self.failed = error
            self._report(f"Error on {what}: {-error}")
        return OSError(error, os.strerror(error))

    def _do(self, request: Request, what: str = "") -> Steps:
        """Do a request; OSError when it fails. That ends all if it says at `what`."""
        error = yield request
        if error:
            raise self._fail(what, error) if what else OSError(error, os.strerror(error))

    # -- tags -------------------------------------------------------------------------------------------

    @property
    def _block_size(self) -> int:
        return self._layout.sectors_per_block * SECTOR_SIZE

    def _tags(self, sector: int, data: memoryview) -> list[bytes]:
        """The tag of each block (`integrity_sector_checksum`)."""
        size = self._layout.tag_size
        step = self._layout.sectors_per_block
        sectors = range(sector, sector + len(data) // SECTOR_SIZE, step)
        if self._hash is None:
            return [bytes(size)] * len(sectors)
        salt = self._layout.sb.salt if self._layout.sb.flags & SbFlag.FIXED_HMAC else b""
        digests = self._hash.digests([salt + at.to_bytes(8, "little") for at in sectors], data)
        return [digest[:size].ljust(size, b"\0") for digest in digests]

    def _blocks(self, sector: int, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """(sector, data) of each block."""
        for at in range(0, len(data), self._block_size):
            yield sector + at // SECTOR_SIZE, data[at : at + self._block_size]

    def _tag_sectors(self, sector: int, length: int) -> tuple[int, int, int]:
        """Where `length` bytes of tags lie: the first sector of metadata, how many, and the byte they begin at."""
        first, skip = divmod(self._layout.tag_position(sector), SECTOR_SIZE)
        return first, -(-(skip + length) // SECTOR_SIZE), skip

    def _read_tags(self, sector: int, length: int) -> Generator[Request, int, memoryview]:
        first, count, skip = self._tag_sectors(sector, length)
        found = memoryview(bytearray(count * SECTOR_SIZE))
        yield from self._do(Request(Op.READ, self._meta, first, found), "reading tags")
        return found[skip : skip + length]

    def _write_tags(self, sector: int, tags: bytes) -> Steps:
        first, count, skip = self._tag_sectors(sector, len(tags))
        image = memoryview(bytearray(count * SECTOR_SIZE))
        if len(tags) != len(image):
            yield from self._do(Request(Op.READ, self._meta, first, image), "reading tags")
        image[skip : skip + len(tags)] = tags
        yield from self._do(Request(Op.WRITE, self._meta, first, image), "writing tags")

    def _check(self, sector: int, data: memoryview, tags: memoryview) -> None:
        """OSError(EILSEQ) for the first block whose tag is wrong."""
        size, step = self._layout.tag_size, self._layout.sectors_per_block
        wanted = self._tags(sector, data)
        if tags == b"".join(wanted):
            return
        for number, right in enumerate(wanted):
            at = sector + number * step
            tag = bytes(tags[number * size : (number + 1) * size])
            if at not in self.pending and tag != right and not (self._discard and tag == DISCARD_FILLER * size):
                self.mismatches += 1
                self._report(f"{self._disk}: Checksum failed at sector {self._told(sector, at, len(data)):#x}")
                raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ))

    def _told(self, sector: int, at: int, length: int) -> int:
        """The sector that the kernel tells: it counts back from the end of the page by blocks, as if of one sector."""
        page = PAGE_SIZE // SECTOR_SIZE
        end = min(sector + length // SECTOR_SIZE, sector + ((at - sector) // page + 1) * page)
        return end - (end - at) // self._layout.sectors_per_block

    # -- bios -------------------------------------------------------------------------------------------

    @_job
    def read(self, sector: int, data: memoryview, tags: memoryview | None = None) -> Steps:
        """Fill `data` from `sector` on, and `tags` if they are not ours; EILSEQ when it is not what was written."""
        yield from self._do(Request(Op.READ, self._data, self._layout.data_sector(sector), data))
        if tags is not None:
            tags[:] = yield from self._read_tags(sector, len(tags))
        if self.pending:
            size = self._layout.tag_size
            for number, (at, block) in enumerate(self._blocks(sector, data)):
                if entry := self.pending.get(at):
                    block[:] = entry.data
                    if tags is not None:
                        tags[number * size : (number + 1) * size] = entry.tag
        sb = self._layout.sb
        if sb.flags & SbFlag.RECALCULATING and sector + len(data) // SECTOR_SIZE > sb.recalc_sector:
            return
        if self._bitmap and not self._bitmap.stale.all_clear(sector, len(data) // SECTOR_SIZE):
            return
        if self._hash is not None:
            found = yield from self._read_tags(sector, len(data) // self._block_size * self._layout.tag_size)
            self._check(sector, data, found)

    @_job
    def write(self, sector: int, data: memoryview, tags: memoryview | None = None, *, fua: bool) -> Steps:
        """`tags`: those of the data, if they are not ours."""
        if self._limit:
            size = self._layout.tag_size
            made = self._tags(sector, data) if tags is None else _cut(tags, size)
            for (at, block), tag in zip(self._blocks(sector, data), made, strict=True):
                self.pending.pop(at, None)
                self.pending[at] = Entry(at, bytes(block), tag)
                if len(self.pending) >= self._limit:
                    yield from self._commit()
        else:
            yield from self._write_through(sector, data, tags)
        if fua:
            yield from self._flush()

    def _write_through(self, sector: int, data: memoryview, tags: memoryview | None) -> Steps:
        yield from self._mark(sector, len(data) // SECTOR_SIZE)
        yield from self._do(Request(Op.WRITE, self._data, self._layout.data_sector(sector), data))
        if tags is not None:
            yield from self._write_tags(sector, bytes(tags))
        elif self._hash is not None:
            yield from self._write_tags(sector, b"".join(self._tags(sector, data)))

    @_job
    def flush(self) -> Steps:
        yield from self._flush()

    def _flush(self) -> Steps:
        if self.pending:
            yield from self._commit()
        else:
            yield from self._flush_devices()

    def _flush_devices(self) -> Steps:
        yield from self._do(Request(Op.FLUSH, self._data, 0, None))
        if self._meta is not self._data:
            yield from self._do(Request(Op.FLUSH, self._meta, 0, None))

    @_job
    def discard(self, sector: int, sectors: int) -> Steps:
        """What is discarded may read as anything: its tags say so."""
        if self.pending:
            yield from self._commit()
        yield from self._mark(sector, sectors)
        yield from self._do(Request(Op.DISCARD, self._data, self._layout.data_sector(sector), sectors))
        blocks = sectors // self._layout.sectors_per_block
        yield from self._write_tags(sector, DISCARD_FILLER * (blocks * self._layout.tag_size))

    # -- the journal ------------------------------------------------------------------------------------

    @_job
    def commit(self) -> Steps:
        """Write all that waits in memory."""
        if self.pending:
            yield from self._commit()

    def _commit(self) -> Steps:
        entries, size = list(self.pending.values()), self._layout.section_entries
        for at in range(0, len(entries), size):
            section, image = self._journal.next(entries[at : at + size])
            yield from self._write_section(section, image, fua=True)
        yield from self._apply(entries)
        self.pending.clear()
        yield from self._flush_devices()

    def _write_section(self, section: int, image: bytearray, *, fua: bool = False) -> Steps:
        sector = self._layout.section_sector(section)
        yield from self._do(Request(Op.WRITE, self._meta, sector, memoryview(image), fua), "writing journal")

    def _apply(self, entries: Iterable[Entry]) -> Steps:
        """Write blocks and tags where they belong, of several for a block the last."""
        for run in self._runs({entry.sector: entry for entry in entries}):
            sector = self._layout.data_sector(run[0].sector)
            data = memoryview(b"".join(entry.data for entry in run))
            yield from self._do(Request(Op.WRITE, self._data, sector, data), "copying from journal")
            yield from self._write_tags(run[0].sector, b"".join(entry.tag for entry in run))

    def _runs(self, entries: dict[int, Entry]) -> Iterator[list[Entry]]:
        """Blocks side by side, within one area."""
        run: list[Entry] = []
        for sector in sorted(entries):
            if run and (sector != run[-1].sector + self._layout.sectors_per_block or not self._layout.area(sector)[1]):
                yield run
                run = []
            run.append(entries[sector])
        if run:
            yield run

    @_job
    def format(self) -> Steps:
        """Write an empty journal, and after it the super block."""
        yield from self._clear_journal()
        yield from self._write_superblock()

    def _clear_journal(self) -> Steps:
        for section, image in self._journal.format():
            yield from self._write_section(section, image)

    def _replay(self) -> Steps:
        """Take up the journal on the disk: write where they belong what it holds."""
        layout, journal = self._layout, self._journal
        image = memoryview(bytearray(journal.sections * layout.section_sectors * SECTOR_SIZE))
        yield from self._do(Request(Op.READ, self._meta, layout.section_sector(0), image), "reading journal")
        try:
            found = journal.read(image, keep=bool(self._limit))
        except JournalError as failure:
            raise self._fail(failure.what, errno.EILSEQ if "mac" in failure.what else errno.EIO) from None
        entries = [entry for entry in found.entries if self._is_good(entry)]
        yield from self._apply(entries)
        if entries:
            yield from self._flush_devices()
        if found.clear:
            for section, erased in journal.clear():
                yield from self._write_section(section, erased)
            yield from self._flush_devices()

    def _is_good(self, entry: Entry) -> bool:
        if entry.sector % self._layout.sectors_per_block:
            raise self._fail("invalid sector in journal", errno.EIO)
        if entry.sector >= self._layout.provided:
            return False
        if self._hash is not None and [entry.tag] != self._tags(entry.sector, memoryview(entry.data)):
            raise self._fail("tag mismatch when replaying journal", errno.EILSEQ)
        return True

    # -- the super block --------------------------------------------------------------------------------

    def _superblock(self) -> Request:
        layout = self._layout
        layout.sb.set_version(separate=layout.separate, bitmap=layout.bitmap)
        image = memoryview(layout.sb.build(self._journal.mac))
        return Request(Op.WRITE, self._meta, layout.start, image, fua=True)

    def _write_superblock(self) -> Steps:
        yield from self._do(self._superblock(), "writing superblock")

    @_job
    def resume(self, log2_blocks_per_bit: int, *, replay: bool, reset: bool) -> Steps:
        """Take up what is on the disk (`dm_integrity_resume`). `log2_blocks_per_bit`: of a bitmap that begins now;
        `replay`: the journal was not taken up yet; `reset`: recalculate all tags."""
        layout, sb = self._layout, self._layout.sb
        is_same = sb.log2_blocks_per_bitmap_bit == log2_blocks_per_bit
        if sb.provided_data_sectors != layout.provided:
            if self._bitmap and is_same and sb.provided_data_sectors < layout.provided:
                yield from self._read_bitmap(self._bitmap)
                self._bitmap.disk.set(sb.provided_data_sectors, layout.provided - sb.provided_data_sectors)
                yield from self._write_bitmap(self._bitmap)
            sb.provided_data_sectors = layout.provided
            yield from self._write_superblock()
        if sb.flags & SbFlag.DIRTY_BITMAP:
            yield from self._resume_dirty(log2_blocks_per_bit, keep=is_same and not reset)
        else:
            if replay:
                yield from self._replay()
            if reset:
                sb.recalculate()
            if self._bitmap:
                yield from self._begin_bitmap(self._bitmap, log2_blocks_per_bit)
        if sb.flags & SbFlag.RECALCULATING and sb.recalc_sector > layout.provided:
            sb.recalc_sector = layout.provided
            yield from self._write_superblock()

    # -- the bitmap -------------------------------------------------------------------------------------

    def _read_bitmap(self, bitmap: Bitmap) -> Steps:
        image = memoryview(bytearray(bitmap.blocks * BLOCK_SECTORS * SECTOR_SIZE))
        yield from self._do(Request(Op.READ, self._meta, self._layout.section_sector(0), image), "reading journal")
        bitmap.load(image)

    def _write_bitmap(self, bitmap: Bitmap, block: int = 0, blocks: int | None = None) -> Steps:
        image = memoryview(bitmap.image(block, bitmap.blocks if blocks is None else blocks))
        sector = self._layout.section_sector(0) + block * BLOCK_SECTORS
        yield from self._do(Request(Op.WRITE, self._meta, sector, image, fua=True), "writing journal")

    def _resume_dirty(self, log2_blocks_per_bit: int, *, keep: bool) -> Steps:
        """Nobody suspended the device that had a bitmap. `keep`: believe it."""
        layout, sb = self._layout, self._layout.sb
        bitmap = self._bitmap or Bitmap(layout.sectors_per_block << log2_blocks_per_bit, layout.provided)
        yield from self._read_bitmap(bitmap)
        if not keep or not bitmap.disk.all_clear(0, layout.provided):
            sb.recalculate()
        if not self._bitmap:
            yield from self._clear_journal()
            yield from self._replay()
            sb.flags &= ~SbFlag.DIRTY_BITMAP
        elif keep:
            bitmap.take_over()
        else:
            sb.log2_blocks_per_bitmap_bit = log2_blocks_per_bit
            bitmap.set_all()
            yield from self._write_bitmap(bitmap)
        yield from self._write_superblock()

    def _begin_bitmap(self, bitmap: Bitmap, log2_blocks_per_bit: int) -> Steps:
        sb = self._layout.sb
        sb.flags |= SbFlag.DIRTY_BITMAP
        sb.log2_blocks_per_bitmap_bit = log2_blocks_per_bit
        yield from self._write_superblock()
        yield from self._read_bitmap(bitmap)
        bitmap.clear_all()
        if sb.flags & SbFlag.RECALCULATING and sb.recalc_sector < bitmap.sectors:
            bitmap.set_all(sb.recalc_sector)
        yield from self._write_bitmap(bitmap)

    def _mark(self, sector: int, sectors: int) -> Steps:
        """With a bitmap: these sectors are going to be written."""
        bitmap = self._bitmap
        if bitmap is None or bitmap.writable.all_set(sector, sectors):
            return
        bitmap.disk.set(sector, sectors)
        yield from self._write_bitmap(bitmap, bitmap.block_of(sector), 1)
        bitmap.writable.set(sector, sectors)
        bitmap.marked = True

    @_job
    def flush_bitmap(self) -> Steps:
        """All that was written is on the disk, with its tags: clear the bits (`bitmap_flush_work`)."""
        bitmap, sb = self._bitmap, self._layout.sb
        assert bitmap is not None
        bitmap.marked = False
        yield from self._flush_devices()
        limit = bitmap.sectors
        if sb.flags & SbFlag.RECALCULATING:
            limit = sb.recalc_sector // bitmap.granule * bitmap.granule
        bitmap.disk.clear(0, limit)
        bitmap.writable.clear(0, limit)
        yield from self._write_bitmap(bitmap)

    @_job
    def end_bitmap(self) -> Steps:
        """Leave an empty journal behind, and nothing to recalculate."""
        yield from self._flush_devices()
        yield from self._clear_journal()
        self._layout.sb.flags &= ~SbFlag.DIRTY_BITMAP
        yield from self._write_superblock()

    # -- recalculation ----------------------------------------------------------------------------------

    @_job
    def recalculate(self) -> Steps:
        """Make tags for the next blocks (`integrity_recalc`), and at times write down how far it got."""
        layout, sb, bitmap = self._layout, self._layout.sb, self._bitmap
        left = layout.provided - sb.recalc_sector
        if left > 0:
            count = min(RECALC_SECTORS, left)
            if not layout.separate:
                count = min(count, (1 << sb.log2_interleave_sectors) - layout.area(sb.recalc_sector)[1])
            yield from self._make_tags(sb.recalc_sector, count)
            sb.recalc_sector += count
            self._recalculated += 1
        if left <= RECALC_SECTORS or self._recalculated % RECALC_WRITE_SUPER == 0:
            yield from self._flush_devices()
            yield from self._write_superblock()
            if bitmap:
                bitmap.marked = True
                if sb.recalc_sector >= layout.provided:
                    bitmap.stale.clear(0, layout.provided)

    def _make_tags(self, first: int, count: int) -> Steps:
        """For some blocks; with a bitmap, only from the first to the last that has none."""
        layout, bitmap, step = self._layout, self._bitmap, self._layout.sectors_per_block
        sector, end = first, first + count
        if bitmap:
            while sector < end and bitmap.stale.all_clear(sector, step):
                sector += step
            while sector < end and bitmap.stale.all_clear(end - step, step):
                end -= step
        if sector == end:
            return
        data = memoryview(bytearray((end - sector) * SECTOR_SIZE))
        yield from self._do(Request(Op.READ, self._data, layout.data_sector(sector), data), "reading data")
        yield from self._write_tags(sector, b"".join(self._tags(sector, data)))
        if bitmap:
            start, stop = (at // bitmap.granule * bitmap.granule for at in (first, first + count))
            bitmap.stale.clear(start, stop - start)


def _cut(tags: memoryview, size: int) -> list[bytes]:
    return [bytes(tags[at : at + size]) for at in range(0, len(tags), size)]
