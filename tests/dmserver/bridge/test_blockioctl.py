"""Block ioctls as programs see them; numbers and values as a real kernel gave them (specs/vectors/linux/misc_sysfs)."""

from __future__ import annotations

import errno
import json

import pytest

from dmserver.bridge.blockioctl import IOCTLS
from dmserver.testing import PrivateServer

NUMBERS = {row.name: number for number, row in IOCTLS.items()}

PROGRAM = """
import fcntl, json, os, struct, sys
results = []
for device, number, form, argument in json.loads(sys.argv[1]):
    buffer = bytearray(struct.pack("=" + form, *argument).ljust(32, b"\\xa5"))
    fd = os.open(device, os.O_RDWR)
    try:
        fcntl.ioctl(fd, number, buffer)
        rest = bytes(buffer[struct.calcsize("=" + form):]).hex()
        results.append([0, list(struct.unpack_from("=" + form, buffer)), rest])
    except OSError as error:
        results.append([error.errno, [], ""])
    os.close(fd)
print(json.dumps(results))
"""


@pytest.fixture
def machine(dmserver: PrivateServer) -> PrivateServer:
    dmserver.call(lambda: dmserver.host.add_pdev("/dev/ram0=ram:8M"))
    dmserver.run("dmsetup", "create", "lin", "--table", "0 4096 linear /dev/ram0 0")
    dmserver.run("dmsetup", "create", "stripe", "--table", "0 4096 striped 2 128 /dev/ram0 4096 /dev/ram0 8192")
    return dmserver


def ask(machine: PrivateServer, *calls: tuple[str, int, str, tuple[int, ...]]) -> list[list[object]]:
    done = machine.run("python3", "-c", PROGRAM, json.dumps(calls))
    results: list[list[object]] = json.loads(done.stdout)
    return results


VALUES = {
    "BLKGETSIZE": 4096,
    "BLKGETSIZE64": 2097152,
    "BLKSSZGET": 512,
    "BLKPBSZGET": 4096,
    "BLKBSZGET": 4096,
    "BLKIOMIN": 4096,
    "BLKIOOPT": 0,
    "BLKALIGNOFF": 0,
    "BLKSECTGET": 255,
    "BLKRAGET": 256,
    "BLKROGET": 0,
    "BLKDISCARDZEROES": 0,
    "BLKROTATIONAL": 0,
    "BLKGETZONESZ": 0,
    "BLKGETNRZONES": 0,
}


def test_values_of_a_linear_device(machine: PrivateServer) -> None:
    rows = [(name, IOCTLS[NUMBERS[name]].form) for name in VALUES]
    results = ask(machine, *(("/dev/mapper/lin", NUMBERS[name], form, (0,)) for name, form in rows))
    for (name, _), (error, values, rest) in zip(rows, results, strict=True):
        assert (error, values) == (0, [VALUES[name]]), name
        assert set(str(rest)) <= {"a", "5"}, f"{name} writes too much"


def test_values_of_a_striped_device(machine: PrivateServer) -> None:
    names = {"BLKIOMIN": 65536, "BLKIOOPT": 131072, "BLKRAGET": 512}
    calls = [("/dev/mapper/stripe", NUMBERS[name], IOCTLS[NUMBERS[name]].form, (0,)) for name in names]
    assert [values for _, values, _ in ask(machine, *calls)] == [[value] for value in names.values()]


@pytest.mark.parametrize(
    ("device", "name", "argument", "error"),
    [
        ("/dev/mapper/lin", "BLKZEROOUT", (0, 4096), 0),
        ("/dev/mapper/lin", "BLKZEROOUT", (0, 4097), errno.EINVAL),
        ("/dev/mapper/lin", "BLKZEROOUT", (2097152 - 512, 1024), errno.EINVAL),
        ("/dev/mapper/lin", "BLKDISCARD", (0, 4096), errno.EOPNOTSUPP),
        ("/dev/ram0", "BLKDISCARD", (0, 4096), errno.EOPNOTSUPP),
        ("/dev/mapper/lin", "BLKSECDISCARD", (0, 4096), errno.EOPNOTSUPP),
        ("/dev/mapper/lin", "BLKFLSBUF", (0, 0), 0),
        ("/dev/mapper/lin", "BLKRRPART", (0, 0), errno.EINVAL),
        ("/dev/ram0", "HDIO_GETGEO", (0, 0), errno.ENOTTY),
    ],
)
def test_actions(machine: PrivateServer, device: str, name: str, argument: tuple[int, int], error: int) -> None:
    assert ask(machine, (device, NUMBERS[name], "QQ", argument))[0][0] == error


def test_other_requests(machine: PrivateServer) -> None:
    unknown = (0x12FF, 0x5331, 0x020F, 0x03FF)
    assert [row[0] for row in ask(machine, *(("/dev/ram0", number, "Q", (0,)) for number in unknown))] == [
        errno.ENOTTY
    ] * 4


def test_zeroes_reach_the_disk(machine: PrivateServer) -> None:
    fill = "import os; fd = os.open('/dev/ram0', os.O_WRONLY); os.pwrite(fd, b'x' * 8192, 0)"
    machine.run("python3", "-c", fill)
    ask(machine, ("/dev/mapper/lin", NUMBERS["BLKZEROOUT"], "QQ", (512, 1024)))
    look = "import os; print(os.pread(os.open('/dev/ram0', 0), 8192, 0).count(0))"
    assert machine.run("python3", "-c", look).stdout == "1024\n"


def test_read_only_is_seen_everywhere(machine: PrivateServer) -> None:
    script = """blockdev --setro /dev/mapper/lin; blockdev --getro /dev/dm-0; cat /sys/block/dm-0/ro
    dmsetup info -c --noheadings -o attr lin; blockdev --setrw /dev/dm-0; blockdev --getro /dev/dm-0"""
    assert machine.run("sh", "-c", script).stdout.split()[::3] == ["1", "0"]


def test_read_ahead_holds_until_another_table_is_live(machine: PrivateServer) -> None:
    script = """show() { echo $(blockdev --getra /dev/dm-0; cat /sys/block/dm-0/bdi/read_ahead_kb); }
    blockdev --setra 1029 /dev/mapper/lin; show; dmsetup suspend lin; dmsetup resume lin; show
    dmsetup load lin --table '0 2048 linear /dev/ram0 0'; show; dmsetup resume lin; show; blockdev --getra /dev/ram0"""
    assert machine.run("sh", "-c", script).stdout.splitlines() == ["1024 512"] * 3 + ["256 128", "256"]


def test_geometry(machine: PrivateServer) -> None:
    machine.run("dmsetup", "setgeometry", "lin", "64", "8", "8", "0")
    assert ask(machine, ("/dev/dm-0", NUMBERS["HDIO_GETGEO"], "BBH4xQ", (0, 0, 0, 0)))[0][:2] == [0, [8, 8, 64, 0]]


def test_a_disk_called_sda_is_a_scsi_disk(machine: PrivateServer) -> None:
    machine.call(lambda: machine.host.add_pdev("/dev/sda=ram:1M"))
    number = NUMBERS["SCSI_IOCTL_GET_IDLUN"]
    results = ask(machine, *((device, number, "II", (1, 1)) for device in ("/dev/sda", "/dev/ram0")))
    assert [(error, values) for error, values, _ in results] == [(0, [0, 0]), (errno.ENOTTY, [])]
