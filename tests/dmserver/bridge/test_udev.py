"""Which links udev's rules make; LVM as it is configured by default relies on them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dmserver.bridge.udev import logical_volume, makes_node
from dmserver.testing import PrivateServer

VOLUME = """
set -e
pvcreate -q /dev/sdx
vgcreate -q v-g /dev/sdx
lvcreate -q -y -L 8M -n a v-g
mkfs.ext4 -q /dev/v-g/a
readlink /dev/v-g/a; readlink -f /dev/mapper/v--g-a; ls /dev/v-g; ls -d /dev/v-g*
lvcreate -q -y -s -L 8M -n s v-g/a
ls /dev/v-g
lvremove -q -y v-g/s
lvrename -q v-g a b
ls /dev/v-g
vgchange -q -an v-g
ls /dev/v-g 2>/dev/null || echo none
vgchange -q -ay v-g
e2fsck -fn /dev/v-g/b >/dev/null
vgremove -q -f -y v-g
"""


@pytest.mark.parametrize(("flags", "made"), [(0, True), (0x40, False), (0x60, True), (0x20, True), (0x41, False)])
def test_whose_the_node_is(flags: int, made: bool) -> None:
    assert makes_node(flags) is made


@pytest.mark.parametrize(
    ("name", "volume"),
    [
        ("vg-lv", ("vg", "lv")),
        ("v--g-l--v", ("v-g", "l-v")),
        ("a---b", ("a-", "b")),
        ("vg-lv-real", None),
        ("vg-pvmove0", None),
        ("vg-lv_vorigin", None),
        ("vg", None),
        ("vg-", None),
    ],
)
def test_links_of_volumes(name: str, volume: tuple[str, str] | None) -> None:
    assert logical_volume(name, "LVM-x", 0) == volume
    assert logical_volume(name, "CRYPT-x", 0) is None
    assert logical_volume(name, "LVM-x", 2) is None


@pytest.mark.skipif(not shutil.which("lvcreate", path=os.environ["PATH"] + ":/usr/sbin:/sbin"), reason="no lvm")
def test_lvm_with_its_own_defaults(dmserver: PrivateServer, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(64 << 20))
    (tmp_path / "lvm.conf").write_text("activation { monitoring = 0 }")  # dmeventd would outlive the test
    dmserver.call(lambda: dmserver.host.add_pdev(f"/dev/sdx={tmp_path}/disk"))
    env = {**os.environ, "LVM_SYSTEM_DIR": str(tmp_path), "LVM_SUPPRESS_FD_WARNINGS": "1"}
    printed = dmserver.run("sh", "-c", VOLUME, env=env).stdout
    told = [line for line in printed.splitlines() if not line.startswith("  ")]
    assert told == ["../dm-0", "/dev/dm-0", "a", "/dev/v-g", "a", "s", "b", "none"]
