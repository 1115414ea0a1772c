"""integrity: a device that keeps a tag for each block, and checks it (Linux `drivers/md/dm-integrity.c`).

Arguments: DEVICE START TAG_SIZE|- MODE NUM [OPTION...]; TAG_SIZE in bytes, `-` for that of internal_hash. MODE: J for a
journal, B for a bitmap, D for neither, R to read only. A device whose super block is all zeroes is formatted when it is
loaded, whatever the size of the target, as `integritysetup format` does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from ...model.dm_target import (
    SECTOR_SIZE,
    Arguments,
    Bio,
    DmPdev,
    IntegrityProfile,
    MapResult,
    Op,
    QueueLimits,
    StatusType,
    Target,
    TargetFeature,
    parse_sector,
    parse_u32,
)
from ..serial import Job, SerialQueue
from .bitmap import Bitmap
from .io import IntegrityIo
from .journal import Journal
from .journal_crypt import JournalCipher
from .layout import INTERLEAVE, MAGIC, MAX_VERSION, SB_SECTORS, UINT_MAX, Layout, SbFlag, Superblock
from .options import get_cipher, get_mac, parse_number, parse_options

__all__ = ["Integrity"]

MAX_JOURNAL_SECTORS = 131072
JOURNAL_SIZE_FACTOR = 7
MAX_TAG_SIZE = 424
MAX_LOG2_BUFFER_SECTORS = 31 - 9
MODES = ("J", "B", "D", "R")


class Integrity(Target):
    name = "integrity"
    version = (1, 10, 0)
    features = TargetFeature.SINGLETON
    num_flush_bios = 1
    flush_supported = True

    # -- construction -----------------------------------------------------------------------------------

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) <= 4:
            raise self.refuse("Invalid argument count")
        self.dev = self.get_device(argv[0])
        self.start = parse_number(self, parse_sector, argv[1], "Invalid starting offset")
        tag_size = 0
        if argv[2] != "-":
            tag_size = parse_number(self, parse_u32, argv[2], "Invalid tag size")
            if not tag_size:
                raise self.refuse("Invalid tag size")
        self.mode = argv[3]
        if self.mode not in MODES:
            raise self.refuse("Invalid mode (expecting J, B, D, R)")
        options = parse_options(self, Arguments(argv[4:]))
        self.numbers, self.flags, self.algorithms = options.numbers, options.flags, options.algorithms
        self.meta_dev = options.meta_dev
        self._set_hashes()
        self._lay_out(self._check_tag_size(tag_size))
        formatted = self._read_superblock()
        self._check_superblock()
        self._measure()
        if self.len > self.layout.provided:
            raise self.refuse("Not enough provided sectors for requested mapping size")
        self._set_recalculation()
        self._start_io()
        if formatted and self.mode != "R":
            self.layout.sb.log2_blocks_per_bitmap_bit = self.log2_blocks_per_bit
            if error := self._run(self.io.format()):
                raise self.refuse("Error initializing journal", error)
        self.is_current = formatted
        self._set_max_io_len()
        if "allow_discards" in self.flags:
            self.num_discard_bios = 1

    def _set_hashes(self) -> None:
        words = "Invalid internal hash", "Error setting internal hash key"
        self.hash = get_mac(self, self.algorithms["internal_hash"], *words)
        words = "Invalid journal mac", "Error setting journal mac key"
        self.mac = get_mac(self, self.algorithms["journal_mac"], *words)

    def _check_tag_size(self, size: int) -> int:
        if not size:
            if self.hash is None:
                raise self.refuse("Unknown tag size")
            size = self.hash.digest_size
        if size > MAX_TAG_SIZE:
            raise self.refuse("Too big tag size")
        if self.mode == "B" and self.hash is None:
            raise self.refuse("Bitmap mode can be only used with internal hash")
        if "allow_discards" in self.flags and self.hash is None:
            raise self.refuse("Discard can be only used with internal hash")
        return size

    # -- the super block --------------------------------------------------------------------------------

    @property
    def meta(self) -> DmPdev:
        """The device that has the super block, the journal and the tags."""
        return self.meta_dev or self.dev

    def _lay_out(self, tag_size: int) -> None:
        self.layout = Layout(
            self.start,
            tag_size,
            self.numbers["block_size"] // SECTOR_SIZE,
            data_sectors=self.dev.bdev.size,
            meta_sectors=self.meta.bdev.size,
            separate=self.meta_dev is not None,
            log2_buffer_sectors=min(self.numbers["buffer_sectors"].bit_length() - 1, MAX_LOG2_BUFFER_SECTORS),
            bitmap=self.mode == "B",
        )

    def _read_superblock(self) -> bool:
        """Read it, or make one if there is none (True)."""
        found = bytearray(SB_SECTORS * SECTOR_SIZE)
        if error := self.do_io(Op.READ, self.meta.bdev, self.start, memoryview(found)):
            raise self.refuse("Error reading superblock", error)
        if found.startswith(MAGIC):
            self.layout.sb = sb = Superblock.parse(found)
            signed = self.mode != "R" and self.mac is not None and sb.flags & SbFlag.FIXED_HMAC
            if signed and sb.build(self.mac)[:SECTOR_SIZE] != found[:SECTOR_SIZE]:
                self.log(f"Error on superblock mac: {-errno.EILSEQ}")
                raise self.refuse("Error reading superblock", errno.EILSEQ)
            return False
        if self.mode != "R" and any(found):
            raise self.refuse("The device is not initialized")
        flags, salt = SbFlag(0), bytes(16)
        if self.mac is not None:
            flags |= SbFlag.HAVE_JOURNAL_MAC
        if "fix_hmac" in self.flags and (self.hash or self.mac):
            flags, salt = flags | SbFlag.FIXED_HMAC, os.urandom(16)
        if "fix_padding" in self.flags:
            flags |= SbFlag.FIXED_PADDING
        journal = self.numbers["journal_sectors"] or min(MAX_JOURNAL_SECTORS, self.dev.bdev.size >> JOURNAL_SIZE_FACTOR)
        try:
            self.layout.format(journal, self.numbers["interleave_sectors"], flags, salt)
        except ValueError:
            raise self.refuse("Could not initialize superblock") from None
        return True

    def _check_superblock(self) -> None:
        sb, layout = self.layout.sb, self.layout
        if not 0 < sb.version <= MAX_VERSION:
            raise self.refuse("Unknown version")
        if sb.tag_size != layout.tag_size:
            raise self.refuse("Tag size doesn't match the information in superblock")
        if 1 << sb.log2_sectors_per_block != layout.sectors_per_block:
            raise self.refuse("Block size doesn't match the information in superblock")
        if not sb.journal_sections:
            raise self.refuse("Corrupted superblock, journal_sections is 0")
        if sb.log2_interleave_sectors if layout.separate else sb.log2_interleave_sectors not in INTERLEAVE:
            raise self.refuse("Invalid interleave_sectors in the superblock")
        if bool(sb.flags & SbFlag.HAVE_JOURNAL_MAC) != (self.mac is not None):
            raise self.refuse("Journal mac mismatch")

    def _measure(self) -> None:
        layout = self.layout
        layout.provide()
        if not layout.provided:
            raise self.refuse("The device is too small")
        try:
            layout.measure_with_smaller_buffers()
        except ValueError:
            raise self.refuse("The device is too small") from None
        if not layout.separate:
            alignment = (layout.metadata_run & -layout.metadata_run).bit_length() - 1
            layout.log2_buffer_sectors = min(layout.log2_buffer_sectors, alignment)
        self.log2_blocks_per_bit = self._bitmap_granularity()

    def _bitmap_granularity(self) -> int:
        """How much a bit of the bitmap stands for, so that it fits in the place of the journal; whether there is one or
        not."""
        sb, layout = self.layout.sb, self.layout
        log2 = max(self.numbers["sectors_per_bit"].bit_length() - 1, sb.log2_sectors_per_block)
        bits = min(layout.section_sectors * sb.journal_sections * SECTOR_SIZE * 8, UINT_MAX)
        while bits < layout.provided + (1 << log2) - 1 >> log2:
            log2 += 1
        return log2 - sb.log2_sectors_per_block

    def _set_max_io_len(self) -> None:
        """A bio is within one area, and its bits within one block of the bitmap."""
        limits = [] if self.layout.separate else [1 << self.layout.sb.log2_interleave_sectors]
        if self.bitmap is not None:
            limits.append(self.bitmap.max_io_len)
        self.max_io_len = min(limits, default=0)

    def _set_recalculation(self) -> None:
        sb = self.layout.sb
        if self.flags & {"recalculate", "reset_recalculate"} and not sb.flags & SbFlag.RECALCULATING:
            sb.recalculate()
        if not sb.flags & SbFlag.RECALCULATING:
            return
        if self.hash is None:
            raise self.refuse("Recalculate can only be specified with internal_hash")
        if sb.recalc_sector < self.layout.provided and self._has_disabled_recalculation():
            raise self.refuse(
                "Recalculating with HMAC is disabled for security reasons - if you really need it, use the argument "
                '"legacy_recalculate"',
                errno.EOPNOTSUPP,
            )

    def _has_disabled_recalculation(self) -> bool:
        """`dm_integrity_disable_recalculate`."""
        keyed, mac_keyed = (self.algorithms[name].key is not None for name in ("internal_hash", "journal_mac"))
        if "legacy_recalculate" in self.flags:
            return False
        if self.layout.sb.flags & SbFlag.FIXED_HMAC:
            return keyed and not mac_keyed
        return keyed or mac_keyed

    def _start_io(self) -> None:
        cipher = get_cipher(self, self.algorithms["journal_crypt"]) if self.mode != "R" else None
        granule = self.layout.sectors_per_block << self.log2_blocks_per_bit
        self.bitmap = Bitmap(granule, self.layout.provided) if self.mode == "B" else None
        entries = self.layout.section_entries * self.layout.sb.journal_sections
        self.threshold = (entries * (100 - self.numbers["journal_watermark"]) + 50) // 100
        self.entries = entries
        self.queue = SerialQueue()
        self.suspending = self.timer_runs = False
        self.io = IntegrityIo(
            self.layout,
            self.dev.bdev,
            self.meta.bdev,
            self.hash,
            Journal(self.layout, self.mac, JournalCipher(cipher, self.layout) if cipher else None),
            self.bitmap,
            limit=max(entries - self.threshold, 1) if self.mode == "J" else 0,
            discard="allow_discards" in self.flags,
            disk=f"dm-{self.table.device.minor}",
            report=self.log,
        )

    # -- bios -------------------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        if bio.op is Op.FLUSH:
            self.queue.start(self.io.flush(), bio.endio)
            return MapResult.SUBMITTED
        sector, count = self.offset(bio.sector), bio.nr_sectors
        if sector + count > self.layout.provided:
            self.log(f"Too big sector number: {sector:#x} + {count:#x} > {self.layout.provided:#x}")
            return MapResult.KILL
        size = self.layout.sectors_per_block
        if (sector | count) & size - 1:
            self.log(f"Bio not aligned on {size} sectors: {sector:#x}, {count:#x}")
            return MapResult.KILL
        if bio.tags is not None and not self._takes(bio.tags, count // size):
            return MapResult.KILL
        if bio.op is not Op.READ and self.mode == "R":
            return MapResult.KILL
        if bio.op is Op.DISCARD:
            self.queue.start(self.io.discard(sector, count), bio.endio)
            return MapResult.SUBMITTED
        assert bio.data is not None
        if bio.op is Op.READ:
            self.queue.start(self.io.read(sector, bio.data, bio.tags), bio.endio)
        else:
            job = self.io.write(sector, bio.data, bio.tags, fua=bio.fua)
            self.queue.start(job, lambda error: self._written(bio, error))
        return MapResult.SUBMITTED

    def _takes(self, tags: memoryview, blocks: int) -> bool:
        """Whether these are tags of so many blocks, and we have no hash to make others."""
        if self.hash is not None:
            self.log("Unexpected integrity data when using internal hash")
        elif len(tags) != blocks * self.layout.tag_size:
            self.log(f"Invalid integrity data size {len(tags)}, expected {blocks * self.layout.tag_size}")
        else:
            return True
        return False

    def _written(self, bio: Bio, error: int) -> None:
        """Commit what was written in a while, if nothing else makes us; before a suspension that has begun is over."""
        if self.suspending:
            self._commit()
        elif self._is_unsettled and not self.timer_runs:
            self.timer_runs = True
            interval = "commit_time" if self.bitmap is None else "bitmap_flush_interval"
            self.call_later(self.numbers[interval] / 1000, self._commit)
        bio.endio(error)

    def _commit(self) -> None:
        self.timer_runs = False
        if self._is_unsettled:
            self.hold()
            job = self.io.commit() if self.bitmap is None else self.io.flush_bitmap()
            self.queue.start(job, lambda error: self.release())

    @property
    def _is_unsettled(self) -> bool:
        """Blocks wait for the journal, or bits are set that could be clear."""
        return bool(self.io.pending) if self.bitmap is None else self.bitmap.marked

    def _run(self, job: Job) -> int:
        """For commands, which wait for it."""
        return self.queue.run(job, self.dev.bdev, self.meta.bdev)

    def presuspend(self) -> None:
        self.suspending = True
        self._commit()

    def presuspend_undo(self) -> None:
        self.suspending = False
        self._recalculate()

    def postsuspend(self) -> None:
        """A removal does not wait for the commit."""
        self._run(self.io.end_bitmap() if self.bitmap is not None else self.io.commit())

    def resume(self) -> None:
        self.suspending = False
        if self.mode == "R":
            return
        reset = "reset_recalculate" in self.flags
        self._run(self.io.resume(self.log2_blocks_per_bit, replay=not self.is_current, reset=reset))
        self.is_current = True
        self.queue_work(self._recalculate)

    def _recalculate(self) -> None:
        """The next step of a recalculation, if one goes on."""
        sb = self.layout.sb
        if self.suspending or self.hash is None or not sb.flags & SbFlag.RECALCULATING:
            return
        if sb.recalc_sector >= self.layout.provided:
            if self.bitmap is not None:
                self._commit()
            return

        def done(error: int) -> None:
            self.release()
            if not error:
                self.queue_work(self._recalculate)

        self.hold()
        self.queue.start(self.io.recalculate(), done)

    # -- what it tells ----------------------------------------------------------------------------------

    def status(self, kind: StatusType) -> str:
        sb = self.layout.sb
        if kind is StatusType.INFO:
            recalculated = sb.recalc_sector if sb.flags & SbFlag.RECALCULATING else "-"
            return f"{self.io.mismatches} {self.layout.provided} {recalculated}"
        options = self._options()
        words = [self.dev.number, self.start, self.layout.tag_size, self.mode, len(options), *options]
        return " ".join(map(str, words))

    def _options(self) -> list[str]:
        sb, layout = self.layout.sb, self.layout
        watermark = ((self.entries - self.threshold) * 100 + self.entries // 2) // self.entries
        options = {
            f"meta_device:{self.meta.number}": layout.separate,
            f"block_size:{self.numbers['block_size']}": layout.sectors_per_block > 1,
            "recalculate": sb.flags & SbFlag.RECALCULATING,
            "reset_recalculate": "reset_recalculate" in self.flags,
            "allow_discards": "allow_discards" in self.flags,
            f"journal_sectors:{layout.initial_sectors - SB_SECTORS}": True,
            f"interleave_sectors:{1 << sb.log2_interleave_sectors}": True,
            f"buffer_sectors:{1 << layout.log2_buffer_sectors}": True,
            f"journal_watermark:{watermark}": self.mode == "J",
            f"commit_time:{self.numbers['commit_time']}": self.mode == "J",
            f"sectors_per_bit:{layout.sectors_per_block << self.log2_blocks_per_bit}": self.mode == "B",
            f"bitmap_flush_interval:{self.numbers['bitmap_flush_interval']}": self.mode == "B",
            "fix_padding": sb.flags & SbFlag.FIXED_PADDING,
            "fix_hmac": sb.flags & SbFlag.FIXED_HMAC,
            "legacy_recalculate": "legacy_recalculate" in self.flags,
            **{f"{name}:{algorithm}": algorithm.name is not None for name, algorithm in self.algorithms.items()},
        }
        return [option for option, is_set in options.items() if is_set]

    def ima_status(self) -> str:
        sb, layout = self.layout.sb, self.layout
        values: dict[str, object] = {
            "dev_name": self.dev.number,
            "start": self.start,
            "tag_size": layout.tag_size,
            "mode": self.mode,
        }
        if layout.separate:
            values["meta_device"] = self.meta.number
        if layout.sectors_per_block > 1:
            values["block_size"] = self.numbers["block_size"]
        values |= {
            "recalculate": bool(sb.flags & SbFlag.RECALCULATING),
            "allow_discards": "allow_discards" in self.flags,
            "fix_padding": bool(sb.flags & SbFlag.FIXED_PADDING),
            "fix_hmac": bool(sb.flags & SbFlag.FIXED_HMAC),
            "legacy_recalculate": "legacy_recalculate" in self.flags,
            "journal_sectors": layout.initial_sectors - SB_SECTORS,
            "interleave_sectors": 1 << sb.log2_interleave_sectors,
            "buffer_sectors": 1 << layout.log2_buffer_sectors,
        }
        return self.ima_line(values)

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        layout = self.layout
        begin = 0 if layout.separate else self.start + layout.initial_sectors + layout.metadata_run
        yield self.dev, begin, self.len

    def io_hints(self, limits: QueueLimits) -> None:
        size = self.numbers["block_size"]
        if size > SECTOR_SIZE:
            limits.logical_block_size = limits.physical_block_size = limits.io_min = size
        if self.hash is None:
            limits.integrity = IntegrityProfile(self.layout.tag_size, size)
