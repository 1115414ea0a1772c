"""Replay of the recordings in specs/vectors/netbsd/transcripts: the same requests and control steps, the same answers.

What a comparison leaves out, and why:

* 0xa5a5a5a5a5a5a5a5 in a reply is uninitialised memory of the recording: ours is 0.
* `SKIPPED`, each with its reason.
* After `crash` only the errno counts, which is EINVAL; the real driver panics.
* The sizes that `pdevs` shows of a device-mapper device: the driver finds none, unless it is called like its disk.
* Which errno a failed read or write has, and reads at the very end, which give nothing without an error: both are
  made by the NetBSD kernel around the driver. Likewise the ioctls of disks (`media`, `wedgeinfo`, `diskinfo`, `sync`).
"""

from __future__ import annotations

import errno
import json
import re
import threading
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from dmproto import proplib
from dmproto.errors import BadMessage
from dmserver.host import Host
from dmserver.io.bio import Bio, Op

__all__ = [
    "SKIPPED",
    "TRANSCRIPTS",
    "NetbsdReplay",
    "Step",
    "reply_errno",
    "reply_text",
    "request_text",
    "scenarios",
    "seen",
    "skipped",
    "transferred",
]

TRANSCRIPTS = Path(__file__).parents[2] / "specs/vectors/netbsd/transcripts"

#: (file, first words of the scenario, step).
SKIPPED = {
    # A version array of one element: recorded once with a stack full of 0xfe, and elsewhere of zeroes.
    ("uninit", "version [4]", 0),
    # A sector that two targets have: the driver completes its buffer twice and panics; ours goes to one of them.
    ("crash", "overlapping entries", 3),
}

#: Size in sectors, path and number of the disks.
SECTORS = 16384
DISKS = {
    "/dev/wd0a": "0:0",
    "/dev/wd0b": "0:1",
    "/dev/wd0d": "0:3",
    "/dev/wd1a": "0:16",
    "/dev/wd1b": "0:17",
    "/dev/sd0a": "4:0",
    "/dev/sd0b": "4:1",
    "/dev/vnd0d": "14:3",
    "/dev/dk0": "168:0",
    "/dev/dk1": "168:1",
    "/dev/dk300": "168:300",
}

Step = dict[str, Any]


def scenarios() -> Iterator[tuple[str, str, list[Step]]]:
    """(file, scenario, steps) of all recordings."""
    for path in sorted(TRANSCRIPTS.glob("*.jsonl")):
        steps = [json.loads(line) for line in path.read_text().splitlines()]
        for scenario, group in groupby(steps, key=lambda step: step["scenario"]):
            yield path.stem, str(scenario), list(group)


class NetbsdReplay:
    """An empty driver and what the recorder could see of it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.session = host.open()
        self.limit = 131072
        self.devices = 0
        for path, number in DISKS.items():
            host.add_pdev(f"{path}=ram:{SECTORS}s,dev={number}")

    def request(self, text: bytes) -> tuple[int, bytes]:
        """(errno, reply text without our own keys) for a request's text."""
        if len(text) >= self.limit:
            return errno.E2BIG, b""
        try:
            request = proplib.loads(text, flavour="kernel")
        except BadMessage as refusal:
            return refusal.errno, b""
        if not isinstance(request, dict):
            return errno.EIO, b""
        replies: list[dict[str, Any]] = []
        self.host.dictionary(self.session, request, replies.append)
        (reply,) = replies
        failure = reply.pop("errno", 0)
        reply.pop("error", None)
        if request.get("command") == "create" and "minor" in reply:
            self.devices += 1
        elif request.get("command") == "remove" and not failure:
            self.devices -= 1
        return failure, proplib.dumps(reply)

    def transfer(self, line: str) -> tuple[bool, bytes]:
        """(whether it went well, the data) of `read MINOR BLOCK BYTES` or `write MINOR BLOCK BYTES LETTER`."""
        verb, minor, block, size, *letter = line.split()
        device = self.host.mapper.devices.get(int(minor))
        if device is None:
            return False, b""
        sectors = -(-int(size) // 512)
        data = bytearray((letter[0].encode() if letter else b"\0") * sectors * 512)
        ended = threading.Event()
        bio = Bio(
            Op.READ if verb == "read" else Op.WRITE, int(block), sectors, memoryview(data), lambda bio: ended.set()
        )
        device.submit_bio(bio)
        assert ended.wait(30)
        return not bio.error, bytes(data[: int(size)])

    def control(self, line: str) -> str:
        """What a control step shows."""
        verb, *args = line.split()
        return "\n".join(getattr(self, f"_{verb}")(*args) or ())

    def _priv(self, privileged: str) -> None:
        self.session = self.host.open(privileged=privileged == "1")

    def _limit(self, limit: str) -> None:
        self.limit = int(limit)

    def _pdevs(self) -> list[str]:
        return [f"{pdev.path} udev={pdev.number} ref_cnt={pdev.ref_cnt}" for pdev in self.host.mapper.pdevs]

    def _vnodes(self) -> list[str]:
        return [f"open_vnode_refs={len(self.host.mapper.pdevs)} dm_dev_counter={self.devices}"]

    def _targets(self) -> list[str]:
        devices = self.host.mapper.devices.values()
        tables = [table for device in devices for table in device.slots if table]
        used = [target.name for table in tables for target in table.targets]
        versions = {"linear": "1.0.2", "striped": "1.0.3", "error": "1.0.0", "zero": "1.0.0"}
        return [f"{name} {version} ref_cnt={used.count(name)}" for name, version in versions.items()]

    def _tree(self) -> list[str]:
        lines = []
        for device in self.host.mapper.devices.values():
            lines.append(
                f"dev name={device.name} uuid={device.uuid} minor={device.minor} "
                f"flags={self.host.netbsd.device_flags(device):#x} ref_cnt=0 "
                f"event_nr={device.event_nr} cur_active={device.cur_active} io_cnt=0"
            )
            for slot, table in enumerate(device.slots):
                lines += [
                    f"  slot{slot} start={target.begin} length={target.len} target={target.name}"
                    for target in (table.targets if table else ())
                ]
        return lines

    def _psize(self, minor: str) -> list[str]:
        return [str(self.host.mapper.devices[int(minor)].size)]

    def _open(self, minor: str) -> None:
        self.host.mapper.devices[int(minor)].open()

    def _close(self, minor: str) -> None:
        self.host.mapper.devices[int(minor)].close()


def skipped(file: str, step: Step) -> bool:
    """Whether a step is in `SKIPPED`."""
    return any(
        (file, step["step"]) == (name, number) and step["scenario"].startswith(scenario)
        for name, scenario, number in SKIPPED
    )


def seen(output: str | None) -> str:
    """The recorded output of a control step without what this driver has no counterpart of."""
    return re.sub(r" numsec=\d+ secsize=\d+| config=.*", "", output).rstrip("\n") if output else ""


def transferred(step: Step) -> tuple[bool, bytes] | None:
    """The recorded result of a transfer; None for one that gave nothing without an error."""
    if "crash" in step:
        return False, b""
    head, _, data = step["out"].partition("\n")
    told = {key: int(value) for key, value in (word.split("=") for word in head.split())}
    if told["error"]:
        return False, b""
    return None if told["resid"] else (True, data.encode())


def request_text(step: Step) -> bytes:
    return _bytes(step, "request")


def reply_text(step: Step) -> bytes:
    """The recorded reply; 0xa5a5... is memory that nobody wrote."""
    return _bytes(step, "reply").replace(b"0xa5a5a5a5a5a5a5a5", b"0x0")


def _bytes(step: Step, key: str) -> bytes:
    if f"{key}_hex" in step:
        return bytes.fromhex(step[f"{key}_hex"])
    text = step.get(key) or ""
    if step.get("elided"):
        text = re.sub(r"\{(.)\*(\d+)\}", lambda run: run[1] * int(run[2]), text)
    return str(text).encode()


def reply_errno(step: Step) -> int:
    """The errno that the command meant, or of the ioctl where no command was reached."""
    if "crash" in step:
        return errno.EINVAL
    return int(step["ioctl_errno"] if step["cmd_errno"] is None else step["cmd_errno"])
