"""The namespace as programs see it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dmserver.bridge.namespace import PATHS
from dmserver.testing import PrivateServer

FCHMODAT2 = "import ctypes; ctypes.CDLL(None).syscall(452, -100, b'/dev/mapper/vol', 0o640, 0)"
FSTATFS = "import os; print(os.fstatvfs(os.open('/sys/block/dm-0/size', 0)).f_blocks)"
REOPEN = "import os; f = os.open('/dev/dm-0', os.O_PATH); print(os.open(f'/proc/self/fd/{f}', os.O_RDWR) > f)"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def machine(dmserver: PrivateServer) -> PrivateServer:
    """A disk, a device with a table on it, and one without a table."""
    dmserver.call(lambda: dmserver.host.add_pdev("/dev/ram0=ram:8M"))
    dmserver.run("dmsetup", "create", "vol", "--uuid", "U", "--table", "0 64 linear /dev/ram0 0")
    dmserver.run("dmsetup", "create", "empty", "--notable")
    return dmserver


def sh(machine: PrivateServer, script: str) -> str:
    return machine.run("sh", "-c", script).stdout


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        ("ls /dev/mapper", "control\nvol\n"),
        ("cd /dev && ls mapper/../dm-0 ram0 && ls -d dm-1", "mapper/../dm-0\nram0\n"),
        ("stat -L -c '%F %t:%T' /dev/mapper/vol /dev/ram0 /dev/mapper/control", None),
        ("readlink /dev/mapper/vol; readlink -f /dev/mapper/vol", "../dm-0\n/dev/dm-0\n"),
        ("readlink /sys/dev/block/253:0; readlink -f /sys/block/dm-0", None),
        ("cd /sys/dev/block/253:0/dm && cat name uuid suspended && pwd -P", None),
        ("cat /sys/block/ram0/size; ls /sys/block/ram0/holders /sys/block/dm-0/slaves", None),
        ("grep -c device-mapper /proc/devices; grep device-mapper /proc/misc", "1\n236 device-mapper\n"),
        ("test -e /run/udev/control || echo none", "none\n"),
        ("find /dev -maxdepth 1 -type b -name 'dm-*'; find /sys/block/ -name 'dm-*' -type l", None),
        ("exec 3</sys/block/dm-0/size; cat <&3; cat /dev/fd/3 3</sys/block/dm-0/ro", "64\n0\n"),
        ("python3 -c \"import os; print(os.fstat(os.open('/dev/dm-0', 0)).st_rdev == os.makedev(253, 0))\"", "True\n"),
        (f'python3 -c "{FCHMODAT2}"; stat -c %a /dev/dm-0 /dev/mapper/vol', "640\n777\n"),
        ("ln -s /dev/mapper/vol /tmp/dm-link.$$; blockdev --getsz /tmp/dm-link.$$; rm /tmp/dm-link.$$", "64\n"),
        ("stat -f -c %T /sys/block/dm-0/ /dev/mapper/vol", "sysfs\ntmpfs\n"),
        (f'python3 -c "{FSTATFS}"', "0\n"),
        (f'python3 -c "{REOPEN}"', "True\n"),
        ("cp /sys/block/dm-0/size /tmp/dm-size.$$; cat /tmp/dm-size.$$; rm /tmp/dm-size.$$", "64\n"),
    ],
)
def test_what_is_there(machine: PrivateServer, script: str, printed: str | None) -> None:
    expected = {
        "stat": "block special file fd:0\nblock special file 1:0\ncharacter special file a:ec\n",
        "readlink": "../../devices/virtual/block/dm-0\n/sys/devices/virtual/block/dm-0\n",
        "cd": "vol\nU\n0\n/sys/devices/virtual/block/dm-0/dm\n",
        "cat": "16384\n/sys/block/dm-0/slaves:\nram0\n\n/sys/block/ram0/holders:\ndm-0\n",
        "find": "/dev/dm-0\n/sys/block/dm-0\n",
    }
    out = machine.run("sh", "-c", script, check=False).stdout
    assert out == (printed if printed is not None else expected[script.split()[0]])


def test_nodes_links_and_directories_are_kept(machine: PrivateServer) -> None:
    script = """mkdir /dev/vg && ln -s /dev/mapper/vol /dev/vg/lv && mknod /dev/vg/node b 253 0 && ls /dev/vg
    stat -c %F /dev/vg/node; chmod 640 /dev/vg/node; chown 5:6 /dev/vg/node; stat -c '%a %u:%g' /dev/vg/node
    mv /dev/vg /dev/vg2 && ls /dev/vg2; rmdir /dev/vg2; rm /dev/vg2/*; rmdir /dev/vg2 && ls -d /dev/vg2"""
    done = machine.run("sh", "-c", script, check=False)
    assert done.stdout == "lv\nnode\nblock special file\n640 5:6\nlv\nnode\n"
    assert done.stderr.count("\n") == 2
    assert not os.path.exists("/dev/vg")


O_PATH = """
import os, stat
dev = os.open("/dev", os.O_PATH | os.O_DIRECTORY)
for path in ("mapper", "mapper/control", "mapper/vol", "mapper/vol@", "dm-0"):
    flags = os.O_NOFOLLOW if path[-1] == "@" else 0
    fd = os.open(path.rstrip("@"), os.O_PATH | flags, dir_fd=dev)
    told = os.readlink("", dir_fd=fd) if flags else os.major(os.fstat(fd).st_rdev)
    print(path, stat.filemode(os.fstat(fd).st_mode)[0], told)
os.close(os.open("/run/lvm", os.O_PATH))
"""


def test_descriptors_of_paths(machine: PrivateServer) -> None:
    printed = machine.run("python3", "-c", O_PATH).stdout
    assert printed == "mapper d 0\nmapper/control c 10\nmapper/vol b 253\nmapper/vol@ l ../dm-0\ndm-0 b 253\n"


def test_lvms_files_are_the_runs_own(machine: PrivateServer) -> None:
    script = """cd /etc/lvm/archive 2>/dev/null; cd /; echo text >/etc/lvm/archive/a
    ln /etc/lvm/archive/a /etc/lvm/archive/b && mv /etc/lvm/archive/b /etc/lvm/archive/c && ls /etc/lvm/archive
    cat /etc/lvm/archive/c; ln /etc/lvm/archive/a /etc/lvm/backup/a && ls /etc/lvm/backup
    ln /dev/mapper/vol /dev/mapper/other; ln /etc/lvm/archive/none /etc/lvm/archive/d
    mkfifo -m 600 /run/dmeventd-client && exec 3<>/run/dmeventd-client && echo through >&3 && head -1 <&3
    ls -l /run/dmeventd-client >/dev/null; rm /run/dmeventd-client && ls -d /run/dmeventd-client"""
    done = machine.run("sh", "-c", script, check=False)
    assert done.stdout == "a\nc\ntext\na\nthrough\n"
    assert [line.rpartition(": ")[2] for line in done.stderr.splitlines()] == [
        "Invalid cross-device link",
        "No such file or directory",
        "No such file or directory",
    ]
    assert not os.path.exists("/etc/lvm/archive/c")


PRIVATE = """
import ctypes, os
os.chdir("/etc/lvm/archive")
for name in "ab":
    open(name, "w").write(name)
os.utime("a", ns=(1, 2))
os.utime("b")
print(os.stat("a").st_atime_ns, os.stat("a").st_mtime_ns, os.stat("b").st_mtime > 10**9)
libc = ctypes.CDLL(None, use_errno=True)
for flags in (1, 2, 0):
    print(libc.renameat2(-100, b"/etc/lvm/archive/a", -100, b"/etc/lvm/archive/b", flags), ctypes.get_errno())
print(os.listdir("/etc/lvm/archive"), open("b").read())
"""


def test_what_lies_above_a_directory_that_only_the_bridge_has(machine: PrivateServer) -> None:
    assert sh(machine, "ls -la /run/modprobe.d >/dev/null && ls -d /run/modprobe.d/../lock") == (
        "/run/modprobe.d/../lock\n"
    )


@pytest.mark.skipif(not shutil.which("modprobe"), reason="modprobe is not installed")
def test_modules_can_be_loaded(machine: PrivateServer) -> None:
    script = """modprobe dm-thin-pool; modprobe dm_cache_smq; modprobe dm-mod; modprobe dm-none || echo none
    modprobe dm-snapshot-merge; dmsetup targets | cut -d' ' -f1 | head -6"""
    types = ["snapshot-merge", "snapshot-origin", "snapshot", "cache", "thin-pool", "thin"]
    assert sh(machine, script).split() == ["none", *types]


def test_files_of_the_run_are_renamed_and_dated(machine: PrivateServer) -> None:
    printed = machine.run("python3", "-c", PRIVATE).stdout
    assert printed == f"1 2 True\n-1 {errno.EEXIST}\n-1 {errno.EINVAL}\n0 {errno.EINVAL}\n['b'] a\n"


def test_nodes_in_another_directory(machine: PrivateServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    script = """dmsetup create other --table '0 8 zero' && ls mapper . && stat -c %F mapper/other && cat file
    cd mapper && blockdev --getsz other && cat ../file && dmsetup remove other && ls"""
    env = {"DM_DEV_DIR": str(tmp_path), "DM_DISABLE_UDEV": "1"}
    done = machine.run("sh", "-c", script, cwd=tmp_path, env=env)
    assert done.stdout == ".:\nfile\nmapper\n\nmapper:\ncontrol\nother\nblock special file\ntext8\ntextcontrol\n"
    assert os.listdir(tmp_path / "mapper") == []


def test_a_node_of_the_host_is_not_removed(machine: PrivateServer) -> None:
    assert machine.run("rm", "-f", "/dev/null", check=False).returncode == 1
    assert os.path.exists("/dev/null")


def test_open_files_hold_a_device(machine: PrivateServer) -> None:
    script = """exec 3</dev/mapper/vol; dmsetup info -c --noheadings -o open vol; dmsetup remove vol; exec 3<&-
    dmsetup info -c --noheadings -o open vol"""
    done = machine.run("sh", "-c", script)
    assert done.stdout == "1\n0\n"
    assert "busy" in done.stderr


@pytest.mark.parametrize(("device", "error"), [("/dev/ram0", "Device or resource busy"), ("/dev/dm-0", "")])
def test_exclusive_opens(machine: PrivateServer, device: str, error: str) -> None:
    code = f"import os; fd = os.open('{device}', os.O_RDWR | os.O_EXCL); os.open('{device}', os.O_RDONLY)"
    assert error in machine.run("python3", "-c", code, check=False).stderr


def test_a_second_exclusive_open_is_refused_until_the_first_is_closed(machine: PrivateServer) -> None:
    code = """import os
first = os.open('/dev/dm-0', os.O_RDONLY | os.O_EXCL)
copy = os.dup(first)
os.close(first)
try: os.open('/dev/dm-0', os.O_RDONLY | os.O_EXCL)
except OSError as error: print(error.errno)
os.close(copy)
os.close(os.open('/dev/dm-0', os.O_RDONLY | os.O_EXCL))
"""
    assert machine.run("python3", "-c", code).stdout == "16\n"


def test_a_backing_file_itself_stays_a_file(dmserver: PrivateServer, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    dmserver.call(lambda: dmserver.host.add_pdev(f"/dev/loop4={image}"))
    code = """import os, stat
for path in ('/dev/loop4', 'disk.img'):
    print(stat.S_ISBLK(os.fstat(os.open(path, os.O_RDWR)).st_mode), os.lseek(os.open(path, 0), 0, 2))
"""
    assert dmserver.run("python3", "-c", code, cwd=tmp_path).stdout == "True 1048576\nFalse 1048576\n"


def test_data_go_through(machine: PrivateServer) -> None:
    script = """exec 2>/dev/null
    printf hello | dd of=/dev/mapper/vol bs=1 seek=1000 conv=notrunc,fsync
    dd if=/dev/ram0 bs=1 skip=1000 count=5; dd if=/dev/zero of=/dev/dm-0 bs=64k oflag=direct 2>&1 | tail -1"""
    assert sh(machine, script).startswith("hello32768 bytes")


def test_files_under_dev_are_the_runs_own(machine: PrivateServer) -> None:
    script = """cd /dev/mapper; echo one > vol.backup; echo two >> vol.backup; cat vol.backup
    find . -name 'vol.*' -type f
    mkdir /dev/own; echo three > /dev/own.file; mv /dev/own.file /dev/own/file; cat /dev/own/file; ls /dev/own
    rm vol.backup /dev/own/file; ls . /dev/own; cat vol.backup || echo > /dev/none/file || echo gone"""
    printed = "one\ntwo\n./vol.backup\nthree\nfile\n.:\ncontrol\nvol\n\n/dev/own:\ngone\n"
    assert sh(machine, script) == printed
    assert not os.path.exists("/dev/own.file")


def test_disks_in_a_directory_of_dev(machine: PrivateServer) -> None:
    machine.call(lambda: machine.host.add_pdev("/dev/cciss/c0d0=ram:1M"))
    script = "ls /dev/cciss; ls /dev | grep cciss; cd /dev/cciss && blockdev --getsz c0d0; cat ../null"
    assert sh(machine, script) == "c0d0\ncciss\n2048\n"


def test_rules_have_no_two_answers() -> None:
    assert len({rule.path for rule in PATHS}) == len(PATHS)
    assert all(rule.answer and 1 <= rule.rung <= 8 for rule in PATHS)


def test_python_is_not_disturbed(dm_run: Run, tmp_path: Path) -> None:
    code = "import os, json, ssl; os.chdir('/'); print(os.getcwd(), len(os.listdir('/dev')) > 5)"
    assert dm_run(sys.executable, "-c", code, cwd=tmp_path).stdout == "/ True\n"
