"""`dmserver run`: exit status, signals, refusals, joining a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dmserver.client import Client
from dmserver.testing import PrivateServer

TOOL = [sys.executable, "-m", "dmserver", "run"]

#: What takes long to import, and rooms that only programs with devices need.
DEAR = {
    "dmserver.io.partition",
    *("construct", "dataclasses", "inspect", "json", "logging", "traceback"),
    *("dmproto.linux", "dmproto.proplib", "dmproto.records"),
    *("dmserver.bridge.blockioctl", "dmserver.bridge.join", "dmserver.control.linux_table", "dmserver.control.netbsd"),
    "dmserver.io.mapped",
    *("dmserver.model.dm_dev", "dmserver.model.dm_target", "dmserver.serve", "dmserver.server"),
}


def run(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TOOL, *argv], capture_output=True, text=True, check=False, timeout=60, **options)


def test_a_table_names_a_file_of_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    script = "dmsetup create vol --table '0 2048 linear disk.img 0' && dmsetup table && ls /dev/mapper"
    done = run("--", "sh", "-c", script, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("vol: 0 2048 linear 7:0 0\ncontrol\nvol\n", "")


def test_a_short_run_imports_little() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *TOOL[1:], "--", "dmsetup", "version"], capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "dmserver.bridge.bridge" in imported
    assert not imported & DEAR


def test_the_kernels_devices_of_the_same_numbers_are_hidden(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    script = """ls -R /dev/disk; find /dev -type b -exec stat -c '%Hr:%Lr %n' {} + | grep ^7:0
    ls /sys/dev/block/7:0/slaves; grep -lx 7:0 /sys/block/*/dev"""
    done = run("--pdev", f"/dev/disk/by-id/x={tmp_path}/disk.img", "--", "sh", "-c", script)
    listing, _, rest = done.stdout.partition("7:0 ")
    assert listing == "/dev/disk:\nby-id\n\n/dev/disk/by-id:\nx\n"
    assert rest == "/dev/disk/by-id/x\n/sys/block/disk!by-id!x/dev\n"


def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    assert run("--", "sh", "-c", "ls /dev/mapper; cat /proc/devices >/dev/null", env=env).returncode == 0
    assert os.listdir(tmp_path) == []


def test_what_the_program_left_behind_is_killed() -> None:
    """One whose parent ends first becomes a child of the bridge."""
    done = run("--", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & (sh -c 'sleep 1000' >/dev/null 2>&1 & echo $!); echo $!")
    assert done.returncode == 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in done.stdout.split())


def test_children_that_were_there_before_live_on() -> None:
    script = "sleep 1000 >/dev/null 2>&1 & echo $!; exec " + " ".join([*TOOL, "--", "true"])
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    os.kill(int(done.stdout), signal.SIGKILL)


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("true", 0), ("kill -TERM $$", -signal.SIGTERM)])
def test_the_exit_status_is_the_programs(script: str, status: int) -> None:
    assert run("--", "sh", "-c", script).returncode == status


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        ([], 125, "no program"),
        (["--", "no-such-program"], 127, "dmserver run: no-such-program: command not found\n"),
        (["--", "/nowhere/program"], 127, "dmserver run: /nowhere/program: command not found\n"),
        (["--", "/etc/passwd"], 126, "/etc/passwd: Permission denied\n"),
        (["--pdev", "nonsense", "--", "true"], 125, "nonsense"),
        (["--pdev", "/dev/x=/nowhere/disk", "--", "true"], 125, "--pdev /dev/x=/nowhere/disk: No such file"),
        (["--socket", "/nowhere/s", "--", "true"], 125, "dmserver run: no server at /nowhere/s: No such file"),
        (["--socket", "/nowhere/s"], 125, "no program"),
        (["--socket", "/nowhere/s", "--keep", "--", "true"], 125, "--keep"),
    ],
)
def test_refusals_say_why(argv: list[str], status: int, words: str) -> None:
    done = run(*argv)
    assert done.returncode == status
    assert words in done.stderr


def test_a_bridge_under_a_bridge_is_refused() -> None:
    done = run("--", *TOOL, "--", "true")
    assert done.returncode == 125
    assert "supervised already" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 3' {name}; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen([*TOOL, "--", "sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"got {name}\n"
    assert process.returncode == 3


def test_orphans_are_reaped() -> None:
    script = "(sh -c 'sleep 0.1; exit 5' &) ; sleep 0.3; ps -o stat= --ppid $PPID | grep -c Z || true"
    assert run("--", "sh", "-c", script).stdout.strip() in ("0", "")


def test_without_fuse_the_reason_is_told() -> None:
    script = """printf data >/dev/ram0; head -c 4 /dev/ram0
    dmsetup create z --table '0 8 zero' && head -c 1 /dev/mapper/z"""
    code = "import sys; sys.modules['mfusepy'] = None; from dmserver.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "run", "--pdev", "/dev/ram0=ram:1M", "--", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "data")
    assert "/dev/dm-0 cannot be read or written: FUSE needs mfusepy" in done.stderr
    assert "Input/output error" in done.stderr


def test_join_a_server(dmserver: PrivateServer) -> None:
    assert run("--socket", dmserver.socket, "--", "dmsetup", "create", "a", "--table", "0 8 zero").returncode == 0
    assert dmserver.run("dmsetup", "table").stdout == "a: 0 8 zero \n"
    assert run("--socket", dmserver.socket, "--", "sh", "-c", "head -c 4096 /dev/mapper/a | wc -c").stdout == "4096\n"


def test_what_a_program_closed_is_closed_for_all(dmserver: PrivateServer, dm: Client, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    dm.create("vol")
    dm.reload("vol", [(0, 2048, "linear", f"{tmp_path}/disk.img 0")])
    dm.resume("vol")
    opened = dmserver.run("sh", "-c", "exec 5</dev/mapper/vol; dmsetup info -c --noheadings -o open vol")
    assert opened.stdout == "1\n"
    assert dm.info("vol")["open_count"] == 0
    dm.remove("vol")


def test_keep_serves_the_devices_afterwards() -> None:
    command = [*TOOL, "--keep", "--", "dmsetup", "create", "a", "--table", "0 8 zero"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        path = process.stderr.readline().split()[-1]
        from dmserver.client import Client

        with Client(path) as client:
            assert client.names() == [("a", 0)]
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
