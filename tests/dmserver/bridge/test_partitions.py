"""Partitions: programs write the table, kpartx maps them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dmserver.testing import PrivateServer

PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"


@pytest.mark.parametrize("disk", ["/dev/sda", "/dev/loop0"])
def test_parted_and_kpartx(disk: str, dmserver: PrivateServer, tmp_path: Path) -> None:
    for program in ("parted", "kpartx", "mkfs.ext4"):
        if not shutil.which(program, path=PATH):
            pytest.skip(f"{program} is not installed")
    (tmp_path / "image").write_bytes(bytes(32 << 20))
    dmserver.call(lambda: dmserver.host.add_pdev(f"{disk}={tmp_path}/image"))
    name = disk.replace("/dev", "/dev/mapper") + ("p1" if disk[-1].isdigit() else "1")
    script = f"""set -e
    parted -s {disk} mklabel gpt mkpart a 1MiB 20MiB mkpart b 20MiB 31MiB
    kpartx -av {disk}
    mkfs.ext4 -q {name}
    e2fsck -fn {name} >/dev/null
    kpartx -d {disk}
    ls /dev/mapper"""
    printed = dmserver.run("sh", "-c", script, env={"PATH": PATH}).stdout
    sizes = [line.split()[5] for line in printed.splitlines() if line.startswith("add map")]
    assert sizes == ["38912", "22528"]
    assert printed.endswith("\ncontrol\n")
