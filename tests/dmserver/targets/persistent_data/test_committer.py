from __future__ import annotations

import errno

import pytest
from support.targets import Bench

from dmserver.io.bio import Op
from dmserver.model.dm_target import TargetError
from dmserver.targets.actions import Actions
from dmserver.targets.linear import Linear
from dmserver.targets.persistent_data.block import BLOCK_SIZE
from dmserver.targets.persistent_data.commit import Commit
from dmserver.targets.persistent_data.committer import Committer


class Metadata:
    """Each commit writes nothing but a superblock."""

    def __init__(self) -> None:
        self.changed = True
        self.commits = 0
        self.full = False

    def prepare_commit(self) -> Commit:
        if self.full:
            raise OSError(errno.ENOSPC, "full")
        return Commit(bytes(BLOCK_SIZE))

    def committed(self) -> None:
        self.changed = False
        self.commits += 1


class Plain(Committer):
    commit_operation = "commit"
    read_only = False

    def __init__(self, bench: Bench) -> None:
        self.metadata = Metadata()
        device = bench.mapper.create("any")
        super().__init__(device, bench.disks[0], [bench.disks[1]], self.metadata)
        self.failures: list[str] = []
        self.woken = 0

    def operation_failed(self, what: str, failure: Exception, actions: Actions) -> None:
        self.failures.append(what)

    def _succeeded(self, actions: Actions) -> None:
        pass

    def _wake(self) -> None:
        self.woken += 1


def after_commit(committer: Plain) -> list[int]:
    ended: list[int] = []
    with committer.changes() as actions:
        committer.after_commit(ended.append, actions)
    return ended


def test_nothing_is_written_when_nothing_changed() -> None:
    bench = Bench()
    committer = Plain(bench)
    assert after_commit(committer) == [0]
    assert after_commit(committer) == [0]
    assert committer.metadata.commits == committer.woken == 1


def test_a_suspension_waits_for_a_commit() -> None:
    bench = Bench()
    committer = Plain(bench)
    bench.disks[0].slow = True
    ended = after_commit(committer)
    later = after_commit(committer)
    assert committer.device.io.in_flight == 1
    assert not ended
    bench.disks[0].finish()
    bench.disks[0].finish()
    assert (ended, later) == ([0], [])
    assert committer.device.io.in_flight == 0


@pytest.mark.parametrize("operation", [Op.WRITE, Op.FLUSH])
def test_a_commit_that_fails(operation: Op) -> None:
    bench = Bench()
    committer = Plain(bench)
    bench.disks[0].fail = lambda bio: bio.op is operation
    assert after_commit(committer) == [errno.EIO]
    assert committer.failures == ["commit"]


def test_metadata_that_do_not_fit() -> None:
    committer = Plain(Bench())
    committer.metadata.full = True
    assert after_commit(committer) == [errno.EIO]
    assert committer.failures == ["commit"]


def test_what_is_read_only_is_not_committed() -> None:
    committer = Plain(Bench())
    committer.read_only = True
    assert after_commit(committer) == [errno.EIO]
    assert committer.metadata.commits == 0


def test_commands_do_not_wait_for_a_resume() -> None:
    """A commit that hangs on a suspended device is left alone; changes are refused until it is over."""
    bench = Bench()
    below = bench.load("below", (Linear, 8192, "1:0 0"))
    committer = Plain(bench)
    committer.metadata_device = below
    bench.suspend(below)
    committer.commit()
    with pytest.raises(TargetError) as refusal, committer.quiet():
        pass
    assert refusal.value.errno == errno.EAGAIN
    bench.resume(below)
    with committer.quiet():
        assert committer.metadata.commits == 1
