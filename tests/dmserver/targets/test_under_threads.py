"""Targets that do more than remap, used by several threads at once while their devices are suspended and resumed: what
was written is read, and nothing gets stuck."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.era import checked, eras
from support.targets import Bench, message, pattern, status
from support.thin import make_pool, thin_tool

from dmserver.io.bio import Op
from dmserver.io.submit import submit_and_wait
from dmserver.io.work import ThreadWork
from dmserver.model.dm_dev import DmDev
from dmserver.targets.cache import bios, policy, state
from dmserver.targets.cache.cache import Cache
from dmserver.targets.crypt.crypt import Crypt
from dmserver.targets.delay import Delay
from dmserver.targets.era.era import Era
from dmserver.targets.integrity.integrity import Integrity
from dmserver.targets.linear import Linear
from dmserver.targets.mirror.mirror import Mirror
from dmserver.targets.multipath.multipath import Multipath
from dmserver.targets.snapshot.snapshot import Snapshot
from dmserver.targets.snapshot.snapshot_merge import SnapshotMerge
from dmserver.targets.snapshot.snapshot_origin import SnapshotOrigin
from dmserver.targets.thin.thin import Thin
from dmserver.targets.writecache.writecache import Writecache

SIZE = 2048
THREADS = 4
PATIENCE = 60.0
needs_cryptography = pytest.mark.skipif(not find_spec("cryptography"), reason="extra `crypt` is not installed")


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Work and what follows a suspension have threads of their own."""
    bench = Bench()
    work, commands = ThreadWork(), ThreadWork()
    bench.mapper.work, bench.mapper.call_soon = work, commands.queue
    bench.load("late", (Delay, 16384, "1:9 0 1"))
    yield bench
    commands.close()
    work.close()


def _use(device: DmDev, start: int, length: int, failures: list[BaseException]) -> None:
    """Write and read back at random in an area of one's own."""
    chance = random.Random(start)
    expected: dict[int, bytes] = {}
    try:
        for number in range(40):
            sector = start + chance.randrange(length)
            count = min(chance.randint(1, 40), start + length - sector)
            data = pattern(1 + number, sector, count)
            assert submit_and_wait(device, Op.WRITE, sector, count, memoryview(data)) == 0
            expected |= {sector + at: data[at * 512 : (at + 1) * 512] for at in range(count)}
            _expect(device, chance.choice(list(expected.items())))
        for item in expected.items():
            _expect(device, item)
    except BaseException as failure:
        failures.append(failure)


def _expect(device: DmDev, item: tuple[int, bytes]) -> None:
    sector, data = item
    buffer = bytearray(len(data))
    assert submit_and_wait(device, Op.READ, sector, len(data) // 512, memoryview(buffer)) == 0
    assert buffer == data


def _all(device: DmDev) -> bytes:
    buffer = bytearray(SIZE * 512)
    assert submit_and_wait(device, Op.READ, 0, SIZE, memoryview(buffer)) == 0
    return bytes(buffer)


def _suspend(device: DmDev) -> None:
    done = threading.Event()
    device.suspend(done.set)
    assert done.wait(PATIENCE), f"{device} is still not suspended"


def _hammer(bench: Bench, device: DmDev, *others: DmDev) -> None:
    """Use `device` while it and the `others` are suspended and resumed."""
    failures: list[BaseException] = []
    step = SIZE // THREADS
    threads = [threading.Thread(target=_use, args=(device, at * step, step, failures)) for at in range(THREADS)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for each in (device, *others):
            _suspend(each)
            each.resume()
        threads[0].join(0.01)
    assert not failures


def test_mirror(bench: Bench) -> None:
    device = bench.load("m", (Mirror, SIZE, "disk 2 1:2 64 3 1:0 0 1:1 0 253:0 0"))
    synced = threading.Event()
    device.on_event(synced.set)
    _hammer(bench, device)
    assert synced.wait(PATIENCE)
    _suspend(device)
    first, second, late = (_all(each) for each in (*bench.disks[:2], bench.disks[9]))
    assert first == second == late


def test_snapshots_and_a_merge(bench: Bench) -> None:
    snap = bench.load("snap", (Snapshot, SIZE, "1:0 253:0 P 8"))
    other = bench.load("other", (Snapshot, SIZE, "1:0 1:2 P 32"))
    org = bench.load("org", (SnapshotOrigin, SIZE, "1:0"))
    before = _all(org)
    _hammer(bench, org, snap)
    assert _all(snap) == _all(other) == before
    _hammer(bench, snap, org)
    expected = _all(snap)
    bench.table(org, (SnapshotMerge, SIZE, "1:0 253:0 P 8"))
    for each in (org, snap):
        _suspend(each)
    bench.resume(org)
    assert _all(org) == expected
    _hammer(bench, org)
    assert _all(other) == before


@pytest.mark.parametrize("params", ["1:0 0 - J 3 meta_device:253:0 commit_time:5", "1:0 0 - D 2 fix_padding"])
def test_integrity(bench: Bench, params: str) -> None:
    params += " internal_hash:crc32c"
    device = bench.load("i", (Integrity, SIZE, params))
    everything = memoryview(bytes(SIZE * 512))
    assert submit_and_wait(device, Op.WRITE, 0, SIZE, everything) == 0
    _hammer(bench, device)
    before = _all(device)
    _suspend(device)
    bench.remove(device)
    assert _all(bench.load("i", (Integrity, SIZE, params))) == before


def test_thin_devices(bench: Bench, tmp_path: Path) -> None:
    pool = make_pool(bench, devices=(0,))
    number = f"253:{pool.minor}"
    thin = bench.load("thin", (Thin, SIZE, f"{number} 0 253:0"))
    _hammer(bench, thin, pool)
    before = _all(thin)
    _suspend(thin)
    message(pool, "create_snap 1 0")
    thin.resume()
    snap = bench.load("snap", (Thin, SIZE, f"{number} 1 253:0"))
    _hammer(bench, thin, pool, snap)
    assert _all(snap) == before
    after = _all(thin)
    _hammer(bench, snap, pool)
    assert _all(thin) == after
    for each in (thin, snap, pool):
        bench.remove(each)
    image = bytearray(bench.disks[1].bytes)
    assert not bench.disks[1].read_into(memoryview(image), 0)
    (tmp_path / "metadata").write_bytes(image)
    thin_tool("thin_check", str(tmp_path / "metadata"))


@pytest.mark.parametrize("features", ["0", "1 writethrough", "1 metadata2"])
def test_cache(bench: Bench, features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that takes seconds done in hundredths, in order that blocks are moved."""
    for room, period in ((policy, "_PERIOD"), (state, "_IDLE_AFTER"), (bios, "COMMIT_PERIOD")):
        monkeypatch.setattr(room, period, 0.01)
    small = bench.load("small", (Linear, 640, "1:2 0"))
    params = f"1:1 253:{small.minor} 253:0 64 {features} smq 0"
    device = bench.load("cache", (Cache, SIZE, params))
    assert submit_and_wait(device, Op.DISCARD, 0, SIZE, None) == 0
    _hammer(bench, device, small)
    before = _all(device)
    assert int(status(device).split()[8]) > 0
    bench.remove(device)
    device = bench.load("cache", (Cache, SIZE, params))
    assert _all(device) == before
    _hammer(bench, device)


def test_era(bench: Bench, tmp_path: Path) -> None:
    device = bench.load("e", (Era, SIZE, "1:1 253:0 8"))
    _hammer(bench, device)
    data = _all(device)
    _suspend(device)
    image = bytearray(bench.disks[1].bytes)
    assert not bench.disks[1].read_into(memoryview(image), 0)
    found = eras(checked(bytes(image), tmp_path / "metadata"))
    assert [era > 0 for era in found] == [any(data[at * 4096 :][:4096]) for at in range(SIZE // 8)]


@pytest.mark.parametrize("devices", ["253:0 1:1", "1:0 253:0"])
@pytest.mark.parametrize("options", ["0", "4 autocommit_blocks 16 writeback_jobs 4", "2 max_age 16"])
def test_writecache(bench: Bench, devices: str, options: str) -> None:
    small = bench.load("small", (Linear, 520, devices.split()[1] + " 0"))
    params = f"s {devices.split()[0]} 253:{small.minor} 512 {options}"
    device = bench.load("w", (Writecache, SIZE, params))
    _hammer(bench, device)
    before = _all(device)
    bench.remove(device)
    assert _all(bench.load("w", (Writecache, SIZE, params))) == before


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        pytest.param(Crypt, f"aes-cbc-essiv:sha256 {bytes(range(32)).hex()} 0 253:0 0", marks=needs_cryptography),
        (Multipath, "2 queue_mode bio 0 1 1 queue-length 0 2 1 1:9 1 253:0 1"),
    ],
)
def test_what_only_remaps_in_the_end(bench: Bench, kind: type[Crypt] | type[Multipath], params: str) -> None:
    _hammer(bench, bench.load("x", (kind, SIZE, params)))
