from __future__ import annotations

from dmserver.io.bio import Bio, Op
from dmserver.targets.actions import Actions
from dmserver.targets.cache.locks import BlockLocks


def test_who_locks_a_block_waits_for_those_in_it() -> None:
    locks, actions, bio = BlockLocks(), Actions(), Bio(Op.READ, 0, 1)
    got: list[int] = []
    assert locks.enter(7, bio)
    assert locks.enter(7, bio)
    locks.lock(7, lambda actions: got.append(7), actions)
    locks.leave(7, actions)
    assert not got
    locks.leave(7, actions)
    assert got == [7]


def test_who_comes_later_waits() -> None:
    locks, actions = BlockLocks(), Actions()
    early, late, other = (Bio(Op.WRITE, sector, 1) for sector in range(3))
    got: list[int] = []
    locks.lock(7, lambda actions: got.append(7), actions)
    assert got == [7]
    locks.wait(7, early)
    assert not locks.enter(7, late)
    assert locks.enter(8, other)
    assert locks.unlock(7) == [early, late]
    assert locks.enter(7, late)
