"""dmctl: the recorded sessions replay, and the rest of the protocol against a server."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.serving import Served, served

from dmproto import proplib
from dmserver import dmctl
from dmserver.client import CommandError

SESSIONS = Path(__file__).parents[2] / "specs/vectors/netbsd/dmctl_sessions.jsonl"

#: Ours knows these; the original does not.
KNOWN_HERE = ("clear", "remove_all")


def sessions() -> list[dict[str, Any]]:
    steps = [json.loads(line) for line in SESSIONS.read_text().splitlines()]
    return [step for step in steps if step["argv"][1] not in KNOWN_HERE]


class Recorded:
    """A client that answers as the recording does."""

    def __init__(self, exchanges: list[dict[str, Any]]) -> None:
        self.exchanges = exchanges
        self.sent: list[bytes] = []

    def __call__(self, path: str | None) -> Recorded:
        return self

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def command(self, verb: str, **keys: Any) -> dict[str, Any]:
        exchange = self.exchanges[len(self.sent)]
        version = [proplib.Unsigned(number) for number in dmctl.VERSION]
        request = {"command": verb, "version": version, **keys}
        self.sent.append(proplib.dumps(request))
        reply = proplib.loads(exchange["reply"].encode())
        assert isinstance(reply, dict)
        if exchange["errno"]:
            raise CommandError(request, {**reply, "errno": exchange["errno"]})
        return reply


@pytest.mark.parametrize("step", sessions(), ids=lambda step: f"{step['step']}-{'-'.join(step['argv'][1:])}")
def test_a_recorded_session_replays(
    step: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = Recorded(step["exchanges"])
    monkeypatch.setattr(dmctl, "Client", recorded)
    monkeypatch.setattr("sys.stdin", io.StringIO(step.get("stdin", "")))
    assert dmctl.main(step["argv"][1:]) == step["exit"]
    output = capsys.readouterr()
    assert output.out == step["stdout"]
    assert recorded.sent == [exchange["request"].rstrip("\0").encode() for exchange in step["exchanges"]]
    for line in step.get("stderr", ()):
        assert line in output.err


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with served() as running:
        running.host.add_pdev("/dev/ram0=ram:1M,dev=1:0")
        monkeypatch.setenv("DM_SOCKET", running.path)
        yield running


def run(*argv: str, stdin: str = "", monkeypatch: pytest.MonkeyPatch | None = None) -> int:
    if monkeypatch is not None:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    return dmctl.main(argv)


def test_the_life_of_a_device(
    server: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, stdin in [
        (["create", "v"], ""),
        (["reload", "v"], "0 8 linear /dev/ram0 0\n\n8 8 zero\n"),
        (["resume", "v"], ""),
        (["setgeometry", "v", "1", "2", "8", "0"], ""),
        (["rename", "v", "w"], ""),
        (["ls"], ""),
        (["deps", "w"], ""),
        (["pdevs"], ""),
        (["targetstatus", "w"], ""),
        (["mknodes", "w"], ""),
        (["target-version", "linear"], ""),
        (["reload", "w"], "0 1 zero\n"),
        (["clear", "w"], ""),
        (["remove_all"], ""),
        (["log"], ""),
    ]:
        assert run(*argv, stdin=stdin, monkeypatch=monkeypatch) == 0, argv
    assert capsys.readouterr() == (
        "Device name: w, device minor: 0 \n"
        "Device w dependencies \nmajor: 1 minor: 0\n"
        "     1:0      1         2048 /dev/ram0\n"
        "0 8 linear\n8 8 zero\n"
        "Printing Device info for:\nDevice name: \t\tw\nDevice uuid: \t\t\nDevice minor: \t\t0\n"
        "Device target number: \t2\nDevice flags: \t\t32\n"
        "Target name: linear\nTarget version 1.4.0\n\n",
        "",
    )


def test_json_is_the_reply_on_one_line(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "create", "v") == 0
    assert run("--json", "info", "nosuch") == 1
    created, failed = map(json.loads, capsys.readouterr().out.splitlines())
    assert (created["command"], created["minor"]) == ("create", 0)
    assert (failed["errno"], failed["error"]) == (errno.ENOENT, 'no such device: name is string "nosuch"')


@pytest.mark.parametrize(
    ("argv", "stdin", "complaint"),
    [
        (["reload", "v"], "0 8 linear /dev/ram0 0\nnonsense\n", "line 2: expected START LENGTH TARGET PARAMETERS"),
        (["message", "v", "zero", "hello"], "", "SECTOR: expected a number, got 'zero'"),
        (["waitevent", "v", "x"], "", "EVENT: expected a number, got 'x'"),
        (["message", "v", "0"], "", "Insufficient number of arguments for command: message"),
        (["waitevent"], "", "Insufficient number of arguments for command: waitevent"),
        (["waitevent", "v", "1", "2"], "", "Insufficient number of arguments for command: waitevent"),
        (["frobnicate"], "", "dmctl: unknown command: frobnicate"),
        ([], "", "usage: dmctl"),
        (["--socket", "/nowhere/s", "ls"], "", "dmctl: no server at /nowhere/s: No such file or directory"),
        (["--socket", "/" + "s" * 200, "ls"], "", "AF_UNIX path too long"),
    ],
)
def test_what_is_wrong_is_said(
    server: Served,
    argv: list[str],
    stdin: str,
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*argv, stdin=stdin, monkeypatch=monkeypatch) == 1
    assert complaint in capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dmctl.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in dmctl.COMMANDS)


def test_completion_knows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="the extra `completion` is not installed")
    assert dmctl.main(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in dmctl.COMMANDS)
    assert dmctl.main(["--print-completion", "oil"]) == 2


@pytest.mark.parametrize("argv", [["targets"], ["--print-completion", "bash"]])
def test_a_reader_that_leaves_early_is_no_error(server: Served, argv: list[str]) -> None:
    if argv != ["targets"]:
        pytest.importorskip("shtab", reason="the extra `completion` is not installed")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "dmserver.dmctl", *argv], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
