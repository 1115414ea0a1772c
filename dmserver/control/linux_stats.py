"""The @stats_* messages (drivers/md/dm-stats.c: dm_stats_message(); the grammar is in the kernel's
Documentation/admin-guide/device-mapper/statistics.rst).

A handler takes the device, the words behind the message's name, and the bytes that the reply may fill. It returns the
reply, or None for a message that has none; ValueError stands for words that it cannot take.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence

from ..model.args import parse_sector, parse_u32, wrapped
from ..model.dm_dev import DmDev
from ..model.stats import Area, Region
from .linux_call import Refusal

__all__ = ["STATS_MESSAGES"]

#: Bytes of an area (`struct dm_stat_shared`) and of a class of its histogram, and what a region may take at most; in
#: the kernel that is a quarter of the machine's memory.
AREA_SIZE, CLASS_SIZE = 120, 8
MAX_MEMORY = 1 << 30

INT_MAX = 0x7FFFFFFF
ULONG_MAX = 0xFFFFFFFFFFFFFFFF

_RANGE = re.compile(r"\s*(\d+)\+\s*(\d+)\Z", re.ASCII)
_ID = re.compile(r"\s*(-?\d+)\Z", re.ASCII)


def _create(device: DmDev, argv: Sequence[str], room: int) -> str:
    """RANGE STEP [NUMBER_OF_FEATURES FEATURE...] [PROGRAM_ID [AUX_DATA]]"""
    if len(argv) < 2:
        raise ValueError("expected a range and a step")
    words = list(argv)
    start, end = _range(words.pop(0), device.size)
    step = _step(words.pop(0), end - start)
    precise, boundaries = _features(words)
    program_id = words.pop(0) if words else "-"
    aux_data = words.pop(0) if words else "-"
    if words:
        raise ValueError(f"unexpected {words[0]!r}")
    if len(str(INT_MAX)) + 1 >= room:
        return " " * room  # it must be sure that the reply with the id fits
    _check_size(-(-(end - start) // step), len(boundaries) + 1)
    region = device.count_io().create(
        start, end, step, precise=precise, boundaries=boundaries, program_id=program_id, aux_data=aux_data
    )
    device.io.table_changed()
    return str(region.id)


def _check_size(areas: int, classes: int) -> None:
    sizes = areas * AREA_SIZE, areas * classes * CLASS_SIZE
    if max(sizes) > ULONG_MAX:
        raise Refusal(errno.EOVERFLOW)
    if sum(sizes) > MAX_MEMORY:
        raise Refusal(errno.ENOMEM)


def _range(text: str, size: int) -> tuple[int, int]:
    if text == "-":
        return 0, size or 1
    match = _RANGE.match(text)
    if match is None:
        raise ValueError(f"{text!r}: expected START+LENGTH")
    start, length = map(wrapped, match.groups())
    if start + length > ULONG_MAX or not length:
        raise ValueError(f"{text!r}: no sectors")
    return start, start + length


def _step(text: str, length: int) -> int:
    if text.startswith("/"):
        divisor = parse_u32(text[1:])
        if not divisor:
            raise ValueError("areas: expected at least one")
        return max(1, -(-length // divisor))
    if step := parse_sector(text):
        return step
    raise ValueError("step: expected at least one sector")


def _features(words: list[str]) -> tuple[bool, tuple[int, ...]]:
    """Consume the optional features: whether times are precise, and the boundaries of the histogram."""
    precise, boundaries = False, tuple[int, ...]()
    try:
        count = parse_u32(words[0])
    except (ValueError, IndexError):
        return precise, boundaries
    for feature in words[1 : 1 + count]:
        if feature.lower() == "precise_timestamps":
            precise = True
        elif feature.lower().startswith("histogram:") and not boundaries:
            boundaries = _boundaries(feature[10:])
        else:
            raise ValueError(f"{feature!r}: no such feature")
    if len(words) <= count:
        raise ValueError(f"expected {count} features")
    del words[: 1 + count]
    return precise, boundaries


def _boundaries(text: str) -> tuple[int, ...]:
    last = 0
    boundaries = []
    for word in text.split(","):
        boundary = parse_sector(word)
        if boundary <= last:
            raise ValueError(f"{text!r}: expected growing numbers")
        last = boundary
        boundaries.append(boundary)
    return tuple(boundaries)


def _find(device: DmDev, text: str) -> Region:
    match = _ID.match(text)
    region_id = wrapped(match[1], 32) if match else -1
    if not 0 <= region_id <= INT_MAX:
        raise ValueError(f"{text!r}: expected an id")
    region = device.stats.find(region_id) if device.stats else None
    if region is None:
        raise Refusal(errno.ENOENT)
    return region


def _exactly(argv: Sequence[str], *counts: int) -> None:
    if len(argv) not in counts:
        raise ValueError(f"expected {' or '.join(map(str, counts))} words")


def _delete(device: DmDev, argv: Sequence[str], room: int) -> None:
    """ID"""
    _exactly(argv, 1)
    region = _find(device, argv[0])
    device.count_io().delete(region)


def _clear(device: DmDev, argv: Sequence[str], room: int) -> str:
    """ID"""
    _exactly(argv, 1)
    region = _find(device, argv[0])
    with device.count_io().lock:
        region.clear(0, region.n_areas)
    return ""


def _set_aux(device: DmDev, argv: Sequence[str], room: int) -> None:
    """ID AUX_DATA"""
    _exactly(argv, 2)
    _find(device, argv[0]).aux_data = argv[1]


def _list(device: DmDev, argv: Sequence[str], room: int) -> str:
    """[PROGRAM_ID]"""
    _exactly(argv, 0, 1)
    regions = device.stats.regions() if device.stats else []
    return "".join(_line(region) for region in regions if not argv or argv[0] == region.program_id)


def _line(region: Region) -> str:
    line = (
        f"{region.id}: {region.start}+{region.end - region.start} {region.step} {region.program_id} {region.aux_data}"
    )
    if region.precise:
        line += " precise_timestamps"
    if region.boundaries:
        line += f" histogram:{','.join(map(str, region.boundaries))}"
    return line + "\n"


def _print(device: DmDev, argv: Sequence[str], room: int) -> str:
    """ID [FIRST_AREA NUMBER_OF_AREAS]"""
    region, first, last = _areas(device, argv)
    return _counters(device, region, first, last)


def _print_clear(device: DmDev, argv: Sequence[str], room: int) -> str:
    """ID [FIRST_AREA NUMBER_OF_AREAS]; nothing is cleared when the counters do not fit into the reply."""
    region, first, last = _areas(device, argv)
    text = _counters(device, region, first, last)
    if len(text) + 1 < room:
        with device.count_io().lock:
            region.clear(first, last)
    return text


def _areas(device: DmDev, argv: Sequence[str]) -> tuple[Region, int, int]:
    _exactly(argv, 1, 3)
    region = _find(device, argv[0]) if len(argv) == 1 else None
    first, count = 0, ULONG_MAX
    if len(argv) == 3:
        first = 0 if argv[1] == "-" else parse_sector(argv[1])
        count = ULONG_MAX if argv[2] == "-" else parse_sector(argv[2])
        region = _find(device, argv[0])
    assert region is not None
    last = min(first + count, region.n_areas)
    return region, min(first, last), last


def _counters(device: DmDev, region: Region, first: int, last: int) -> str:
    stats = device.count_io()
    lines = []
    with stats.lock:
        for index in range(first, last):
            start = region.start + index * region.step
            area = region.area(index)
            stats.round(area)
            lines.append(f"{start}+{region.step} {_numbers(region, area)}\n")  # the last may be shorter
    return "".join(lines)


def _numbers(region: Region, area: Area) -> str:
    unit = 1 if region.precise else 1_000_000
    numbers: list[int] = []
    for way in (0, 1):
        numbers += [area.ios[way], area.merges[way], area.sectors[way], area.ticks[way] // unit]
    numbers.append(sum(area.in_flight))
    times = (area.io_ticks_total, area.time_in_queue, *area.io_ticks)
    text = " ".join(map(str, [*numbers, *(time // unit for time in times)]))
    return f"{text} {':'.join(map(str, area.histogram))}" if region.boundaries else text


STATS_MESSAGES: dict[str, Callable[[DmDev, Sequence[str], int], str | None]] = {
    "@stats_create": _create,
    "@stats_delete": _delete,
    "@stats_clear": _clear,
    "@stats_list": _list,
    "@stats_print": _print,
    "@stats_print_clear": _print_clear,
    "@stats_set_aux": _set_aux,
}
