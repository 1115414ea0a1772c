"""What a replay of the Linux recordings masks, each with its reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from support.linux_vectors import expand

from dmserver.model.dm_dev import DmDev
from dmserver.model.mapper import Mapper

__all__ = ["KINDS", "MASKS", "MASK_SEPARATOR", "NOT_LOGGED", "SHELL", "Mask"]

Step = dict[str, Any]

#: The target types of the recorded kernel.
KINDS = (
    *("cache", "crypt", "delay", "era", "error", "flakey", "integrity", "linear", "log-writes", "mirror", "multipath"),
    *("raid", "snapshot", "snapshot-merge", "snapshot-origin", "striped", "switch", "thin", "thin-pool", "unstriped"),
    *("verity", "writecache", "zero", "zoned"),
)

#: Lines of the kernel log that come with its modules, or only so often (DMWARN_LIMIT).
NOT_LOGGED = re.compile(r"version [0-9.]+ loaded|Loading target version|repeat_count > 1 is deprecated")


#: What shell lines do to devices, besides reading and writing them, by (file, line).
SHELL: dict[tuple[str, int], Callable[[Mapper], None]] = {
    ("dmsetup_nodes", 63): lambda mapper: mapper.remove(_found(mapper, "held")),
    ("dmsetup_nodes", 82): lambda mapper: _rename(mapper, "ev", "ev2"),
}


def _found(mapper: Mapper, name: str) -> DmDev:
    device = mapper.by_name(name)
    assert device is not None
    return device


def _rename(mapper: Mapper, name: str, new: str) -> None:
    device = _found(mapper, name)
    mapper.rename(device, new)
    device.event()


@dataclass(frozen=True, slots=True)
class Mask:
    """Bytes of a reply that vary from run to run, and why. `applies` to a step; `blank` takes them out."""

    field: str
    reason: str
    applies: Callable[[Step], bool]
    blank: Callable[[bytes], bytes]


def _without(start: int, end: int) -> Callable[[bytes], bytes]:
    return lambda written: written[:start] + bytes(len(written[start:end])) + written[end:]


def _without_times(written: bytes) -> bytes:
    """@stats_print: columns 5, 9 and 11 to 14 of each line, and the histogram counts; data_size counts their digits."""
    lines = written[312:].split(b"\n")
    columns = [[word for at, word in enumerate(line.split(), 1) if at not in (5, 9) and at < 11] for line in lines]
    return written[:12] + written[16:312] + repr(columns).encode()


MASK_SEPARATOR = "; "

MASKS = (
    Mask(
        "milliseconds and ticks",
        "they depend on how long a bio took",
        lambda step: "@stats_print" in str(step.get("message")),
        _without_times,
    ),
    Mask(
        "event_nr",
        "a mirror that was just resumed may be in sync already, or not yet",
        lambda step: step.get("cmd") == "DEV_SUSPEND" and step["file"] == "t_mirror",
        _without(32, 36),
    ),
    Mask(
        "open_count",
        "programs and mounts hold devices open while others ask",
        lambda step: step.get("in_program", False),
        _without(24, 28),
    ),
    Mask(
        "status of a verity device",
        "it tells what reads found, and what programs write and read is not replayed",
        lambda step: step.get("in_program", False) and b"\0verity\0" in expand(step["written"])[330:360],
        _without(352, 353),
    ),
    Mask(
        "status of a snapshot",
        "it counts chunks that programs wrote, and their data are not replayed",
        lambda step: step.get("in_program", False) and b"\0snapshot\0" in expand(step["written"])[330:360],
        _without(352, 1 << 14),
    ),
    Mask(
        "flags",
        "a wait that a removal woke sees the device suspended, or not yet",
        lambda step: step["op"] == "join" and step.get("label") == "after remove",
        _without(28, 32),
    ),
)
