"""Disks: declared ones, and files that are named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dmserver.io.disk import Disk
from dmserver.io.disks import VND_MAJOR, Disks


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(8192))
    return path


def test_a_declared_disk_is_found_by_any_spelling_and_by_number(image: Path) -> None:
    disks = Disks()
    disk = disks.declare(f"/dev/a={image},dev=9:3,ro")
    assert (disk.dev, disk.size, disk.read_only) == ((9, 3), 16, True)
    assert {disks.lookup(path) for path in ("/dev/a", "/dev//a", "//dev/./a", "/dev/x/../a")} == {disk}
    assert disks.by_dev((9, 3)) is disk


def test_numbers_are_handed_out_from_the_lowest(image: Path) -> None:
    disks = Disks(file_major=VND_MAJOR)
    disks.declare("/dev/a=ram:1M,dev=1:1")
    made = [
        disks.declare(f"/dev/{name}={backing}") for name, backing in [("b", "ram:1M"), ("c", "ram:1M"), ("d", image)]
    ]
    assert [disk.dev for disk in made] == [(1, 0), (1, 2), (VND_MAJOR, 0)]


@pytest.mark.parametrize(
    ("path", "dev"),
    [
        ("/dev/sda", (8, 0)),
        ("/dev/sdc", (8, 32)),
        ("/dev/loop20", (7, 20)),
        ("//dev/ram3", (1, 3)),
        ("/dev/ram03", (7, 0)),
        ("/dev/sda1", (7, 0)),
        ("/dev/loop1048576", (7, 0)),
    ],
)
def test_names_of_linux_have_its_numbers(path: str, dev: tuple[int, int], image: Path) -> None:
    disks = Disks()
    assert disks.declare(f"{path}={image}").dev == dev
    assert disks.declare(f"{path}x={image},dev=9:1").dev == (9, 1)


def test_a_number_that_is_taken_is_not_given_to_a_name(image: Path) -> None:
    disks = Disks()
    disks.declare(f"/dev/x={image},dev=8:0")
    assert disks.declare(f"/dev/sda={image}").dev == (7, 0)


def test_a_file_is_one_disk_however_it_is_named(image: Path) -> None:
    disks = Disks()
    link = image.with_name("link")
    link.symlink_to(image)
    found = disks.lookup(str(link))
    assert isinstance(found, Disk)
    assert disks.lookup(str(image)) is found
    assert (found.path, found.dev) == (str(image), (7, 0))


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/nowhere", errno.ENOENT),
        ("image", errno.ENOENT),
        ("/a\0b", errno.ENOENT),
        ("/dev/null", errno.ENOTBLK),
        ("/", errno.ENOTBLK),
    ],
)
def test_what_is_no_disk_is_told(path: str, number: int) -> None:
    with pytest.raises(OSError, match=r".") as failure:
        Disks().lookup(path)
    assert failure.value.errno == number


def test_an_adopted_file_keeps_its_number(image: Path) -> None:
    disks = Disks()
    disks.adopt(str(image), (7, 5))
    assert disks.lookup(str(image)).dev == (7, 5)
    with pytest.raises(ValueError, match="exists already"):
        disks.adopt(str(image), (7, 6))


def test_closing_frees_the_memory() -> None:
    before = len(os.listdir("/proc/self/fd"))
    disks = Disks()
    for number in range(3):
        disks.declare(f"/dev/ram{number}=ram:1M")
    assert len(os.listdir("/proc/self/fd")) == before + 3
    disks.close()
    assert len(os.listdir("/proc/self/fd")) == before
