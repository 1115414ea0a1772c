from __future__ import annotations

import errno
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.targets import Bench, log, message, pattern, read, status, write

from dmserver.io.bio import Bio, Op
from dmserver.model.dm_target import SECTOR_SIZE, StatusType
from dmserver.targets.raid.raid import Raid

#: Whole chunks of two and of three devices; of one more than two, and of one less than three.
SIZE, GROWN, SMALLER = 6144, 9216, 4096
#: Sectors between the old place of the data and the new one.
FREE = 256


def table(kind: str, chunk: int, count: int, *words: str) -> str:
    """Metadata on 1:5 and on, data on 1:0 and on."""
    disks = [f"1:{5 + number} 1:{number}" for number in range(count)]
    return " ".join([kind, str(1 + len(words)), str(chunk), *words, str(count), *disks])


class Volume:
    """A raid that is reshaped, and what should be on it."""

    def __init__(self, kind: str, chunk: int, count: int, *words: str, size: int = SIZE) -> None:
        self.bench = Bench()
        self.device = self.bench.load("r", (Raid, size, table(kind, chunk, count, *words)))
        self.finish()
        self.model = bytearray(pattern(1, 0, size))
        write(self.device, 0, bytes(self.model))

    def reshape(self, kind: str, chunk: int, count: int, *words: str, delta: int = 0, size: int = SIZE) -> None:
        """The first table begins it, the second goes on."""
        words = (*words, "max_recovery_rate", "48", "data_offset", str(FREE))
        asked = ("delta_disks", str(delta)) if delta else ()
        self.bench.load("r", (Raid, size, table(kind, chunk, count, *asked, *words)))
        self.table = (Raid, size, table(kind, chunk, count, *words))
        self.bench.load("r", self.table)

    def finish(self) -> None:
        self.bench.work.advance(600)

    def step(self) -> None:
        """A window or so of a reshape."""
        self.bench.work.advance(3)

    def write(self, at: int, data: bytes) -> None:
        write(self.device, at, data)
        self.model[at * SECTOR_SIZE : at * SECTOR_SIZE + len(data)] = data

    def check(self) -> None:
        """All data are there, with the parity that they should have."""
        assert read(self.device, 0, len(self.model) // SECTOR_SIZE) == self.model
        message(self.device, "check")
        self.finish()
        assert status(self.device).split()[4:6] == ["idle", "0"]

    def cut(self, writes: int) -> None:
        """Once so many more were done, nothing is."""
        left = writes

        def fail(bio: Bio) -> bool:
            nonlocal left
            left -= bio.op is Op.WRITE
            return left < 0

        for disk in self.bench.disks:
            disk.fail = fail

    def start_again(self) -> None:
        """In another machine, with the disks as they are."""
        disks = self.bench.disks
        for disk in disks:
            disk.fail = lambda bio: False
        self.bench = Bench()
        self.bench.disks = disks
        self.device = self.bench.load("r", self.table)


#: What there is, and what it becomes; the size then.
CHANGES = [
    (("raid5_ls", 64, 3), ("raid5_n", 64, 3), 0, SIZE),
    (("raid5_ls", 64, 3), ("raid5_ra", 16, 3), 0, SIZE),
    (("raid4", 16, 3), ("raid5_rs", 128, 3), 0, SIZE),
    (("raid6_zr", 32, 4), ("raid6_nc", 32, 4), 0, SIZE),
    (("raid6_nr", 32, 4), ("raid6_ls_6", 64, 4), 0, SIZE),
    (("raid5_ls", 64, 2), ("raid5_n", 32, 2), 0, SIZE),
    (("raid5_ls", 64, 4), ("raid5_ls", 32, 4), -1, SMALLER),
    (("raid6_zr", 64, 5), ("raid6_zr", 64, 5), -1, SMALLER),
    (("raid10", 64, 4), ("raid10", 32, 4), 0, SIZE),
]


@pytest.mark.parametrize(("old", "new", "delta", "size"), CHANGES)
def test_data_are_there_before_meanwhile_and_after(
    old: tuple[str, int, int], new: tuple[str, int, int], delta: int, size: int
) -> None:
    volume = Volume(*old)
    volume.reshape(*new, delta=delta)
    del volume.model[size * SECTOR_SIZE :]
    assert status(volume.device).split()[4] == "reshape"
    assert set(status(volume.device).split()[2]) == {"a"}
    for turn in range(6):
        volume.step()
        volume.write(turn * 300, pattern(turn + 2, turn * 300, 200))
        assert read(volume.device, 0, len(volume.model) // SECTOR_SIZE) == volume.model
    assert status(volume.device).split()[4] == "reshape"
    volume.finish()
    assert status(volume.device).split()[:2] == [new[0], str(new[2] + delta)]
    assert status(volume.device).split()[6] == str(FREE)
    volume.check()


@pytest.mark.parametrize("chunk", [64, 32])
def test_devices_are_added(chunk: int) -> None:
    volume = Volume("raid5_n", 64, 3)
    volume.reshape("raid5_ls", 64, 3)
    volume.finish()
    volume.reshape("raid5_ls", chunk, 4, delta=1, size=GROWN)
    volume.step()
    volume.write(0, pattern(2, 0, 200))
    volume.write(5000, pattern(3, 5000, 200))
    with pytest.raises(OSError, match="read"):
        read(volume.device, SIZE, 8)
    assert status(volume.device).startswith("raid5_ls 4 aaaa 256/3072 reshape 0 256 -")
    volume.finish()
    assert status(volume.device) == "raid5_ls 4 AAAA 3072/3072 idle 0 0 -"
    volume.model += bytes((GROWN - SIZE) * SECTOR_SIZE)
    volume.write(7000, pattern(4, 7000, 900))
    volume.check()


def test_devices_are_added_that_were_to_be_rebuilt() -> None:
    volume = Volume("raid5_n", 64, 3)
    volume.reshape("raid5_ls", 64, 3)
    volume.finish()
    rebuilt = table("raid5_ls", 64, 5, "rebuild", "3", "rebuild", "4", "data_offset", str(FREE))
    volume.bench.load("r", (Raid, 2 * SIZE, rebuilt))
    volume.reshape("raid5_ls", 64, 5, delta=2, size=2 * SIZE)
    volume.finish()
    assert status(volume.device) == "raid5_ls 5 AAAAA 3072/3072 idle 0 0 -"
    assert read(volume.device, 0, SIZE) == volume.model


def test_mirrors_are_added() -> None:
    volume = Volume("raid10", 64, 2)
    volume.reshape("raid10", 32, 2)
    volume.finish()
    volume.reshape("raid10", 32, 4, delta=2, size=2 * SIZE)
    volume.step()
    assert status(volume.device).split()[:3] == ["raid10", "4", "aaaa"]
    volume.finish()
    assert status(volume.device) == "raid10 4 AAAA 12288/12288 idle 0 0 -"
    assert read(volume.device, 0, SIZE) == volume.model
    volume.model = bytearray(read(volume.device, 0, 2 * SIZE))
    volume.check()


def test_a_device_that_failed_comes_back_meanwhile() -> None:
    volume = Volume("raid5_ls", 64, 4)
    volume.reshape("raid5_n", 64, 4)
    volume.step()
    volume.bench.disks[1].fail = lambda bio: True
    volume.write(0, pattern(2, 0, 3000))
    volume.step()
    assert status(volume.device).split()[2] == "aDaa"
    volume.bench.disks[1].fail = lambda bio: False
    for _ in range(2):  # it has not been recovered when the next table comes
        volume.bench.load("r", volume.table)
        volume.step()
        assert status(volume.device).split()[4] == "reshape"
        assert read(volume.device, 0, SIZE) == volume.model
    volume.finish()
    assert status(volume.device).split()[2] == "AAAA"
    volume.check()


def test_a_table_that_was_loaded_before_the_reshape_went_on() -> None:
    volume = Volume("raid5_ls", 64, 3)
    volume.reshape("raid5_n", 64, 3)
    volume.bench.table(volume.device, volume.table)
    volume.step()
    volume.write(6000, pattern(2, 6000, 100))
    volume.bench.resume(volume.device)
    assert read(volume.device, 0, SIZE) == volume.model
    volume.bench.table(volume.device, volume.table)
    volume.finish()
    volume.bench.resume(volume.device)
    assert status(volume.device).split()[4:7] == ["idle", "0", str(FREE)]
    volume.check()


@pytest.mark.parametrize(
    ("params", "refusal"),
    [
        (table("raid5_ls", 64, 3, "data_offset", "16384"), (errno.ENOSPC, "No space for backward reshape")),
        (table("raid10", 64, 4, "delta_disks", "-1"), (errno.EINVAL, "Bogus raid10 data copies or delta disks")),
    ],
)
def test_what_is_refused(params: str, refusal: tuple[int, str]) -> None:
    bench = Bench()
    bench.load("r", (Raid, 32768, table("raid5_ls", 64, 3)))
    bench.work.advance(600)
    assert bench.refusal(Raid, 32768, params) == refusal


@pytest.mark.parametrize("position", [SIZE + 64, 64, 1000])
def test_a_position_that_cannot_be(position: int) -> None:
    volume = Volume("raid5_ls", 64, 3)
    volume.reshape("raid5_n", 64, 3)
    volume.bench.remove(volume.device)
    for disk in volume.bench.disks[5:8]:
        block = bytearray(read(disk, 0))
        block[64:72] = position.to_bytes(8, "little")
        write(disk, 0, bytes(block))
    assert volume.bench.refusal(*volume.table) == (errno.EINVAL, "Failed to run raid array")
    assert "md/raid:mdX: reshape_position not on a stripe boundary" in log(volume.bench)


def test_what_cannot_begin() -> None:
    volume = Volume("raid6_zr", 64, 4)
    fewer = table("raid6_zr", 64, 4, "delta_disks", "-1", "data_offset", str(FREE))
    volume.bench.load("r", (Raid, SIZE, fewer))
    assert status(volume.device).split()[4] == "idle"
    assert "device-mapper: raid: Failed to check/start reshape, continuing without change" in log(volume.bench)
    volume.bench.load("r", (Raid, SIZE, table("raid6_nc", 32, 4)))  # there is no space for it
    assert status(volume.device).startswith("raid6_zr 4 AAAA")
    assert status(volume.device, StatusType.TABLE).startswith("raid6_nc 1 64 4")
    assert read(volume.device, 0, SIZE) == volume.model


@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(st.sampled_from(CHANGES), st.integers(0, 300), st.integers(0, 300), st.integers(0, 9999))
def test_nothing_is_lost_whenever_it_is_cut(change, first: int, second: int, seed: int) -> None:
    random = Random(seed)
    old, new, delta, size = change
    volume = Volume(*old)
    volume.reshape(*new, delta=delta)
    del volume.model[size * SECTOR_SIZE :]
    sectors = len(volume.model) // SECTOR_SIZE
    unsure: set[int] = set()
    for writes in (first, second):
        volume.cut(writes)
        for _ in range(random.randrange(40)):
            volume.step()
            at = random.randrange(sectors - 8)
            data = random.randbytes(8 * SECTOR_SIZE)
            try:
                write(volume.device, at, data)
            except OSError:
                unsure.update(range(at, at + 8))
                break
            volume.model[at * SECTOR_SIZE : (at + 8) * SECTOR_SIZE] = data
            unsure.difference_update(range(at, at + 8))
        volume.start_again()
        found = read(volume.device, 0, sectors)
        for sector in unsure:  # the old data or the new
            piece = slice(sector * SECTOR_SIZE, (sector + 1) * SECTOR_SIZE)
            volume.model[piece] = found[piece]
        unsure.clear()
        assert found == volume.model
    volume.finish()
    volume.check()
