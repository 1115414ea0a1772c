from __future__ import annotations

import pytest
from support.targets import FaultyDisk, pattern, read, write

from dmserver.io.bio import Op
from dmserver.io.kcopyd import PIECE, Kcopyd

Outcome = list[tuple[bool, frozenset[int]]]


def disks(count: int) -> list[FaultyDisk]:
    return [FaultyDisk(number) for number in range(count)]


def copy(kcopyd: Kcopyd, source: FaultyDisk, destinations: list[FaultyDisk], sectors: int) -> Outcome:
    outcome: Outcome = []
    kcopyd.copy((source, 10), [(disk, 20) for disk in destinations], sectors, lambda *done: outcome.append(done))
    return outcome


@pytest.mark.parametrize("sectors", [1, PIECE, PIECE + 1, 3 * PIECE - 1])
def test_everything_is_copied_to_every_destination(sectors: int) -> None:
    source, *others = disks(3)
    write(source, 10, pattern(1, 0, sectors))
    assert copy(Kcopyd(), source, others, sectors) == [(False, frozenset())]
    for disk in others:
        assert read(disk, 19, sectors + 2) == bytes(512) + pattern(1, 0, sectors) + bytes(512)


def test_nothing_to_copy() -> None:
    source, other = disks(2)
    assert copy(Kcopyd(), source, [other], 0) == [(False, frozenset())]
    assert not source.log


def test_a_failed_read_writes_nothing() -> None:
    source, other = disks(2)
    source.fail = lambda bio: True
    assert copy(Kcopyd(), source, [other], 8) == [(True, frozenset())]
    assert not other.log


def test_failed_writes_are_told_by_destination() -> None:
    source, *others = disks(4)
    others[1].fail = lambda bio: bio.sector > 20
    assert copy(Kcopyd(), source, others, 2 * PIECE) == [(False, frozenset({1}))]
    assert len(others[2].log) == 2


def test_no_more_is_under_way_than_there_are_buffers() -> None:
    source, other = disks(2)
    kcopyd = Kcopyd(buffers=2 * PIECE * 512)
    other.slow = True
    outcomes = [copy(kcopyd, source, [other], 3 * PIECE) for _ in range(2)]
    assert len(source.log) == 2
    assert len(other.held) == 2
    held, other.held = other.held, []
    other.slow = False
    other.submit_bio(held[0])
    assert len(source.log) == 6 - 1 + 1
    other.submit_bio(held[1])
    assert outcomes == [[(False, frozenset())]] * 2
    assert [op for op, _, _ in other.log] == [Op.WRITE] * 6
