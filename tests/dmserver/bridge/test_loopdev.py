"""Image files as loop devices: losetup, kpartx, cryptsetup."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program, path=PATH) is None, reason=f"{program} is not installed")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(32 << 20))
    return path


@needs("losetup")
def test_bind_and_detach(dm_run: Run, image: Path) -> None:
    script = """loop=$(losetup -f --show disk.img); losetup -n -O BACK-FILE $loop; blockdev --getsize64 $loop
    printf data | dd of=$loop bs=4 seek=1 conv=notrunc 2>/dev/null
    losetup --set-capacity $loop; losetup -d $loop; blockdev --getsize64 $loop; losetup -a"""
    assert dm_run("sh", "-c", script, cwd=image.parent).stdout == f"{image}\n{32 << 20}\n0\n"
    assert image.read_bytes()[:8] == b"\0\0\0\0data"


@needs("losetup")
def test_refusals(dm_run: Run, image: Path) -> None:
    script = """loop=$(losetup -f --show disk.img); losetup $loop disk.img; losetup -f -o 9223372036854775808 disk.img
    losetup -r -f --show disk.img >/dev/null && losetup -n -O RO"""
    done = dm_run("sh", "-c", script, cwd=image.parent, check=False)
    assert done.stdout.split() == ["0", "1"]
    assert done.stderr.count("losetup:") >= 2


@needs("losetup")
def test_what_a_loop_device_can_stand_on(dm_run: Run, image: Path) -> None:
    pytest.importorskip("mfusepy", exc_type=ImportError)
    script = """one=$(losetup -f --show disk.img); two=$(losetup -f --show $one); three=$(losetup -f)
    losetup $three /dev/null || echo EINVAL; losetup $three $three || echo EBADF
    losetup -d $one; losetup $one $two || echo EBADF; losetup -n -O BACK-FILE $two | wc -l
    losetup $three disk.img; blockdev --getsize64 $three"""
    done = dm_run("sh", "-c", script, cwd=image.parent)
    assert done.stdout.split() == ["EINVAL", "EBADF", "EBADF", "1", str(32 << 20)]
    assert [line.rpartition(": ")[2] for line in done.stderr.splitlines()] == [
        "Invalid argument",
        "Bad file descriptor",
        "Bad file descriptor",
    ]


@needs("losetup")
def test_a_part_of_a_file(dm_run: Run, image: Path) -> None:
    pytest.importorskip("mfusepy", exc_type=ImportError)
    script = """set -e; loop=$(losetup -f --show -o 1000 --sizelimit 5000 disk.img); blockdev --getsize64 $loop
    losetup -n -O OFFSET,SIZELIMIT $loop; printf data | dd of=$loop bs=4 seek=1 conv=notrunc 2>/dev/null
    dmsetup create vol --table "0 9 linear $loop 0"; dd if=/dev/mapper/vol bs=8 count=1 2>/dev/null | tail -c 4
    losetup -o 512 $loop disk.img 2>/dev/null || echo; dmsetup remove vol; losetup -d $loop; losetup -a"""
    assert dm_run("sh", "-c", script, cwd=image.parent).stdout.split() == ["4608", "1000", "5000", "data"]
    assert image.read_bytes()[1004:1008] == b"data"


@needs("losetup")
def test_block_sizes(dm_run: Run, image: Path) -> None:
    script = """sizes() { blockdev --getss --getpbsz --getiomin $loop; }
    loop=$(losetup -f --show -b 4096 disk.img); sizes
    dmsetup create vol --table "0 8 linear $loop 0"; blockdev --getss /dev/mapper/vol; dmsetup remove vol
    losetup -b 1024 $loop; sizes; losetup -b 1536 $loop || sizes; losetup -b 8192 $loop || losetup -d $loop
    losetup $loop disk.img; sizes"""
    done = dm_run("sh", "-c", script, cwd=image.parent)
    assert done.stdout.split() == ["4096"] * 4 + ["1024"] * 6 + ["512"] * 3


@needs("losetup")
def test_a_disk_ends_where_its_file_does(dm_run: Run, image: Path) -> None:
    pytest.importorskip("mfusepy", exc_type=ImportError)
    script = """loop=$(losetup -f --show disk.img); tr '\\0' x </dev/zero | dd of=$loop bs=1M count=64 iflag=fullblock
    echo past | dd of=$loop bs=1M seek=32; tail -c 4 $loop; losetup -d $loop"""
    done = dm_run("sh", "-c", script, cwd=image.parent)
    assert done.stdout == "xxxx"
    assert done.stderr.count("No space left on device") == 2
    assert image.stat().st_size == 32 << 20


@needs("kpartx")
@needs("sfdisk")
def test_partitions_of_a_file(dm_run: Run, image: Path) -> None:
    script = """printf '2048,4096\\n8192,\\n' | sfdisk -q disk.img
    kpartx -a disk.img; dmsetup ls | sort; loop=$(losetup -nO NAME)
    kpartx -d $loop; dmsetup ls; losetup -d $loop; losetup -a"""
    stdout = dm_run("sh", "-c", script, cwd=image.parent).stdout
    loop = stdout.split("p1")[0]
    assert stdout == f"{loop}p1\t(253:0)\n{loop}p2\t(253:1)\nNo devices found\n"


@needs("lsblk")
def test_devices_over_files_are_listed(dm_run: Run, image: Path) -> None:
    script = """dmsetup create vol --table '0 2048 linear disk.img 0'
    lsblk -nr -o NAME,TYPE,SIZE | grep vol; grep -l ^253: /sys/block/*/dev /sys/class/block/*/dev"""
    lines = dm_run("sh", "-c", script, cwd=image.parent).stdout.splitlines()
    assert lines == ["vol dm 1M", "/sys/block/dm-0/dev", "/sys/class/block/dm-0/dev"]


@needs("cryptsetup")
@needs("mkfs.ext4")
def test_luks_in_a_file(dm_run: Run, image: Path) -> None:
    pytest.importorskip("cryptography")
    script = """set -e
    printf secret | cryptsetup -q luksFormat --pbkdf pbkdf2 --pbkdf-force-iterations 1000 disk.img -
    printf secret | cryptsetup open disk.img vol -
    mkfs.ext4 -q /dev/mapper/vol; e2fsck -fn /dev/mapper/vol >/dev/null 2>&1; cryptsetup close vol
    printf wrong | cryptsetup open disk.img vol - || echo refused; dmsetup ls; losetup -a"""
    assert dm_run("sh", "-c", script, cwd=image.parent).stdout == "refused\nNo devices found\n"
    assert image.read_bytes().startswith(b"LUKS\xba\xbe")
