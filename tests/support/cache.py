"""Caches for tests, on a `Bench`: the origin is 1:0, the metadata are on 1:1, the cache is 1:2."""

from __future__ import annotations

import re
from pathlib import Path

from support.targets import Bench, FaultyDisk, read
from support.thin import thin_tool

from dmproto.wire import SECTOR_SIZE
from dmserver.io.bio import Bio, Op
from dmserver.io.blockdev import BlockDevice
from dmserver.model.dm_dev import DmDev
from dmserver.targets.cache.cache import Cache
from dmserver.targets.cache.metadata import CacheMetadata
from dmserver.targets.persistent_data.device import block_reader, metadata_blocks

__all__ = ["BLOCK", "DEVICES", "check", "dump", "load", "make_cache", "mapped", "ours", "submit"]

#: Sectors of a block.
BLOCK = 64

DEVICES = "1:1 1:2 1:0"


def load(bench: Bench, params: str, *, sectors: int = 64 * BLOCK, name: str = "cache") -> DmDev:
    """A table with a cache of an origin of so many blocks, which goes live."""
    device = bench.load(name, (Cache, sectors, f"{DEVICES} {BLOCK} {params}"))
    bench.work.run()
    return device


def make_cache(bench: Bench, features: str = "0", *, cache_blocks: int = 8, sectors: int = 64 * BLOCK) -> DmDev:
    """`cache_blocks` blocks of cache; `features` with their number."""
    bench.disks[1:3] = FaultyDisk(1, "512k"), FaultyDisk(2, f"{cache_blocks * BLOCK}s")
    return load(bench, f"{features} smq 0", sectors=sectors)


def submit(bench: Bench, device: BlockDevice, op: Op, sector: int = 0, data: bytes | int = 0) -> bytes:
    """Do one bio, the worker included; returns what was read. `data`: what to write, or how many sectors. OSError with
    the bio's errno."""
    ended: list[int] = []
    count = data if isinstance(data, int) else len(data) // SECTOR_SIZE
    buffer = bytearray(count * SECTOR_SIZE) if isinstance(data, int) else bytearray(data)
    device.submit_bio(Bio(op, sector, count, memoryview(buffer), lambda bio: ended.append(bio.error), bdev=device))
    bench.work.run()
    assert ended, f"{op} is still under way"
    if ended[0]:
        raise OSError(ended[0], op.name)
    return bytes(buffer)


def _save(bench: Bench, path: Path) -> str:
    path.write_bytes(read(bench.disks[1], 0, bench.disks[1].size))
    return str(path)


def check(bench: Bench, path: Path) -> None:
    """`cache_check` likes the metadata."""
    thin_tool("cache_check", _save(bench, path))


def dump(bench: Bench, path: Path) -> str:
    """What `cache_dump` says of the metadata."""
    return thin_tool("cache_dump", _save(bench, path))


def ours(bench: Bench) -> dict[int, int]:
    """As `mapped`, by our reading."""
    disk = bench.disks[1]
    metadata = CacheMetadata(block_reader(disk), metadata_blocks(disk), BLOCK, 1)
    return {mapping.cblock: mapping.oblock for mapping in metadata.mappings(b"smq", 2, 4)}


def mapped(bench: Bench, path: Path) -> dict[int, int]:
    """By `cache_dump`: cache block -> origin block."""
    found = re.findall(r'<mapping cache_block="(\d+)" origin_block="(\d+)"', dump(bench, path))
    return {int(cblock): int(oblock) for cblock, oblock in found}
