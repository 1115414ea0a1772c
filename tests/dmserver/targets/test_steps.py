from __future__ import annotations

import errno

from support.targets import FaultyDisk, read

from dmserver.io.bio import Op
from dmserver.targets.steps import Done, Request, gather


def test_a_request_is_a_bio() -> None:
    disk, ended = FaultyDisk(0), []
    Request(Op.WRITE, disk, 3, memoryview(b"x" * 512))(ended.append)
    assert (ended, read(disk, 3)) == ([0], b"x" * 512)
    disk.fail = lambda bio: bio.fua
    Request(Op.WRITE, disk, 3, memoryview(b"y" * 512), fua=True)(ended.append)
    assert ended == [0, errno.EIO]


def test_errors_come_together_and_in_order() -> None:
    waiting: list[Done] = []
    ended: list[list[int]] = []
    gather([waiting.append] * 3, ended.append)
    first, second, third = waiting
    third(errno.EIO)
    first(0)
    assert not ended
    second(errno.ENOSPC)
    assert ended == [[0, errno.ENOSPC, errno.EIO]]


def test_nothing_is_done_at_once() -> None:
    ended: list[list[int]] = []
    gather([], ended.append)
    assert ended == [[]]
