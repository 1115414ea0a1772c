from __future__ import annotations

import pytest

from dmserver.targets.cache.policy import KINDS, Operation, Policy, Settings, Work


class Clocked(Policy):
    """A policy whose clock stands still until it is moved."""

    def __init__(self, kind: str = "smq", blocks: int = 8) -> None:
        self.clock = 0.0
        super().__init__(KINDS[kind], blocks, lambda: self.clock)

    def miss(self, oblock: int, *, fast: bool = False) -> Work | None:
        assert self.lookup(oblock) is None
        return self.missed(oblock, fast=fast)

    def fill(self) -> None:
        """Cache block n holds origin block 100 + n."""
        for oblock in range(100, 100 + self.blocks):
            work = self.miss(oblock, fast=True)
            assert work
            self.complete(work, success=True)

    def work(self, *, idle: bool = False) -> list[tuple[Operation, int, int]]:
        """Do all there is."""
        done = []
        while work := self.next_work(idle=idle):
            done.append((work.operation, work.oblock, work.cblock))
            if work.operation is Operation.WRITEBACK:
                self.set_dirty(work.cblock, dirty=False)
            self.complete(work, success=True)
        return done


def test_what_is_missed_again_later_is_promoted() -> None:
    policy = Clocked()
    for _ in range(3):
        policy.miss(5)
    assert not policy.work()
    policy.clock = 1
    policy.miss(5)
    policy.miss(6)
    assert policy.residency == 1
    policy.miss(5)
    assert policy.work() == [(Operation.PROMOTE, 5, 0)]
    assert policy.lookup(5) == 0


def test_misses_of_long_ago_are_forgotten() -> None:
    policy = Clocked()
    for oblock in range(2000):
        policy.miss(oblock)
    policy.clock = 1
    policy.miss(0)
    policy.miss(1999)
    assert policy.work() == [(Operation.PROMOTE, 1999, 0)]


def test_a_write_that_needs_no_copy_is_promoted_at_once() -> None:
    policy = Clocked(blocks=1)
    work = policy.miss(5, fast=True)
    assert work
    assert policy.miss(6, fast=True) is None
    assert (work.operation, work.oblock, work.cblock) == (Operation.PROMOTE, 5, 0)
    assert policy.miss(5, fast=True) is None
    policy.complete(work, success=False)
    assert policy.lookup(5) is None
    assert policy.residency == 0


def test_the_least_recently_used_clean_block_goes() -> None:
    policy = Clocked()
    policy.fill()
    policy.lookup(100)
    policy.set_dirty(1, dirty=True)
    policy.miss(5)
    policy.clock = 1
    for _ in range(4):
        policy.miss(5)
    assert policy.work() == [(Operation.DEMOTE, 102, 2), (Operation.DEMOTE, 103, 3)]
    policy.miss(5)
    assert policy.work() == [(Operation.PROMOTE, 5, 2)]


def test_dirty_blocks_are_written_back_when_nothing_clean_can_go() -> None:
    policy = Clocked()
    policy.fill()
    for cblock in range(8):
        policy.set_dirty(cblock, dirty=True)
    policy.miss(5)
    policy.clock = 1
    policy.miss(5)
    assert policy.work() == [(Operation.WRITEBACK, 100, 0)]


def test_the_idle_write_back() -> None:
    policy = Clocked()
    policy.fill()
    policy.set_dirty(3, dirty=True)
    policy.set_dirty(1, dirty=True)
    assert policy.work() == []
    assert policy.busy
    assert policy.work(idle=True) == [(Operation.WRITEBACK, 103, 3), (Operation.WRITEBACK, 101, 1)]
    assert not policy.busy


def test_the_cleaner_only_cleans() -> None:
    policy = Clocked("cleaner")
    policy.load([(2, 5, True, None)])
    policy.miss(7, fast=True)
    policy.clock = 1
    policy.miss(7)
    assert policy.work() == [(Operation.WRITEBACK, 5, 2)]


def test_blocks_change_while_they_are_moved() -> None:
    """What becomes dirty while it is written back stays dirty."""
    policy = Clocked()
    policy.fill()
    policy.set_dirty(3, dirty=True)
    work = policy.next_work(idle=True)
    assert work
    assert policy.lookup(103) == 3
    policy.set_dirty(3, dirty=True)
    policy.complete(work, success=False)
    assert policy.work(idle=True) == [(Operation.WRITEBACK, 103, 3)]
    policy.clock = 1
    policy.invalidate(0)
    assert policy.lookup(100) is None
    assert not policy.invalidate(0)


def test_the_order_of_use_is_kept_in_hints() -> None:
    policy = Clocked()
    policy.fill()
    policy.lookup(100)
    again = Clocked()
    hints = policy.hints()
    assert sorted(hints) == [0, 8, 16, 24, 32, 40, 48, 56]
    again.load((cblock, 100 + cblock, False, hints[cblock]) for cblock in reversed(range(8)))
    assert again.hints() == hints


def test_a_smaller_cache() -> None:
    policy = Clocked()
    policy.load([(1, 5, False, None), (6, 7, False, None)])
    policy.shrink(4)
    assert (policy.lookup(5), policy.lookup(7), policy.residency, policy.hints()) == (1, None, 1, [0, 0, 0, 0])
    work = [policy.miss(oblock, fast=True) for oblock in range(4)]
    assert [each and each.cblock for each in work] == [0, 2, 3, None]


@pytest.mark.parametrize("kind", ["smq", "default", "cleaner"])
def test_there_is_one_setting(kind: str) -> None:
    settings = Settings(KINDS[kind])
    assert settings.set("Migration_Threshold", "+7") == ""
    assert settings.migration_threshold == 7
    for key, value in (("random_threshold", "1"), ("migration_threshold", "x"), ("migration_threshold", "-1")):
        with pytest.raises(ValueError, match="expected"):
            settings.set(key, value)
    assert settings.kind.config_values() == "0"


def test_settings_of_old() -> None:
    settings = Settings(KINDS["mq"])
    line = "tunable 'sequential_threshold' no longer has any effect, mq policy is now an alias for smq"
    assert settings.set("sequential_threshold", "3") == line
    assert settings.kind.config_values().startswith("10 random_threshold 0 sequential_threshold 0 ")
    with pytest.raises(ValueError, match="expected"):
        settings.set("bogus", "1")
