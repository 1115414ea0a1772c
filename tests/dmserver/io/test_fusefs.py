"""Devices as files: what programs do with device nodes works on them."""

from __future__ import annotations

import mmap
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stacks import Stack, pattern

pytest.importorskip("mfusepy", reason="mfusepy or libfuse is not installed", exc_type=ImportError)
if not os.access("/dev/fuse", os.R_OK | os.W_OK):
    pytest.skip("/dev/fuse is not to be had", allow_module_level=True)

from dmserver.io.fusefs import FuseMount

SECTORS = 65536


class Mounted:
    def __init__(self, folder: Path) -> None:
        self.stack = Stack()
        self.disk = self.stack.ram(SECTORS + 1)
        self.dev = self.stack.device("vol", (0, SECTORS, "linear", "1:0 1"))
        self.here = os.getcwd()
        self.mount = FuseMount(self.stack.mapper, str(folder))
        self.mount.start()
        self.vol = folder / "mapper" / "vol"

    def backing(self, offset: int, length: int) -> bytes:
        return os.pread(self.disk.fd, length, 512 + offset)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="dm"))
    yield folder
    folder.rmdir()


@pytest.fixture
def mounted(folder: Path) -> Iterator[Mounted]:
    try:
        mounted = Mounted(folder)
    except OSError as failure:
        pytest.skip(str(failure))
    yield mounted
    mounted.mount.close()
    mounted.stack.close()
    assert not os.path.ismount(folder)


def test_names_and_sizes(mounted: Mounted, folder: Path) -> None:
    assert sorted(os.listdir(folder)) == ["dm-0", "mapper"]
    assert os.listdir(folder / "mapper") == ["vol"]
    assert os.readlink(folder / "dm-0") == "mapper/vol"
    found = mounted.vol.stat()
    assert stat.S_ISREG(found.st_mode)
    assert found.st_size == SECTORS * 512
    mounted.stack.mapper.rename(mounted.dev, "new")
    assert os.listdir(folder / "mapper") == ["new"]
    assert not mounted.vol.exists()
    mounted.stack.load(mounted.dev, [(0, 8, "zero", "")])
    mounted.stack.activate(mounted.dev)
    assert (folder / "dm-0").stat().st_size == 4096
    assert os.getcwd() == mounted.here
    for missing in ("nope", "mapper/nope", "dm-1", "dm-x", "mapper/new/deeper"):
        assert not os.path.lexists(folder / missing)


def test_open_counts(mounted: Mounted) -> None:
    fd = os.open(mounted.vol, os.O_RDONLY)
    other = os.open(mounted.vol, os.O_RDWR)
    assert mounted.dev.openers == 2
    closed = threading.Event()
    mounted.dev.last_close = closed.set
    os.close(other)
    os.close(fd)
    assert closed.wait(10), "the kernel tells later"
    assert mounted.dev.openers == 0


@pytest.mark.parametrize(("offset", "length"), [(0, 512), (1, 3), (511, 2), (4000, 10000), (SECTORS * 512 - 7, 7)])
def test_read_and_write_at_any_offset(mounted: Mounted, offset: int, length: int) -> None:
    whole = pattern(1, 1, SECTORS)
    fd = os.open(mounted.vol, os.O_RDWR)
    assert os.pread(fd, length, offset) == whole[offset : offset + length]
    assert os.pwrite(fd, b"w" * length, offset) == length
    os.fsync(fd)
    os.close(fd)
    start, end = max(0, offset - 100), min(len(whole), offset + length + 100)
    expected = whole[start:offset] + b"w" * length + whole[offset + length : end]
    assert mounted.backing(start, end - start) == expected


def test_the_end(mounted: Mounted) -> None:
    end = SECTORS * 512
    fd = os.open(mounted.vol, os.O_RDWR)
    assert os.pread(fd, 1000, end - 500) == pattern(1, SECTORS, 1)[12:]
    assert os.pread(fd, 1000, end) == b""
    assert os.pwrite(fd, b"x" * 1000, end - 500) == 500
    with pytest.raises(OSError, match="No space left"):
        os.pwrite(fd, b"x", end)
    with pytest.raises(OSError, match="Invalid argument"):
        os.ftruncate(fd, 4096)
    os.close(fd)
    os.close(os.open(mounted.vol, os.O_WRONLY | os.O_TRUNC))
    assert mounted.vol.stat().st_size == end


def test_direct_io(mounted: Mounted) -> None:
    fd = os.open(mounted.vol, os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 8192)
    assert os.preadv(fd, [page], 4096) == 8192
    assert page[:] == pattern(1, 9, 16)
    page[:] = pattern(5, 0, 16)
    assert os.pwritev(fd, [page], 4096) == 8192
    for part, offset in ((511, 0), (513, 0), (512, 1)):
        with pytest.raises(OSError, match="Invalid argument"):
            os.preadv(fd, [memoryview(page)[:part]], offset)
        with pytest.raises(OSError, match="Invalid argument"):
            os.pwritev(fd, [memoryview(page)[:part]], offset)
    assert os.preadv(fd, [page], SECTORS * 512 - 512) == 512
    os.close(fd)
    assert mounted.backing(4096, 8192) == pattern(5, 0, 16)


MMAP = """
import mmap, sys
with open(sys.argv[1], "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 8192, offset=1 << 20) as area:
    area[100:105] = area[512:517]
    area.flush()
"""


def test_mmap(mounted: Mounted) -> None:
    """In another process: a page fault holds the interpreter's lock, which the answer needs."""
    run(sys.executable, "-c", MMAP, mounted.vol)
    assert mounted.backing((1 << 20) + 100, 5) == pattern(1, 2050, 1)[:5]


def test_read_only_table(mounted: Mounted, folder: Path) -> None:
    mounted.stack.device("ro", (0, 8, "linear", "1:0 0"), read_only=True)
    fd = os.open(folder / "mapper" / "ro", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.pwrite(fd, bytes(512), 0)
    os.close(fd)


def test_error_target(mounted: Mounted, folder: Path) -> None:
    mounted.stack.device("err", (0, 8, "error", ""))
    fd = os.open(folder / "mapper" / "err", os.O_RDWR)
    for call in (lambda: os.pread(fd, 512, 0), lambda: os.pwrite(fd, bytes(512), 0)):
        with pytest.raises(OSError, match="Input/output error"):
            call()
    os.fsync(fd)
    os.close(fd)


def test_suspended_device_keeps_no_other_waiting(mounted: Mounted, folder: Path) -> None:
    mounted.stack.device("zero", (0, 8, "zero", ""))
    assert mounted.stack.suspend(mounted.dev).wait(10)
    readers = [
        subprocess.Popen([sys.executable, "-c", "import sys; open(sys.argv[1], 'rb', 0).read(512)", mounted.vol])
        for _ in range(15)
    ]
    assert (folder / "mapper" / "zero").read_bytes() == bytes(4096)
    mounted.dev.resume()
    assert [reader.wait(20) for reader in readers] == [0] * 15


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs("fallocate")
def test_fallocate(mounted: Mounted) -> None:
    run("fallocate", "--zero-range", "--keep-size", "-o", "4096", "-l", "8192", mounted.vol)
    assert mounted.backing(0, 16384) == pattern(1, 1, 8) + bytes(8192) + pattern(1, 25, 8)
    refused = subprocess.run(["fallocate", "--punch-hole", "-o", "0", "-l", "4096", mounted.vol], capture_output=True)
    assert b"unsupported" in refused.stderr, "a ram disk makes no holes"


@needs("mkfs.ext4", "e2fsck")
def test_file_system(mounted: Mounted, folder: Path) -> None:
    run("mkfs.ext4", "-q", "-F", mounted.vol)
    run("e2fsck", "-f", "-n", folder / "dm-0")


@needs("fio")
def test_fio_with_aio(mounted: Mounted) -> None:
    run("fio", "--name=x", f"--filename={mounted.vol}", "--ioengine=libaio", "--direct=1", "--rw=randrw", "--bs=4k",
        "--iodepth=16", "--verify=crc32c", "--verify_state_save=0", "--size=4m")  # fmt: skip


@needs("losetup", "mkfs.ext4", "mount")
@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="no loop devices for us")
def test_mounted_through_a_loop_device(mounted: Mounted, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", "-F", mounted.vol)
    found = subprocess.run(["losetup", "--find", "--show", mounted.vol], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"losetup: {found.stderr.strip()}")
    loop = found.stdout.strip()
    try:
        mounting = subprocess.run(["mount", loop, tmp_path], capture_output=True, text=True)
        if mounting.returncode:
            pytest.skip(f"mount: {mounting.stderr.strip()}")
        (tmp_path / "hello").write_bytes(b"world" * 10000)
        run("umount", tmp_path)
        run("mount", loop, tmp_path)
        assert (tmp_path / "hello").read_bytes() == b"world" * 10000
        run("umount", tmp_path)
    finally:
        run("losetup", "--detach", loop)


def test_mount_that_cannot_be(tmp_path: Path) -> None:
    stack = Stack()
    with pytest.raises(FileNotFoundError):
        FuseMount(stack.mapper, str(tmp_path / "missing")).start()
    stack.close()
