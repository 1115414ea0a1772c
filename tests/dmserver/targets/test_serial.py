from __future__ import annotations

import errno

import pytest
from support.targets import Bench, FaultyDisk, pattern, read

from dmserver.io.bio import Op
from dmserver.targets.linear import Linear
from dmserver.targets.serial import Job, SerialQueue
from dmserver.targets.steps import Request


def copy(disk: FaultyDisk, order: list[int], sector: int) -> Job:
    """Adds one to every byte of a sector; whoever did so in between would be lost."""
    data = memoryview(bytearray(512))
    order.append(sector)
    error = yield Request(Op.READ, disk, sector, data)
    if not error:
        data[:] = bytes(byte + 1 & 0xFF for byte in data)
        error = yield Request(Op.WRITE, disk, sector, data)
    return error


def test_one_job_at_a_time_however_slow() -> None:
    disk, queue, order, ends = FaultyDisk(0), SerialQueue(), [], []
    disk.slow = True
    for _ in range(100):
        queue.start(copy(disk, order, 3), ends.append)
    assert (len(disk.held), order, ends) == (1, [3], [])
    disk.finish()
    assert (order, ends) == ([3] * 100, [0] * 100)
    assert read(disk, 3) == bytes([100]) * 512


def test_errors_reach_the_job_and_its_end() -> None:
    disk, queue = FaultyDisk(0), SerialQueue()
    disk.fail = lambda bio: bio.op is Op.WRITE
    assert queue.run(copy(disk, [], 0)) == errno.EIO
    disk.fail = lambda bio: False
    assert queue.run(copy(disk, [], 0)) == 0


def test_a_job_that_raises_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Job:
        yield Request(Op.FLUSH, FaultyDisk(1), 0, None)
        raise ZeroDivisionError

    queue = SerialQueue()
    assert queue.run(broken()) == errno.EIO
    assert "its bio fails" in caplog.text
    disk = FaultyDisk(0)
    assert queue.run(copy(disk, [], 7)) == 0
    assert read(disk, 7) != pattern(0, 7)


def test_short_work_comes_between_jobs() -> None:
    disk, queue, done = FaultyDisk(0), SerialQueue(), []
    assert queue.between(lambda: "now", lambda: done.append("later")) == "now"
    disk.slow = True
    queue.start(copy(disk, [], 3), done.append)
    assert queue.between(lambda: "now", lambda: done.append("later")) is None
    queue.start(copy(disk, [], 3), done.append)
    disk.finish()
    assert done == [0, 0, "later"]


def test_a_job_waits_for_whatever_calls_back() -> None:
    queue, ends, ended = SerialQueue(), [], []

    def job() -> Job:
        return (yield ends.append)

    queue.start(job(), ended.append)
    ends[0](errno.ENOSPC)
    assert ended == [errno.ENOSPC]


def test_a_job_that_is_held_up_is_not_waited_for() -> None:
    bench = Bench()
    device = bench.load("device", (Linear, 1, "1:0 0"))
    bench.suspend(device)

    def job() -> Job:
        return (yield Request(Op.FLUSH, device, 0, None))

    queue = SerialQueue()
    assert queue.run(job(), device) == errno.EAGAIN
    bench.resume(device)
    assert queue.run(job(), device) == 0
