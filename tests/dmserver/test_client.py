"""The client: every method against a server."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from support.serving import served, short_directory

from dmproto import linux
from dmproto.commands import BY_NAME
from dmproto.records import Header, Message
from dmserver.client import Client, CommandError, default_socket


@pytest.fixture
def client() -> Iterator[Client]:
    with served() as server:
        server.host.add_pdev("/dev/ram0=ram:1M,dev=1:0")
        with Client(server.path) as client:
            yield client


def test_the_life_of_a_device(client: Client) -> None:
    assert client.version() == (4, 16, 0)
    assert ("linear", (1, 0, 2)) in client.targets()
    assert client.create("a", "U-1") == 0
    client.reload("a", [(0, 8, "linear", "/dev/ram0 0"), (8, 8, "zero", "")])
    assert client.table("a") == []
    assert client.table("a", inactive=True) == [(0, 8, "linear", "1:0 0"), (8, 8, "zero", "")]
    client.resume("a")
    assert client.status("a") == [(0, 8, "linear", ""), (8, 8, "zero", "")]
    assert client.deps("a") == [0x100]
    client.suspend("a")
    assert client.info("a")["flags"] == 0x22
    client.resume("a")
    client.rename("a", "b")
    assert client.names() == [("b", 0)]
    client.setgeometry("b", 1, 2, 8, 0)
    assert client.pdevs() == [{"path": "/dev/ram0", "dev": "1:0", "ref_cnt": 1, "size": 2048}]
    client.reload("b", [(0, 8, "error", "")], read_only=True)
    client.clear("b")
    client.remove("b")
    client.create("c", read_only=True)
    client.remove_all()
    assert client.names() == []
    assert client.pdevs() == []


def test_an_error_carries_the_evidence(client: Client) -> None:
    with pytest.raises(CommandError, match='no such device: name is string "nosuch"') as caught:
        client.suspend("nosuch")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.request["command"] == "suspend"
    assert caught.value.reply["flags"] == 2
    assert client.names() == []


def test_an_error_of_linux_says_what_the_kernel_logs(client: Client) -> None:
    client.create("a")
    with pytest.raises(CommandError, match="Unable to interpret geometry settings") as caught:
        client.command("setgeometry", name="a", cmd_data=["round"])
    assert caught.value.errno == errno.EINVAL
    assert client.log() == ["device-mapper: ioctl: Unable to interpret geometry settings."]


def test_a_binary_request_keeps_what_the_kernel_leaves(client: Client) -> None:
    command = BY_NAME["DEV_CREATE"]
    buffer = linux.build(Message(command=command, header=Header(version=(4, 0, 0), name="a"), size=400))[:-1] + b"x"
    result, written = client.ioctl(command.ioctl, buffer)
    assert (result, len(written), written[-1:]) == (0, 400, b"x")
    assert linux.parse_header(written).version == (4, 47, 0)
    assert client.names() == [("a", 0)]


def test_no_server_is_told_with_its_path() -> None:
    with short_directory() as directory, pytest.raises(FileNotFoundError) as caught:
        Client(str(directory / "s"))
    assert caught.value.filename == str(directory / "s")


def test_the_default_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DM_SOCKET", "/a")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert default_socket() == "/a"
    monkeypatch.delenv("DM_SOCKET")
    assert default_socket() == "/run/user/1/dmserver.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_socket() == "/run/dmserver.sock"
    monkeypatch.setattr("os.geteuid", lambda: 1)
    with pytest.raises(LookupError, match="DM_SOCKET"):
        default_socket()
