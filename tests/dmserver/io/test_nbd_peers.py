"""The NBD server and the clients of others: libnbd's, QEMU's and fio."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stacks import Line, Stack, pattern

from dmserver.io.nbd import NbdServer

SECTORS = 32768
KEY = bytes(range(32)).hex()


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


def run(*command: str, folder: Path) -> str:
    """Standard output of a program that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=100)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


class Served:
    """`lin` and `str`, each on two files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = Stack()
        for number in (0, 1):
            path = folder / f"disk{number}"
            path.write_bytes(pattern(number + 1, 0, 256) + bytes((SECTORS - 256) * 512))
            self.stack.file(str(path))
        self.lines: dict[str, list[list[Line]]] = {
            "lin": [
                [(0, 5000, "linear", "7:0 0"), (5000, 20000, "linear", "7:1 100")],
                [(0, 1, "linear", "7:0 0"), (1, 4999, "linear", "7:0 1"), (5000, 20000, "linear", "7:1 100")],
            ],
            "str": [
                [(0, 20480, "striped", "2 8 7:0 16 7:1 32")],
                [(0, 10240, "striped", "2 8 7:0 16 7:1 32"), (10240, 10240, "striped", "2 8 7:0 5136 7:1 5152")],
            ],
            "crypt": [[(0, 20480, "crypt", f"aes-cbc-essiv:sha256 {KEY} 0 7:0 8")]],
            "mirror": [[(0, 20480, "mirror", "core 1 1024 2 7:0 0 7:1 0")]],
            "snap": [[(0, 20480, "snapshot", "7:0 7:1 P 16")]],
        }
        for name in ("lin", "str"):
            self.stack.device(name, *self.lines[name][0])
        self.server = NbdServer(self.stack.mapper)
        self.server.start(f"{folder}/nbd")

    def uri(self, name: str) -> str:
        return f"nbd+unix:///{name}?socket={self.folder}/nbd"

    def swap(self, name: str, turn: int) -> None:
        """Suspend and resume, with another table that maps the same if there is one."""
        dev = self.stack.mapper.by_name(name)
        assert dev is not None
        tables = self.lines[name]
        if len(tables) > 1:
            self.stack.load(dev, tables[turn % 2])
        self.stack.activate(dev)


@pytest.fixture
def served() -> Iterator[Served]:
    folder = Path(tempfile.mkdtemp(prefix="dm"))
    served = Served(folder)
    yield served
    served.server.close()
    served.stack.close()
    shutil.rmtree(folder)


@needs("nbdinfo")
def test_nbdinfo(served: Served) -> None:
    found = json.loads(run("nbdinfo", "--list", "--json", served.uri(""), folder=served.folder))
    exports = {export["export-name"]: export for export in found["exports"]}
    assert found["protocol"] == "newstyle-fixed"
    assert {name: export["export-size"] for name, export in exports.items()} == {"lin": 25000 * 512, "str": 20480 * 512}
    lin = exports["lin"]
    assert lin["contexts"] == ["base:allocation"]
    assert lin["block_size_minimum"] == 512
    assert all(lin[f"can_{what}"] for what in ("df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"))


@needs("nbdcopy")
@pytest.mark.parametrize("name", ["lin", "str"])
def test_nbdcopy_round_trip(served: Served, name: str) -> None:
    dev = served.stack.mapper.by_name(name)
    assert dev is not None
    image = served.folder / "image"
    image.write_bytes((pattern(7, 0, 1000) + bytes(1 << 20)).ljust(dev.bytes, b"n"))
    run("nbdcopy", str(image), served.uri(name), folder=served.folder)
    run("nbdcopy", served.uri(name), "copy", folder=served.folder)
    assert (served.folder / "copy").read_bytes() == image.read_bytes()


@needs("qemu-img")
@needs("qemu-io")
@pytest.mark.parametrize("name", ["lin", "str"])
def test_qemu(served: Served, name: str) -> None:
    uri = served.uri(name)
    commands = [
        "write -P 65 512 1M",
        "read -P 65 512 1M",
        "discard 64k 64k",
        "write -z 128k 64k",
        "write -z -u 256k 64k",
    ]
    commands += ["read -P 0 64k 128k", "read -P 0 256k 64k", "write -f -P 66 0 512", "flush", "read -P 66 0 512"]
    run("qemu-io", "-f", "raw", *(word for one in commands for word in ("-c", one)), uri, folder=served.folder)
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, "copy", folder=served.folder)
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, "copy", folder=served.folder)


def fio_while_swapping(served: Served, name: str, size: str) -> None:
    command = ["fio", "--name=x", "--ioengine=nbd", f"--uri={served.uri(name)}", "--rw=randrw", f"--bs={size}"]
    command += ["--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--size=4m", "--loops=3", "--fsync=32"]
    command += ["--output-format=json"]
    fio = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=served.folder)
    swaps = 0
    while fio.poll() is None:
        swaps += 1
        served.swap(name, swaps)
    report, complaints = fio.communicate()
    assert fio.returncode == 0, complaints
    job = json.loads(report[report.index("{") :])["jobs"][0]
    assert job["error"] == 0
    assert job["read"]["io_kbytes"] >= 4096
    assert swaps > 5


@needs("fio")
@pytest.mark.parametrize("name", ["lin", "str"])
@pytest.mark.parametrize("size", ["4k", "128k"])
def test_fio_verifies_while_tables_are_swapped(served: Served, name: str, size: str) -> None:
    fio_while_swapping(served, name, size)


@needs("fio")
@pytest.mark.parametrize("name", ["crypt", "mirror", "snap"])
def test_fio_verifies_while_devices_are_suspended(served: Served, name: str) -> None:
    if name == "crypt":
        pytest.importorskip("cryptography", reason="cryptography is not installed")
    for used in ("lin", "str"):
        device = served.stack.mapper.by_name(used)
        assert device is not None
        served.stack.mapper.remove(device)
    served.stack.device(name, *served.lines[name][0])
    fio_while_swapping(served, name, "4k")
