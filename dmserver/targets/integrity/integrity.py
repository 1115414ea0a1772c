"""integrity: a device that keeps a tag for each block, and checks it (Linux `drivers/md/dm-integrity.c`).

Arguments: DEVICE START TAG_SIZE|- MODE NUM [OPTION...]; TAG_SIZE in bytes, `-` for that of internal_hash. MODE: J for a
journal, D for none, R to read only. A device whose super block is all zeroes is formatted when it is loaded, whatever
the size of the target, as `integritysetup format` does.

What the kernel can do and this cannot is refused: mode B and devices that were used with it, and journal_crypt.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

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
    parse_sector,
    parse_u32,
)
from ..serial import Job, SerialQueue
from ..shash import Shash, allocate
from .io import IntegrityIo
from .journal import Journal
from .layout import INTERLEAVE, MAGIC, MAX_VERSION, SB_SECTORS, UINT_MAX, Layout, SbFlag, Superblock

__all__ = ["Integrity"]

MAX_JOURNAL_SECTORS = 131072
JOURNAL_SIZE_FACTOR = 7
MAX_TAG_SIZE = 424
MAX_LOG2_BUFFER_SECTORS = 31 - 9
MODES = ("J", "B", "D", "R")

#: Options with a number, and what it is when they are not given.
NUMBERS = {
    "journal_sectors": 0,
    "interleave_sectors": 32768,
    "buffer_sectors": 128,
    "journal_watermark": 50,
    "commit_time": 10000,
    "block_size": SECTOR_SIZE,
    "sectors_per_bit": 32768,
    "bitmap_flush_interval": 10000,
}
FLAGS = ("recalculate", "reset_recalculate", "allow_discards", "fix_padding", "fix_hmac", "legacy_recalculate")
ALGORITHMS = ("internal_hash", "journal_crypt", "journal_mac")


class _Algorithm(NamedTuple):
    """`ALGORITHM[:KEY]`, as it was given, perhaps empty; None: not given."""

    name: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.name}" if self.key is None else f"{self.name}:{self.key}"


class Integrity(Target):
    name = "integrity"
    version = (1, 10, 0)
    num_flush_bios = 1
    flush_supported = True

    # -- construction -----------------------------------------------------------------------------------

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) <= 4:
            raise self.refuse("Invalid argument count")
        self.dev = self.get_device(argv[0])
        self.start = self._number(parse_sector, argv[1], "Invalid starting offset")
        tag_size = 0
        if argv[2] != "-":
            tag_size = self._number(parse_u32, argv[2], "Invalid tag size")
            if not tag_size:
                raise self.refuse("Invalid tag size")
        self.mode = argv[3]
        if self.mode not in MODES:
            raise self.refuse("Invalid mode (expecting J, B, D, R)")
        self._parse_options(Arguments(argv[4:]))
        self._set_hashes()
        self._lay_out(self._check_tag_size(tag_size))
        formatted = self._read_superblock()
        self._check_superblock()
        self._measure()
        if self.len > self.layout.provided:
            raise self.refuse("Not enough provided sectors for requested mapping size")
        self._set_recalculation()
        self._refuse_bitmap()
        self._start_io()
        if formatted and self.mode != "R":
            self._set_bitmap_size()
            if error := self._run(self.io.format()):
                raise self.refuse("Error initializing journal", error)
        self.is_current = formatted
        if not self.layout.separate:
            self.max_io_len = 1 << self.layout.sb.log2_interleave_sectors
        if "allow_discards" in self.flags:
            self.num_discard_bios = 1

    def _number(self, parse: Callable[[str], int], text: str, complaint: str) -> int:
        try:
            return parse(text)
        except ValueError:
            raise self.refuse(complaint) from None

    def _parse_options(self, args: Arguments) -> None:
        self.numbers = dict(NUMBERS)
        self.flags: set[str] = set()
        self.algorithms = dict.fromkeys(ALGORITHMS, _Algorithm())
        self.meta_dev: DmPdev | None = None
        count = self._number(lambda text: args.group(0, 18), "", "Invalid number of feature args")
        for option in args.take(count):
            name, colon, value = option.partition(":")
            if colon and name in NUMBERS:
                parse = parse_sector if name == "sectors_per_bit" else parse_u32
                self._set_number(name, self._number(parse, value, "Invalid argument"))
            elif colon and name == "meta_device":
                self.meta_dev = self.get_device(value)
            elif colon and name in ALGORITHMS:
                self.algorithms[name] = self._algorithm(value, f"Invalid {name} argument")
            elif option in FLAGS:
                self.flags.add(option)
            else:
                raise self.refuse("Invalid argument")

    def _set_number(self, name: str, value: int) -> None:
        if name == "journal_watermark" and value > 100:
            raise self.refuse("Invalid argument")
        if name == "block_size" and (not SECTOR_SIZE <= value <= 4096 or value & value - 1):
            raise self.refuse("Invalid block_size argument")
        self.numbers[name] = max(value, 1) if name in ("journal_sectors", "buffer_sectors") else value

    def _algorithm(self, text: str, complaint: str) -> _Algorithm:
        name, colon, key = text.partition(":")
        if len(key) % 2 or not re.fullmatch(r"[0-9a-fA-F]*", key):
            raise self.refuse(complaint)
        return _Algorithm(name, key if colon else None)

    def _set_hashes(self) -> None:
        words = "Invalid internal hash", "Error setting internal hash key"
        self.hash = self._get_mac(self.algorithms["internal_hash"], *words)
        self.mac = self._get_mac(self.algorithms["journal_mac"], "Invalid journal mac", "Error setting journal mac key")

    def _get_mac(self, algorithm: _Algorithm, unknown: str, bad_key: str) -> Shash | None:
        """`get_mac`."""
        if algorithm.name is None:
            return None
        try:
            found = allocate(algorithm.name)
        except LookupError:
            raise self.refuse(unknown, errno.ENOENT) from None
        try:
            if algorithm.key is not None:
                found.set_key(bytes.fromhex(algorithm.key))
        except OSError as failure:
            raise self.refuse(bad_key, failure.errno or errno.EINVAL) from None
        if found.needs_key:
            raise self.refuse(bad_key, errno.ENOKEY)
        return found

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

    def _set_bitmap_size(self) -> None:
        """The super block tells how a bitmap would be laid out in the place of the journal."""
        sb, layout = self.layout.sb, self.layout
        log2 = max(self.numbers["sectors_per_bit"].bit_length() - 1, sb.log2_sectors_per_block)
        bits = min(layout.section_sectors * sb.journal_sections * SECTOR_SIZE * 8, UINT_MAX)
        while bits < layout.provided + (1 << log2) - 1 >> log2:
            log2 += 1
        sb.log2_blocks_per_bitmap_bit = log2 - sb.log2_sectors_per_block

    def _set_recalculation(self) -> None:
        sb = self.layout.sb
        if self.flags & {"recalculate", "reset_recalculate"} and not sb.flags & SbFlag.RECALCULATING:
            self._recalculate_all()
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

    def _recalculate_all(self) -> None:
        sb = self.layout.sb
        sb.flags |= SbFlag.RECALCULATING
        sb.recalc_sector = 0

    def _has_disabled_recalculation(self) -> bool:
        """`dm_integrity_disable_recalculate`."""
        keyed, mac_keyed = (self.algorithms[name].key is not None for name in ("internal_hash", "journal_mac"))
        if "legacy_recalculate" in self.flags:
            return False
        if self.layout.sb.flags & SbFlag.FIXED_HMAC:
            return keyed and not mac_keyed
        return keyed or mac_keyed

    def _refuse_bitmap(self) -> None:
        if self.mode == "B":
            raise self.refuse("Mode B is not supported, use J or D", errno.EOPNOTSUPP)
        if self.layout.sb.flags & SbFlag.DIRTY_BITMAP:
            raise self.refuse("The device was used in mode B, whose bitmap is not supported", errno.EOPNOTSUPP)

    def _start_io(self) -> None:
        if self.algorithms["journal_crypt"].name is not None and self.mode != "R":
            raise self.refuse("Invalid journal cipher", errno.ENOENT)
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
            Journal(self.layout, self.mac),
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
        elif self.io.pending and not self.timer_runs:
            self.timer_runs = True
            self.call_later(self.numbers["commit_time"] / 1000, self._commit)
        bio.endio(error)

    def _commit(self) -> None:
        self.timer_runs = False
        if self.io.pending:
            self.hold()
            self.queue.start(self.io.commit(), lambda error: self.release())

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
        self._run(self.io.commit())

    def resume(self) -> None:
        self.suspending = False
        sb = self.layout.sb
        if self.mode == "R":
            return
        if sb.provided_data_sectors != self.layout.provided:
            sb.provided_data_sectors = self.layout.provided
            self._run(self.io.write_superblock())
        if not self.is_current:
            self._run(self.io.replay())
            self.is_current = True
        if "reset_recalculate" in self.flags:
            self._recalculate_all()
        if sb.flags & SbFlag.RECALCULATING and sb.recalc_sector > self.layout.provided:
            sb.recalc_sector = self.layout.provided
            self._run(self.io.write_superblock())
        self.queue_work(self._recalculate)

    def _recalculate(self) -> None:
        """The next step of a recalculation, if one goes on."""
        sb = self.layout.sb
        if self.suspending or not sb.flags & SbFlag.RECALCULATING or sb.recalc_sector >= self.layout.provided:
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
