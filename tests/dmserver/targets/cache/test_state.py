from __future__ import annotations

import errno
from pathlib import Path

import pytest
from support.cache import BLOCK, DEVICES, check, load, make_cache, submit
from support.targets import Bench, FaultyDisk, log, message, pattern, read, status

from dmserver.io.bio import Bio, Op
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import TargetError
from dmserver.targets.cache.cache import Cache
from dmserver.targets.linear import Linear

WHOLE = pattern(9, 0, BLOCK)
NAME = "device-mapper: cache: 253:0: "


def broken(bench: Bench, *, when: Op = Op.WRITE) -> DmDev:
    """A cache whose metadata could not be written once."""
    device = make_cache(bench)
    submit(bench, device, Op.WRITE, 0, WHOLE)
    failed = False

    def once(bio: Bio) -> bool:
        nonlocal failed
        fail, failed = not failed and bio.op is when, failed or bio.op is when
        return fail

    bench.disks[1].fail = once
    with pytest.raises(OSError, match="FLUSH"):
        submit(bench, device, Op.FLUSH)
    return device


@pytest.mark.parametrize("when", [Op.WRITE, Op.FLUSH])
def test_metadata_that_cannot_be_written(when: Op) -> None:
    """The cache stays as it is; no block comes or goes any more, and the data are there."""
    bench = Bench()
    device = broken(bench, when=when)
    assert log(bench)[-3:] == [
        NAME + "metadata operation 'dm_cache_commit' failed: error = -5",
        NAME + "aborting current metadata transaction",
        NAME + "switching cache to read-only mode",
    ]
    assert device.event_nr == 1
    assert status(device).endswith(" smq 0 ro needs_check ")
    assert submit(bench, device, Op.READ, 0, BLOCK) == WHOLE
    submit(bench, device, Op.WRITE, 5, b"x" * 512)
    assert submit(bench, device, Op.READ, 5, 1) == b"x" * 512
    submit(bench, device, Op.WRITE, BLOCK, WHOLE)
    assert status(device).split()[3] == "1/8"
    bench.work.advance(3)
    assert status(device).split()[10] == "0"
    assert read(bench.disks[0], 5, 1) == b"x" * 512
    with pytest.raises(TargetError) as refusal:
        message(device, "migration_threshold 5")
    assert refusal.value.errno == errno.EOPNOTSUPP
    assert log(bench)[-1] == NAME + "unable to service cache target messages in READ_ONLY or FAIL mode"


def test_a_status_commits_the_counters() -> None:
    bench = Bench()
    device = make_cache(bench)
    assert status(device).endswith(" smq 0 rw - ")
    bench.disks[1].fail = lambda bio: bio.op is Op.WRITE
    assert status(device) == "Fail"


def test_metadata_that_need_a_check() -> None:
    bench = Bench()
    bench.remove(broken(bench))
    complaint = "Unable to get write access to metadata, please check/repair metadata."
    assert bench.refusal(Cache, 4096, f"{DEVICES} {BLOCK} 0 smq 0") == (errno.EINVAL, complaint)
    assert log(bench)[-2:] == [
        NAME + "unable to switch cache to write mode until repaired.",
        NAME + "switching cache to read-only mode",
    ]


def test_nothing_can_be_written_any_more() -> None:
    bench = Bench()
    device = make_cache(bench)
    submit(bench, device, Op.WRITE, 0, WHOLE)
    bench.disks[1].fail = lambda bio: True
    with pytest.raises(OSError, match="FLUSH"):
        submit(bench, device, Op.FLUSH)
    assert log(bench)[-2:] == [
        NAME + "failed to set 'needs_check' flag in metadata",
        NAME + "switching cache to fail mode",
    ]
    assert status(device) == "Fail"
    bench.suspend(device)
    bench.work.run()
    bench.resume(device)
    assert submit(bench, device, Op.READ, 0, BLOCK) == WHOLE


def test_metadata_that_are_full(tmp_path: Path) -> None:
    """A suspension that finds no room for all it has to leave says so, and the metadata stay as they were."""
    bench = Bench()
    bench.disks[1] = FaultyDisk(1, "48k")
    device = load(bench, "0 smq 0")
    submit(bench, device, Op.WRITE, 0, WHOLE)
    bench.work.advance(1)
    bench.remove(device)
    assert log(bench)[-5:] == [
        NAME + "metadata operation 'dm_cache_write_hints' failed: error = -28",
        NAME + "aborting current metadata transaction",
        NAME + "switching cache to read-only mode",
        NAME + "could not write hints",
        NAME + "could not write cache metadata",
    ]
    check(bench, tmp_path / "metadata")


def test_what_is_suspended_underneath_is_not_waited_for() -> None:
    """The metadata then say that the cache is in use."""
    bench = Bench()
    below = bench.load("below", (Linear, 1024, "1:1 0"))
    params = f"253:0 1:2 1:0 {BLOCK} 0 smq 0"
    device = bench.load("cache", (Cache, 4096, params))
    submit(bench, device, Op.WRITE, 0, WHOLE)
    bench.suspend(below)
    assert status(device).endswith(" rw - ")
    bench.suspend(device)
    with pytest.raises(TargetError) as refusal:
        bench.resume(device)
    assert refusal.value.errno == errno.EAGAIN
    bench.resume(below)
    bench.work.run()
    bench.resume(device)
    assert submit(bench, device, Op.READ, 0, BLOCK) == WHOLE
