"""Server: its CPU a request, against an echo of the same bytes in C and in Python; its memory an idle connection.

Each contestant is a process of its own, and its time is what the scheduler says it ran. The echoes read and write,
nothing else; the one in asyncio is what an ordinary server costs before it does anything.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from compare import Report, Row

from dmproto import linux, proplib
from dmproto.commands import BY_NAME
from dmproto.records import Header, Message
from dmproto.stream import binary_request

ROUNDS, REQUESTS = 7, 2000
IDLE = 1000

ECHO_C = r"""
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    static char buf[65536];
    struct sockaddr_un addr = {AF_UNIX};
    struct epoll_event event = {EPOLLIN}, events[64];
    int epoll = epoll_create1(0), listener = socket(AF_UNIX, SOCK_STREAM, 0);
    strcpy(addr.sun_path, argv[1]);
    bind(listener, (struct sockaddr *)&addr, sizeof addr);
    listen(listener, 100);
    event.data.fd = listener;
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    write(1, "ready\n", 6);
    for (;;)
        for (int n = epoll_wait(epoll, events, 64, -1), i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                event.data.fd = accept(listener, 0, 0);
                epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event);
                continue;
            }
            long size = read(fd, buf, sizeof buf);
            if (size <= 0) close(fd);
            else write(fd, buf, size);
        }
}
"""

ECHO_ASYNCIO = """
import asyncio, sys
async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
async def main():
    server = await asyncio.start_unix_server(echo, sys.argv[1])
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def requests() -> dict[str, tuple[bytes, float | None]]:
    """Name: (request, goal of the ratio to the C echo)."""

    def binary(word: str, **fields: str) -> bytes:
        header = Header(version=(4, 0, 0), **fields)  # type: ignore[arg-type]
        return binary_request(BY_NAME[word].ioctl, linux.build(Message(command=BY_NAME[word], header=header, size=312)))

    def plist(command: str, **keys: str) -> bytes:
        return proplib.dumps({"command": command, "version": [4, 0, 0], **keys})

    return {
        "binary DM_VERSION": (binary("VERSION"), 2.5),
        "binary DM_DEV_STATUS": (binary("DEV_STATUS", name="vol1"), 2.5),
        "plist version": (plist("version"), None),
        "plist info": (plist("info", name="vol1"), None),
        "plist table": (plist("table", name="vol1"), None),
    }


def run(report: Report) -> None:
    """One row for each request and peer, alone and 16 at once; then the memory of idle connections."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dm")))
        server = stack.enter_context(
            Contestant.start(folder / "s", sys.executable, "-m", "dmserver", "serve", "--socket")
        )
        peers = {
            "asyncio echo": stack.enter_context(Contestant.start(folder / "a", sys.executable, "-c", ECHO_ASYNCIO))
        }
        if (compiler := shutil.which("cc") or shutil.which("gcc")) is not None:
            program = folder / "echo"
            subprocess.run([compiler, "-O2", "-w", "-x", "c", "-o", program, "-"], input=ECHO_C, text=True, check=True)
            peers["C echo"] = stack.enter_context(Contestant.start(folder / "e", str(program)))
        server.exchange(proplib.dumps({"command": "create", "version": [4, 0, 0], "name": "vol1"}), 1)
        for depth in (1, 16):
            for name, (request, goal) in requests().items():
                case = name if depth == 1 else f"{name}, {depth} at once"
                _compare(report, case, request, depth, server, peers, goal if depth == 1 else None)
        _idle(report, server)


class Contestant:
    """A server in a process of its own, with one connection to it."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self.pid = process.pid
        self.path = path
        self.connection = self.connect()

    @classmethod
    @contextmanager
    def start(cls, path: Path, *command: str) -> Iterator[Contestant]:
        process = subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        contestant = cls(process, path)
        try:
            yield contestant
        finally:
            contestant.connection.close()
            process.terminate()
            process.communicate()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.path))
        return connection

    def exchange(self, request: bytes, times: int, size: int = 0) -> int:
        """Send it so many times and await `size` bytes each time; without a size, whatever comes at once."""
        send, receive = self.connection.sendall, self.connection.recv
        for _ in range(times):
            send(request)
            got = len(receive(1 << 20))
            while got < size:
                got += len(receive(1 << 20))
        return got

    def reply_size(self, request: bytes) -> int:
        with self.connect() as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return sum(map(len, iter(lambda: connection.recv(1 << 20), b"")))

    def ran(self) -> float:
        """Seconds of CPU so far."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    def resident(self) -> int:
        """Bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4096


def _compare(
    report: Report,
    case: str,
    request: bytes,
    depth: int,
    server: Contestant,
    peers: dict[str, Contestant],
    goal: float | None,
) -> None:
    contestants: dict[str, tuple[Contestant, int]] = {"dmserver": (server, server.reply_size(request) * depth)}
    contestants |= {name: (peer, len(request) * depth) for name, peer in peers.items()}
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    times = REQUESTS // depth
    for _ in range(ROUNDS):
        for name, (contestant, size) in contestants.items():
            before = contestant.ran()
            contestant.exchange(request * depth, times, size)
            spent[name].append((contestant.ran() - before) / (times * depth))
    medians = {name: median(seconds) for name, seconds in spent.items()}
    for name in peers:
        report.add(case, medians, "dmserver", [name], goal if name == "C echo" else None)


def _idle(report: Report, server: Contestant) -> None:
    """Kilobytes of an idle connection that has been used; the goal is 1 KiB."""
    request = proplib.dumps({"command": "version", "version": [4, 0, 0]})
    server.exchange(request, 100)
    before = server.resident()
    connections = [server.connect() for _ in range(IDLE)]
    for connection in connections:
        connection.sendall(request)
        connection.recv(1 << 16)
    kilobytes = (server.resident() - before) / IDLE / 1024
    for connection in connections:
        connection.close()
    report.rows.append(Row(f"idle connection, {kilobytes:.2f} KiB", 0.0, "1 KiB", kilobytes, 1.0))
