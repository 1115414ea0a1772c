"""Replay of the recordings in specs/vectors/linux: the same steps on a fresh device-mapper, and what differs.

`replay(path)` gives one `Result` for each ioctl and each other step that was compared. What is left out, and what is
masked in a comparison, is in `SKIPPED`, `ABSENT` and `MASKS`, each with its reason; specs/fidelity.md counts them.

Time stands still but for `sleep` and `join`, and for I/O that would wait for ever otherwise.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from support.linux_vectors import VECTORS, expand
from support.stacks import pattern
from support.targets import ManualWork

from dmproto.commands import BY_NAME, Payload
from dmproto.linux import parse
from dmproto.records import SECTOR_SIZE, TargetSpec, TargetVersion, huge_decode
from dmserver.control.linux import LinuxControl
from dmserver.control.session import Cancel, Session
from dmserver.io.bio import Bio, Op
from dmserver.io.blockdev import BlockDevice
from dmserver.io.disk import Disk
from dmserver.model.dm_dev import DmDev
from dmserver.model.mapper import Mapper
from dmserver.targets.registry import TargetRegistry

__all__ = ["ABSENT", "FILES", "KINDS", "MASKS", "MASK_SEPARATOR", "LinuxReplay", "Result", "Step", "replay", "steps"]

Step = dict[str, Any]

FILES = sorted(path.stem for path in VECTORS.glob("*.jsonl"))

#: The target types of the recorded kernel.
KINDS = (
    *("cache", "crypt", "delay", "era", "error", "flakey", "integrity", "linear", "log-writes", "mirror", "multipath"),
    *("raid", "snapshot", "snapshot-merge", "snapshot-origin", "striped", "switch", "thin", "thin-pool", "unstriped"),
    *("verity", "writecache", "zero", "zoned"),
)

#: Those that are not installed: steps on a device that was given one are not compared.
ABSENT = frozenset(kind for kind in KINDS if TargetRegistry.installed().get(kind) is None)

#: Lines of the kernel log that come with its modules, or only so often (DMWARN_LIMIT).
_NOT_LOGGED = re.compile(r"version [0-9.]+ loaded|repeat_count > 1 is deprecated")


#: What shell lines do to devices, besides reading and writing them, by (file, line).
SHELL: dict[tuple[str, int], Callable[[Mapper], None]] = {
    ("dmsetup_nodes", 63): lambda mapper: mapper.remove(_found(mapper, "held")),
    ("dmsetup_nodes", 82): lambda mapper: _rename(mapper, "ev", "ev2"),
}


def _found(mapper: Mapper, name: str) -> DmDev:
    device = mapper.by_name(name)
    assert device is not None
    return device


def _rename(mapper: Mapper, name: str, new: str) -> None:
    device = _found(mapper, name)
    mapper.rename(device, new)
    device.event()


@dataclass(frozen=True, slots=True)
class Mask:
    """Bytes of a reply that vary from run to run, and why. `applies` to a step; `blank` takes them out."""

    field: str
    reason: str
    applies: Callable[[Step], bool]
    blank: Callable[[bytes], bytes]


def _without(start: int, end: int) -> Callable[[bytes], bytes]:
    return lambda written: written[:start] + bytes(len(written[start:end])) + written[end:]


def _without_times(written: bytes) -> bytes:
    """@stats_print: columns 5, 9 and 11 to 14 of each line, and the histogram counts; data_size counts their digits."""
    lines = written[312:].split(b"\n")
    columns = [[word for at, word in enumerate(line.split(), 1) if at not in (5, 9) and at < 11] for line in lines]
    return written[:12] + written[16:312] + repr(columns).encode()


MASK_SEPARATOR = "; "

MASKS = (
    Mask(
        "milliseconds and ticks",
        "they depend on how long a bio took",
        lambda step: "@stats_print" in str(step.get("message")),
        _without_times,
    ),
    Mask(
        "event_nr",
        "a mirror that was just resumed may be in sync already, or not yet",
        lambda step: step.get("cmd") == "DEV_SUSPEND" and step["file"] == "t_mirror",
        _without(32, 36),
    ),
    Mask(
        "open_count",
        "programs and mounts hold devices open while others ask",
        lambda step: step.get("in_program", False),
        _without(24, 28),
    ),
    Mask(
        "status of a verity device",
        "it tells what reads found, and what programs write and read is not replayed",
        lambda step: step.get("in_program", False) and b"\0verity\0" in expand(step["written"])[330:360],
        _without(352, 353),
    ),
    Mask(
        "status of a snapshot",
        "it counts chunks that programs wrote, and their data are not replayed",
        lambda step: step.get("in_program", False) and b"\0snapshot\0" in expand(step["written"])[330:360],
        _without(352, 1 << 14),
    ),
    Mask(
        "flags",
        "a wait that a removal woke sees the device suspended, or not yet",
        lambda step: step["op"] == "join" and step.get("label") == "after remove",
        _without(28, 32),
    ),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one step. `what`: the command, or the operation. `skipped`: why it was not compared; `masked`:
    what was left out of the comparison; `difference`: "" when all else is identical."""

    file: str
    line: int
    what: str
    types: tuple[str, ...] = ()
    skipped: str = ""
    masked: str = ""
    difference: str = ""

    def __str__(self) -> str:
        return f"{self.file}.jsonl:{self.line} {self.what}: {self.skipped or self.difference or 'identical'}"


def steps(file: str) -> list[Step]:
    return [json.loads(line) for line in (VECTORS / f"{file}.jsonl").read_text().splitlines()]


@cache
def replay(file: str) -> tuple[Result, ...]:
    """Replay one file from the start."""
    return tuple(LinuxReplay(file).run())


def name_of(number: int) -> str:
    """errno as the recordings spell it."""
    if number == errno.EOPNOTSUPP:
        return "ENOTSUP"
    return errno.errorcode[number] if number else "0"


@dataclass
class Job:
    """Something started in the background. `outcome` is set once it ended."""

    outcome: Step | None = None
    cancel: Cancel | None = None


@dataclass
class Opened:
    """An open file of a block device."""

    device: BlockDevice
    holder: object | None


@dataclass
class Stream:
    """Recorded lines against ours: ours may come late or early, but all of them, and in order."""

    ours: list[Any] = field(default_factory=list)
    theirs: list[Any] = field(default_factory=list)

    def difference(self) -> str:
        common = min(len(self.ours), len(self.theirs))
        if self.ours[:common] != self.theirs[:common]:
            text = f"{self.ours[:common]} instead of {self.theirs[:common]}"
            self.clear()
            return text
        del self.ours[:common], self.theirs[:common]
        return ""

    def clear(self) -> None:
        self.ours.clear()
        self.theirs.clear()


class LinuxReplay:
    """A fresh device-mapper with the recorder's disks, and the open files of the recording."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.work = ManualWork()
        self.mapper = Mapper(work=self.work)
        self.disks: dict[str, Disk] = {}
        for major, stem, count, size in ((1, "ram", 16, 8), (7, "loop", 4, 8), (7, "loop", 9, 64)):
            for minor in range(count):
                if f"{major}:{minor}" not in self.disks:
                    self._add_disk(major, minor, f"/dev/{stem}{minor}", size)
        self.registry = TargetRegistry.installed()
        self.control = LinuxControl(self.mapper, self.registry)
        self.control_nodes: dict[int, Session] = {0: Session()}
        self.files: dict[int, Opened] = {}
        self.jobs: dict[int, Job] = {}
        #: Numbers of devices and disks that an absent target type has to do with.
        self.tainted: set[str] = set()
        self.in_program = False
        self.kmsg = Stream()
        self.uevents = Stream()
        self.mapper.events.on_log(self._logged)
        self.mapper.events.on_uevent(lambda event: self._sent(event.env))

    def _add_disk(self, major: int, minor: int, path: str, megabytes: int) -> None:
        disk = Disk(path, (major, minor), f"ram:{megabytes}M")
        disk.limits.discard = disk.limits.write_zeroes = major == 7
        disk.limits.discard_granularity = 4096 if major == 7 else 0
        disk.limits.physical_block_size = 4096 if major == 1 else 512
        self.mapper.disks.add(disk)
        self.disks[f"{major}:{minor}"] = disk

    # -- the log and the uevents ------------------------------------------------------------------------

    def _logged(self, line: str) -> None:
        if not _NOT_LOGGED.search(line):
            self.kmsg.ours.append(line)

    def _sent(self, env: dict[str, str]) -> None:
        shown = [(key, value) for key, value in env.items() if key not in ("DEVPATH", "DISKSEQ", "SEQNUM")]
        if env["SUBSYSTEM"] == "block" or not self.in_program:
            self.uevents.ours.append(shown)

    def _expect(self, step: Step) -> None:
        lines = [line for line in step.get("kmsg") or () if "device-mapper: " in line]
        self.kmsg.theirs += [line for line in lines if not _NOT_LOGGED.search(line)]
        self.uevents.theirs += [list(event.items()) for event in step.get("uevents") or () if self._is_ours(event)]

    def _is_ours(self, event: dict[str, str]) -> bool:
        """Programs also make loop devices; a bdi event does not tell whose it is."""
        if event["SUBSYSTEM"] == "bdi":
            return not self.in_program
        return event["SUBSYSTEM"] == "block" and event["DEVNAME"].startswith("dm-")

    # -- running ----------------------------------------------------------------------------------------

    def run(self) -> list[Result]:
        results = []
        for line, step in enumerate(steps(self.file), 1):
            results += self.step(line, step)
        for stream, what in ((self.kmsg, "kmsg"), (self.uevents, "uevents")):
            if stream.ours or stream.theirs:
                results.append(
                    Result(self.file, line, what, difference=f"left over: {stream.ours}, missing: {stream.theirs}")
                )
        return results

    def step(self, line: int, step: Step) -> Iterator[Result]:
        """Do one step; a program's ioctls are steps of their own."""
        op = step["op"]
        if op in ("dmsetup", "run", "readfile"):
            yield from self._program(line, step)
        elif op == "exec":
            self.work.run()
            if act := SHELL.get((self.file, line)):
                act(self.mapper)
            self.uevents.clear()
        else:
            yield self._compare(line, step)

    def _program(self, line: int, step: Step) -> Iterator[Result]:
        """What the ioctls log and send is recorded with the program, not with each of them."""
        self.in_program = step["op"] == "run"
        compared = True
        for ioctl in step.get("ioctls") or ():
            result = self._compare(line, {"op": "ioctl", "nested": True, "in_program": self.in_program, **ioctl})
            compared = compared and not result.skipped
            yield result
        self.work.run()
        self._expect(step)
        difference = self._streams_differ()
        self.in_program = False
        if not compared:
            self.kmsg.clear()
            self.uevents.clear()
        elif difference:
            yield Result(self.file, line, step["op"], difference=difference)

    def _streams_differ(self) -> str:
        streams = (("kmsg", self.kmsg), ("uevents", self.uevents))
        return "".join(f"; {name} {text}" for name, stream in streams if (text := stream.difference()))

    def _compare(self, line: int, step: Step) -> Result:
        what = step.get("cmd") or step["op"]
        if step["op"] == "ioctl" and what not in BY_NAME:
            what = "unknown command"
        types = _types(step)
        absent = self._why_absent(step, types)
        masked = self._hidden(step)
        outcome = {} if absent and step["errno"] != "0" else self._do(step)
        self.work.run()
        self._expect(step)
        if absent:
            self._taint(step)
            self.kmsg.clear()
            self.uevents.clear()
            return Result(self.file, line, what, types, skipped=absent)
        recorded = _recorded(step)
        _complete_written(step, outcome, recorded)
        masked = masked or self._mask(step, outcome, recorded)
        difference = "; ".join(
            _contrast(key, outcome.get(key), value) for key, value in recorded.items() if outcome.get(key) != value
        )
        if "nested" not in step:
            difference += self._streams_differ()
        return Result(self.file, line, what, types, masked=masked, difference=difference)

    def _hidden(self, step: Step) -> str:
        """A creation or load that the recording leaves out shows in the uevents of later steps: the disk was there."""
        events = [event for event in step.get("uevents") or () if event.get("DEVNAME", "").startswith("dm-")]
        had_disk = {int(event["MINOR"]) for event in events if event["ACTION"] == "remove" and "cmd" in step}
        if unknown := had_disk - set(self.mapper.devices):
            numbers = [str(minor) for minor in unknown]
            at = next(at for at, event in enumerate(step["uevents"]) if event.get("MINOR") in numbers)
            step["uevents"] = step["uevents"][: at - 1] + step["uevents"][at + 1 :]
            return self._hidden(step) or "removes a device whose creation is not in the recording"
        if step.get("cmd") == "TABLE_LOAD" and step["errno"] == "0" and "nested" not in step:
            device = self._device(step)
            if device and not any(event["ACTION"] == "add" for event in events):
                had_disk.add(device.minor)
        hidden = [device for minor in had_disk if (device := self.mapper.devices.get(minor)) and not device.has_disk]
        for device in hidden:
            device.has_disk = True
        return "the disk is there already: a load before is not in the recording" if hidden else ""

    def _mask(self, step: Step, ours: Step, theirs: Step) -> str:
        """Blank what may differ, where it does; returns what that was."""
        masked = []
        for mask in MASKS:
            both = (ours.get("written") or b"", theirs.get("written") or b"")
            if both[0] != both[1] and min(map(len, both)) > 12 and mask.applies({"file": self.file, **step}):
                ours["written"], theirs["written"] = map(mask.blank, both)
                masked.append(mask.field)
        return MASK_SEPARATOR.join(masked)

    # -- absent target types ----------------------------------------------------------------------------

    def _device(self, step: Step) -> DmDev | None:
        if "request" in step:
            buffer = expand(step["request"])
            name, uuid = _requested_name(step), _requested_name(step, 176)
            if name or uuid:
                return self.mapper.by_name(name) or self.mapper.by_uuid(uuid)
            major, minor = huge_decode(int.from_bytes(buffer[40:48], "little"))
            return self.mapper.devices.get(minor) if major == self.mapper.major else None
        if str(step.get("dev", "")).startswith("253:"):
            return self.mapper.devices.get(int(step["dev"][4:]))
        return None

    def _why_absent(self, step: Step, types: tuple[str, ...]) -> str:
        """Why a step cannot be compared because of target types that are not there; "" if it can."""
        self.tainted &= {f"253:{minor}" for minor in self.mapper.devices} | set(self.disks)
        if absent := sorted(ABSENT.intersection(types)):
            return f"no target type {absent[0]}"
        if step.get("cmd") == "GET_TARGET_VERSION" and (name := _requested_name(step)) in ABSENT:
            return f"no target type {name}"
        if step.get("cmd") == "LIST_VERSIONS" and step["errno"] == "0":
            listed = _listed(step)
            if not ABSENT.isdisjoint(listed):
                return "lists target types that are not there"
            if step.get("in_program"):  # which may have run modprobe
                for name in reversed(listed):
                    self.registry.get(name)
        if step.get("errno") == "0" and ":logon:" in str(step.get("request") and expand(step["request"])):
            return "the key is in a keyring of the recorded machine"
        if step.get("cmd") == "REMOVE_ALL" and not self.tainted <= set(self.disks):
            return "on a device that an absent target type has to do with"
        device = self._device(step)
        named = {word for target in step.get("targets") or () for word in target[3].split()}
        if (device and _number(device) in self.tainted) or step.get("dev") in self.tainted:
            return "on a device that an absent target type has to do with"
        if named & self.tainted - set(self.disks):
            return "stacked on a device that an absent target type has to do with"
        return ""

    def _taint(self, step: Step) -> None:
        """What a load names may differ from now on: its device, and the devices that its tables use."""
        if step.get("cmd") != "TABLE_LOAD":
            return
        if step["errno"] == "0" and (device := self._device(step)):
            self.tainted.add(_number(device))
            device.has_disk = True
        for target in step.get("targets") or ():
            self.tainted.update(word for word in target[3].split() if word in self.disks)

    # -- steps ------------------------------------------------------------------------------------------

    def _do(self, step: Step) -> Step:
        handler: Callable[[Step], Step] = getattr(self, f"_do_{step['op']}")
        return handler(step)

    def _do_ioctl(self, step: Step) -> Step:
        job = self._start_ioctl(step)
        if job.outcome is None:
            self.work.run()
        if job.outcome is None:
            assert job.cancel is not None
            job.cancel()
            return {"errno": "still waiting"}
        return job.outcome

    def _start_ioctl(self, step: Step) -> Job:
        job = Job()
        session = Session(privileged=False) if step.get("nopriv") else self.control_nodes[step.get("slot") or 0]

        def done(result: int, written: bytes) -> None:
            job.outcome = {"errno": name_of(-result), "written": written}

        number = step.get("ioctl") or 0xC138FD00 | BY_NAME[step["cmd"]].number
        job.cancel = self.control.ioctl(session, number, expand(step["request"]), done)
        return job

    def _do_ioctl_bg(self, step: Step) -> Step:
        self.jobs[step["job"]] = self._start_ioctl(step)
        return {}

    def _do_join(self, step: Step) -> Step:
        job = self.jobs[step["job"]]
        if job.outcome is None:
            self.work.advance(step["ms"] / 1000)
        if job.outcome is None:
            return {"errno": "ETIMEDOUT"}
        return job.outcome

    def _do_kill(self, step: Step) -> Step:
        cancel = self.jobs[step["job"]].cancel
        if cancel is not None:
            cancel()
        return {"errno": "0"}

    def _do_openctl(self, step: Step) -> Step:
        self.control_nodes[step["slot"]] = Session(event_nr=self.mapper.events.global_nr)
        return {"errno": "0"}

    def _do_poll(self, step: Step) -> Step:
        readable = self.control_nodes[step["slot"]].event_nr != self.mapper.events.global_nr
        return {"errno": "0", "revents": int(readable)}

    def _do_open(self, step: Step) -> Step:
        device = self._block_device(step["dev"])
        if device is None:
            return {"errno": "ENXIO"}
        holder = self if "x" in step["flags"] else None
        try:
            device.open(holder=holder)
        except OSError as failure:
            return {"errno": name_of(failure.errno or errno.EIO)}
        self._do_close(step)
        self.files[step["slot"]] = Opened(device, holder)
        return {"errno": "0"}

    def _do_close(self, step: Step) -> Step:
        if opened := self.files.pop(step["slot"], None):
            opened.device.close(holder=opened.holder)
        self.control_nodes.pop(step["slot"], None)
        return {"errno": "0"}

    def _do_sleep(self, step: Step) -> Step:
        self.work.advance(step["ms"] / 1000)
        return {"errno": "0"}

    def _do_pattern(self, step: Step) -> Step:
        self.tainted.discard(step["dev"])
        _fill(self.disks[step["dev"]], step["seed"])
        return {"errno": "0"}

    def _do_zero(self, step: Step) -> Step:
        _fill(self.disks[step["dev"]], None)
        return {"errno": "0"}

    # -- data -------------------------------------------------------------------------------------------

    def _block_device(self, text: str) -> BlockDevice | None:
        major, minor = text.split(":")
        device = self.mapper.by_dev((int(major), int(minor)))
        return None if isinstance(device, DmDev) and not device.has_disk else device

    def _bio(
        self, device: BlockDevice, op: Op, sector: int, data: bytearray | int, then: Callable[[int], None]
    ) -> None:
        count = data if isinstance(data, int) else len(data) // SECTOR_SIZE
        view = None if isinstance(data, int) else memoryview(data)
        device.submit_bio(Bio(op, sector, count, view, lambda bio: then(bio.error), bdev=device))

    def _wait(self, device: BlockDevice, op: Op, sector: int, data: bytearray | int) -> int:
        """Do one request; time moves on until it has ended. Returns the errno."""
        ended: list[int] = []
        self._bio(device, op, sector, data, ended.append)
        for _ in range(1000):
            if ended:
                return ended[0]
            self.work.advance(0.01)
        return errno.ETIMEDOUT

    def _do_pread(self, step: Step) -> Step:
        device = self._block_device(step["dev"])
        if device is None:
            return {"errno": "ENXIO", "rc": -errno.ENXIO}
        sector = step["sector"]
        wanted = max(0, min(step["bytes"], (device.size - sector) * SECTOR_SIZE))
        if step.get("buffered"):
            return self._read_buffered(device, sector, wanted)
        if wanted % SECTOR_SIZE:
            return _read_outcome(errno.EINVAL, bytearray())
        data = bytearray(wanted)
        error = self._wait(device, Op.READ, sector, data) if data else 0
        return _read_outcome(error, data)

    def _read_buffered(self, device: BlockDevice, sector: int, wanted: int) -> Step:
        """Page by page, up to the first that fails."""
        good = bytearray()
        while len(good) < wanted:
            at = sector + len(good) // SECTOR_SIZE
            page = bytearray(min(4096, (device.size - at) * SECTOR_SIZE))
            if self._wait(device, Op.READ, at, page):
                break
            good += page
        return _read_outcome(errno.EIO if wanted and not good else 0, good[:wanted])

    def _do_pread_bg(self, step: Step) -> Step:
        device = self._block_device(step["dev"])
        if device is None:
            return {"errno": "ENXIO", "rc": -errno.ENXIO}
        job = self.jobs[step["job"]] = Job()
        data = bytearray(step["bytes"])
        device.open()

        def then(error: int) -> None:
            device.close()
            job.outcome = _read_outcome(error, data)

        self._bio(device, Op.READ, step["sector"], data, then)
        return {"errno": "0"}

    def _written_data(self, step: Step) -> bytearray:
        if "hex" in step:
            return bytearray(expand(step["hex"]))
        seed, length = step["fillpat"]
        return bytearray(pattern(seed, step.get("patsector", step["sector"]), length // SECTOR_SIZE))

    def _do_pwrite(self, step: Step) -> Step:
        device = self._block_device(step["dev"])
        if device is None:
            return {"errno": "ENXIO", "rc": -errno.ENXIO}
        data = self._written_data(step)
        if device.read_only:
            return {"errno": "EPERM", "rc": -errno.EPERM}
        del data[max(0, (device.size - step["sector"]) * SECTOR_SIZE) :]
        if not data:
            return {"errno": "ENOSPC", "rc": -errno.ENOSPC}
        error = self._wait(device, Op.WRITE, step["sector"], data)
        return {"errno": name_of(error), "rc": -error if error else len(data)}

    def _do_pwrite_bg(self, step: Step) -> Step:
        device = self._block_device(step["dev"])
        if device is None:
            return {"errno": "ENXIO", "rc": -errno.ENXIO}
        job = self.jobs[step["job"]] = Job()
        data = self._written_data(step)
        device.open()

        def then(error: int) -> None:
            device.close()
            job.outcome = {"errno": name_of(error), "rc": -error if error else len(data)}

        self._bio(device, Op.WRITE, step["sector"], data, then)
        return {"errno": "0"}

    def _do_fsync(self, step: Step) -> Step:
        device = self._block_device(step["dev"])
        if device is None:
            return {"errno": "ENXIO", "rc": -errno.ENXIO}
        return {"errno": name_of(self._wait(device, Op.FLUSH, 0, 0))}

    # -- ioctls of block devices ------------------------------------------------------------------------

    def _do_blkioctl(self, step: Step) -> Step:
        device = self.files[step["slot"]].device
        argument = expand(step["request"]) if "request" in step else bytes.fromhex(step["reply"])
        match step["ioctl"]:
            case 0x301:  # HDIO_GETGEO
                assert isinstance(device, DmDev)
                cylinders, heads, sectors, start = device.geometry
                reply = struct.pack("<BBH4xQ", heads, sectors, cylinders, start)
            case 0x80081272:  # BLKGETSIZE64
                reply = struct.pack("<Q", device.bytes)
            case 0x1268:  # BLKSSZGET
                reply = struct.pack("<I", device.limits.logical_block_size)
            case 0x125E:  # BLKROGET
                reply = struct.pack("<I", device.read_only)
            case number:
                return self._do_range(device, argument, discard=number == 0x1277)  # BLKDISCARD, else BLKZEROOUT
        return {"errno": "0", "reply": reply.ljust(len(argument), b"\0").hex()}

    def _do_range(self, device: BlockDevice, argument: bytes, *, discard: bool) -> Step:
        start, length = struct.unpack("<QQ", argument)
        return {"errno": name_of(self._range(device, start, length, discard=discard)), "reply": argument.hex()}

    def _range(self, device: BlockDevice, start: int, length: int, *, discard: bool) -> int:
        if discard and not device.limits.discard:
            return errno.EOPNOTSUPP
        if start % SECTOR_SIZE or length % SECTOR_SIZE or start + length > device.bytes:
            return errno.EINVAL
        sector, count = start // SECTOR_SIZE, length // SECTOR_SIZE
        if discard:
            return self._wait(device, Op.DISCARD, sector, count)
        if device.limits.write_zeroes:
            error = self._wait(device, Op.WRITE_ZEROES, sector, count)
            if error != errno.EOPNOTSUPP:
                return error
        return self._wait(device, Op.WRITE, sector, bytearray(length))


def _listed(step: Step) -> list[str]:
    """The target types in a recorded reply."""
    payload = parse(expand(step["written"]), BY_NAME["LIST_VERSIONS"], reply=True).payload
    return [entry.name for entry in payload or () if isinstance(entry, TargetVersion)]


def _requested_name(step: Step, at: int = 48) -> str:
    buffer = expand(step["request"])
    return buffer[at : buffer.find(0, at)].decode("utf-8", "surrogateescape")


def _number(device: BlockDevice) -> str:
    major, minor = device.dev
    return f"{major}:{minor}"


@lru_cache(4)
def _whole_pattern(seed: int, sectors: int) -> bytes:
    return pattern(seed, 0, sectors)


def _fill(disk: Disk, seed: int | None) -> None:
    data = bytes(disk.bytes) if seed is None else _whole_pattern(seed, disk.size)
    disk.submit_bio(Bio(Op.WRITE, 0, disk.size, memoryview(data)))


def _read_outcome(error: int, data: bytearray) -> Step:
    return {
        "errno": name_of(error),
        "rc": -error if error else len(data),
        "sha256": hashlib.sha256(b"" if error else data).hexdigest(),
    }


def _recorded(step: Step) -> Step:
    """What of a recorded step is compared."""
    if step["op"] in ("ioctl_bg",):
        return {}
    recorded = {key: step[key] for key in ("errno", "rc", "sha256", "reply", "revents") if key in step}
    if "written" in step:
        recorded["written"] = expand(step["written"])
        recorded.pop("rc", None)
    elif step["op"] == "join" and step["errno"] in ("ETIMEDOUT", "EINTR"):
        recorded.pop("rc")
    return recorded


def _complete_written(step: Step, outcome: Step, recorded: Step) -> None:
    """Of a program's ioctl only the bytes up to the last one that changed were seen: where ours goes on, it must leave
    the caller's bytes as they were."""
    ours, theirs = outcome.get("written"), recorded.get("written")
    if "nested" in step and step["errno"] != "0" and isinstance(ours, bytes) and isinstance(theirs, bytes):
        request = expand(step["request"])[: len(ours)].ljust(len(ours), b"\0")
        recorded["written"] = theirs + request[len(theirs) :] if len(ours) > len(theirs) else theirs


def _types(step: Step) -> tuple[str, ...]:
    """The target types that a load or a status tells of."""
    command = BY_NAME.get(step.get("cmd", ""))
    if command is None or Payload.TARGET_SPECS not in (command.takes, command.gives) or step.get("errno") != "0":
        return tuple(dict.fromkeys(target[2] for target in step.get("targets") or ()))
    reply = command.gives is Payload.TARGET_SPECS
    if "written" not in step:
        return ()
    message = parse(expand(step["written" if reply else "request"]), command, reply=reply)
    return tuple(dict.fromkeys(spec.type for spec in message.payload or () if isinstance(spec, TargetSpec)))


def _contrast(key: str, ours: object, theirs: object) -> str:
    """How two values differ; of bytes, the lengths and the first run of different bytes."""
    if not (isinstance(ours, bytes) and isinstance(theirs, bytes)):
        return f"{key} {ours!r} instead of {theirs!r}"
    at = next((at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), -1)
    where = f"at {at}: {ours[at : at + 64]!r} instead of {theirs[at : at + 64]!r}" if at >= 0 else "alike so far"
    return f"{key} of {len(ours)} bytes instead of {len(theirs)}, {where}"
