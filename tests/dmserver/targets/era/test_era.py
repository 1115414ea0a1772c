from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.constructors import replay
from support.era import changed_since, checked, eras
from support.targets import Bench, discard, flush, message, pattern, read, start, status, write
from support.volatile import Power, VolatileDisk

from dmserver.io.bio import Op
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import StatusType, TargetError
from dmserver.targets.era.era import Era
from dmserver.targets.linear import Linear

SIZE, BLOCK = 800, 8


@pytest.fixture
def bench() -> Bench:
    return Bench()


def load(bench: Bench, size: int = SIZE) -> DmDev:
    return bench.load("e", (Era, size, f"1:1 1:0 {BLOCK}"))


def error_of(device: DmDev, text: str) -> int:
    try:
        message(device, text)
    except TargetError as refusal:
        return refusal.errno
    return 0


def metadata(bench: Bench) -> bytes:
    return read(bench.disks[1], 0, bench.disks[1].size)


def test_recorded_constructors(bench: Bench) -> None:
    assert replay(bench, Era, "t_cache_era") == 9


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ("1:1 1:0", "Invalid argument count"),
        ("77:7 1:0 128", "Error opening metadata device"),
        ("1:1 77:7 128", "Error opening data device"),
        ("1:1 1:0 x", "Error parsing block size"),
        ("1:1 1:0 0", "Invalid block size"),
        ("1:1 1:0 12", "Invalid block size"),
    ],
)
def test_refusals(bench: Bench, params: str, text: str) -> None:
    assert bench.refusal(Era, SIZE, params) == (errno.EINVAL, text)


def test_metadata_of_another_block_size(bench: Bench) -> None:
    load(bench)
    assert bench.refusal(Era, SIZE, "1:1 1:0 16") == (errno.EINVAL, "Error reading metadata")
    line = "device-mapper: era: changing the data block size (from 8 to 16) is not supported"
    assert bench.mapper.events.lines[-1] == line


def test_metadata_that_are_none(bench: Bench) -> None:
    write(bench.disks[1], 0, pattern(1, 0, 8))
    assert bench.refusal(Era, SIZE, "1:1 1:0 8") == (errno.ENOTBLK, "Error reading metadata")
    assert [line.partition(": ")[2] for line in bench.mapper.events.lines] == [
        f"era: sb_check failed: blocknr {1 << 56 | 1}: wanted 0",
        "block manager: superblock validator check failed for block 0",
        "era: couldn't read_lock superblock",
    ]


def test_what_is_written_when(bench: Bench, tmp_path: Path) -> None:
    device = load(bench)
    write(device, 3, pattern(1, 3))
    write(device, BLOCK * 4 - 1, pattern(1, BLOCK * 4 - 1, BLOCK + 2))
    message(device, "checkpoint")
    write(device, BLOCK * 5, pattern(2, BLOCK * 5))
    flush(device)
    read(device, BLOCK * 9)
    assert status(device, StatusType.TABLE) == f"1:1 1:0 {BLOCK}"
    bench.suspend(device)
    path = checked(metadata(bench), tmp_path / "m")
    assert eras(path)[:7] == [1, 0, 0, 1, 1, 2, 0]
    assert changed_since(path, 2) == {5}
    assert changed_since(path, 1) == {0, 3, 4, 5}
    bench.resume(device)
    assert status(device).split()[2:] == ["3", "-"]
    assert read(bench.disks[0], 3) == pattern(1, 3)
    assert device.limits.io_opt == BLOCK * 512


def test_a_target_that_begins_elsewhere(bench: Bench) -> None:
    device = bench.load("e", (Linear, 24, "1:2 0"), (Era, SIZE, "1:1 1:0 8"))
    write(device, 20, pattern(1, 20, 8))
    flush(device)
    assert read(bench.disks[0], 0, 4) == pattern(1, 24, 4)
    assert read(device, 20, 8) == pattern(1, 20, 8)


def test_a_write_waits_until_its_mark_is_committed(bench: Bench) -> None:
    device = load(bench)
    bench.disks[1].slow = True
    first, second = start(device, Op.WRITE, 0, pattern(1, 0)), start(device, Op.WRITE, 1, pattern(1, 1))
    assert read(bench.disks[0], 0) == bytes(512)
    bench.disks[1].finish()
    assert first == second == [0]
    bench.disks[1].log.clear()
    write(device, 2, pattern(1, 2))
    assert not bench.disks[1].log


def test_discards_mark_all_their_blocks(bench: Bench, tmp_path: Path) -> None:
    bench.disks[0].limits.discard = True
    device = load(bench)
    discard(device, BLOCK + 1, 2 * BLOCK)
    bench.suspend(device)
    assert eras(checked(metadata(bench), tmp_path / "m"))[:5] == [0, 1, 1, 1, 0]


def test_digested_writesets_go(bench: Bench) -> None:
    device = load(bench)
    used = status(device)
    for sector in (0, BLOCK):
        write(device, sector, pattern(1, sector))
        message(device, "checkpoint")
    assert status(device) != used
    bench.work.run()
    assert status(device).split()[1] == used.split()[1]


def test_snapshots_of_the_metadata(bench: Bench) -> None:
    device = load(bench)
    assert error_of(device, "drop_metadata_snap") == errno.EINVAL
    message(device, "Take_Metadata_Snap")
    assert status(device).split()[2] == "2"
    assert status(device).split()[3] != "-"
    assert error_of(device, "take_metadata_snap") == errno.EINVAL
    assert status(device).split()[2] == "2"
    message(device, "drop_metadata_snap")
    assert status(device).split()[3] == "-"
    assert [line.partition("era: ")[2] for line in bench.mapper.events.lines] == [
        "metadata_drop_snap: no snap to drop",
        "metadata_take_snap: metadata snapshot already exists",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("checkpoint now", "incorrect number of message arguments"),
        ("bogus", "unsupported message 'bogus'"),
    ],
)
def test_messages_that_are_refused(bench: Bench, text: str, line: str) -> None:
    device = load(bench)
    assert error_of(device, text) == errno.EINVAL
    assert bench.mapper.events.lines[-1] == f"device-mapper: era: {line}"


def test_a_table_that_was_loaded_before_the_last_commit(bench: Bench, tmp_path: Path) -> None:
    device = load(bench)
    bench.table(device, (Era, 2 * SIZE, f"1:1 1:0 {BLOCK}"))
    for era in range(20):
        write(device, era * BLOCK, pattern(1, era * BLOCK))
        message(device, "checkpoint")
        bench.work.run()
    bench.resume(device)
    write(device, 2 * SIZE - 1, pattern(1, 2 * SIZE - 1))
    bench.suspend(device)
    found = eras(checked(metadata(bench), tmp_path / "m"))
    assert found[:21] == [*range(1, 21), 0]
    assert found[-2:] == [0, 22]


def test_metadata_that_cannot_be_written(bench: Bench, tmp_path: Path) -> None:
    device = load(bench)
    bench.disks[1].fail = lambda bio: bio.op is Op.WRITE
    with pytest.raises(OSError, match="5"):
        write(device, 0, pattern(1, 0))
    assert error_of(device, "checkpoint") == errno.EIO
    assert read(bench.disks[0], 0) == bytes(512)
    bench.disks[1].fail = lambda bio: False
    write(device, 0, pattern(1, 0))
    bench.suspend(device)
    assert eras(checked(metadata(bench), tmp_path / "m"))[0] == 2


def test_metadata_that_are_full(bench: Bench, tmp_path: Path) -> None:
    bench.load("small", (Linear, 17 * 8, "1:1 0"))
    device = bench.load("e", (Era, SIZE, f"253:0 1:0 {BLOCK}"))
    write(device, 0, pattern(1, 0))
    errors = {error_of(device, "checkpoint") for _ in range(20)}
    assert errors == {0, errno.ENOSPC}
    assert read(device, 0) == pattern(1, 0)
    bench.suspend(device)
    checked(metadata(bench)[: 17 * 4096], tmp_path / "m")


def test_nothing_hangs_when_the_metadata_device_is_suspended(bench: Bench) -> None:
    below = bench.load("below", (Linear, 2048, "1:1 0"))
    params = f"253:{below.minor} 1:0 {BLOCK}"
    device = bench.load("e", (Era, SIZE, params))
    bench.suspend(below)
    assert error_of(device, "checkpoint") == errno.EAGAIN
    assert status(device).split()[2] == "1"
    assert bench.refusal(Era, SIZE, params) == (errno.EAGAIN, "Error reading metadata")
    ended = start(device, Op.WRITE, 0, pattern(1, 0))
    suspended = bench.suspend(device)
    assert not suspended
    bench.resume(below)
    bench.work.run()
    assert ended == [0]
    assert suspended
    bench.suspend(below)
    with pytest.raises(TargetError):
        bench.resume(device)
    bench.remove(device)


# -- all together ---------------------------------------------------------------------------------------

STEPS = st.lists(
    st.integers(0, SIZE // BLOCK - 1)
    | st.sampled_from(["checkpoint", "take_metadata_snap", "drop_metadata_snap", "status", "work", "suspend", "again"]),
    max_size=30,
)


class Scene:
    """A device whose metadata are on a disk that loses what is not flushed, and the eras of its blocks."""

    def __init__(self, crash_at: int, seed: int) -> None:
        self.bench = Bench()
        power = self.power = Power(random.Random(seed), self._failed)
        self.bench.disks[1] = VolatileDisk(1, "512k", power)
        self.eras = [0] * (SIZE // BLOCK)
        self.after: list[int] = []
        self.device = load(self.bench)
        power.fail_at = crash_at

    def _failed(self) -> None:
        self.after = self.eras.copy()

    def do(self, step: int | str) -> None:
        if isinstance(step, int):
            write(self.device, step * BLOCK, pattern(1, step * BLOCK))
            self.eras[step] = self._era
        elif step == "status":
            status(self.device)
        elif step == "work":
            self.bench.work.run()
        elif step == "suspend":
            self.bench.suspend(self.device)
            self.bench.resume(self.device)
        elif step == "again":
            self.bench.remove(self.device)
            self.device = load(self.bench)
        elif step == "checkpoint" or (step == "take_metadata_snap") == (status(self.device).split()[3] == "-"):
            message(self.device, step)

    @property
    def _era(self) -> int:
        return int(status(self.device).split()[2])


def _written(image: bytes, path: Path) -> list[int]:
    """The eras that metadata tell of, once a device used them."""
    bench = Bench()
    write(bench.disks[1], 0, image)
    bench.remove(load(bench))
    found = metadata(bench)
    for disk in bench.disks:
        disk.free()
    return eras(checked(found, path))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.integers(1, 120), st.integers(0, 1 << 30))
def test_eras_are_those_of_the_last_writes_and_survive(
    tmp_path: Path, steps: list[int | str], crash_at: int, seed: int
) -> None:
    scene = Scene(crash_at, seed)
    for step in steps:
        scene.do(step)
    bench = scene.bench
    bench.suspend(scene.device)
    assert eras(checked(metadata(bench), tmp_path / "m")) == scene.eras
    for disk in bench.disks:
        disk.free()
    if scene.after:
        found = _written(scene.power.after[0], tmp_path / "m")
        assert all(new >= known for new, known in zip(found, scene.after, strict=True))
