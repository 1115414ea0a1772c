"""LVM's thin volumes, raids and caches on `dmserver run`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.bridge_replay import LVM_CONF

THIN = """
set -e
pvcreate -q -y /dev/loop20
vgcreate -q vg /dev/loop20
lvcreate -q -y -L 100M --type thin-pool -n pool vg
lvcreate -q -y -V 200M -T vg/pool -n thin
mkfs.ext4 -q /dev/vg/thin
lvcreate -q -y -s vg/thin -n snap
lvchange -q -ay -K vg/snap
dd if=/dev/zero of=/dev/vg/snap bs=1M count=20 status=none
lvextend -q -L +20M vg/pool
vgchange -q -an vg
vgchange -q -ay vg
e2fsck -fn /dev/vg/thin
lvremove -q -y vg/snap
echo == $(lvs --noheadings -o lv_name,lv_size,pool_lv,data_percent --units m vg)
lvchange -q -an vg
lvremove -q -y vg
"""

RAID = """
set -e
pvcreate -q -y /dev/loop20 /dev/loop21 /dev/loop22
vgcreate -q vg /dev/loop20 /dev/loop21 /dev/loop22
lvcreate -q -y -m1 -L 8M -n r vg
mkfs.ext4 -q /dev/vg/r
until [ $(lvs --noheadings -o sync_percent vg/r) = 100.00 ]; do :; done
echo "0 16384 error" | dmsetup load vg-r_rimage_0
dmsetup suspend vg-r_rimage_0
dmsetup resume vg-r_rimage_0
dd if=/dev/zero of=/dev/vg/r bs=4k seek=2000 count=1 conv=fsync status=none
echo == $(lvs --noheadings -o segtype,health_status vg/r)
lvchange -q --refresh vg/r
until [ $(lvs --noheadings -o sync_percent vg/r) = 100.00 ]; do :; done
e2fsck -fn /dev/vg/r
echo == $(lvs --noheadings -o segtype,health_status vg/r)
lvremove -q -y vg/r
lvcreate -q -y --type raid5 -i 2 -L 8M -n r5 vg
mkfs.ext4 -q /dev/vg/r5
vgchange -q -an vg
vgchange -q -ay vg
e2fsck -fn /dev/vg/r5
lvremove -q -y vg
"""


CACHE = """
set -e
pvcreate -q -y /dev/loop20 /dev/loop21
vgcreate -q vg /dev/loop20 /dev/loop21
lvcreate -q -y -L 64M -n slow vg /dev/loop20
mkfs.ext4 -q /dev/vg/slow
lvcreate -q -y --type cache-pool -L 16M -n fast vg /dev/loop21
lvconvert -q -y --type cache --cachepool vg/fast --cachemode writeback vg/slow
dd if=/dev/zero of=/dev/vg/slow bs=64k count=16 seek=800 conv=fsync oflag=direct status=none
vgchange -q -an vg
vgchange -q -ay vg
e2fsck -fn /dev/vg/slow
echo == $(lvs --noheadings -o cache_mode,cache_policy,cache_used_blocks vg/slow)
lvchange -q --cachemode writethrough vg/slow
lvconvert -q -y --splitcache vg/slow
e2fsck -fn /dev/vg/slow
lvcreate -q -y -n vol -L 16M vg /dev/loop21
lvconvert -q -y --type cache --cachevol vg/vol --cachemode passthrough vg/slow
e2fsck -fn /dev/vg/slow
lvconvert -q -y --uncache vg/slow
lvremove -q -y vg
"""

WRITECACHE = """
set -e
pvcreate -q -y /dev/loop20 /dev/loop21
vgcreate -q vg /dev/loop20 /dev/loop21
lvcreate -q -y -L 64M -n slow vg /dev/loop20
mkfs.ext4 -q /dev/vg/slow
lvcreate -q -y -an -n fast -L 16M vg /dev/loop21
lvconvert -q -y --type writecache --cachevol vg/fast --cachesettings autocommit_blocks=16 vg/slow
dd if=/dev/zero of=/dev/vg/slow bs=64k count=16 seek=800 conv=fsync oflag=direct status=none
vgchange -q -an vg
vgchange -q -ay vg
e2fsck -fn /dev/vg/slow
echo == $(lvs --noheadings -o writecache_total_blocks,writecache_free_blocks,writecache_error vg/slow)
dmsetup message vg-slow 0 flush
lvconvert -q -y --uncache vg/slow
e2fsck -fn /dev/vg/slow
lvremove -q -y vg
"""

READ_AHEAD = """
set -e
pvcreate -q -y /dev/loop20
vgcreate -q vg /dev/loop20
lvcreate -q -y -an -Zn -l1 -r 512 -n lv vg
lvchange -q -ay vg/lv
echo == $(lvs --noheadings --units k -o lv_kernel_read_ahead vg/lv)
lvchange -q -r 1024 vg/lv
echo == $(lvs --noheadings --units k -o lv_kernel_read_ahead vg/lv)
lvremove -q -y vg
"""


def run(script: str, tmp_path: Path, disks: int, *programs: str) -> str:
    """What a script prints whose /dev/loop20 and on are `disks` disks."""
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    (tmp_path / "lvm.conf").write_text(LVM_CONF)
    tool = [sys.executable, "-m", "dmserver", "run"]
    for number in range(20, 20 + disks):
        with (tmp_path / f"disk{number}").open("wb") as disk:
            disk.truncate(256 << 20)
        tool += ["--pdev", f"/dev/loop{number}={tmp_path}/disk{number},dev=7:{number}"]
    env = {**os.environ, "LVM_SYSTEM_DIR": str(tmp_path), "LVM_SUPPRESS_FD_WARNINGS": "1"}
    done = subprocess.run(
        [*tool, "--", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=120, env=env
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def test_thin_volumes(tmp_path: Path) -> None:
    _, _, listed = run(THIN, tmp_path, 1, "lvcreate", "mkfs.ext4", "thin_check").partition("== ")
    size, pool, in_use = listed.split("thin ")[1].split()[:3]
    assert (size, pool, float(in_use) > 0) == ("200.00m", "pool", True)
    assert listed.startswith("pool 120.00m")


def test_raids(tmp_path: Path) -> None:
    printed = run(RAID, tmp_path, 3, "lvcreate", "mkfs.ext4", "dmsetup")
    assert [line for line in printed.splitlines() if line.startswith("== ")] == ["== raid1 refresh needed", "== raid1"]


def test_caches(tmp_path: Path) -> None:
    printed = run(CACHE, tmp_path, 2, "lvcreate", "mkfs.ext4", "cache_check")
    assert [line for line in printed.splitlines() if line.startswith("== ")] == ["== writeback smq 16"]


def test_writecaches(tmp_path: Path) -> None:
    printed = run(WRITECACHE, tmp_path, 2, "lvcreate", "mkfs.ext4", "dmsetup")
    assert [line for line in printed.splitlines() if line.startswith("== ")] == ["== 31774 29726 0"]


def test_read_ahead(tmp_path: Path) -> None:
    printed = run(READ_AHEAD, tmp_path, 1, "lvcreate")
    assert [line for line in printed.splitlines() if line.startswith("== ")] == ["== 256.00k", "== 512.00k"]
