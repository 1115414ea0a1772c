"""Server: its CPU a request, and its memory an idle connection.

Peers are an echo of the same bytes in C, which is what the system calls cost, and the same handlers on asyncio's
streams. Each contestant is a process of its own with as many connections, and its time is what the scheduler says it
ran. A crowd's requests are all sent before the first reply is read. A "fresh" request is unlike those before it, so
the server has to work out its answer (dmserver/answers.py).
"""

from __future__ import annotations

import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

from compare import Report, Row

from dmproto import linux, proplib
from dmproto.commands import BY_NAME
from dmproto.records import Header, Message
from dmproto.stream import binary_request

ROUNDS, REQUESTS = 7, 2000
CROWD = 1000

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

ASYNCIO = """
import asyncio, struct, sys
from dmproto import proplib
from dmserver.answers import Answers
from dmserver.host import Host
host = Host()
answers = Answers(host.mapper, host.quick)
async def serve(reader, writer):
    session = host.open()
    def done(result, written):
        writer.write(b"DMIO" + struct.pack("<iI", result, len(written)) + written)
    while True:
        try:
            head = await reader.readexactly(12)
        except asyncio.IncompleteReadError:
            break
        magic, number, size = struct.unpack("<4sII", head)
        if magic == b"DMIO":
            buffer = await reader.readexactly(size)
            reply = answers.get(head + buffer) or answers.find(session, number, buffer, head + buffer)
            if reply is None:
                host.ioctl(session, number, buffer, done)
            else:
                writer.write(reply)
        else:
            request = proplib.loads(head + await reader.readuntil(b"</plist>\\n"), flavour="kernel")
            host.dictionary(session, request, lambda reply: writer.write(proplib.dumps(reply)))
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_unix_server(serve, sys.argv[1])
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def requests() -> dict[str, tuple[list[bytes], float | None]]:
    """Name: (requests to be sent in turn, goal of the ratio to the C echo)."""

    def binary(word: str, **fields: Any) -> bytes:
        header = Header(version=(4, 0, 0), **fields)
        return binary_request(BY_NAME[word].ioctl, linux.build(Message(command=BY_NAME[word], header=header, size=312)))

    def plist(command: str, **keys: str) -> bytes:
        return proplib.dumps({"command": command, "version": [4, 0, 0], **keys})

    return {
        "binary DM_VERSION": ([binary("VERSION")], 2.5),
        "binary DM_DEV_STATUS": ([binary("DEV_STATUS", name="vol1")], 2.5),
        "fresh DM_DEV_STATUS": ([binary("DEV_STATUS", name="vol1", event_nr=number) for number in range(4096)], None),
        "plist version": ([plist("version")], None),
        "plist info": ([plist("info", name="vol1")], None),
        "plist table": ([plist("table", name="vol1")], None),
    }


def run(report: Report) -> None:
    """The memory of idle connections, then one row for each request and peer: one client, a crowd, 16 at once."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dm")))
        server = stack.enter_context(
            Contestant.start(folder / "s", sys.executable, "-P", "-m", "dmserver", "serve", "--socket")
        )
        peers = {"asyncio streams": stack.enter_context(Contestant.start(folder / "a", sys.executable, "-c", ASYNCIO))}
        if (compiler := shutil.which("cc") or shutil.which("gcc")) is not None:
            program = folder / "echo"
            subprocess.run([compiler, "-O2", "-w", "-x", "c", "-o", program, "-"], input=ECHO_C, text=True, check=True)
            peers["C echo"] = stack.enter_context(Contestant.start(folder / "e", str(program)))
        contestants = {"dmserver": server, **peers}
        _idle(report, server)
        for contestant in contestants.values():
            contestant.crowd(CROWD)
            if contestant is not peers.get("C echo"):
                contestant.exchange(proplib.dumps({"command": "create", "version": [4, 0, 0], "name": "vol1"}))
        for name, (messages, goal) in requests().items():
            for clients, depth in ((1, 1), (100, 1), (CROWD, 1), (1, 16)):
                case = (
                    name + (f", {clients} clients" if clients > 1 else "") + (f", {depth} at once" if depth > 1 else "")
                )
                goals = {"C echo": goal, "asyncio streams": goal and 0.5} if clients > 1 else {}
                _compare(report, case, messages, clients, depth, contestants, goals)


class Contestant:
    """A server in a process of its own, with some connections to it."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self.pid = process.pid
        self.path = path
        self.connections = [self.connect()]

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
            for connection in contestant.connections:
                connection.close()
            process.terminate()
            process.communicate()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.path))
        return connection

    def crowd(self, clients: int) -> None:
        """Have so many connections."""
        self.connections += [self.connect() for _ in range(clients - len(self.connections))]

    def exchange(self, request: bytes) -> None:
        """Send it on all connections and await whatever comes."""
        for connection in self.connections:
            connection.sendall(request)
        for connection in self.connections:
            connection.recv(1 << 20)

    def repeat(self, sent: Iterator[bytes], times: int, size: int, clients: int) -> None:
        """So many clients send the next each, and await `size` bytes, so many times."""
        connections = self.connections[:clients]
        for _ in range(times):
            for connection in connections:
                connection.sendall(next(sent))
            for connection in connections:
                got = len(connection.recv(1 << 20))
                while got < size:
                    got += len(connection.recv(1 << 20))

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
    messages: list[bytes],
    clients: int,
    depth: int,
    contestants: dict[str, Contestant],
    goals: dict[str, float | None],
) -> None:
    sizes = {name: contestant.reply_size(messages[0]) * depth for name, contestant in contestants.items()}
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    times = max(1, REQUESTS // depth // clients)
    sent = cycle([message * depth for message in messages])
    for _ in range(ROUNDS):
        for name, contestant in contestants.items():
            before = contestant.ran()
            contestant.repeat(sent, times, sizes[name], clients)
            spent[name].append((contestant.ran() - before) / (times * depth * clients))
    medians = {name: median(seconds) for name, seconds in spent.items()}
    for peer in list(contestants)[1:]:
        report.add(case, medians, "dmserver", [peer], goals.get(peer))


def _idle(report: Report, server: Contestant) -> None:
    """Kilobytes of an idle connection that has been used; the goal is 1 KiB."""
    request = proplib.dumps({"command": "version", "version": [4, 0, 0]})
    for _ in range(100):
        server.exchange(request)
    before = server.resident()
    server.crowd(CROWD)
    server.exchange(request)
    kilobytes = (server.resident() - before) / CROWD / 1024
    report.rows.append(Row(f"idle connection, {kilobytes:.2f} KiB", 0.0, "1 KiB", kilobytes, 1.0))
