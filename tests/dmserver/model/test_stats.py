from __future__ import annotations

from dmserver.io.bio import Bio, Op
from dmserver.model.stats import Stats


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def watched(stats: Stats, op: Op, sector: int, count: int) -> Bio:
    bio = Bio(op, sector, count)
    stats.watch(bio)
    return bio


def test_ids_are_the_lowest_free_ones() -> None:
    stats = Stats(Clock())
    regions = [stats.create(0, 8, 8) for _ in range(3)]
    assert [region.id for region in regions] == [0, 1, 2]
    stats.delete(regions[1])
    assert stats.create(0, 8, 8).id == 1
    assert [region.id for region in stats.regions()] == [0, 1, 2]
    assert stats.find(3) is None


def test_a_bio_counts_in_each_area_it_touches() -> None:
    stats = Stats(Clock())
    region = stats.create(10, 40, 8)
    assert region.n_areas == 4
    watched(stats, Op.READ, 0, 20).endio()
    watched(stats, Op.DISCARD, 33, 100).endio()
    watched(stats, Op.WRITE, 40, 8).endio()
    watched(stats, Op.FLUSH, 0, 0).endio()
    assert {index: area.sectors for index, area in region.areas.items()} == {0: [8, 0], 1: [2, 0], 2: [0, 1], 3: [0, 6]}
    assert {index: area.ios for index, area in region.areas.items()} == {0: [1, 0], 1: [1, 0], 2: [0, 1], 3: [0, 1]}


def test_times_are_those_under_way() -> None:
    clock = Clock()
    stats = Stats(clock)
    area = stats.create(0, 8, 8, precise=True, boundaries=(2_000_000_000,)).area(0)
    read, write = watched(stats, Op.READ, 0, 1), watched(stats, Op.WRITE, 1, 1)
    clock.seconds = 1
    read.endio()
    clock.seconds = 3
    write.endio()
    clock.seconds = 9
    stats.round(area)
    second = 1_000_000_000
    assert area.ticks == [1 * second, 3 * second]
    assert area.io_ticks == [1 * second, 3 * second]
    assert (area.io_ticks_total, area.time_in_queue) == (3 * second, 4 * second)
    assert area.histogram == [1, 1]


def test_clearing_keeps_what_is_under_way() -> None:
    stats = Stats(Clock())
    region = stats.create(0, 16, 8)
    held = watched(stats, Op.READ, 0, 16)
    region.clear(0, 1)
    assert region.area(0).in_flight == [1, 0]
    held.endio()
    assert region.area(1).ios == [1, 0]


def test_done_is_called_once_and_given_back() -> None:
    stats = Stats(Clock())
    stats.create(0, 8, 8)
    ended: list[int] = []
    bio = Bio(Op.READ, 0, 1, done=lambda bio: ended.append(bio.error))
    done = bio.done
    stats.watch(bio)
    bio.endio(5)
    assert ended == [5]
    assert bio.done is done
