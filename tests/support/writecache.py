"""A small writecache on a `Bench`: origin 1:0, cache device 1:1."""

from __future__ import annotations

from support.targets import Bench

from dmserver.model.dm_dev import DmDev
from dmserver.targets.writecache.writecache import Writecache

__all__ = ["ROOM", "SIZE", "load"]

#: Sectors of the origin, and a cache device with room for 20 blocks of 512 bytes.
SIZE = 64
ROOM = 20


def load(bench: Bench, options: str = "0") -> DmDev:
    return bench.load("w", (Writecache, SIZE, f"s 1:0 1:1 512 {options}"))
