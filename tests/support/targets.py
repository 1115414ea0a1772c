"""A device-mapper for tests of targets: memory disks 1:0, 1:1 ..., work that runs when it is told to, a clock that
stands still until it is moved."""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

from dmproto.wire import SECTOR_SIZE
from dmserver.io.bio import Bio, Op
from dmserver.io.blockdev import BlockDevice
from dmserver.io.disk import Disk
from dmserver.model.args import split_args
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_table import DmTable
from dmserver.model.dm_target import StatusType, Target, TargetError
from dmserver.model.mapper import Mapper

VECTORS = Path(__file__).parents[2] / "specs" / "vectors" / "linux"


class ManualWork:
    """`run` does all work that is due; `advance` moves the clock and does what falls due on the way."""

    def __init__(self) -> None:
        self.clock = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def now(self) -> float:
        return self.clock

    def queue(self, work: Callable[[], None]) -> None:
        self.later(0, work)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.clock + seconds, next(self._count), work))

    def run(self) -> None:
        self.advance(0)

    def advance(self, seconds: float) -> None:
        end = self.clock + seconds
        while self._due and self._due[0][0] <= end:
            self.clock, _, work = heapq.heappop(self._due)
            work()
        self.clock = end


class FaultyDisk(Disk):
    """Memory that fails on demand: `fail(bio)` decides. With `slow`, bios wait in `held` until `finish`."""

    def __init__(self, number: int, size: str = "8M") -> None:
        super().__init__(f"/dev/ram{number}", (1, number), f"ram:{size}")
        self.fail: Callable[[Bio], bool] = lambda bio: False
        self.slow = False
        self.held: list[Bio] = []
        self.log: list[tuple[Op, int, int]] = []

    def crash_after(self, writes: int) -> None:
        """Fail all bios but the first `writes` writes and what comes between them."""
        left = writes

        def crashed(bio: Bio) -> bool:
            nonlocal left
            left -= bio.op is Op.WRITE
            return left < 0

        self.fail = crashed

    def submit_bio(self, bio: Bio) -> None:
        if self.slow:
            self.held.append(bio)
            return
        self.log.append((bio.op, bio.sector, bio.nr_sectors))
        if self.fail(bio):
            bio.endio(5)
        else:
            super().submit_bio(bio)

    def finish(self) -> None:
        """Be fast again, and do what is held."""
        self.slow = False
        held, self.held = self.held, []
        for bio in held:
            self.submit_bio(bio)


def pattern(seed: int, sector: int = 0, count: int = 1) -> bytes:
    """`pattern(seed)` of the recorded vectors: `count` sectors from `sector`."""
    return b"".join(
        (seed << 56 | at << 16 | word).to_bytes(8, "little")
        for at in range(sector, sector + count)
        for word in range(SECTOR_SIZE // 8)
    )


def read(device: BlockDevice, sector: int, count: int = 1) -> bytes:
    """Read sectors; OSError with the bio's errno."""
    data = bytearray(count * SECTOR_SIZE)
    _wait(device, Bio(Op.READ, sector, count, memoryview(data), bdev=device))
    return bytes(data)


def write(device: BlockDevice, sector: int, data: bytes, *, fua: bool = False) -> None:
    """Write sectors; OSError with the bio's errno."""
    _wait(device, Bio(Op.WRITE, sector, len(data) // SECTOR_SIZE, memoryview(data), fua=fua, bdev=device))


def flush(device: BlockDevice) -> None:
    _wait(device, Bio(Op.FLUSH, 0, 0, bdev=device))


def discard(device: BlockDevice, sector: int, count: int) -> None:
    _wait(device, Bio(Op.DISCARD, sector, count, bdev=device))


def start(device: BlockDevice, op: Op, sector: int, data: bytes = b"") -> list[int]:
    """Submit without waiting; the returned list gets the errno when the bio ends."""
    ended: list[int] = []
    buffer = memoryview(bytearray(data))
    device.submit_bio(
        Bio(op, sector, len(data) // SECTOR_SIZE, buffer, lambda bio: ended.append(bio.error), bdev=device)
    )
    return ended


def _wait(device: BlockDevice, bio: Bio) -> None:
    ended: list[int] = []
    bio.done = lambda bio: ended.append(bio.error)
    device.submit_bio(bio)
    assert ended, f"{bio} is still under way"
    if ended[0]:
        raise OSError(ended[0], str(bio))


class Bench:
    """Ten disks of 8 MiB and whatever devices a test makes."""

    def __init__(self) -> None:
        self.work = ManualWork()
        self.mapper = Mapper(work=self.work)
        self.disks = [FaultyDisk(number) for number in range(10)]

    def resolve(self, name: str) -> tuple[Hashable, str, BlockDevice]:
        major, _, minor = name.partition(":")
        if major == "1" and int(minor) < len(self.disks):
            disk = self.disks[int(minor)]
            return disk.dev, disk.path, disk
        if major == "253" and (device := self.mapper.devices.get(int(minor))):
            return device.dev, device.path, device
        raise OSError(6, "No such device or address", name)

    def table(self, device: DmDev, *targets: tuple[type[Target], int, str], read_only: bool = False) -> DmTable:
        """A table of (type, length, parameters), one behind the other, in the inactive slot."""
        table = DmTable(device, self.resolve, read_only=read_only)
        begin = 0
        for kind, length, params in targets:
            table.add_target(kind, begin, length, split_args(params))
            begin += length
        device.inactive = table
        return table

    def load(self, name: str, *targets: tuple[type[Target], int, str], read_only: bool = False) -> DmDev:
        """`table` for the device `name`, made if need be, and resume."""
        device = self.mapper.by_name(name) or self.mapper.create(name)
        self.table(device, *targets, read_only=read_only)
        self.resume(device)
        return device

    def suspend(self, device: DmDev, *, noflush: bool = False) -> list[bool]:
        """The returned list gets an element once the device is suspended."""
        done: list[bool] = []
        device.suspend(lambda: done.append(True), noflush=noflush)
        return done

    def resume(self, device: DmDev) -> None:
        if device.inactive:
            if device.live and not device.suspended:
                suspended = self.suspend(device)
                self.work.run()
                assert suspended
            old = device.swap()
            device.resume()
            if old:
                old.destroy()
        else:
            device.resume()

    def remove(self, device: DmDev) -> None:
        self.mapper.remove(device)

    def refusal(self, kind: type[Target], length: int, params: str, *, read_only: bool = False) -> tuple[int, str]:
        """(errno, message) of a constructor that refuses."""
        device = self.mapper.create("refusal")
        try:
            DmTable(device, self.resolve, read_only=read_only).add_target(kind, 0, length, split_args(params))
        except TargetError as refusal:
            return refusal.errno, refusal.message
        finally:
            self.mapper.remove(device)
        raise AssertionError(f"{kind.name} {params!r} was not refused")


def message(device: DmDev, text: str) -> None:
    """A message to a device's first target, in words."""
    assert device.live is not None
    device.live.targets[0].message(text.split())


def log(bench: Bench) -> list[str]:
    """The lines of the kernel log."""
    return list(bench.mapper.events.lines)


def status(device: DmDev, kind: StatusType = StatusType.INFO) -> str:
    """The status of a device's only target."""
    assert device.live is not None
    (target,) = device.live.targets
    if kind is StatusType.INFO:
        target.refresh_status()
    return target.status(kind)


def recorded_constructors(kind: str, *files: str) -> Iterator[tuple[int, str, str, str | None, list[str], bool]]:
    """All recorded loads of one target of this type: (length, params, errno name or "0", TABLE line if one was taken
    next, lines of the log, whether the table is to be read-only)."""
    for file in files:
        steps = [json.loads(line) for line in (VECTORS / f"{file}.jsonl").read_text().splitlines()]
        for at, step in enumerate(steps):
            if step.get("cmd") != "TABLE_LOAD" or len(step["targets"]) != 1 or step["targets"][0][2] != kind:
                continue
            _, length, _, params = step["targets"][0]
            yield (
                length,
                params,
                step["errno"],
                _table_line(steps[at + 1 : at + 2]),
                step.get("kmsg") or [],
                _read_only(step),
            )


def _read_only(step: dict[str, Any]) -> bool:
    """DM_READONLY_FLAG in the flags of `struct dm_ioctl`, at offset 28."""
    return bool(bytes.fromhex(step["request"][56:58])[0] & 1)


def _table_line(following: list[dict[str, Any]]) -> str | None:
    for step in following:
        if step.get("cmd") == "TABLE_STATUS" and "TABLE" in step["hdr"]["flags"] and step.get("data"):
            return str(step["data"][0]["params"])
    return None
