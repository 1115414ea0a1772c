"""`dmserver serve`, as a program: start, stop, and what a service manager expects; a recorded dmsetup end to end."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from subprocess import Popen

import pytest
from support.serving import program, short_directory

from dmproto import proplib
from dmproto.stream import PlistMessage
from dmserver.client import Client, CommandError
from dmserver.serve import inherited, listen

RECORDED = Path(__file__).parents[2] / "specs/vectors/linux"


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


def ready(process: Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_it_is_ready_and_leaves_nothing_behind(directory: Path, number: signal.Signals) -> None:
    path = directory / "s"
    with program("--socket", str(path)) as process:
        assert ready(process) == f"ready: {path}\n"
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with Client(str(path)) as client:
            client.create("a")
            process.send_signal(number)
            assert process.wait(30) == 0
    assert os.listdir(directory) == []


def test_a_waiting_client_is_answered_when_the_server_stops(directory: Path) -> None:
    path = str(directory / "s")
    with program("--socket", path) as process:
        ready(process)
        with Client(path) as client, Client(path) as other:
            client.create("a")
            client._socket.sendall(proplib.dumps({"command": "waitevent", "name": "a"}))
            assert other.names() == [("a", 0)]
            process.send_signal(signal.SIGTERM)
            message = client._receive()
            assert isinstance(message, PlistMessage)
            reply = proplib.loads(message.data)
            assert isinstance(reply, dict)
            assert reply["errno"] == errno.EINTR


def test_the_socket_of_a_dead_server_is_replaced_a_live_one_is_not(directory: Path) -> None:
    path = directory / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with program("--socket", str(path)) as process:
        assert ready(process) == f"ready: {path}\n"
        with program("--socket", str(path)) as second:
            assert second.wait(30) == 1
            assert second.stderr is not None
            assert second.stderr.read() == f"dmserver serve: {path}: in use by another server, or no socket\n"
        with Client(str(path)) as client:
            assert client.names() == []


def test_a_server_that_may_not_start_leaves_the_others_state_alone(directory: Path) -> None:
    arguments = ["--socket", str(directory / "s"), "--state", str(directory / "state")]
    with program(*arguments, "--pdev", "/dev/ram0=ram:1M") as process:
        ready(process)
        with Client(str(directory / "s")) as client:
            client.create("a")
            client.reload("a", [(0, 8, "linear", "/dev/ram0 0")])
        before = (directory / "state").read_bytes()
        with program(*arguments) as second:
            assert second.wait(30) == 1
        assert (directory / "state").read_bytes() == before


def test_a_path_too_long_for_a_socket_is_refused(directory: Path) -> None:
    with pytest.raises(OSError, match="AF_UNIX path too long") as refused:
        listen(str(directory / ("s" * 200)), everyone=False)
    assert refused.value.errno == errno.ENAMETOOLONG


def test_a_socket_whose_backlog_is_full_is_alive(directory: Path) -> None:
    path = directory / "s"
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as stack:
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(2):
            peer = stack.enter_context(socket.socket(socket.AF_UNIX))
            peer.setblocking(False)
            with suppress(BlockingIOError):
                peer.connect(str(path))
        with pytest.raises(OSError, match="in use"):
            listen(str(path), everyone=False)


def test_another_servers_socket_at_the_same_place_is_left_alone(directory: Path) -> None:
    path = directory / "s"
    with program("--socket", str(path)) as process:
        ready(process)
        path.unlink()
        (directory / "s.bridge").unlink()
        path.write_text("another's")
        process.terminate()
        assert process.wait(30) == 0
    assert path.read_text() == "another's"


@pytest.mark.parametrize(("options", "mode"), [([], 0o600), (["--allow-read-uid", "1"], 0o666)])
def test_who_may_open_the_sockets(directory: Path, options: list[str], mode: int) -> None:
    with program("--socket", str(directory / "s"), *options) as process:
        ready(process)
        assert stat.S_IMODE((directory / "s").stat().st_mode) == mode
        assert stat.S_IMODE((directory / "s.bridge").stat().st_mode) == 0o600


def test_names_cannot_forge_lines_of_the_log(directory: Path) -> None:
    path = str(directory / "s")
    name = "a\n2026-01-01 00:00:00 INFO dmserver forged\x1b[2J"
    with program("--socket", path, "-v", "--personality", "linux") as process:
        ready(process)
        with Client(path) as client:
            client.create(name)
            client.create("b")
            with pytest.raises(CommandError):
                client.rename("b", name)
        process.terminate()
        assert process.stderr is not None
        log = process.stderr.read()
    assert "Unable to change name" in log
    assert "\n2026-01-01 00:00:00" not in log
    assert "\x1b" not in log


def test_more_clients_than_there_are_descriptors(directory: Path) -> None:
    path = str(directory / "s")
    with program("--socket", path) as process, ExitStack() as stack:
        ready(process)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (32, 32))
        first = stack.enter_context(Client(path))
        assert first.names() == []
        many = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(100)]
        for peer in many:
            peer.connect(path)
        assert first.names() == []
        for peer in many:
            peer.close()
        assert stack.enter_context(Client(path)).names() == []


def test_a_file_that_is_no_socket_is_left_alone(directory: Path) -> None:
    path = directory / "s"
    path.write_text("precious")
    with program("--socket", str(path)) as process:
        assert process.wait(30) == 1
    assert path.read_text() == "precious"


def test_a_service_managers_socket_is_used_and_the_manager_is_told(directory: Path) -> None:
    path, notes = directory / "s", directory / "n"
    start = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid());"
        "os.execv(sys.executable, [sys.executable, '-m', 'dmserver', 'serve'])"
    )
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        listener.bind(str(path))
        listener.listen()
        manager.bind(str(notes))
        manager.settimeout(30)
        process = Popen(
            [sys.executable, "-c", start, str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,
            env={**os.environ, "LISTEN_FDS": "1", "NOTIFY_SOCKET": str(notes)},
            text=True,
        )
        with process:
            assert manager.recv(100) == b"READY=1"
            assert ready(process) == f"ready: {path}\n"
            with Client(str(path)) as client:
                client.create("a")
            process.terminate()
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(30) == 0
    assert path.exists()


@pytest.mark.parametrize("count", ["2", "x"])
def test_a_service_manager_passes_one_socket(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(ValueError, match=f"LISTEN_FDS: expected one socket, got '{count}'"):
        inherited()


def test_two_servers_do_not_share_a_state(directory: Path) -> None:
    state = ["--state", str(directory / "state")]
    with program("--socket", str(directory / "a"), *state) as process:
        ready(process)
        with program("--socket", str(directory / "b"), *state) as second:
            assert second.wait(30) == 1
            assert second.stderr is not None
            assert "another server keeps its state there" in second.stderr.read()


def test_the_state_survives_even_a_kill(directory: Path) -> None:
    arguments = ["--socket", str(directory / "s"), "--state", str(directory / "state"), "--pdev", "/dev/ram0=ram:1M"]
    with program(*arguments) as process:
        ready(process)
        with Client(str(directory / "s")) as client:
            client.create("a", "U-1")
            client.reload("a", [(0, 8, "linear", "/dev/ram0 0")])
            client.resume("a")
            process.kill()
            process.wait(30)
    with program(*arguments) as process:
        ready(process)
        with Client(str(directory / "s")) as client:
            assert client.table("a") == [(0, 8, "linear", "1:0 0")]
            assert client.info("a")["uuid"] == "U-1"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--pdev", "nonsense"], "pdev 'nonsense': expected /DEVICE=BACKING"),
        (["--pdev", "/dev/a=/nowhere"], "dmserver serve: /nowhere: No such file or directory\n"),
        (["--nbd", "tcp:nonsense"], "NBD address 'tcp:nonsense'"),
        (["--nbd", "tcp:127.0.0.1:65536"], "NBD address 'tcp:127.0.0.1:65536'"),
    ],
)
def test_a_bad_argument_is_told(directory: Path, arguments: list[str], complaint: str) -> None:
    with program("--socket", str(directory / "s"), *arguments) as process:
        assert process.wait(30) == 1
        assert process.stderr is not None
        assert complaint in process.stderr.read()
    assert os.listdir(directory) == []


def test_verbose_logs_hold_no_parameters(directory: Path) -> None:
    with program("--socket", str(directory / "s"), "-v") as process:
        ready(process)
        with Client(str(directory / "s")) as client:
            client.create("a")
            with pytest.raises(CommandError):
                client.reload("a", [(0, 8, "linear", "00112233445566778899aabbccddeeff")])
        process.terminate()
        _, log = process.communicate(timeout=30)
    assert "'name': 'a'" in log
    assert "00112233" not in log


def recorded_load() -> bytes:
    """The buffer of a TABLE_LOAD as a recorded dmsetup sent it."""
    for line in (RECORDED / "dmsetup_basic.jsonl").read_text().splitlines():
        for call in json.loads(line).get("ioctls", ()):
            if call["cmd"] in ("TABLE_LOAD", "DM_TABLE_LOAD") and call["errno"] == "0":
                return unpacked(call["request"])
    raise LookupError("no TABLE_LOAD in the recording")


def unpacked(text: str) -> bytes:
    """`HEX*N:XX` is HEX followed by N bytes of value XX."""
    head, star, tail = text.partition("*")
    if not star:
        return bytes.fromhex(head)
    count, _, byte = tail.partition(":")
    return bytes.fromhex(head) + bytes.fromhex(byte) * int(count)


@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")
def test_a_recorded_dmsetup_ends_up_in_a_table(directory: Path) -> None:
    """From a captured buffer to a device: convert it, send the dictionary with socat, look at it with dmctl."""
    path = str(directory / "s")

    def dmctl(*argv: str) -> str:
        command = [sys.executable, "-m", "dmserver.dmctl", "--socket", path, *argv]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    (directory / "load.bin").write_bytes(recorded_load())
    convert = [sys.executable, "-m", "dmproto", "convert", "--to", "plist", "--command", "TABLE_LOAD"]
    text = subprocess.run([*convert, str(directory / "load.bin")], capture_output=True, check=True, timeout=30).stdout
    request = proplib.loads(text)
    assert isinstance(request, dict)
    assert request["command"] == "reload"
    assert request["minor"] == 0
    entries = [entry for entry in request["cmd_data"] if isinstance(entry, dict)]

    with program(
        "--socket", path, "--pdev", "/dev/ram0=ram:8M,dev=1:0", "--pdev", "/dev/ram1=ram:8M,dev=1:1"
    ) as server:
        ready(server)
        name = "from-linux"
        dmctl("create", name)
        sent = subprocess.run(["socat", "-", f"UNIX-CONNECT:{path}"], input=text, capture_output=True, timeout=30)
        reply = proplib.loads(sent.stdout)
        assert isinstance(reply, dict)
        assert "errno" not in reply, reply.get("error")
        dmctl("resume", name)
        table = dmctl("table", name).splitlines()[1:]
        assert table == [f"{entry['start']:10d} {entry['length']:10d} {entry['type']}" for entry in entries]
        uses = sum(entry["type"] == "linear" for entry in entries)
        assert dmctl("deps", name).count("major: 1 minor:") == 1
        assert dmctl("pdevs").split() == ["1:0", str(uses), "16384", "/dev/ram0"]
        dmctl("remove", name)
        assert dmctl("pdevs") == ""
        assert dmctl("ls") == ""


@pytest.mark.skipif(shutil.which("dmsetup") is None, reason="dmsetup is not installed")
def test_a_program_joins_the_server(directory: Path) -> None:
    path = str(directory / "s")

    def dmsetup(*argv: str) -> str:
        command = [sys.executable, "-m", "dmserver", "run", "--socket", path, "--", "dmsetup", *argv]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    with program("--socket", path, "--pdev", "/dev/ram0=ram:1M") as server:
        ready(server)
        dmsetup("create", "a", "--table", "0 8 linear /dev/ram0 0")
        with Client(path) as client:
            assert client.table("a") == [(0, 8, "linear", "1:0 0")]
            client.create("b")
        assert dmsetup("ls").split() == ["a", "(253:0)", "b", "(253:1)"]
    assert os.listdir(directory) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")
@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")
def test_other_users_get_what_they_are_allowed(directory: Path) -> None:
    admin, reader, stranger = 65531, 65532, 65533
    path = str(directory / "s")
    directory.chmod(0o755)

    def ask(uid: int, command: str) -> object:
        request = proplib.dumps({"command": command, "version": [4, 0, 0], "name": "a"})
        sent = subprocess.run(
            ["socat", "-", f"UNIX-CONNECT:{path}"], input=request, capture_output=True, timeout=30, user=uid
        )
        reply = proplib.loads(sent.stdout) if sent.stdout else {"errno": None}
        assert isinstance(reply, dict)
        return reply.get("errno", 0)

    with program("--socket", path, "--allow-uid", str(admin), "--allow-read-uid", str(reader)) as server:
        ready(server)
        assert [ask(reader, "create"), ask(admin, "create"), ask(reader, "info")] == [errno.EPERM, 0, 0]
        assert ask(stranger, "info") is None
