from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from support.targets import Bench, FaultyDisk, flush, message, pattern, read, write
from support.volatile import Power, VolatileDisk
from support.writecache import ROOM, SIZE, load

from dmserver.io.bio import Bio, Op

WRITES = st.tuples(st.just("write"), st.integers(0, SIZE - 1), st.integers(1, 12), st.booleans())
STEPS = st.lists(
    WRITES | st.sampled_from([("flush",), ("suspend",), ("reload",), ("again",), ("wait",), ("message",)]), max_size=40
)
OPTIONS = st.sampled_from(
    ["0", "2 autocommit_blocks 2", "2 max_age 500", "3 cleaner writeback_jobs 1", "2 start_sector 2"]
)


def free(bench: Bench) -> None:
    for disk in bench.disks:
        disk.free()


class Scene:
    """A device on disks that lose what is not flushed, and what each of its sectors may hold after a crash."""

    def __init__(self, options: str, crash_at: int, seed: int) -> None:
        self.bench = Bench()
        self.options = options
        self.power = Power(random.Random(seed), self._failed)
        self.bench.disks[0] = VolatileDisk(0, f"{SIZE}s", self.power)
        self.bench.disks[1] = VolatileDisk(1, f"{ROOM + 3}s", self.power)
        self.model = bytearray(SIZE * 512)
        self.possible = [{bytes(512)} for _ in range(SIZE)]
        self.after: list[set[bytes]] = []
        self.device = load(self.bench, options)
        self.power.fail_at = crash_at

    def _failed(self) -> None:
        self.after = [set(values) for values in self.possible]

    def certain(self, sectors: range) -> None:
        for sector in sectors:
            self.possible[sector] = {bytes(self.model[sector * 512 : (sector + 1) * 512])}

    def write(self, number: int, sector: int, count: int, fua: bool) -> None:
        count = min(count, SIZE - sector)
        data = pattern(1 + number, sector, count)
        self.model[sector * 512 : sector * 512 + len(data)] = data
        for at in range(count):
            self.possible[sector + at].add(data[at * 512 : (at + 1) * 512])
        write(self.device, sector, data, fua=fua)
        if fua:
            self.certain(range(sector, sector + count))

    def do(self, step: str) -> None:
        match step:
            case "flush":
                flush(self.device)
                self.certain(range(SIZE))
            case "suspend":
                assert self.bench.suspend(self.device)
                self.bench.resume(self.device)
            case "reload":
                load(self.bench, self.options)
            case "again":
                self.bench.remove(self.device)
                self.device = load(self.bench, self.options)
            case "wait":
                self.bench.work.advance(1.5)
            case "message":
                message(self.device, "flush")

    def check_crash(self) -> None:
        """A device that finds what the crash left, if there was one, has nothing that it may not have."""
        if self.after:
            recovered = Bench()
            recovered.disks[1] = FaultyDisk(1, f"{ROOM + 3}s")
            for disk, image in zip(recovered.disks[:2], self.power.after, strict=True):
                write(disk, 0, image)
            found = read(load(recovered, self.options), 0, SIZE)
            free(recovered)
            for sector, allowed in enumerate(self.after):
                assert found[sector * 512 : (sector + 1) * 512] in allowed
        free(self.bench)


@settings(max_examples=150)
@given(STEPS, OPTIONS, st.integers(1, 150), st.integers(0, 1 << 30))
def test_what_was_written_is_read_and_what_was_flushed_survives(
    steps: list[tuple[str, int, int, bool]], options: str, crash_at: int, seed: int
) -> None:
    scene = Scene(options, crash_at, seed)
    for number, (step, *arguments) in enumerate(steps):
        if step == "write":
            scene.write(number, *arguments)
        else:
            scene.do(step)
        scene.bench.work.run()
        assert read(scene.device, 0, SIZE) == scene.model
    scene.check_crash()


AREA = 8


class Clients:
    """Each has an area of its own and one bio at a time, on disks that do in any order what they are asked."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.chance = scene.power.chance
        self.disks = scene.power.disks
        self.free = list(range(SIZE // AREA))
        self.number = 0
        self._slow(True)

    def _slow(self, slow: bool) -> None:
        for disk in self.disks:
            disk.slow = slow

    def begin(self) -> None:
        if not self.free:
            return
        client = self.free.pop(self.chance.randrange(len(self.free)))
        sector = client * AREA + self.chance.randrange(AREA)
        count = self.chance.randint(1, (client + 1) * AREA - sector)
        if self.chance.random() < 0.6:
            self._write(client, sector, count)
        else:
            self._read(client, sector, count)

    def _write(self, client: int, sector: int, count: int) -> None:
        self.number += 1
        data = pattern(self.number % 200 + 1, sector, count)
        for at in range(count):
            self.scene.possible[sector + at].add(data[at * 512 : (at + 1) * 512])

        def done(bio: Bio) -> None:
            assert not bio.error
            self.scene.model[sector * 512 : sector * 512 + len(data)] = data
            if bio.fua:
                self.scene.certain(range(sector, sector + count))
            self.free.append(client)

        fua = self.chance.random() < 0.2
        device = self.scene.device
        device.submit_bio(Bio(Op.WRITE, sector, count, memoryview(data), done, fua=fua, bdev=device))

    def _read(self, client: int, sector: int, count: int) -> None:
        data = bytearray(count * 512)

        def done(bio: Bio) -> None:
            assert data == self.scene.model[sector * 512 : sector * 512 + len(data)]
            self.free.append(client)

        device = self.scene.device
        device.submit_bio(Bio(Op.READ, sector, count, memoryview(data), done, bdev=device))

    def suspend(self) -> None:
        """Wait for all, and resume."""
        suspended = self.scene.bench.suspend(self.scene.device)
        while any(disk.finish_any() for disk in self.disks) or not suspended:
            self.scene.bench.work.run()
        self._slow(False)
        self.scene.bench.resume(self.scene.device)
        self._slow(True)

    def end(self) -> None:
        while any(disk.finish_any() for disk in self.disks) or len(self.free) < SIZE // AREA:
            self.scene.bench.work.advance(0.1)
        self._slow(False)


@settings(max_examples=60)
@given(OPTIONS, st.integers(1, 300), st.integers(0, 1 << 30))
def test_bios_may_overtake_each_other(options: str, crash_at: int, seed: int) -> None:
    scene = Scene(options, crash_at, seed)
    clients = Clients(scene)
    for step in clients.chance.choices(["bio", "disk", "time", "suspend"], [40, 50, 9, 1], k=300):
        if step == "bio":
            clients.begin()
        elif step == "disk":
            clients.chance.choice(clients.disks).finish_any()
        elif step == "time":
            scene.bench.work.advance(clients.chance.random())
        else:
            clients.suspend()
    clients.end()
    assert read(scene.device, 0, SIZE) == scene.model
    scene.check_crash()
