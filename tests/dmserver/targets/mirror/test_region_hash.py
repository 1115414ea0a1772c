"""Whatever happens to a mirror: the log knows of every write under way, and writes wait for a recovery."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.targets import Bench

from dmserver.io.bio import Bio, Op
from dmserver.model.dm_table import DmTable
from dmserver.targets.mirror.dirty_log import CoreLog, DiskLog
from dmserver.targets.mirror.mirror import Mirror
from dmserver.targets.mirror.region_hash import Region, RegionHash, State

REGIONS = 2


class Regions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        bench = Bench()
        table = DmTable(bench.mapper.create("x"), bench.resolve)
        target = table.add_target(
            Mirror, 0, 64 * REGIONS, ["disk", "3", "1:2", "64", "nosync", "2", "1:0", "0", "1:1", "0"]
        )
        assert isinstance(target, Mirror)
        assert isinstance(target.region_log, DiskLog)
        self.log = target.region_log
        self.hash = RegionHash(self.log)
        self.writes: list[Region] = []
        self.delayed = 0
        self.copying: Region | None = None

    @rule(key=st.integers(0, REGIONS - 1))
    def write(self, key: int) -> None:
        region = self.hash.enter(key, Bio(Op.WRITE, 0, 1))
        recovering = self.hash.recovering
        assert (region is None) == (recovering is not None and recovering.key == key)
        if region is None:
            self.delayed += 1
        else:
            self.writes.append(region)

    @precondition(lambda self: self.writes)
    @rule(data=st.data(), fails=st.booleans())
    def write_ends(self, data: st.DataObject, fails: bool) -> None:
        region = self.writes.pop(data.draw(st.integers(0, len(self.writes) - 1)))
        if fails and self.hash.mark_nosync(region):
            self.delayed -= len(self.hash.end_recovery(region, False))
        self.hash.leave(region)

    @rule()
    def clean(self) -> None:
        self.hash.clean()

    @rule(again=st.booleans())
    def recover(self, again: bool) -> None:
        if again:
            CoreLog.resume(self.log)
        self.hash.prepare_recovery()
        self.copying = self.hash.start_recovery() or self.copying

    @precondition(lambda self: self.copying)
    @rule(success=st.booleans())
    def recovery_ends(self, success: bool) -> None:
        assert self.copying is not None
        assert not self.copying.pending
        if success:
            self.log.clear_region(self.copying.key)
        self.delayed -= len(self.hash.end_recovery(self.copying, success))
        self.copying = None

    @invariant()
    def the_log_knows_of_every_write(self) -> None:
        for region in self.writes:
            if region.state is State.DIRTY:
                assert not self.log.bits[region.key >> 3] >> (region.key & 7) & 1

    @invariant()
    def what_is_clean_on_disk_is_in_sync(self) -> None:
        for key in range(REGIONS):
            if self.log.bits[key >> 3] >> (key & 7) & 1:
                assert self.log.in_sync(key)

    @invariant()
    def counts_agree(self) -> None:
        assert self.log.sync_count == sum(self.log.synced)
        recovering = self.hash.recovering
        assert self.delayed == (len(recovering.delayed) if recovering else 0)


def test_a_recovery_waits_for_writes_of_one_that_was_given_up() -> None:
    regions = Regions()
    first, second, third = (regions.hash.enter(0, Bio(Op.WRITE, 0, 1)) for _ in range(3))
    assert first is second is third is not None
    regions.hash.mark_nosync(first)
    regions.hash.leave(first)
    assert regions.hash.prepare_recovery()
    assert regions.hash.mark_nosync(first)
    regions.hash.end_recovery(first, False)
    regions.hash.leave(first)
    CoreLog.resume(regions.log)
    assert regions.hash.prepare_recovery()
    assert regions.hash.start_recovery() is None
    regions.hash.leave(first)
    assert regions.hash.start_recovery() is first


TestRegions = Regions.TestCase
TestRegions.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
