"""Thin provisioning for tests: metadata in memory, the programs that know them, and pools on a `Bench`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.targets import Bench, message, start

from dmserver.io.bio import Op
from dmserver.io.blockdev import BlockDevice
from dmserver.model.dm_dev import DmDev
from dmserver.targets.persistent_data.block import BLOCK_SIZE
from dmserver.targets.thin.metadata import ThinMetadata
from dmserver.targets.thin.thin_pool import ThinPool

__all__ = ["POOL", "MetadataDisk", "make_pool", "thin_tool", "write"]

#: A pool of up to 128 blocks of 64 KiB.
POOL = "1:1 1:2 128 0"


def thin_tool(name: str, *args: str) -> str:
    """What a program of thin-provisioning-tools prints; the test is skipped where there is none."""
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([name, *args], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


class MetadataDisk:
    """A metadata device, of which a commit writes only the first `left` blocks."""

    def __init__(self, blocks: int = 2048) -> None:
        self.blocks = blocks
        self.image = bytearray(blocks * BLOCK_SIZE)

    def read(self, block: int) -> bytes:
        return bytes(self.image[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE])

    def write(self, block: int, image: bytes) -> None:
        self.image[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE] = image

    def open(self) -> ThinMetadata:
        return ThinMetadata(self.read, self.blocks, 128, writable=True)

    def commit(self, metadata: ThinMetadata, left: int | None = None) -> None:
        """All of a transaction; or `left` of its blocks, as a machine does that loses power."""
        commit = metadata.prepare_commit()
        for block, image in commit.blocks[:left]:
            self.write(block, image)
        if left is None:
            self.write(0, commit.superblock)
            metadata.committed()

    def save(self, path: Path) -> str:
        path.write_bytes(self.image)
        return str(path)


def make_pool(bench: Bench, params: str = POOL, *, blocks: int = 64, devices: tuple[int, ...] = (0,)) -> DmDev:
    """A pool with thin devices in it."""
    pool = bench.load("pool", (ThinPool, blocks * 128, params))
    for number in devices:
        message(pool, f"create_thin {number}")
    return pool


def write(bench: Bench, device: BlockDevice, sector: int, data: bytes, op: Op = Op.WRITE) -> None:
    """Write, the worker included; OSError with the bio's errno."""
    ended = start(device, op, sector, data)
    bench.work.run()
    assert ended, "the write is still under way"
    if ended[0]:
        raise OSError(ended[0], "write")
