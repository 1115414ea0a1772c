"""Which links udev's rules make; LVM as it is configured by default relies on them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from support.targets import Bench

from dmserver.bridge import udev
from dmserver.bridge.devices import Devices
from dmserver.bridge.namespace import Namespace
from dmserver.bridge.nodes import Dir, Link
from dmserver.bridge.udev import device_name, logical_volume, makes_node
from dmserver.targets.registry import TargetRegistry
from dmserver.targets.zero import Zero
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
    if volume:
        assert device_name(*map(os.fsencode, volume)) == name.encode()


def devices(names: Iterable[str]) -> Devices:
    """Live devices of LVM's, with those links that udev makes."""
    bench = Bench()
    for name in names:
        device = bench.mapper.create(name, "LVM-" + name)
        device.has_disk = True
        bench.load(name, (Zero, 8, ""))
    return Devices(bench.mapper, TargetRegistry(), lambda: None)


def test_a_link_is_found_by_its_name() -> None:
    space = Namespace(devices(["v--g-a", "v-b", "v--g-a-real"]), lambda name: name)
    assert space.find(b"/dev/v-g/a") == Link(b"../dm-0")
    assert space.find(b"/dev/v/b") == Link(b"../dm-1")
    assert space.find(b"/dev/v-g/b") is None
    assert space.find(b"/dev/v--g") is None
    group = space.find(b"/dev/v-g")
    assert isinstance(group, Dir)
    assert list(space.entries(b"/dev/v-g", group)) == [b"a"]


def test_to_find_a_link_other_volumes_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    space = Namespace(devices(f"g{number % 10}-{number}" for number in range(1000)), lambda name: name)
    looked_at = []

    def look(name: str, uuid: str, flags: int) -> tuple[str, str] | None:
        looked_at.append(name)
        return logical_volume(name, uuid, flags)

    monkeypatch.setattr(udev, "logical_volume", look)
    assert space.find(b"/dev/g7/997") == Link(b"../dm-997")
    assert looked_at == ["g7-7", "g7-997"]


@pytest.mark.skipif(not shutil.which("lvcreate", path=os.environ["PATH"] + ":/usr/sbin:/sbin"), reason="no lvm")
def test_lvm_with_its_own_defaults(dmserver: PrivateServer, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(64 << 20))
    (tmp_path / "lvm.conf").write_text("activation { monitoring = 0 }")  # dmeventd would outlive the test
    dmserver.call(lambda: dmserver.host.add_pdev(f"/dev/sdx={tmp_path}/disk"))
    env = {**os.environ, "LVM_SYSTEM_DIR": str(tmp_path), "LVM_SUPPRESS_FD_WARNINGS": "1"}
    printed = dmserver.run("sh", "-c", VOLUME, env=env).stdout
    told = [line for line in printed.splitlines() if not line.startswith("  ")]
    assert told == ["../dm-0", "/dev/dm-0", "a", "/dev/v-g", "a", "s", "b", "none"]
