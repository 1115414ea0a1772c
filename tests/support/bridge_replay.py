"""Replay of recorded program runs under the bridge: what each prints and how it exits, against the real kernel's.

`python -m support.bridge_replay FILE...` replays and prints each `Outcome` as a line of JSON; so a test can do it as
another user.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.targets import pattern

from dmserver.testing import PrivateServer

VECTORS = Path(__file__).parents[2] / "specs" / "vectors" / "linux"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

#: What differs between two runs on a real kernel as well: (pattern, replacement, reason).
MASKS: tuple[tuple[str, str, str], ...] = (
    (r"(?m)^[\w-]+ +v\d+\.\d+\.\d+\n", "", "target types: those that this device-mapper has, not what modprobe loaded"),
    (r"\b65534([: ])65534\b", r"0\g<1>0", "owner of what a client made: the user who ran it"),
    (r"(?m)^(total|d[rwx-]{9}) .*\n", "", "ls -l: sizes of directories"),
    (
        r"(?m)^([bcl-][rwx-]{9}) +1 +(?:root root|0 +0|(\d+) +(\d+)) +(\d+), +(\d+) .*? (\S+)$",
        r"\1 \2:\3 \4:\5 \6",
        "ls -l: column widths and names of users differ between busybox and coreutils, dates from run to run",
    ),
    (r"(?m)^'(/\S+)' (?!->)", r"\1 ", "stat %N: quotes of coreutils that busybox has not"),
    (r"LVM-\w{64}|\b\w{6}(?:-\w{4}){5}-\w{6}\b", "UUID", "uuids that lvm makes up"),
    (r"label-id: .*|uuid=.*", "ID", "identities that sfdisk makes up"),
    (r"  WARNING: Running as a non-root user.*\n", "", "lvm's word about an ordinary user"),
    (r"Creation host, time .*", "TIME", "where and when"),
    (r"crypt (\S+) [0-9a-f]{64,128}", r"crypt \1 KEY", "volume keys that cryptsetup makes up"),
)

#: lvm.conf of the recorded guest (no udev, nobody to notify, no backups), and which of this machine's disks it sees.
LVM_CONF = """
global { notify_dbus = 0 }
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 process_priority = 0 }
devices {
    hints = "none" use_devicesfile = 0 obtain_device_list_from_udev = 0
    multipath_component_detection = 0 md_component_detection = 0
    global_filter = [ "a|^/dev/(ram|loop|mapper/|dm-)|", "r|.*|" ]
}
backup { backup = 0 archive = 0 }
"""

#: Recorded sessions and the rung of the ladder that each stands on.
SESSIONS: dict[str, int] = {
    "dmsetup_basic": 1,
    "dmsetup_nodes": 1,
    "misc_kpartx": 2,
    "crypt_plain": 3,
    "crypt_verity": 3,
    "lvm_basic": 6,
    "misc_fs": 8,
    "misc_sysfs": 8,
}

#: Steps that are not compared: (file, lines, reason).
EXCLUDED: tuple[tuple[str, tuple[int, ...], str], ...] = (
    ("misc_kpartx", (36,), "kpartx -n leaves the node to udev, whose part the bridge plays; no udev ran in the guest"),
    ("crypt_verity", (14, 33), "busybox's dd put it in other words"),
    (
        "misc_fs",
        (5, 6, 7, 8, 9, 12, 13, *range(20, 26), 29, *range(37, 42)),
        "stops at mount(2), whose path the kernel reads",
    ),
    ("misc_fs", (27,), "resize2fs of a file system that was not mounted and written before"),
    ("misc_fs", (19, 36), "lsblk finds file systems here that it did not look for in the guest"),
    ("misc_sysfs", (1, 22), "attributes of queue/ that nobody reads are not there"),
    ("misc_sysfs", (23,), "this machine's own devices; /proc/diskstats is the kernel's"),
    ("misc_sysfs", (28,), "uevent has no DISKSEQ"),
)


@dataclass(frozen=True)
class Outcome:
    """One step: `differences` by field, expected and got; empty when all is equal."""

    file: str
    line: int
    words: str
    differences: dict[str, tuple[Any, Any]]
    excluded: str = ""

    def __str__(self) -> str:
        return f"{self.file}.jsonl:{self.line} $ {self.words}\n  {self.differences}"


def replay(file: str) -> Iterator[Outcome]:
    """Run the steps of a session in order on one private device-mapper."""
    with tempfile.TemporaryDirectory(prefix="dm") as directory, PrivateServer() as server:
        for pdev in guest_disks(Path(directory)):
            server.call(lambda pdev=pdev: server.host.add_pdev(pdev))
        (Path(directory) / "lvm.conf").write_text(LVM_CONF)
        for line, text in enumerate((VECTORS / f"{file}.jsonl").read_text().splitlines(), 1):
            step = json.loads(text)
            if step["op"] in ("pattern", "zero"):
                fill(server, step)
            elif argv := [word.replace("/tmp/", f"{directory}/") for word in words_of(step)]:
                yield outcome(server, file, line, step, argv, directory)


def guest_disks(directory: Path) -> Iterator[str]:
    """The disks of the recorded guest (specs/vectors/README.md)."""
    for number in range(16):
        yield f"/dev/ram{number}=ram:8M,dev=1:{number}"
    for number in range(8):
        image = directory / f"loop{number}"
        image.touch()
        os.truncate(image, (8 if number < 4 else 64) << 20)
        yield f"/dev/loop{number}={image},dev=7:{number}"


def fill(server: PrivateServer, step: dict[str, Any]) -> None:
    major, minor = map(int, step["dev"].split(":"))
    disk = server.host.mapper.disks.by_dev((major, minor))
    assert disk is not None
    data = pattern(step["seed"], 0, disk.size) if step["op"] == "pattern" else bytes(disk.bytes)
    os.pwrite(disk.fd, data, 0)


def words_of(step: dict[str, Any]) -> list[str]:
    match step["op"]:
        case "dmsetup":
            return ["sh", "-c", f"{step.get('pre', '')}dmsetup {step['args']}"]
        case "run":
            return list(step["argv"])
        case "exec":
            return ["sh", "-c", step["sh"]]
    return []


def outcome(
    server: PrivateServer, file: str, line: int, step: dict[str, Any], argv: list[str], directory: str
) -> Outcome:
    env = {
        "PATH": PATH,
        "LC_ALL": "C",
        "LVM_SYSTEM_DIR": directory,
        "LVM_SUPPRESS_FD_WARNINGS": "1",
        **(step.get("env") or {}),
    }
    try:
        done = server.run(*argv, env=env, cwd=directory, input=step.get("stdin") or "", check=False, timeout=30)
        stdout, stderr = (text.replace(f"{directory}/", "/tmp/") for text in (done.stdout, done.stderr))
        got: dict[str, Any] = {"exit": done.returncode, "stdout": stdout, "stderr": stderr}
    except subprocess.TimeoutExpired:
        got = {"exit": "timeout", "stdout": "", "stderr": ""}
    wanted = {key: step[key] for key in got}
    differences = {key: (wanted[key], got[key]) for key in got if masked(wanted[key]) != masked(got[key])}
    reason = next((reason for name, lines, reason in EXCLUDED if name == file and line in lines), "")
    return Outcome(file, line, argv[-1] if argv[0] == "sh" else " ".join(argv), differences, reason)


def masked(value: Any) -> Any:
    if isinstance(value, str):
        for found, instead, _ in MASKS:
            value = re.sub(found, instead, value)
    return value


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for result in replay(name):
            print(json.dumps(asdict(result)), flush=True)
