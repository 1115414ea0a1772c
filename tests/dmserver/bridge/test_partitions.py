"""Partitions: programs write tables, the bridge reads them, and each partition is a block device."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dmserver.testing import PrivateServer

PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"


@pytest.fixture
def sh(dmserver: PrivateServer, tmp_path: Path) -> Callable[..., list[str]]:
    """Run a script in a directory with a file `image`; the lines that it prints. Skips where a program is missing."""
    (tmp_path / "image").write_bytes(bytes(32 << 20))

    def run(script: str, *programs: str) -> list[str]:
        for program in programs:
            if not shutil.which(program, path=PATH):
                pytest.skip(f"{program} is not installed")
        return dmserver.run("sh", "-ec", script, env={"PATH": PATH}, cwd=tmp_path).stdout.splitlines()

    return run


@pytest.fixture
def sda(dmserver: PrivateServer, tmp_path: Path, sh: Callable[..., list[str]]) -> None:
    dmserver.call(lambda: dmserver.host.add_pdev(f"/dev/sda={tmp_path}/image"))


@pytest.mark.parametrize("disk", ["/dev/sda", "/dev/loop0"])
def test_parted_and_kpartx(disk: str, dmserver: PrivateServer, sh: Callable[..., list[str]], tmp_path: Path) -> None:
    dmserver.call(lambda: dmserver.host.add_pdev(f"{disk}={tmp_path}/image"))
    name = disk.replace("/dev", "/dev/mapper") + ("p1" if disk[-1].isdigit() else "1")
    script = f"""parted -s {disk} mklabel gpt mkpart a 1MiB 20MiB mkpart b 20MiB 31MiB
    kpartx -av {disk}
    mkfs.ext4 -q {name}
    e2fsck -fn {name} >/dev/null
    kpartx -d {disk}
    ls /dev/mapper"""
    printed = sh(script, "parted", "kpartx", "mkfs.ext4")
    assert [line.split()[5] for line in printed if line.startswith("add map")] == ["38912", "22528"]
    assert printed[-1] == "control"


def test_a_loop_device_is_not_read_unless_it_was_asked_to(sh: Callable[..., list[str]]) -> None:
    script = """printf 'label: dos\n2048 2048\n' | sfdisk -q image; loop=$(losetup -f --show image)
    blockdev --rereadpt $loop 2>/dev/null || echo EINVAL; ls /sys/block/${loop#/dev/}/ | grep -c "^loop.*p1" || true
    partx -a $loop; ls /sys/block/${loop#/dev/}/ | grep -c "^loop.*p1"; losetup -d $loop"""
    assert sh(script, "sfdisk", "losetup", "partx", "blockdev") == ["EINVAL", "0", "1"]


def test_losetup_finds_partitions(sh: Callable[..., list[str]]) -> None:
    pytest.importorskip("mfusepy", exc_type=ImportError)
    script = """printf 'label: gpt\nsize=10MiB, name=boot\nsize=16MiB' | sfdisk -q image
    loop=$(losetup -fP --show image); name=${loop#/dev/}
    lsblk -nr -o NAME,MAJ:MIN,SIZE,TYPE $loop | tail -n 2
    cd /sys/class/block/${name}p1 && cat partition start size; tail -n 2 uevent
    mkfs.ext4 -q ${loop}p2; e2fsck -fn ${loop}p2 >/dev/null 2>&1
    dmsetup create vol --table "0 2048 linear ${loop}p1 0"; dmsetup table; ls holders
    losetup -d $loop; dmsetup remove vol; grep -c ${name}p /proc/partitions || ls ${loop}p* 2>/dev/null || echo gone"""
    lines = sh(script, "sfdisk", "losetup", "lsblk", "mkfs.ext4")
    loop = lines[0].split("p1")[0]
    assert lines == [
        f"{loop}p1 259:0 10M part",
        f"{loop}p2 259:1 16M part",
        *("1", "2048", "20480", "PARTN=1", "PARTNAME=boot"),
        "vol: 0 2048 linear 259:0 0",
        "dm-0",
        "0",
        "gone",
    ]


def test_an_encrypted_image_is_built(sh: Callable[..., list[str]], tmp_path: Path) -> None:
    pytest.importorskip("mfusepy", exc_type=ImportError)
    pytest.importorskip("cryptography")
    (tmp_path / "repart.d").mkdir()
    definition = "[Partition]\nType=root\nFormat=ext4\nSizeMinBytes=20M\nEncrypt=key-file\n"
    (tmp_path / "repart.d/root.conf").write_text(definition)
    script = """head -c 32 /dev/urandom >key; truncate -s 60M image
    systemd-repart --empty=force --definitions=repart.d --key-file=key --dry-run=no "$PWD/image" >log 2>&1
    loop=$(losetup -fP --show image); cryptsetup open --key-file key ${loop}p1 root
    blkid -o value -s TYPE ${loop}p1 /dev/mapper/root; e2fsck -fn /dev/mapper/root >/dev/null 2>&1
    cryptsetup close root; losetup -d $loop"""
    lines = sh(script, "systemd-repart", "losetup", "cryptsetup", "blkid", "e2fsck")
    assert lines == ["crypto_LUKS", "ext4"]


@pytest.mark.usefixtures("sda")
def test_a_program_tells_of_partitions(sh: Callable[..., list[str]]) -> None:
    script = """printf 'label: dos\nsize=8MiB\nsize=16MiB, type=5\nsize=4MiB\n' | sfdisk -q /dev/sda
    ls /dev/sda?*; partx -d --nr 1 /dev/sda; ls /dev/sda?*; blockdev --rereadpt /dev/sda; ls /dev/sda?* | wc -l
    exec 3</dev/sda1; blockdev --rereadpt /dev/sda 2>/dev/null || echo busy; cat /sys/block/sda/sda1/dev"""
    first = ["/dev/sda1", "/dev/sda2", "/dev/sda3"]
    expected = [*first, *first[1:], "3", "busy", "8:1"]
    assert sh(script, "sfdisk", "partx", "blockdev") == expected


@pytest.mark.usefixtures("sda")
def test_who_claims_a_partition_claims_some_of_the_disk(sh: Callable[..., list[str]]) -> None:
    script = """printf 'label: gpt\nsize=1MiB\nsize=1MiB\n' | sfdisk -q /dev/sda
    dmsetup create one --table '0 2048 linear /dev/sda1 0'; dmsetup create two --table '0 2048 linear /dev/sda2 0'
    dmsetup create all --table '0 2048 linear /dev/sda 0' 2>/dev/null || dmsetup ls | sort | cut -f 1"""
    assert sh(script, "sfdisk", "dmsetup") == ["one", "two"]


@pytest.mark.usefixtures("sda")
def test_a_partition_begins_and_ends_where_the_table_says(sh: Callable[..., list[str]], tmp_path: Path) -> None:
    pytest.importorskip("mfusepy", exc_type=ImportError)
    script = """printf 'label: dos\n2048 2048\n' | sfdisk -q /dev/sda
    tr '\\0' x </dev/zero | dd of=/dev/sda1 bs=64k count=32 iflag=fullblock 2>&1 | grep -o 'No space left.*'"""
    assert sh(script, "sfdisk") == ["No space left on device"]
    image = (tmp_path / "image").read_bytes()
    assert image[1 << 20 : 2 << 20] == b"x" * (1 << 20)
    assert not any(image[2 << 20 :])
