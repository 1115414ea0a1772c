from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cache import BLOCK, DEVICES, check, load, make_cache, mapped, ours, submit
from support.constructors import replay
from support.targets import Bench, FaultyDisk, log, message, pattern, status
from support.volatile import Power, VolatileDisk

from dmserver.io.bio import Op
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import StatusType, TargetError
from dmserver.targets.cache.cache import Cache
from dmserver.targets.linear import Linear

WHOLE = pattern(9, 0, BLOCK)
NAME = "device-mapper: cache: 253:0: "


def refused(device: DmDev, text: str) -> int:
    """The errno of a message."""
    with pytest.raises(TargetError) as refusal:
        message(device, text)
    return refusal.value.errno


def test_recorded_constructors() -> None:
    assert replay(Bench(), Cache, "t_cache_era") == 24


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ("1:1", "Insufficient args"),
        ("1:1 1:2 1:0 64 4 a b c d smq 0", "Invalid number of cache feature arguments"),
        ("1:1 1:2 1:0 64 2 writeback", "Invalid number of cache feature arguments"),
        ("1:1 1:2 1:0 64 0 smq", "Invalid number of policy arguments"),
        ("1:1 1:2 1:0 64 0 smq 2 a", "Invalid number of policy arguments"),
        ("1:1 1:2 1:0 64 0 smq 2 bogus 1", "Error setting cache policy's config values"),
        ("1:1 1:2 1:0 64 0 SMQ 0", "Error creating cache's policy"),
        ("1:1 1:2 1:0 4194304 0 smq 0", "Invalid data block size"),
        ("1:1 1:2 1:0 32768 0 smq 0", "Data block size is larger than the cache device"),
    ],
)
def test_arguments_that_are_refused(params: str, complaint: str) -> None:
    assert Bench().refusal(Cache, 8192, params) == (errno.EINVAL, complaint)


@pytest.mark.parametrize(("number", "what"), [(0, "metadata"), (1, "cache"), (2, "origin")])
def test_devices_that_are_not_there(number: int, what: str) -> None:
    devices = DEVICES.split()
    devices[number] = "77:7"
    complaint = (errno.ENXIO, f"Error opening {what} device")
    assert Bench().refusal(Cache, 8192, " ".join(devices) + " 64 0 smq 0") == complaint


def test_an_origin_that_is_too_small() -> None:
    complaint = (errno.EINVAL, "Device size larger than cached device")
    assert Bench().refusal(Cache, 16385, f"{DEVICES} 64 0 smq 0") == complaint


def test_words_are_shown_as_they_came() -> None:
    bench = Bench()
    params = f"{DEVICES} 64 2 WriteThrough METADATA2 mq 4 random_threshold 4 Migration_Threshold 7 more"
    device = bench.load("cache", (Cache, 4096, params))
    assert status(device, StatusType.TABLE) == params
    assert status(device) == (
        "8 9/2048 64 0/256 0 0 0 0 0 0 0 3 metadata2 writethrough no_discard_passdown 2 migration_threshold 7 "
        "mq 10 random_threshold 0 sequential_threshold 0 discard_promote_adjustment 0 read_promote_adjustment 0 "
        "write_promote_adjustment 0 rw - "
    )
    assert log(bench)[0] == (
        "device-mapper: cache-policy-smq: tunable 'random_threshold' no longer has any effect, "
        "mq policy is now an alias for smq"
    )
    assert device.live
    assert device.live.targets[0].ima_status() == (
        "target_name=cache,target_version=2.3.0,metadata_mode=rw,cache_metadata_device=1:1,cache_device=1:2,"
        "cache_origin_device=1:0,writethrough=y,writeback=n,passthrough=n,metadata2=y,no_discard_passdown=y;"
    )


def test_discards_are_passed_down_where_they_can_be() -> None:
    bench = Bench()
    bench.disks[0].limits.discard = True
    bench.disks[0].limits.discard_granularity = 4096
    device = load(bench, "0 smq 0")
    assert status(device).split()[11:13] == ["1", "writeback"]
    assert device.limits.discard_granularity == 4096
    submit(bench, device, Op.DISCARD, 3, 200)
    assert (Op.DISCARD, 3, 200) in bench.disks[0].log
    load(bench, "1 no_discard_passdown smq 0")
    assert (device.limits.discard, device.limits.discard_granularity) == (True, BLOCK * 512)
    before = len(bench.disks[0].log)
    submit(bench, device, Op.DISCARD, 3, 200)
    assert len(bench.disks[0].log) == before


def test_limits() -> None:
    bench = Bench()
    device = make_cache(bench)
    assert (device.limits.io_min, device.limits.io_opt) == (BLOCK * 512, BLOCK * 512)
    assert device.live
    assert [(pdev.number, start, length) for pdev, start, length in device.live.devices()] == [
        ("1:2", 0, 8 * BLOCK),
        ("1:0", 0, 64 * BLOCK),
    ]


def test_a_large_metadata_device() -> None:
    bench = Bench()
    bench.disks[1] = FaultyDisk(1, "17G")
    device = load(bench, "0 smq 0")
    assert log(bench)[0] == (
        "device-mapper: cache: Metadata device ram1 is larger than 33292800 sectors: excess space will not be used."
    )
    assert status(device).split()[1].endswith("/4161600")


def test_only_a_clean_cache_is_passed_by() -> None:
    bench = Bench()
    device = make_cache(bench)
    submit(bench, device, Op.WRITE, 0, WHOLE)
    for number in (errno.EBUSY, errno.EINVAL):
        with pytest.raises(TargetError) as refusal:
            load(bench, "1 passthrough smq 0") if number == errno.EBUSY else bench.resume(device)
        assert refusal.value.errno == number
    assert [line for line in log(bench) if "cache: 253" in line] == [
        "device-mapper: cache: 253:0: cannot enter passthrough mode unless all blocks are clean",
        "device-mapper: cache: 253:0: could not load cache mappings",
        "device-mapper: cache: 253:0: unable to resume cache due to missing proper cache table reload",
    ]
    device = load(bench, "0 cleaner 0")
    bench.work.advance(1)
    load(bench, "1 passthrough smq 0")


def test_an_origin_shrinks_to_what_is_not_dirty() -> None:
    bench = Bench()
    device = make_cache(bench)
    for block in (0, 40):
        submit(bench, device, Op.WRITE, block * BLOCK, WHOLE)
    with pytest.raises(TargetError) as refusal:
        load(bench, "0 smq 0", sectors=32 * BLOCK)
    assert refusal.value.errno == errno.EFBIG
    assert [line for line in log(bench) if "shrink" in line] == [
        NAME + "unable to shrink origin; cache block 1 is dirty"
    ]
    load(bench, "0 cleaner 0")
    bench.work.advance(1)
    load(bench, "0 smq 0", sectors=32 * BLOCK)
    assert status(device).split()[3] == "1/8"
    bench.remove(device)
    assert ours(bench) == {0: 0}


def test_messages() -> None:
    bench = Bench()
    device = make_cache(bench)
    message(device, "migration_threshold 17")
    assert " migration_threshold 17 " in status(device)
    assert refused(device, "bogus") == errno.EINVAL
    assert refused(device, "bogus 1") == errno.EINVAL
    assert log(bench)[-1] == "device-mapper: cache: bad config value for bogus: 1"
    assert refused(device, "migration_threshold 1 2") == errno.EINVAL
    assert refused(device, "invalidate_cblocks 0") == errno.EPERM
    assert log(bench)[-1] == NAME + "cache has to be in passthrough mode for invalidation"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x", "invalid cblock range 'x'"),
        ("1-2-3", "invalid cblock range '1-2-3'"),
        ("8", "begin cblock out of range: 8 >= 8"),
        ("7-9", "end cblock out of range: 9 > 8"),
        ("3-3", "invalid cblock range: 3 >= 3"),
    ],
)
def test_ranges_that_are_none(text: str, line: str) -> None:
    bench = Bench()
    device = make_cache(bench, "1 passthrough")
    assert refused(device, f"invalidate_cblocks 0 {text}") == errno.EINVAL
    assert log(bench)[-1] == NAME + line


def test_blocks_are_invalidated(tmp_path: Path) -> None:
    bench = Bench()
    device = make_cache(bench)
    for block in range(5):
        submit(bench, device, Op.WRITE, block * BLOCK, WHOLE)
    bench.work.advance(3)
    load(bench, "1 passthrough smq 0")
    message(device, "Invalidate_Cblocks 1-3 4 7")
    assert status(device).split()[3] == "2/8"
    bench.remove(device)
    assert mapped(bench, tmp_path / "metadata") == {0: 0, 3: 3}
    check(bench, tmp_path / "metadata")


def test_a_cache_grows_with_another_table(tmp_path: Path) -> None:
    bench = Bench()
    bench.load("below", (Linear, 4 * BLOCK, "1:2 0"))
    params = f"1:1 253:0 1:0 {BLOCK} 0 smq 2 migration_threshold 0"
    device = bench.load("cache", (Cache, 4096, params))
    for block in range(4):
        submit(bench, device, Op.WRITE, block * BLOCK, WHOLE)
    bench.suspend(device)
    bench.load("below", (Linear, 8 * BLOCK, "1:2 0"))
    with pytest.raises(TargetError):
        bench.resume(device)
    assert log(bench)[-2] == ("device-mapper: cache: 253:1: unable to extend cache due to missing cache table reload")
    bench.load("cache", (Cache, 4096, params))
    bench.work.run()
    assert status(device).split()[3] == "4/8"
    assert submit(bench, device, Op.READ, 0, BLOCK) == WHOLE
    bench.suspend(device)
    bench.load("below", (Linear, 2 * BLOCK, "1:2 0"))
    with pytest.raises(TargetError):
        bench.resume(device)
    assert log(bench)[-2] == "device-mapper: cache: 253:1: unable to shrink cache; cache block 2 is dirty"
    check(bench, tmp_path / "metadata")


def test_statistics_are_kept() -> None:
    bench = Bench()
    device = make_cache(bench)
    submit(bench, device, Op.READ, 0, 1)
    submit(bench, device, Op.WRITE, 0, b"x" * 512)
    bench.remove(device)
    assert status(load(bench, "0 smq 0")).split()[4:8] == ["0", "1", "0", "1"]


def test_a_cache_that_begins_later() -> None:
    """Blocks are counted from the start of the target."""
    bench = Bench()
    device = bench.load("cache", (Linear, 100, "1:5 0"), (Cache, 4096, f"{DEVICES} {BLOCK} 0 smq 0"))
    submit(bench, device, Op.WRITE, 100, WHOLE)
    assert device.live
    assert device.live.targets[1].status(StatusType.INFO).split()[3] == "1/256"
    assert submit(bench, device, Op.READ, 90, 20) == bytes(10 * 512) + WHOLE[: 10 * 512]


class Life:
    """What a cache goes through until the power fails. `possible`: what each block's first sector may hold then."""

    def __init__(self, features: str, crash_at: int, seed: int) -> None:
        self.bench = Bench()
        self.power = Power(random.Random(seed), self._failed)
        for number, size in enumerate((f"{_LIFE_BLOCKS * BLOCK}s", "512k", f"{4 * BLOCK}s")):
            self.bench.disks[number] = VolatileDisk(number, size, self.power)
        self.possible = [{bytes(512)} for _ in range(_LIFE_BLOCKS)]
        self.after: list[set[bytes]] = []
        self.features = features
        self.device = self.load()
        self.power.fail_at = crash_at

    def load(self) -> DmDev:
        return load(self.bench, f"{self.features} smq 0", sectors=_LIFE_BLOCKS * BLOCK)

    def _failed(self) -> None:
        self.after = [set(values) for values in self.possible]

    def do(self, step: str, number: int, block: int) -> None:
        match step:
            case "write" | "fill":
                data = bytes([number, block]) * 256
                self.possible[block].add(data)
                submit(self.bench, self.device, Op.WRITE, block * BLOCK, data * (BLOCK if step == "fill" else 1))
            case "read":
                data = submit(self.bench, self.device, Op.READ, block * BLOCK, 1)
                assert data in self.possible[block]
            case "flush":
                submit(self.bench, self.device, Op.FLUSH)
                for at, values in enumerate(self.possible):
                    values &= {submit(self.bench, self.device, Op.READ, at * BLOCK, 1)}
            case "wait":
                self.bench.work.advance(1.5)
            case "again":
                self.bench.remove(self.device)
                self.device = self.load()


_LIFE_BLOCKS = 12
STEPS = st.tuples(
    st.sampled_from(["fill", "fill", "write", "read", "read", "flush", "wait", "again"]),
    st.integers(0, _LIFE_BLOCKS - 1),
)


@pytest.mark.parametrize("features", ["0", "1 metadata2", "1 writethrough"])
@given(st.lists(STEPS, min_size=5, max_size=40), st.integers(1, 150), st.integers())
@settings(max_examples=20, deadline=None)
def test_what_was_flushed_survives(
    tmp_path_factory: pytest.TempPathFactory, features: str, steps: list[tuple[str, int]], crash_at: int, seed: int
) -> None:
    """Whenever the power fails, and whichever writes since the last flush reached the disks."""
    life = Life(features, crash_at, seed)
    for number, (step, block) in enumerate(steps, 1):
        life.do(step, number, block)
    if not life.after:
        life.power.fail_at = 1
        submit(life.bench, life.device, Op.FLUSH)
    bench = Bench()
    for number, image in enumerate(life.power.after):
        bench.disks[number] = FaultyDisk(number, f"{len(image)}")
        bench.disks[number].write_from(memoryview(image), 0)
    check(bench, tmp_path_factory.mktemp("power") / "metadata")
    device = load(bench, f"{features} smq 0", sectors=_LIFE_BLOCKS * BLOCK)
    found = [submit(bench, device, Op.READ, block * BLOCK, 1) for block in range(_LIFE_BLOCKS)]
    assert all(data in values for data, values in zip(found, life.after, strict=True))


def test_a_range_with_very_long_numbers() -> None:
    device = make_cache(Bench(), "1 passthrough")
    assert refused(device, "invalidate_cblocks " + "9" * 5000) == errno.EINVAL
    assert refused(device, "invalidate_cblocks 0-" + "9" * 5000) == errno.EINVAL
