"""Whatever happens to a cache, it holds what a plain device would hold."""

from __future__ import annotations

import errno
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from support.cache import BLOCK, check, load, make_cache, mapped, ours, submit
from support.targets import Bench, FaultyDisk

from dmserver.io.bio import Op
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import TargetError

BLOCKS = 24
SECTORS = BLOCKS * BLOCK - 5  # the last block is no whole one
FEATURES = ("0", "1 writethrough", "1 passthrough", "1 metadata2", "2 metadata2 writethrough", "1 no_discard_passdown")
STARTS = st.one_of(st.integers(0, SECTORS - 1), st.integers(0, BLOCKS - 1).map(lambda block: block * BLOCK))
LENGTHS = st.sampled_from([1, 7, BLOCK, BLOCK, 2 * BLOCK + 3])


def stamp(number: int, sector: int, count: int) -> list[bytes]:
    """Sectors that tell which write they come from."""
    return [struct.pack("<QQ", number, at) * 32 for at in range(sector, sector + count)]


class PlainDevice(RuleBasedStateMachine):
    """`content`: what each sector was written last; None once it was discarded."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.directory = TemporaryDirectory()
        self.path = Path(self.directory.name) / "metadata"
        self.writes = 0
        self.content: list[bytes | None] = []

    @initialize(features=st.sampled_from(FEATURES), cache_blocks=st.integers(1, 12))
    def begin(self, features: str, cache_blocks: int) -> None:
        self.content = [*stamp(0, 0, SECTORS)]
        self.bench.disks[0].write_from(memoryview(b"".join(stamp(0, 0, SECTORS))), 0)
        make_cache(self.bench, features, cache_blocks=cache_blocks, sectors=SECTORS)

    @property
    def device(self) -> DmDev:
        found = self.bench.mapper.by_name("cache")
        assert found
        return found

    @rule(sector=STARTS, length=LENGTHS)
    def write(self, sector: int, length: int) -> None:
        self.writes += 1
        length = min(length, SECTORS - sector)
        data = stamp(self.writes, sector, length)
        submit(self.bench, self.device, Op.WRITE, sector, b"".join(data))
        self.content[sector : sector + length] = data

    @rule(sector=STARTS, length=LENGTHS)
    def read(self, sector: int, length: int) -> None:
        length = min(length, SECTORS - sector)
        data = submit(self.bench, self.device, Op.READ, sector, length)
        for at in range(length):
            expected = self.content[sector + at]
            assert expected is None or data[at * 512 : at * 512 + 512] == expected, f"sector {sector + at}"

    @rule(sector=STARTS, length=LENGTHS)
    def discard(self, sector: int, length: int) -> None:
        """One that begins behind the last whole block goes to the origin, which takes none."""
        sector = min(sector, SECTORS - SECTORS % BLOCK - 1)
        length = min(length, SECTORS - sector)
        submit(self.bench, self.device, Op.DISCARD, sector, length)
        self.content[sector : sector + length] = [None] * length

    @rule(seconds=st.sampled_from([1, 3]))
    def wait(self, seconds: int) -> None:
        self.bench.work.advance(seconds)

    @rule()
    def suspend_and_resume(self) -> None:
        assert self.bench.suspend(self.device)
        self.bench.resume(self.device)

    @rule(features=st.sampled_from(FEATURES))
    def remove_and_make_again(self, features: str) -> None:
        self.bench.remove(self.device)
        self.bench.work.run()
        check(self.bench, self.path)
        assert mapped(self.bench, self.path) == ours(self.bench)
        self.load(features)

    @rule(features=st.sampled_from(FEATURES))
    def lose_power(self, features: str) -> None:
        """After a flush, lest what was written be lost."""
        submit(self.bench, self.device, Op.FLUSH)
        disks = self.bench.disks
        self.bench = Bench()
        for number, disk in enumerate(disks[:3]):
            image = bytearray(disk.bytes)
            disk.read_into(memoryview(image), 0)
            self.bench.disks[number] = FaultyDisk(number, f"{disk.size}s")
            self.bench.disks[number].write_from(memoryview(image), 0)
        check(self.bench, self.path)
        self.load(features)

    @rule(features=st.sampled_from(FEATURES))
    def load(self, features: str) -> None:
        """In passthrough mode only if the metadata say that nothing is dirty."""
        try:
            load(self.bench, f"{features} default 0", sectors=SECTORS)
        except TargetError as refusal:
            assert refusal.errno == errno.EBUSY
            load(self.bench, "0 default 0", sectors=SECTORS)

    def teardown(self) -> None:
        if self.content:
            for sector in range(0, SECTORS, BLOCK):
                self.read(sector, BLOCK)
        self.directory.cleanup()


TestPlainDevice = PlainDevice.TestCase
TestPlainDevice.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
