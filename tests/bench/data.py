"""Data path: NBD on a page-cached file, seconds an I/O, against nbdkit file and qemu-nbd.

Who waits for each answer measures how long a CPU that idles takes to wake, which on virtual ones is several times what
answering takes: then all depends on where the scheduler put both ends. So that case is there twice, with everybody free
to run anywhere, and with each contestant on one CPU together with its client, as is a stack of layers and one layer.
There one of both always runs, and what they take of the CPU is the time an I/O takes, without what the machine's other
tenants take. A ratio is the median of those within each round.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import clock_gettime, monotonic

from compare import Report, Row

SIZE = 256 << 20
ROUNDS, MILLISECONDS = 15, 150
DEPTH = 10


@dataclass(frozen=True, slots=True)
class Case:
    """What fio does, and at most how much of each peer's time that may take."""

    name: str
    rw: str
    size: str
    depth: int
    jobs: int
    peers: Mapping[str, float | None]
    #: Each contestant with its client on the same CPU.
    one_cpu: bool = False


_SMALL = {"nbdkit file": 1.0, "qemu-nbd": 0.5}
_LARGE = {"nbdkit file": 1 / 1.5, "qemu-nbd": None}
CASES = (
    Case("4K random read, QD1", "randread", "4k", 1, 1, _SMALL),
    Case("4K random read, QD1, one CPU", "randread", "4k", 1, 1, _SMALL, one_cpu=True),
    Case("4K random read, QD32", "randread", "4k", 32, 1, _SMALL),
    Case("4K random read, 4 x QD8", "randread", "4k", 8, 4, {"nbdkit file": 1 / 0.6, "qemu-nbd": None}),
    Case("1M sequential read, QD1", "read", "1m", 1, 1, _LARGE),
    Case("1M sequential read, QD4", "read", "1m", 4, 1, _LARGE),
    Case("4K random write, QD32", "randwrite", "4k", 32, 1, {"nbdkit file": None, "qemu-nbd": None}),
    *(
        Case(f"{DEPTH} layers, {name}", rw, size, depth, 1, {"one layer": 1.1}, one_cpu=True)
        for name, rw, size, depth in (
            ("4K read, QD1", "randread", "4k", 1),
            ("4K read, QD32", "randread", "4k", 32),
            ("1M read, QD1", "read", "1m", 1),
            ("4K write, QD32", "randwrite", "4k", 32),
        )
    ),
)


def run(report: Report) -> None:
    """One row for each case and peer; ours is one device, or a stack of `DEPTH` where that is compared with one."""
    if missing := [tool for tool in ("fio", "nbdkit", "qemu-nbd") if shutil.which(tool) is None]:
        report.title += f" -- left out: no {', '.join(missing)} here"
        return
    with ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="dm")))
        disk = folder / "disk"
        disk.write_bytes(bytes(range(256)) * (SIZE // 256))
        commands = {
            "nbdkit file": ["nbdkit", "-f", "-U", f"{folder}/kit", "file", str(disk)],
            "qemu-nbd": ["qemu-nbd", "-t", "-e", "16", "-f", "raw", "-k", f"{folder}/qemu", str(disk)],
            "one layer": [sys.executable, __file__, f"{folder}/ours", str(disk)],
        }
        servers: dict[str, subprocess.Popen[bytes]] = {}
        for name, command in commands.items():
            servers[name] = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            exits.callback(_end, servers[name])
        servers[f"{DEPTH} layers"] = servers["one layer"]
        uris = {
            "nbdkit file": f"nbd+unix:///?socket={folder}/kit",
            "qemu-nbd": f"nbd+unix:///?socket={folder}/qemu",
            "one layer": f"nbd+unix:///d1?socket={folder}/ours",
            f"{DEPTH} layers": f"nbd+unix:///d{DEPTH}?socket={folder}/ours",
        }
        for uri in uris.values():
            _wait_for(uri)
        everywhere = sorted(os.sched_getaffinity(0))
        for case in CASES:
            ours = f"{DEPTH} layers" if "one layer" in case.peers else "one layer"
            cpus = everywhere[-1:] if case.one_cpu else everywhere
            for server in servers.values():
                _move(server, cpus)
            times: dict[str, list[float]] = {name: [] for name in (*case.peers, ours)}
            for _ in range(ROUNDS):
                for name, of_one in times.items():
                    of_one.append(_fio(uris[name], servers[name], case, cpus))
            for peer, goal in case.peers.items():
                ratio = median(one / other for one, other in zip(times[ours], times[peer], strict=True))
                report.rows.append(Row(case.name, median(times[ours]), peer, ratio, goal))


def _end(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGINT)
    server.wait()


def _wait_for(uri: str) -> None:
    deadline = monotonic() + 20
    while subprocess.run(["nbdinfo", "--size", uri], capture_output=True).returncode:
        if monotonic() > deadline:
            raise TimeoutError(uri)


def _move(server: subprocess.Popen[bytes], cpus: Sequence[int]) -> None:
    """Let a server run on these CPUs only: its threads, and those that they start for the next connections."""
    for task in os.listdir(f"/proc/{server.pid}/task"):
        os.sched_setaffinity(int(task), cpus)


def _fio(uri: str, server: subprocess.Popen[bytes], case: Case, cpus: Sequence[int]) -> float:
    """Seconds an I/O; where both ends share a CPU, the seconds of it that they took."""
    command = ["fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", f"--rw={case.rw}", f"--bs={case.size}"]
    command += [f"--iodepth={case.depth}", f"--numjobs={case.jobs}", "--group_reporting", "--time_based"]
    command += [f"--runtime={MILLISECONDS}ms", f"--cpus_allowed={','.join(map(str, cpus))}", "--output-format=json"]
    clock = ~server.pid << 3 | 2  # as clock_getcpuclockid(3) makes it
    before = clock_gettime(clock)
    done = subprocess.run(command, capture_output=True, check=True, cwd="/tmp")
    job = json.loads(done.stdout[done.stdout.index(b"{") :])["jobs"][0]
    if not case.one_cpu:
        return 1 / float(job["read"]["iops"] + job["write"]["iops"])
    client = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
    return float(clock_gettime(clock) - before + client) / int(job["read"]["total_ios"] + job["write"]["total_ios"])


def serve(address: str, path: str) -> None:
    """Devices d1 to d10, linear one upon the other, on a file."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from support.stacks import Stack

    from dmserver.io.nbd import NbdServer

    stack = Stack()
    below = stack.file(path)
    number = f"7:{below.dev[1]}"
    for level in range(1, DEPTH + 1):
        dev = stack.device(f"d{level}", (0, below.size, "linear", f"{number} 0"))
        number = f"253:{dev.minor}"
    NbdServer(stack.mapper).start(address)
    signal.sigwait([signal.SIGINT])


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    serve(*sys.argv[1:])
