"""Data path: NBD on a page-cached file, seconds an I/O, against nbdkit file and qemu-nbd."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import monotonic

from compare import Report

SIZE = 256 << 20
ROUNDS, MILLISECONDS = 5, 600
DEPTH = 10

#: case: (fio's rw, block size, queue depth, jobs, {peer: at most so much of its time})
CASES: dict[str, tuple[str, str, int, int, dict[str, float | None]]] = {
    "4K random read, QD1": ("randread", "4k", 1, 1, {"nbdkit file": 1.0, "qemu-nbd": 0.5}),
    "4K random read, QD32": ("randread", "4k", 32, 1, {"nbdkit file": 1.0, "qemu-nbd": 0.5}),
    "4K random read, 4 x QD8": ("randread", "4k", 8, 4, {"nbdkit file": 1 / 0.6, "qemu-nbd": None}),
    "1M sequential read, QD1": ("read", "1m", 1, 1, {"nbdkit file": 1 / 1.5, "qemu-nbd": None}),
    "1M sequential read, QD4": ("read", "1m", 4, 1, {"nbdkit file": 1 / 1.5, "qemu-nbd": None}),
    "4K random write, QD32": ("randwrite", "4k", 32, 1, {"nbdkit file": None, "qemu-nbd": None}),
}


def run(report: Report) -> None:
    """One row for each case and peer, and for each case the cost of a stack of `DEPTH` devices."""
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
            "ours": [sys.executable, __file__, f"{folder}/ours", str(disk)],
        }
        for command in commands.values():
            exits.callback(_end, subprocess.Popen(command, stdout=subprocess.DEVNULL))
        uris = {
            "nbdkit file": f"nbd+unix:///?socket={folder}/kit",
            "qemu-nbd": f"nbd+unix:///?socket={folder}/qemu",
            "one layer": f"nbd+unix:///d1?socket={folder}/ours",
            f"{DEPTH} layers": f"nbd+unix:///d{DEPTH}?socket={folder}/ours",
        }
        for uri in uris.values():
            _wait_for(uri)
        for case, (rw, size, depth, jobs, peers) in CASES.items():
            times: dict[str, list[float]] = {name: [] for name in uris}
            for _ in range(ROUNDS):
                for name, uri in uris.items():
                    times[name].append(_fio(uri, rw, size, depth, jobs))
            medians = {name: median(of_one) for name, of_one in times.items()}
            for peer, goal in peers.items():
                report.add(case, medians, "one layer", [peer], goal)
            report.add(case, medians, f"{DEPTH} layers", ["one layer"], 1.1)


def _end(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGINT)
    server.wait()


def _wait_for(uri: str) -> None:
    deadline = monotonic() + 20
    while subprocess.run(["nbdinfo", "--size", uri], capture_output=True).returncode:
        if monotonic() > deadline:
            raise TimeoutError(uri)


def _fio(uri: str, rw: str, size: str, depth: int, jobs: int) -> float:
    """Seconds an I/O."""
    command = ["fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", f"--rw={rw}", f"--bs={size}"]
    command += [f"--iodepth={depth}", f"--numjobs={jobs}", "--group_reporting", "--time_based"]
    command += [f"--runtime={MILLISECONDS}ms", "--output-format=json"]
    done = subprocess.run(command, capture_output=True, check=True, cwd="/tmp")
    job = json.loads(done.stdout[done.stdout.index(b"{") :])["jobs"][0]
    return 1 / float(job["read"]["iops"] + job["write"]["iops"])


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
