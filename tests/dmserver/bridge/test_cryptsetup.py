"""cryptsetup and its kin on stacks of targets."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

pytest.importorskip("cryptography")


def needs(program: str) -> pytest.MarkDecorator:
    found = shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin")
    return pytest.mark.skipif(found is None, reason=f"{program} is not installed")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(24 << 20))
    (tmp_path / "data").write_bytes(bytes(range(256)) * 4096)
    return path


@needs("cryptsetup")
@pytest.mark.parametrize("cipher", ["aes-xts-plain64", "aes-xts-random", "aes-cbc-essiv:sha256"])
def test_luks_with_authentication(dm_run: Run, image: Path, cipher: str) -> None:
    script = f"""set -e; loop=$(losetup -f --show disk.img); printf secret >key
    cryptsetup -q luksFormat --type luks2 -c {cipher} -s 256 --integrity hmac-sha256 --integrity-no-wipe \\
        --pbkdf pbkdf2 --pbkdf-force-iterations 1000 -d key $loop
    cryptsetup open -d key $loop vol; dd if=data of=/dev/mapper/vol bs=1M conv=fsync status=none; cryptsetup close vol
    cryptsetup open -d key $loop vol; cmp -n 1048576 /dev/mapper/vol data; dmsetup table vol_dif | cut -d' ' -f3-
    dd if=data of=/dev/mapper/vol_dif bs=512 seek=8 count=1 conv=fsync status=none
    dd if=/dev/mapper/vol of=/dev/null bs=4096 skip=1 count=1 iflag=direct status=none 2>&1 || echo refused
    cryptsetup close vol; losetup -d $loop"""
    done = dm_run("sh", "-c", script, cwd=image.parent)
    lines = done.stdout.splitlines()
    assert f" 32768 {48 if 'random' in cipher else 32} J " in lines[0]
    assert "Invalid or incomplete multibyte or wide character" in lines[1]
    assert lines[2:] == ["refused"]


@needs("integritysetup")
def test_a_journal_that_is_signed_and_encrypted(dm_run: Run, image: Path) -> None:
    options = "-I sha256 --journal-integrity hmac-sha256 --journal-integrity-key-file key --journal-crypt ctr-aes"
    options += " --journal-integrity-key-size 32 --journal-crypt-key-file key --journal-crypt-key-size 32"
    script = f"""set -e; loop=$(losetup -f --show disk.img); head -c 32 data >key
    integritysetup -q format {options} --no-wipe $loop; integritysetup open {options} $loop vol
    dd if=data of=/dev/mapper/vol bs=1M conv=fsync status=none; integritysetup close vol
    integritysetup open {options} $loop vol; cmp -n 1048576 /dev/mapper/vol data
    integritysetup status vol | grep -i journal; integritysetup close vol; losetup -d $loop"""
    assert "ctr(aes)" in dm_run("sh", "-c", script, cwd=image.parent).stdout
