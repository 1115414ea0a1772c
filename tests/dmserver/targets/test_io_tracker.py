from __future__ import annotations

import math

from dmserver.targets.io_tracker import IoTracker


def test_the_time_since_the_last_bio_ended() -> None:
    clock = 1.0
    tracker = IoTracker(lambda: clock)
    assert tracker.idle_time == math.inf
    tracker.begin()
    tracker.begin()
    clock = 3.0
    assert tracker.idle_time == 0
    tracker.end()
    assert tracker.idle_time == 0
    tracker.end()
    clock = 4.5
    assert tracker.idle_time == 1.5
