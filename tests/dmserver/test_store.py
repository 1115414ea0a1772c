"""The state file: what was acknowledged comes back, old files stay readable, bad ones are refused."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.serving import served

from dmserver.client import Client
from dmserver.host import Host, Personality
from dmserver.store import FORMAT, Store

STATES = Path(__file__).parent / "states"

New = Callable[[], Host]


@pytest.fixture(params=["auto", "linux", "netbsd"])
def new(request: pytest.FixtureRequest) -> Iterator[New]:
    """Hosts of one personality with the same disks."""
    hosts: list[Host] = []

    def make() -> Host:
        personality: Personality = request.param
        hosts.append(Host(personality))
        hosts[-1].add_pdev("/dev/ram0=ram:1M,dev=1:0")
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


def ask(host: Host, command: str, **keys: Any) -> dict[str, Any]:
    replies: list[dict[str, Any]] = []
    host.dictionary(host.open(), {"command": command, "version": [4, 0, 0], "cmd_data": [], **keys}, replies.append)
    (reply,) = replies
    return reply


def target(start: int, length: int, kind: str, params: str = "") -> dict[str, Any]:
    return {"start": start, "length": length, "type": kind, "params": params}


def everything(host: Host) -> list[dict[str, Any]]:
    """What clients see, but for errors of commands that make no sense for a device."""
    seen = [ask(host, "names"), ask(host, "pdevs")]
    for entry in seen[0]["cmd_data"]:
        name = entry["name"]
        seen += [ask(host, "info", name=name), ask(host, "deps", name=name)]
        seen += [ask(host, "table", name=name, flags=flags) for flags in (0x10, 0x1010)]
    return seen


def test_devices_and_tables_come_back(new: New, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 16))
    host = new()
    store = Store(str(tmp_path / "state"), host)
    for name in ("low", "high", "bare", "gone"):
        assert "errno" not in ask(host, "create", name=name, uuid=f"uuid-{name}")
    loads = [
        ("low", [target(0, 8, "linear", "/dev/ram0 16"), target(8, 8, "linear", f"{image} 0")]),
        (
            "high",
            [target(0, 16, "linear", "/dev/mapper/low 0")],
        ),
    ]
    for name, table in loads:
        assert "errno" not in ask(host, "reload", name=name, cmd_data=table)
        assert "errno" not in ask(host, "resume", name=name)
    assert "errno" not in ask(host, "reload", name="low", cmd_data=[target(0, 32, "zero")])
    assert "errno" not in ask(host, "suspend", name="high", flags=2)
    assert "errno" not in ask(host, "remove", name="gone")

    store.save()
    again = new()
    Store(str(tmp_path / "state"), again).restore()
    assert everything(again) == everything(host)
    assert ask(again, "create", name="new")["minor"] not in {device.minor for device in host.mapper.devices.values()}


def test_what_cannot_be_made_is_logged_and_the_rest_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host()
    host.add_pdev("/dev/ram7=ram:1M")
    for name, params in (("a", "/dev/ram7 0"), ("b", "/dev/ram7 8")):
        ask(host, "create", name=name)
        ask(host, "reload", name=name, cmd_data=[target(0, 8, "linear", params)])
        ask(host, "resume", name=name)
    ask(host, "reload", name="b", cmd_data=[target(0, 8, "zero")])
    Store(str(tmp_path / "state"), host).save()
    host.close()

    without_disk = Host()
    Store(str(tmp_path / "state"), without_disk).restore()
    assert re.search(r"restoring a table of 'a' on /dev/ram7 \(\d+:\d+\): ", caplog.text)
    assert f"the state as it was is kept in {tmp_path}/state.rejected" in caplog.text
    assert [entry["name"] for entry in ask(without_disk, "names")["cmd_data"]] == ["a", "b"]
    assert len(ask(without_disk, "table", name="b", flags=0x1010)["cmd_data"]) == 1
    assert ask(without_disk, "pdevs")["cmd_data"] == []
    without_disk.close()

    kept = tmp_path / "state.rejected"
    assert kept.read_bytes() == (tmp_path / "state").read_bytes()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_file_in_no_directory_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/state"):
        Store(str(tmp_path / "nowhere" / "state"), Host()).restore()


def test_what_a_crash_left_of_a_new_file_is_of_no_account(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / ".state.new").symlink_to(precious)
    host = Host()
    Store(str(tmp_path / "state"), host).save()
    host.close()
    assert json.loads((tmp_path / "state").read_text())["devices"] == []
    assert precious.read_text() == "precious"


def test_the_file_is_replaced_whole_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with served() as server, Client(server.path) as client:
        store = Store(str(path), server.host)
        store.save_changes()
        assert not path.exists()
        client.names()
        store.save_changes()
        assert not path.exists()
        client.create("a")
        store.save_changes()
        before = os.stat(path)
        assert stat.S_IMODE(before.st_mode) == 0o600
        client.create("b")
        store.save_changes()
        assert os.stat(path).st_ino != before.st_ino
        assert [device["name"] for device in json.loads(path.read_text())["devices"]] == ["a", "b"]
        assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize("path", sorted(STATES.glob("*.json")), ids=lambda path: path.stem)
def test_every_format_ever_written_stays_readable(path: Path) -> None:
    host = Host()
    host.add_pdev("/dev/ram0=ram:1M,dev=1:0")
    Store(str(path), host).restore()
    assert ask(host, "table", name="vol1", flags=0x10)["cmd_data"] == [
        {"start": 0, "length": 100, "type": "linear", "params": "1:0 8", "status": 1}
    ]
    assert ask(host, "info", name="vol1")["flags"] == 0x60
    host.close()


def test_there_is_a_file_of_the_present_format() -> None:
    assert FORMAT in {json.loads(path.read_text())["format"] for path in STATES.glob("*.json")}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not a state file"),
        ("{}", "not a state file"),
        ("[1]", "not a state file"),
        ("\udcff", "not a state file"),
        ('{"format": 1}', "not a state file"),
        ('{"format": 1, "disks": [], "devices": [1]}', "not a state file"),
        ('{"format": 1, "disks": [], "devices": [{"minor": 0, "name": null}]}', "not a state file"),
        ('{"format": 99}', "format 99, expected 1"),
    ],
)
def test_a_bad_file_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text(text, errors="surrogateescape")
    host = Host()
    with pytest.raises(ValueError, match=complaint):
        Store(str(path), host).restore()
    host.close()
