"""LVM's thin volumes on `dmserver run`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.bridge_replay import LVM_CONF

SCRIPT = """
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


def test_thin_volumes(tmp_path: Path) -> None:
    for program in ("lvcreate", "mkfs.ext4", "thin_check"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    (tmp_path / "lvm.conf").write_text(LVM_CONF)
    with (tmp_path / "disk").open("wb") as disk:
        disk.truncate(256 << 20)
    tool = [sys.executable, "-m", "dmserver", "run", "--pdev", f"/dev/loop20={tmp_path}/disk,dev=7:20"]
    env = {**os.environ, "LVM_SYSTEM_DIR": str(tmp_path), "LVM_SUPPRESS_FD_WARNINGS": "1"}
    done = subprocess.run(
        [*tool, "--", "sh", "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=120, env=env
    )
    assert not done.returncode, done.stdout + done.stderr
    *_, listed = done.stdout.partition("== ")
    size, pool, in_use = listed.split("thin ")[1].split()[:3]
    assert (size, pool, float(in_use) > 0) == ("200.00m", "pool", True)
    assert listed.startswith("pool 120.00m")
