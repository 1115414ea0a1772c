from __future__ import annotations

from support.constructors import replay
from support.targets import Bench, pattern, read, write

from dmserver.targets.linear import Linear


class Named(Bench):
    """A bench whose disks have paths, too."""

    def resolve(self, name: str):  # type: ignore[no-untyped-def]  # as the base does
        return super().resolve(name.replace("/dev/ram", "1:"))


def test_segments_follow_each_other() -> None:
    bench = Bench()
    device = bench.load("d", (Linear, 5, "1:0 100"), (Linear, 3, "1:1 200"), (Linear, 8, "1:0 0"))
    write(device, 0, pattern(1, 0, 16))
    assert read(bench.disks[0], 100, 5) == pattern(1, 0, 5)
    assert read(bench.disks[1], 200, 3) == pattern(1, 5, 3)
    assert read(bench.disks[0], 0, 8) == pattern(1, 8, 8)
    assert read(device, 3, 9) == pattern(1, 3, 9)


def test_recorded_constructors_of_the_table_files() -> None:
    assert replay(Named(), Linear, "geometry", "suspend", "wait_events") > 10


def test_ima_status() -> None:
    device = Bench().load("d", (Linear, 8, "1:0 7"))
    assert device.live is not None
    assert device.live.targets[0].ima_status() == "target_name=linear,target_version=1.4.0,device_name=1:0,start=7;"
