"""Parity made by veritysetup mends what was corrupted."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.targets import Bench, pattern, read, status, write

from dmserver.model.dm_target import StatusType
from dmserver.targets.verity.verity import Verity

BLOCK = 4096
BLOCKS = 300
VERITYSETUP = shutil.which("veritysetup")
needs_veritysetup = pytest.mark.skipif(VERITYSETUP is None, reason="veritysetup is not installed")


@pytest.fixture(scope="module")
def formatted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[bytes, bytes, str]]:
    """By number of roots: (hash device, FEC device, root digest) for the data pattern(1)."""
    made: dict[int, tuple[bytes, bytes, str]] = {}
    for roots in (2, 8):
        path: Path = tmp_path_factory.mktemp("fec")
        (path / "data").write_bytes(pattern(1, 0, BLOCKS * 8))
        command = ["veritysetup", "format", "--no-superblock", "--salt=ab", f"--data-blocks={BLOCKS}"]
        command += [f"--fec-device={path / 'fec'}", f"--fec-roots={roots}", str(path / "data"), str(path / "hash")]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        root = next(line.split()[-1] for line in out.splitlines() if line.startswith("Root hash"))
        made[roots] = ((path / "hash").read_bytes(), (path / "fec").read_bytes(), root)
    return made


def scene(bench: Bench, formatted: dict[int, tuple[bytes, bytes, str]], roots: int) -> tuple[Any, str]:
    hashes, parity, root = formatted[roots]
    write(bench.disks[0], 0, pattern(1, 0, BLOCKS * 8))
    write(bench.disks[1], 0, hashes)
    write(bench.disks[2], 0, parity)
    blocks = BLOCKS + len(hashes) // BLOCK
    options = f"8 use_fec_from_device 1:2 fec_blocks {blocks} fec_start 0 fec_roots {roots}"
    params = f"1 1:0 1:1 {BLOCK} {BLOCK} {BLOCKS} 0 sha256 {root} ab {options}"
    return bench.load("v", (Verity, BLOCKS * 8, params), read_only=True), params


def spoil(bench: Bench, disk: int, *blocks: int) -> None:
    for block in blocks:
        write(bench.disks[disk], block * 8 + 3, pattern(0xEE, block))


@needs_veritysetup
@pytest.mark.parametrize("roots", [2, 8])
def test_a_block_is_mended(formatted: dict[int, tuple[bytes, bytes, str]], roots: int) -> None:
    bench = Bench()
    device, params = scene(bench, formatted, roots)
    assert status(device, StatusType.TABLE) == params
    spoil(bench, 0, 7, 299)
    assert read(device, 0, BLOCKS * 8) == pattern(1, 0, BLOCKS * 8)
    assert status(device) == "V"
    line = bench.mapper.events.lines[-1]
    assert line.startswith("device-mapper: verity-fec: 1:0: FEC 4096: corrected ")


@needs_veritysetup
@pytest.mark.parametrize(("roots", "bad"), [(2, 2), (8, 8)])
def test_as_many_blocks_as_roots_in_one_code(
    formatted: dict[int, tuple[bytes, bytes, str]], roots: int, bad: int
) -> None:
    bench = Bench()
    device, _ = scene(bench, formatted, roots)
    spoil(bench, 0, *range(10, 10 + 2 * bad, 2))
    assert read(device, 0, BLOCKS * 8) == pattern(1, 0, BLOCKS * 8)
    assert status(device) == "V"


@needs_veritysetup
def test_one_more_is_too_many(formatted: dict[int, tuple[bytes, bytes, str]]) -> None:
    bench = Bench()
    device, _ = scene(bench, formatted, 2)
    spoil(bench, 0, 10, 12, 14)
    with pytest.raises(OSError, match="5"):
        read(device, 80, 8)
    assert read(device, 88, 8) == pattern(1, 88, 8)
    assert status(device) == "C"


def spoil_byte(bench: Bench, disk: int, block: int, byte: int) -> None:
    sector = block * 8 + byte // 512
    data = bytearray(read(bench.disks[disk], sector))
    data[byte % 512] ^= 0x55
    write(bench.disks[disk], sector, bytes(data))


@needs_veritysetup
@pytest.mark.parametrize("roots", [2, 8])
def test_many_blocks_that_share_no_bad_code(formatted: dict[int, tuple[bytes, bytes, str]], roots: int) -> None:
    bench = Bench()
    device, _ = scene(bench, formatted, roots)
    for number in range(0, 20, 2):
        spoil_byte(bench, 0, number, 100 * number)
    assert read(device, 0, BLOCKS * 8) == pattern(1, 0, BLOCKS * 8)
    assert status(device) == "V"
    assert bench.mapper.events.lines[-1] == "device-mapper: verity-fec: 1:0: FEC 0: corrected 10 errors"


@needs_veritysetup
def test_hash_blocks_beside_data_blocks(formatted: dict[int, tuple[bytes, bytes, str]]) -> None:
    bench = Bench()
    device, _ = scene(bench, formatted, 2)
    for block in (0, 2):
        spoil_byte(bench, 1, block, 10 * block)
    spoil_byte(bench, 0, 8, 77)
    assert read(device, 0, BLOCKS * 8) == pattern(1, 0, BLOCKS * 8)
    assert status(device) == "V"


@needs_veritysetup
def test_a_hash_block_is_mended(formatted: dict[int, tuple[bytes, bytes, str]]) -> None:
    bench = Bench()
    device, _ = scene(bench, formatted, 2)
    spoil(bench, 1, 0)
    assert read(device, 0, 64) == pattern(1, 0, 64)
    assert status(device) == "V"


@needs_veritysetup
def test_an_unreadable_fec_device(formatted: dict[int, tuple[bytes, bytes, str]]) -> None:
    bench = Bench()
    device, _ = scene(bench, formatted, 2)
    spoil(bench, 0, 10)
    bench.disks[2].fail = lambda bio: True
    with pytest.raises(OSError, match="5"):
        read(device, 80, 8)


@pytest.mark.parametrize(
    ("sizes", "options", "expected"),
    [
        ("4096 4096", "use_fec_from_device", (errno.EINVAL, "FEC feature arguments require a value")),
        ("4096 4096", "use_fec_from_device 77:7", (errno.ENXIO, "FEC device lookup failed")),
        ("4096 4096", "fec_roots 1", (errno.EINVAL, "Invalid fec_roots")),
        ("4096 4096", "fec_blocks x", (errno.EINVAL, "Invalid fec_blocks")),
        ("4096 4096", "fec_start x", (errno.EINVAL, "Invalid fec_start")),
        ("4096 1024", "use_fec_from_device 1:2", (errno.EINVAL, "Block sizes must match to use FEC")),
        ("4096 4096", "use_fec_from_device 1:2 fec_blocks 99", (errno.EINVAL, "Missing fec_roots")),
        ("4096 4096", "use_fec_from_device 1:2 fec_roots 2", (errno.EINVAL, "Missing fec_blocks")),
        ("4096 4096", "use_fec_from_device 1:2 fec_roots 2 fec_blocks 8", (errno.EINVAL, "Invalid fec_blocks")),
        (
            "4096 4096",
            "use_fec_from_device 1:2 fec_roots 2 fec_blocks 9999",
            (errno.E2BIG, "Hash device is too small for fec_blocks"),
        ),
        (
            "4096 4096",
            "use_fec_from_device 1:2 fec_roots 2 fec_blocks 2056",
            (errno.E2BIG, "Hash device is too small for fec_blocks"),
        ),
        (
            "4096 4096",
            "use_fec_from_device 1:2 fec_roots 24 fec_blocks 99 fec_start 2025",
            (errno.E2BIG, "FEC device is too small"),
        ),
        (
            "4096 4096",
            "use_fec_from_device 1:2 fec_roots 24 fec_blocks 99 fec_start 9999",
            (errno.E2BIG, "FEC device is too small"),
        ),
    ],
)
def test_refusals(sizes: str, options: str, expected: tuple[int, str]) -> None:
    words = options.split()
    params = f"1 1:0 1:1 {sizes} 8 1 sha256 {'0' * 64} - {len(words)} {options}"
    assert Bench().refusal(Verity, 64, params, read_only=True) == expected


def test_data_that_are_not_there_are_not_mended() -> None:
    options = "6 use_fec_from_device 1:2 fec_roots 2 fec_blocks 2076"
    params = f"1 1:0 1:1 4096 4096 2049 0 sha256 {'0' * 64} - {options}"
    assert Bench().refusal(Verity, 64, params, read_only=True) == (errno.E2BIG, "Data device is too small")
