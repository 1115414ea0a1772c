"""The arguments of the raid target: what they may be, and how a table tells them (Linux `drivers/md/dm-raid.c`).

TYPE NUM CHUNK [PARAMETER [VALUE]]... DEVICES (META DATA)...; a `-` stands for a device that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ...model.dm_target import Arguments
from .geometry import RAID10_OFFSET
from .personality import Shape

__all__ = ["MIN_FREE", "TYPES", "Params", "RaidType", "describe", "is_known", "parse_int", "type_name"]

Refuse = Callable[[str], Exception]
Log = Callable[[str], None]

MAX_DEVICES = 253
#: A bit of raid10's layout numbers: far copies turn among as many devices as there are copies.
RAID10_USE_FAR_SETS = 1 << 18
COUNTER_MAX = (1 << 14) - 1
_INT = re.compile(r"[+-]?[0-9]+\n?\Z")


@dataclass(frozen=True, slots=True)
class RaidType:
    """`struct raid_type`. `algorithm`: md's layout number; `parity`: devices' worth of it; `least`: devices."""

    name: str
    parity: int
    level: int
    algorithm: int = 0

    @property
    def least(self) -> int:
        return 4 if self.parity == 2 else 2


#: By name.
TYPES = {
    kind.name: kind
    for kind in (
        RaidType("raid0", 0, 0),
        RaidType("raid1", 0, 1),
        RaidType("raid10", 0, 10),
        RaidType("raid10_near", 0, 10),
        RaidType("raid10_far", 0, 10),
        RaidType("raid10_offset", 0, 10),
        RaidType("raid4", 1, 5, 4),
        RaidType("raid5_n", 1, 5, 5),
        RaidType("raid5_ls", 1, 5, 2),
        RaidType("raid5_rs", 1, 5, 3),
        RaidType("raid5_la", 1, 5, 0),
        RaidType("raid5_ra", 1, 5, 1),
        RaidType("raid6_zr", 2, 6, 8),
        RaidType("raid6_nr", 2, 6, 9),
        RaidType("raid6_nc", 2, 6, 10),
        RaidType("raid6_n_6", 2, 6, 5),
        RaidType("raid6_ls_6", 2, 6, 18),
        RaidType("raid6_rs_6", 2, 6, 19),
        RaidType("raid6_la_6", 2, 6, 16),
        RaidType("raid6_ra_6", 2, 6, 17),
    )
}

_RESHAPE = {"delta_disks", "data_offset"}
_COMMON = {"sync", "rebuild", "daemon_sleep", "min_recovery_rate", "max_recovery_rate", "region_size", *_RESHAPE}
_PARITY = _COMMON | {"stripe_cache", "journal_dev", "journal_mode"}
#: By level.
_VALID = {
    0: {"data_offset"},
    1: _COMMON | {"nosync", "write_mostly", "max_write_behind"},
    10: _COMMON | {"nosync", "raid10_copies", "raid10_format", "raid10_use_near_sets"},
    5: _PARITY | {"nosync"},
    6: _PARITY,
}

#: Parameters without a value, and how the kernel calls them when there are two.
_FLAGS = {"sync": "sync", "nosync": "nosync", "raid10_use_near_sets": "raid10_use_new_sets"}

#: What a table line tells, in this order (`raid_status`).
_ORDER = (
    *("sync", "nosync", "rebuild", "daemon_sleep", "min_recovery_rate", "max_recovery_rate", "write_mostly"),
    *("max_write_behind", "stripe_cache", "region_size", "raid10_copies", "raid10_format", "delta_disks"),
    "data_offset",
)

_FORMATS = ("near", "far", "offset")
_JOURNAL_MODES = ("writethrough", "writeback")
#: Sectors of each device that a reshape needs free (`MIN_FREE_RESHAPE_SPACE`), and sectors of a page.
MIN_FREE, _PAGE = 32, 8


def parse_int(text: str) -> int:
    """`kstrtoint(text, 10)`."""
    if _INT.match(text) and -(1 << 31) <= (value := int(text)) < 1 << 31:
        return value
    raise ValueError(f"{text!r}: expected a number of 32 bits")


@dataclass(slots=True)
class Params:
    """`chunk` and `region_size` in sectors; `given`: the parameters as a table line repeats them; `write_mostlies`: how
    often that was said."""

    kind: RaidType
    devices: int
    chunk: int = 0
    region_size: int = 0
    copies: int = 2
    rebuild: set[int] = field(default_factory=set)
    write_mostly: set[int] = field(default_factory=set)
    write_mostlies: int = 0
    given: dict[str, str] = field(default_factory=dict)

    def parse(self, args: Arguments, count: int, length: int, refuse: Refuse, log: Log) -> None:
        """Take `count` parameters for a target of `length` sectors (`parse_raid_params`)."""
        self._parse_chunk(args.shift(), refuse, log)
        left = count - 1 & 0xFFFFFFFF
        while left > 0:
            if not args:
                raise refuse("Not enough raid parameters given")
            key = args.shift().lower()
            left -= 1
            if key in _FLAGS:
                self._once(key, f"Only one '{_FLAGS[key]}' argument allowed", refuse)
                self.given[key] = ""
                continue
            if not args:
                raise refuse("Wrong number of raid parameters given")
            self._parse_pair(key, args.shift(), refuse, log)
            left -= 1
        self._check(length, refuse, log)

    def _parse_chunk(self, text: str, refuse: Refuse, log: Log) -> None:
        try:
            chunk = parse_int(text)
        except ValueError:
            raise refuse("Bad numerical argument given for chunk_size") from None
        if self.kind.level == 1:
            if chunk:
                log("Ignoring chunk size parameter for RAID 1")
            return
        if chunk <= 0 or chunk & chunk - 1:
            raise refuse("Chunk size must be a power of 2")
        if chunk < 8:
            raise refuse("Chunk size value is too small")
        self.chunk = chunk

    def _once(self, key: str, complaint: str, refuse: Refuse) -> None:
        if key in self.given:
            raise refuse(complaint)

    def _parse_pair(self, key: str, text: str, refuse: Refuse, log: Log) -> None:
        if key in ("raid10_format", "journal_dev", "journal_mode"):
            self._parse_word(key, text, refuse)
            return
        try:
            value = parse_int(text)
        except ValueError:
            raise refuse("Bad numerical argument given in raid params") from None
        if key in ("rebuild", "write_mostly"):
            self._parse_index(key, value, refuse)
        elif key in _ORDER:
            self._once(key, f"Only one {key} argument pair allowed", refuse)
            self._check_value(key, value, refuse)
            self.given[key] = str(value // 2 if key == "max_write_behind" else value)
        else:
            log(f"Unable to parse RAID parameter: {key}")
            raise refuse("Unable to parse RAID parameter")

    def _parse_word(self, key: str, text: str, refuse: Refuse) -> None:
        if key == "raid10_format":
            self._once(key, "Only one 'raid10_format' argument pair allowed", refuse)
            if self.kind.level != 10:
                raise refuse("'raid10_format' is an invalid parameter for this RAID type")
            text = text.lower()
            if text not in _FORMATS:
                raise refuse("Invalid 'raid10_format' value given")
        elif key == "journal_dev":
            self._once(key, "Only one raid4/5/6 set journaling device allowed", refuse)
            if not self.kind.parity:
                raise refuse("'journal_dev' is an invalid parameter for this RAID type")
        else:
            if "journal_dev" not in self.given:
                raise refuse("raid4/5/6 'journal_mode' is invalid without 'journal_dev'")
            self._once(key, "Only one raid4/5/6 'journal_mode' argument allowed", refuse)
            if text.lower() not in _JOURNAL_MODES:
                raise refuse("Invalid 'journal_mode' argument")
        self.given[key] = text

    def _parse_index(self, key: str, value: int, refuse: Refuse) -> None:
        if key == "write_mostly" and self.kind.level != 1:
            raise refuse("write_mostly option is only valid for RAID1")
        if not 0 <= value < self.devices:
            raise refuse(f"Invalid {key} index given")
        chosen = self.rebuild if key == "rebuild" else self.write_mostly
        if key == "rebuild" and value in chosen:
            raise refuse("rebuild for this index already given")
        chosen.add(value)
        self.given[key] = ""
        self.write_mostlies += key == "write_mostly"

    def _check_value(self, key: str, value: int, refuse: Refuse) -> None:
        if key == "max_write_behind":
            if self.kind.level != 1:
                raise refuse("max_write_behind option is only valid for RAID1")
            if value < 0 or value // 2 > COUNTER_MAX:
                raise refuse("Max write-behind limit out of range")
        elif key == "daemon_sleep" and value < 0:
            raise refuse("daemon sleep period out of range")
        elif key == "stripe_cache":
            if self.kind.parity == 0:
                raise refuse("Inappropriate argument: stripe_cache")
            if value < 0:
                raise refuse("Bogus stripe cache entries value")
        elif key in ("min_recovery_rate", "max_recovery_rate") and value < 0:
            raise refuse(f"{key} out of range")
        elif key == "data_offset":
            if value < 0 or (value and (value < MIN_FREE or value % _PAGE)):
                raise refuse("Bogus data_offset value")
        elif key == "delta_disks":
            if not 1 <= abs(value) <= MAX_DEVICES - self.kind.least:
                raise refuse("Too many delta_disk requested")
        elif key == "region_size":
            self.region_size = value & 0xFFFFFFFFFFFFFFFF
        elif key == "raid10_copies":
            if not 2 <= value <= self.devices:
                raise refuse("Bad value for 'raid10_copies'")
            self.copies = value

    def _check(self, length: int, refuse: Refuse, log: Log) -> None:
        if "sync" in self.given and "nosync" in self.given:
            raise refuse("sync and nosync are mutually exclusive")
        if self.rebuild and ("sync" in self.given or "nosync" in self.given):
            raise refuse("sync/nosync and rebuild are mutually exclusive")
        if self.write_mostlies >= self.devices:
            raise refuse("Can't set all raid1 devices to write_mostly")
        fastest = int(self.given.get("max_recovery_rate", 0))
        if fastest and int(self.given.get("min_recovery_rate", 0)) > fastest:
            raise refuse("Bogus recovery rates")
        self._check_region_size(length, refuse, log)
        if self.kind.level == 10:
            if self.copies > self.devices:
                raise refuse("Not enough devices to satisfy specification")
            if self.is_near and "raid10_use_near_sets" in self.given:
                raise refuse("RAID10 format 'near' and 'raid10_use_near_sets' are incompatible")
        if not self.given.keys() <= _VALID[self.kind.level]:
            raise refuse("Invalid flags combination")

    def _check_region_size(self, length: int, refuse: Refuse, log: Log) -> None:
        """`validate_region_size`."""
        least = length >> 21
        size = self.region_size
        if self.kind.level == 0:
            return
        if not size:
            self.region_size = 1 << 13
            if least > self.region_size:
                self.region_size = 1 << (least - 1).bit_length()
                log(f"Choosing default region size of {self.region_size} sectors")
            else:
                log("Choosing default region size of 4MiB")
            return
        if size > length:
            raise refuse("Supplied region size is too large")
        if size < least:
            log(f"Supplied region_size ({size} sectors) below minimum ({least})")
            raise refuse("Supplied region size is too small")
        if size & size - 1:
            raise refuse("Region size is not a power of 2")
        if size < self.chunk:
            raise refuse("Region size is smaller than the chunk size")

    @property
    def is_near(self) -> bool:
        """Copies of a chunk lie next to each other."""
        return self.format == "near"

    @property
    def format(self) -> str:
        return self.given.get("raid10_format", "near").lower()

    @property
    def delta(self) -> int:
        return int(self.given.get("delta_disks", 0))

    @property
    def data_offset(self) -> int:
        return int(self.given.get("data_offset", 0))

    @property
    def shape(self) -> Shape:
        """What the table asks for."""
        layout = self.layout(self.copies, self.format) if self.kind.level == 10 else self.kind.algorithm
        return Shape(self.kind.level, layout, self.chunk, self.devices)

    def layout(self, copies: int, form: str) -> int:
        """raid10's number of it (`raid10_format_to_md_layout`)."""
        if form == "near":
            return copies | 1 << 8
        turning = 0 if "raid10_use_near_sets" in self.given else RAID10_USE_FAR_SETS
        return 1 | copies << 8 | turning | (RAID10_OFFSET if form == "offset" else 0)

    def words(self, chunk: int, layout: int, delta: int) -> list[str]:
        """The parameters of a table line, the count of them first; `chunk`, `layout` and `delta` are the array's."""
        told = dict(self.given)
        if self.kind.level == 10:
            copies, form = describe(layout)
            array = {"raid10_copies": str(copies), "raid10_format": form}
            told |= {key: text for key, text in array.items() if key in told}
        if "delta_disks" in told:
            told["delta_disks"] = str(max(self.delta, delta))
        words = [str(chunk)]
        for key in _ORDER:
            if key in ("rebuild", "write_mostly"):
                chosen = self.rebuild if key == "rebuild" else self.write_mostly
                words += [word for index in sorted(chosen) for word in (key, str(index))]
            elif key in told:
                words += [key, told[key]] if told[key] else [key]
        count = len(words) + ("raid10_use_near_sets" in told)  # which the kernel counts and does not tell
        return [str(count), *words]


def describe(layout: int) -> tuple[int, str]:
    """Copies and format of a layout number of raid10 (`raid10_md_layout_to_copies`, `raid10_md_layout_to_format`)."""
    near, far = layout & 255, layout >> 8 & 255
    form = "offset" if layout & RAID10_OFFSET else "near" if near > 1 else "far" if far > 1 else "unknown"
    return max(near, far), form


def is_known(shape: Shape) -> bool:
    """md has such a level, layout and chunk."""
    chunk = shape.chunk
    if shape.level == 1:
        return chunk == 0
    if chunk < 8 or chunk & chunk - 1:
        return False
    if shape.level == 10:
        near, far = shape.layout & 255, shape.layout >> 8 & 255
        return 2 <= near * far <= shape.devices and shape.layout >> 17 < 3
    kinds = [kind for kind in TYPES.values() if (kind.level, kind.algorithm) == (shape.level, shape.layout)]
    return bool(kinds) and shape.devices > kinds[0].parity


def type_name(shape: Shape) -> str:
    """The last of the types with this level and layout (`get_raid_type_by_ll`)."""
    if shape.level == 10:
        form = describe(shape.layout)[1]
        return "raid10" if form == "near" else f"raid10_{form}"
    names = [kind.name for kind in TYPES.values() if (kind.level, kind.algorithm) == (shape.level, shape.layout)]
    return names[-1]
