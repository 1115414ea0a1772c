from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmserver.io.partition_table import Entry, read_table

PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
SECTORS = 65536


def table(image: bytes, block_size: int = 512) -> list[Entry]:
    def read(block: int, count: int) -> bytes:
        data = image[block * block_size : (block + count) * block_size]
        assert len(data) == count * block_size
        return data

    return read_table(read, len(image) // 512, block_size)


def mbr(*entries: tuple[int, int, int]) -> bytearray:
    """A boot sector of (type, start, size)."""
    sector = bytearray(512)
    for slot, entry in enumerate(entries):
        struct.pack_into("<4xB3xII", sector, 446 + 16 * slot, *entry)
    sector[510:] = b"\x55\xaa"
    return sector


def run(*argv: str, text: str = "") -> str:
    if not shutil.which(argv[0], path=PATH):
        pytest.skip(f"{argv[0]} is not installed")
    return subprocess.run(argv, input=text, env={"PATH": PATH}, capture_output=True, text=True, check=True).stdout


@st.composite
def scripts(draw: st.DrawFn) -> str:
    """What sfdisk makes of it: sizes one behind the other, for an MBR some of them logical."""
    label = draw(st.sampled_from(["gpt", "dos"]))
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))
    lines = [f"size={size}MiB" + (f', name="part {size}"' if label == "gpt" else "") for size in sizes]
    if label == "dos" and sum(sizes) < 20:
        lines += ["size=8MiB, type=5", *["size=1MiB"] * draw(st.integers(0, 3))]
    elif sum(sizes) > 28:
        lines = lines[:1]
    return f"label: {label}\n" + "\n".join(lines)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.touch()
    return path


def partition(image: Path, script: str) -> None:
    os.truncate(image, 0)
    os.truncate(image, SECTORS * 512)
    run("sfdisk", "-q", str(image), text=script)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scripts())
def test_partitions_are_what_sfdisk_made(image: Path, script: str) -> None:
    partition(image, script)
    expected = [
        Entry(
            int(found["node"].removeprefix(str(image))),
            found["start"],
            2 if found["type"] == "5" else found["size"],
            found.get("name", ""),
        )
        for found in json.loads(run("sfdisk", "--json", str(image)))["partitiontable"]["partitions"]
    ]
    assert table(image.read_bytes()) == expected


@pytest.mark.parametrize("damaged", [slice(512, 520), slice(512 + 88, 512 + 92), slice(1024, 1030)])
def test_a_damaged_gpt_is_read_from_its_copy(image: Path, damaged: slice) -> None:
    partition(image, "label: gpt\nsize=1MiB\nsize=2MiB")
    data = bytearray(image.read_bytes())
    entries = table(bytes(data))
    assert len(entries) == 2
    data[damaged] = bytes(byte ^ 0xFF for byte in data[damaged])
    assert table(bytes(data)) == entries
    data[-512:] = bytes(512)
    assert table(bytes(data)) == []


def test_large_blocks() -> None:
    image = bytearray(SECTORS * 512)
    image[:512] = mbr((0x83, 16, 32))
    assert table(bytes(image), 4096) == [Entry(1, 128, 256)]


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ((0x83, 2048, 0), []),
        ((0x83, SECTORS, 8), []),
        ((0x83, SECTORS - 8, 9), [Entry(1, SECTORS - 8, 8)]),
        ((0x05, SECTORS - 8, 9), [Entry(1, SECTORS - 8, 2)]),
        ((0x05, 0, 8), [Entry(1, 0, 2)]),  # the chain begins with itself, and goes on so
    ],
)
def test_odd_entries(first: tuple[int, int, int], expected: list[Entry]) -> None:
    image = bytearray(SECTORS * 512)
    image[:512] = mbr(first)
    assert table(bytes(image)) == expected


def test_a_boot_sector_of_a_file_system_is_no_table() -> None:
    sector = mbr((0x83, 8, 8))
    sector[446] = 0x7F
    assert table(bytes(sector) + bytes(512 * 63)) == []


@given(st.binary(max_size=64), st.integers(0, 511), st.booleans())
def test_garbage_is_read_without_complaint(garbage: bytes, at: int, gpt: bool) -> None:
    image = bytearray(512 * 64)
    image[:512] = mbr((0xEE if gpt else 0x05, 1, 63))
    head = struct.pack("<8sIII4xQQQQ16sQIII", b"EFI PART", 1 << 16, 92, 0, 1, 63, 2, 62, bytes(16), 2, 4, 128, 0)
    if gpt:
        image[512 : 512 + len(head)] = head
        struct.pack_into("<I", image, 512 + 88, crc32(image[1024:1536]))
    image[512 + at : 512 + at + len(garbage)] = garbage
    if gpt:
        struct.pack_into("<I", image, 512 + 16, 0)
        struct.pack_into("<I", image, 512 + 16, crc32(image[512 : 512 + 92]))
    for entry in table(bytes(image[: 512 * 64])):
        assert 0 <= entry.start < entry.start + entry.size <= 64
