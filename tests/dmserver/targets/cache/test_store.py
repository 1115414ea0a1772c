from __future__ import annotations

import errno

import pytest
from support.cache import BLOCK, DEVICES, load, make_cache
from support.targets import Bench, log, read, status, write

from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_target import TargetError
from dmserver.targets.cache.cache import Cache
from dmserver.targets.linear import Linear
from dmserver.targets.persistent_data.block import BLOCK_SIZE

FAILED = (errno.EINVAL, "Error creating metadata object")


def test_tables_share_their_metadata() -> None:
    bench = Bench()
    device = make_cache(bench)
    load(bench, "1 metadata2 smq 0")
    assert status(device).split()[1] == "10/128"
    load(bench, "1 writethrough smq 0")
    assert status(device).split()[1] == "10/128"
    with pytest.raises(TargetError, match="Error creating metadata object"):
        bench.table(device, (Cache, 4096, f"{DEVICES} 128 0 smq 0"))
    assert log(bench)[-1] == (
        "device-mapper: cache metadata: data_block_size (128) different from that in metadata (64)"
    )


def test_metadata_of_another_block_size() -> None:
    bench = Bench()
    bench.remove(make_cache(bench))
    assert bench.refusal(Cache, 4096, f"{DEVICES} 128 0 smq 0") == FAILED
    assert log(bench)[-1] == (
        "device-mapper: cache metadata: changing the data block size (from 64 to 128) is not supported"
    )


def test_what_is_no_metadata() -> None:
    bench = Bench()
    bench.disks[1].write_from(memoryview(b"\1" * BLOCK_SIZE), 0)
    number = errno.ENOTBLK
    assert bench.refusal(Cache, 4096, f"{DEVICES} 128 0 smq 0") == (number, FAILED[1])
    assert log(bench)[-3:] == [
        "device-mapper: cache metadata: sb_check failed: blocknr 72340172838076673: wanted 0",
        "device-mapper: block manager: superblock validator check failed for block 0",
        "device-mapper: cache metadata: couldn't read lock superblock",
    ]


def test_broken_metadata() -> None:
    bench = Bench()
    bench.remove(make_cache(bench))
    bench.disks[1].write_from(memoryview(b"\1" * 30 * BLOCK_SIZE), BLOCK_SIZE)
    assert bench.refusal(Cache, 4096, f"{DEVICES} 64 0 smq 0") == (errno.EILSEQ, FAILED[1])
    assert "check failed" in log(bench)[-1]


def test_a_device_that_cannot_be_read() -> None:
    bench = Bench()
    bench.disks[1].fail = lambda bio: True
    assert bench.refusal(Cache, 4096, f"{DEVICES} 64 0 smq 0") == (errno.EIO, FAILED[1])


def test_nothing_waits_for_a_device_that_is_suspended() -> None:
    bench = Bench()
    below = bench.load("below", (Linear, 4096, "1:1 0"))
    bench.suspend(below)
    assert bench.refusal(Cache, 4096, "253:0 1:2 1:0 64 0 smq 0") == (errno.EAGAIN, FAILED[1])


def on_linear(bench: Bench, features: str) -> tuple[DmDev, DmDev]:
    """A mapped device for the metadata, and a cache that is yet to be resumed."""
    below = bench.load("below", (Linear, 1024, "1:1 0"))
    cache = bench.mapper.create("cache")
    bench.table(cache, (Cache, 64 * BLOCK, f"253:{below.minor} 1:2 1:0 {BLOCK} {features} smq 0"))
    return below, cache


@pytest.mark.parametrize("features", ["0", "1 metadata2"])
def test_metadata_are_not_read_while_their_device_is_suspended(features: str) -> None:
    bench = Bench()
    bench.remove(make_cache(bench, features))
    below, cache = on_linear(bench, features)
    bench.suspend(below)
    with pytest.raises(TargetError) as refusal:
        bench.resume(cache)
    assert refusal.value.errno == errno.EAGAIN
    bench.resume(below)
    bench.resume(cache)
    assert status(cache).endswith(" rw - ")


@pytest.mark.parametrize("features", ["0", "1 metadata2"])
def test_a_suspension_reads_no_metadata(features: str) -> None:
    """Not even hints and discards that do not count, after a crash."""
    bench = Bench()
    device = make_cache(bench, features)
    bench.suspend(device)
    bench.resume(device)
    image = read(bench.disks[1], 0, 1024)
    bench.remove(device)
    write(bench.disks[1], 0, image)
    below, cache = on_linear(bench, features)
    bench.resume(cache)
    bench.work.run()
    bench.suspend(below)
    assert bench.suspend(cache) == [True]
    assert status(cache).endswith(" rw - ")
