"""The recorder's machine: what the steps of specs/vectors/linux act on."""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from support.linux_vectors import expand
from support.stacks import pattern
from support.targets import ManualWork

from dmproto.commands import BY_NAME
from dmproto.wire import SECTOR_SIZE
from dmserver.control.linux import LinuxControl
from dmserver.control.session import Cancel, Session
from dmserver.io.bio import Bio, Op
from dmserver.io.blockdev import BlockDevice
from dmserver.io.disk import Disk
from dmserver.model.dm_dev import DmDev
from dmserver.model.mapper import Mapper
from dmserver.targets.registry import TargetRegistry

__all__ = ["LinuxMachine", "Step"]

Step = dict[str, Any]


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


class LinuxMachine:
    """A fresh device-mapper with the recorder's disks, and the open files of the recording.

    `do` a step gives what came of it, in the recording's keys. Time stands still but for `sleep` and `join`, and for
    I/O that would wait for ever otherwise.
    """

    def __init__(self) -> None:
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

    def _add_disk(self, major: int, minor: int, path: str, megabytes: int) -> None:
        disk = Disk(path, (major, minor), f"ram:{megabytes}M")
        disk.limits.discard = disk.limits.write_zeroes = major == 7
        disk.limits.discard_granularity = 4096 if major == 7 else 0
        disk.limits.physical_block_size = 4096 if major == 1 else 512
        self.mapper.disks.add(disk)
        self.disks[f"{major}:{minor}"] = disk

    # -- steps ------------------------------------------------------------------------------------------

    def do(self, step: Step) -> Step:
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
