"""Linux's control: CPU a request beside echoes at many connections; long lists; commands among many devices.

The echoes send back the bytes they get. The asyncio server gives the requests to the same handler as dmserver, over
asyncio's streams. A list is compared to packing its records with struct, their lengths known.
"""

from __future__ import annotations

import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from struct import Struct

from compare import Report, interleave
from server import ECHO_C, Contestant

from dmproto import linux
from dmproto.commands import BY_NAME
from dmproto.records import Header, Message, Payloads, TargetSpec
from dmproto.stream import binary_request
from dmserver.control.linux import LinuxControl
from dmserver.control.session import Session
from dmserver.model.mapper import Mapper
from dmserver.targets.registry import TargetRegistry

CONNECTIONS = (100, 1000)
REQUESTS, ROUNDS = 4000, 7
MANY = 100_000

HANDLER_ON_STREAMS = """
import asyncio, struct, sys
from dmproto.commands import BY_NAME
from dmproto.linux import build
from dmproto.records import Header, Message
from dmserver.host import Host
host = Host()
create = build(Message(command=BY_NAME["DEV_CREATE"], header=Header(name="vol1")))
host.ioctl(host.open(), BY_NAME["DEV_CREATE"].ioctl, create, lambda *answer: None)
async def serve(reader, writer):
    session = host.open()
    while True:
        head = await reader.readexactly(12)
        _, number, size = struct.unpack("<4sII", head)
        buffer = await reader.readexactly(size)
        def done(result, written):
            writer.write(b"DMIO" + struct.pack("<iI", result, len(written)) + written)
        host.ioctl(session, number, buffer, done)
        await writer.drain()
async def main():
    server = await asyncio.start_unix_server(serve, sys.argv[1], backlog=1000)
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def run(report: Report) -> None:
    _requests(report)
    _long_list(report)
    _among_many(report)


# -- requests -----------------------------------------------------------------------------------------------


def _request(word: str, **fields: str) -> bytes:
    header = Header(version=(4, 0, 0), **fields)  # type: ignore[arg-type]
    return binary_request(BY_NAME[word].ioctl, linux.build(Message(command=BY_NAME[word], header=header, size=312)))


def _requests(report: Report) -> None:
    """CPU a request of the server, with every connection taking its turn."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dm")))
        commands = {
            "dmserver": (sys.executable, "-m", "dmserver", "serve", "--socket"),
            "asyncio streams": (sys.executable, "-c", HANDLER_ON_STREAMS),
        }
        if (compiler := shutil.which("cc") or shutil.which("gcc")) is not None:
            program = folder / "echo"
            subprocess.run([compiler, "-O2", "-w", "-x", "c", "-o", program, "-"], input=ECHO_C, text=True, check=True)
            commands["C echo"] = (str(program),)
        contestants = {
            name: stack.enter_context(Contestant.start(folder / str(at), *command))
            for at, (name, command) in enumerate(commands.items())
        }
        contestants["dmserver"].exchange(_request("DEV_CREATE", name="vol1"), 1)
        for word, fields in (("VERSION", {}), ("DEV_STATUS", {"name": "vol1"})):
            for count in CONNECTIONS:
                medians = _cpu(contestants, _request(word, **fields), count)
                report.add(
                    f"DM_{word}, {count} connections", medians, "dmserver", ["C echo"] * ("C echo" in medians), 2.5
                )
                report.add(f"DM_{word}, {count} connections", medians, "dmserver", ["asyncio streams"], 0.5)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _cpu(contestants: dict[str, Contestant], request: bytes, count: int) -> dict[str, float]:
    connections = {name: [each.connect() for _ in range(count)] for name, each in contestants.items()}
    sizes = {name: _reply_size(connections[name][0], request) for name in contestants}
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    turns = REQUESTS // count
    for _ in range(ROUNDS):
        for name, contestant in contestants.items():
            before = contestant.ran()
            for _ in range(turns):
                _turn(connections[name], request, sizes[name])
            spent[name].append((contestant.ran() - before) / (turns * count))
    for opened in connections.values():
        for connection in opened:
            connection.close()
    return {name: median(seconds) for name, seconds in spent.items()}


def _reply_size(connection: socket.socket, request: bytes) -> int:
    connection.sendall(request)
    return len(connection.recv(1 << 16))


def _turn(connections: list[socket.socket], request: bytes, size: int) -> None:
    for connection in connections:
        connection.sendall(request)
    for connection in connections:
        got = 0
        while got < size:
            got += len(connection.recv(1 << 16))


# -- in this process ----------------------------------------------------------------------------------------


class _Client:
    """A control node on a device-mapper with so many devices."""

    def __init__(self, devices: int) -> None:
        self.control = LinuxControl(Mapper(), TargetRegistry.installed())
        self.session = Session()
        for number in range(devices):
            self.control.mapper.create(f"device-{number:06}", f"LVM-{number:032}")

    def do(self, word: str, payload: Payloads = None, size: int = 0, **fields: str | int) -> Callable[[], bytes]:
        """A command that may be given again and again; it returns what is written back."""
        row = BY_NAME[word]
        header = Header(version=(4, 0, 0), **fields)  # type: ignore[arg-type]
        request = linux.build(Message(command=row, header=header, payload=payload, size=size))

        def call() -> bytes:
            written: list[bytes] = []
            self.control.ioctl(self.session, row.ioctl, request, lambda result, reply: written.append(reply))
            return written[0]

        return call


def _long_list(report: Report) -> None:
    client = _Client(MANY)
    devices = client.control.mapper.sorted_by_name()
    pack = Struct("<QI16s4xII").pack

    def by_hand() -> bytes:
        return b"".join([pack(device.devt, 40, device.name_bytes, device.event_nr, 0) for device in devices])

    contestants = {"list": client.do("LIST_DEVICES", size=312 + 40 * MANY), "struct by hand": by_hand}
    medians = interleave(contestants, seconds=4, rounds=5)
    report.add(f"LIST_DEVICES of {MANY}", medians, "list", ["struct by hand"], 3)


def _among_many(report: Report) -> None:
    """create, load, resume and remove, beside how many devices there are."""

    def lifecycle(devices: int) -> Callable[[], object]:
        client = _Client(devices)
        table = (TargetSpec(start=0, length=8, type="zero"),)
        steps = [
            client.do("DEV_CREATE", name="device-0500005"),
            client.do("TABLE_LOAD", table, name="device-0500005"),
            client.do("DEV_SUSPEND", name="device-0500005"),
            client.do("DEV_REMOVE", name="device-0500005"),
        ]
        return lambda: [step() for step in steps]

    medians = interleave({"many": lifecycle(MANY), "ten": lifecycle(10)}, seconds=4, rounds=15)
    report.add(f"create..remove among {MANY}", medians, "many", ["ten"], 1.5)
