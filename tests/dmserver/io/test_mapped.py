"""The engine: splitting, per-bio data, end_io, suspension, swaps under load, exceptions in targets."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import pytest
from support.stacks import Stack, pattern

from dmserver.io.bio import Bio, Op
from dmserver.io.mapped import MAX_DEPTH
from dmserver.io.submit import submit_and_wait
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_pdev import DmPdev
from dmserver.model.dm_target import EndIo, Extent, MapResult, Target


class Over(Target):
    """`linear`, but by `map` alone, so that no route can be laid through it."""

    name = "over"
    version = (1, 0, 0)
    num_flush_bios = num_discard_bios = num_write_zeroes_bios = 1

    def ctr(self, argv: Sequence[str]) -> None:
        self.dev = self.get_device(argv[0])
        self.start = int(argv[1])

    def map(self, bio: Bio) -> MapResult:
        bio.bdev, bio.sector = self.dev.bdev, self.start + self.offset(bio.sector)
        return MapResult.REMAPPED

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.dev, self.start, self.len


@dataclass
class Count:
    seen: int = 0


class Traced(Over):
    """Counts and rewrites; `max_io_len` is the third argument."""

    name = "traced"
    per_bio_data = Count

    def ctr(self, argv: Sequence[str]) -> None:
        super().ctr(argv)
        self.max_io_len = int(argv[2])
        self.parts: list[tuple[int, int]] = []
        self.ended: list[tuple[int, int]] = []
        self.rewrite: int | EndIo | None = None

    def map(self, bio: Bio) -> MapResult:
        bio.per_bio.seen += 1
        self.parts.append((bio.sector, bio.nr_sectors))
        return super().map(bio)

    def end_io(self, bio: Bio, error: int) -> int | EndIo:
        self.ended.append((bio.per_bio.seen, error))
        return error if self.rewrite is None else self.rewrite


class Hold(Target):
    """Keeps every bio until the test ends it."""

    name = "hold"
    version = (1, 0, 0)

    def ctr(self, argv: Sequence[str]) -> None:
        self.held: list[Bio] = []

    def map(self, bio: Bio) -> MapResult:
        self.held.append(bio)
        return MapResult.SUBMITTED


class Answer(Target):
    """Does with each bio what its argument says: a MapResult, `raise` or `nowhere`."""

    name = "answer"
    version = (1, 0, 0)
    num_flush_bios = 1

    def ctr(self, argv: Sequence[str]) -> None:
        self.word = argv[0]

    def map(self, bio: Bio) -> MapResult:
        if self.word == "raise":
            raise ZeroDivisionError("in a target")
        return MapResult.REMAPPED if self.word == "nowhere" else MapResult[self.word]


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack(Over, Traced, Hold, Answer)
    yield stack
    stack.close()


def read(dev: DmDev, sector: int, sectors: int) -> bytes:
    data = bytearray(sectors * 512)
    assert submit_and_wait(dev, Op.READ, sector, sectors, memoryview(data)) == 0
    return bytes(data)


def write(dev: DmDev, sector: int, data: bytes) -> int:
    return submit_and_wait(dev, Op.WRITE, sector, len(data) // 512, memoryview(data))


def start(dev: DmDev, op: Op, sector: int, data: bytes) -> list[int]:
    """Submit without waiting; the list gets the errno when it ends."""
    ended: list[int] = []
    buffer = memoryview(bytearray(data))
    dev.submit_bio(Bio(op, sector, len(data) // 512, buffer, lambda bio: ended.append(bio.error)))
    return ended


def test_bio_is_split_at_target_ends(stack: Stack) -> None:
    stack.ram(), stack.ram()
    dev = stack.device("d", (0, 8, "over", "1:0 100"), (8, 3, "linear", "1:1 200"), (11, 21, "over", "1:0 16363"))
    assert read(dev, 0, 32) == pattern(1, 100, 8) + pattern(2, 200, 3) + pattern(1, 16363, 21)
    assert write(dev, 6, pattern(9, 6, 6)) == 0
    assert read(dev, 6, 6) == pattern(9, 6, 6)


def test_max_io_len_and_per_bio_data(stack: Stack) -> None:
    stack.ram()
    dev = stack.device("d", (0, 4, "over", "1:0 0"), (4, 60, "traced", "1:0 4 8"))
    assert dev.live
    traced = dev.live.targets[1]
    assert isinstance(traced, Traced)
    assert read(dev, 2, 20) == pattern(1, 2, 20)
    assert traced.parts == [(4, 8), (12, 8), (20, 2)], "cut at multiples of 8 from the start of the target"
    assert traced.ended == [(1, 0)] * 3, "each part has data of its own"


def test_end_io_rewrites_the_error(stack: Stack) -> None:
    stack.ram()
    dev = stack.device("d", (0, 64, "traced", "1:0 16380 0"))
    assert dev.live
    traced = dev.live.targets[0]
    assert isinstance(traced, Traced)
    assert write(dev, 8, bytes(512)) == errno.EIO, "past the end of the ram disk"
    traced.rewrite = 0
    assert write(dev, 8, bytes(512)) == 0
    traced.rewrite = errno.ENOSPC
    assert write(dev, 0, bytes(512)) == errno.ENOSPC


@pytest.mark.parametrize("word", ["KILL", "raise", "nowhere", "REQUEUE"])
def test_map_result_that_fails_the_bio(stack: Stack, word: str, caplog: pytest.LogCaptureFixture) -> None:
    dev = stack.device("d", (0, 64, "answer", word))
    assert write(dev, 0, bytes(512)) == errno.EIO
    if word == "raise":
        assert "in a target" in caplog.text
        assert stack.mapper.events.lines[-1] == "device-mapper: answer: map raised an exception"


def test_exception_in_end_io_fails_that_bio(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Traced, bio: Bio, error: int) -> int:
        raise KeyError("in end_io")

    stack.ram()
    monkeypatch.setattr(Traced, "end_io", broken)
    dev = stack.device("d", (0, 64, "traced", "1:0 0 8"))
    assert submit_and_wait(dev, Op.READ, 0, 16, memoryview(bytearray(8192))) == errno.EIO


@pytest.mark.parametrize(
    ("op", "sector", "sectors", "error"),
    [
        (Op.READ, 63, 2, errno.EIO),
        (Op.READ, 64, 1, errno.EIO),
        (Op.READ, 0, 64, 0),
        (Op.WRITE, 0, 1, errno.EPERM),
        (Op.DISCARD, 0, 8, errno.EPERM),
        (Op.WRITE_ZEROES, 0, 8, errno.EPERM),
        (Op.FLUSH, 0, 0, 0),
    ],
)
@pytest.mark.parametrize("kind", ["linear", "over"])
def test_read_only_table_and_end(stack: Stack, kind: str, op: Op, sector: int, sectors: int, error: int) -> None:
    stack.ram()
    dev = stack.device("d", (0, 64, kind, "1:0 0"), read_only=True)
    data = memoryview(bytearray(sectors * 512)) if op in (Op.READ, Op.WRITE) else None
    assert submit_and_wait(dev, op, sector, sectors, data) == error


def test_device_without_table(stack: Stack) -> None:
    dev = stack.mapper.create("d")
    assert submit_and_wait(dev, Op.READ, 0, 1, memoryview(bytearray(512))) == errno.EIO


@pytest.mark.parametrize("kind", ["linear", "over"])
def test_discard_follows_the_devices(stack: Stack, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("disk") / "file"
    path.write_bytes(b"x" * 8192)
    stack.ram()
    stack.file(str(path))
    on_ram = stack.device("r", (0, 16, kind, "1:0 0"))
    on_file = stack.device("f", (0, 16, kind, "7:0 0"))
    assert submit_and_wait(on_ram, Op.DISCARD, 0, 8) == errno.EOPNOTSUPP
    assert submit_and_wait(on_file, Op.DISCARD, 8, 8) == 0
    assert submit_and_wait(on_file, Op.WRITE_ZEROES, 0, 1) == 0
    assert path.read_bytes() == bytes(512) + b"x" * 3584 + bytes(4096)


def test_target_without_discard_bios_refuses(stack: Stack) -> None:
    dev = stack.device("d", (0, 64, "hold", ""))
    assert submit_and_wait(dev, Op.DISCARD, 0, 8) == errno.EOPNOTSUPP
    assert submit_and_wait(dev, Op.WRITE_ZEROES, 0, 8) == errno.EOPNOTSUPP
    assert submit_and_wait(dev, Op.FLUSH) == 0, "no target wants it"


def test_suspend_waits_for_what_a_target_holds(stack: Stack) -> None:
    dev = stack.device("d", (0, 64, "hold", ""))
    assert dev.live
    hold = dev.live.targets[0]
    assert isinstance(hold, Hold)
    ended = start(dev, Op.WRITE, 0, bytes(512))
    drained = stack.suspend(dev)
    assert not drained.is_set()
    later = start(dev, Op.WRITE, 1, bytes(512))
    assert len(hold.held) == 1, "the second bio waits"
    hold.held[0].endio()
    assert ended == [0]
    assert drained.wait(10)
    assert dev.suspended
    dev.resume()
    assert len(hold.held) == 2
    hold.held[1].endio(errno.ENOSPC)
    assert later == [errno.ENOSPC]


@pytest.mark.parametrize("kind", ["linear", "over"])
def test_held_bio_goes_to_the_new_table(stack: Stack, kind: str) -> None:
    stack.ram(), stack.ram()
    dev = stack.device("d", (0, 64, kind, "1:0 0"))
    assert stack.suspend(dev, noflush=True).is_set()
    ended = start(dev, Op.WRITE, 0, pattern(7, 0, 2))
    assert ended == []
    stack.load(dev, [(0, 64, kind, "1:1 8")])
    stack.activate(dev)
    assert ended == [0]
    assert read(dev, 0, 3) == pattern(7, 0, 2) + pattern(2, 10, 1)


def test_requeue_is_held_while_a_suspension_without_flush_is_under_way(stack: Stack) -> None:
    dev = stack.device("d", (0, 8, "hold", ""), (8, 8, "answer", "REQUEUE"))
    assert write(dev, 8, bytes(512)) == errno.EIO, "no suspension at all"
    assert dev.live
    hold = dev.live.targets[0]
    assert isinstance(hold, Hold)
    ended = start(dev, Op.WRITE, 7, bytes(1024))
    drained = stack.suspend(dev, noflush=True)
    hold.held[0].endio()
    assert drained.wait(10)
    assert ended == [], "its second part asked for that"
    stack.load(dev, [(0, 16, "hold", "")])
    stack.activate(dev)
    assert dev.live
    hold = dev.live.targets[0]
    assert isinstance(hold, Hold)
    assert [(bio.sector, bio.nr_sectors) for bio in hold.held] == [(7, 2)]
    hold.held[0].endio()
    assert ended == [0]


@pytest.mark.parametrize("kind", ["linear", "over"])
def test_deep_stack(stack: Stack, kind: str) -> None:
    stack.ram()
    below = "1:0"
    for level in range(MAX_DEPTH - 1):
        dev = stack.device(f"d{level}", (0, 1000 - level, kind, f"{below} 1"))
        below = f"253:{dev.minor}"
    assert read(dev, 5, 3) == pattern(1, 5 + MAX_DEPTH - 1, 3)
    assert write(dev, 5, pattern(8, 0, 3)) == 0
    assert read(dev, 4, 4) == pattern(1, 4 + MAX_DEPTH - 1, 1) + pattern(8, 0, 3)


def test_device_mapped_onto_itself_fails(stack: Stack) -> None:
    dev = stack.mapper.create("d")
    stack.load(dev, [(0, 64, "linear", "253:0 0")])
    stack.activate(dev)
    assert write(dev, 0, bytes(512)) == errno.EIO


@pytest.mark.parametrize("kind", ["linear", "over"])
def test_tables_swap_under_load(stack: Stack, kind: str) -> None:
    """Every table maps the same sectors, so every read must see them, whatever is suspended, swapped and resumed."""
    stack.ram(2048), stack.ram(2048)
    low = stack.device("low", (0, 2048, kind, "1:0 0"))
    top = stack.device("top", (0, 1000, kind, "253:0 8"), (1000, 1000, "linear", "253:0 1008"))
    stop = threading.Event()
    wrong: list[str] = []
    counts = [0, 0, 0]

    def client(number: int) -> None:
        random = Random(number)
        while not stop.is_set():
            sector, sectors = random.randrange(1992), random.randrange(1, 9)
            if read(top, sector, sectors) != pattern(1, 8 + sector, sectors):
                wrong.append(f"client {number} at {sector}+{sectors}")
            counts[number] += 1

    clients = [threading.Thread(target=client, args=(number,)) for number in range(3)]
    for thread in clients:
        thread.start()
    tables = {
        low: [[(0, 2048, kind, "1:0 0")], [(0, 24, "linear", "1:0 0"), (24, 2024, kind, "1:0 24")]],
        top: [[(0, 2000, kind, "253:0 8")], [(0, 7, "linear", "253:0 8"), (7, 1993, kind, "253:0 15")]],
    }
    for turn in range(100):
        dev = (low, top)[turn // 2 % 2]
        stack.load(dev, tables[dev][turn % 2])
        stack.activate(dev)
    stop.set()
    for thread in clients:
        thread.join()
    assert not wrong
    assert all(counts)


def test_remapper_is_cut_where_its_extent_ends(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    class Swapped(Over):
        """Pairs of sectors in turn from the front and the back, and no `max_io_len`."""

        name = "swapped"
        map = Target.map

        def remap(self, sector: int) -> Extent:
            offset = self.offset(sector)
            return Extent(self.dev.bdev, (offset + 2 if offset % 4 < 2 else offset - 2), 2 - offset % 2)

    stack.registry.register(Swapped)
    stack.ram()
    dev = stack.device("d", (0, 64, "swapped", "1:0 0"))
    expected = pattern(1, 2, 2) + pattern(1, 0, 2) + pattern(1, 6, 1)
    assert read(dev, 0, 5) == expected
    monkeypatch.setattr(type(dev.io), "enter", lambda self: None)
    assert read(dev, 0, 5) == expected
