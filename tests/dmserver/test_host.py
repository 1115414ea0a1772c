"""The host: physical devices, and which kernel's rules a request meets."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmproto import linux
from dmproto.commands import BY_NAME
from dmproto.records import Header, Message, TargetSpec
from dmserver.host import Host, Personality

Hosts = Callable[[Personality], Host]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    opened: list[Host] = []

    def new(personality: Personality) -> Host:
        opened.append(Host(personality))
        return opened[-1]

    yield new
    for host in opened:
        host.close()


def ask(host: Host, command: str, *, privileged: bool = True, **keys: Any) -> dict[str, Any]:
    replies: list[dict[str, Any]] = []
    request = {"command": command, "version": [4, 0, 0], **keys}
    host.dictionary(host.open(privileged=privileged), request, replies.append)
    (reply,) = replies
    return reply


def ioctl(host: Host, word: str, **fields: Any) -> tuple[int, bytes]:
    replies: list[tuple[int, bytes]] = []
    payload = fields.pop("payload", None)
    header = Header(version=(4, 0, 0), **fields)
    buffer = linux.build(Message(command=BY_NAME[word], header=header, payload=payload, size=16384))
    host.ioctl(host.open(), BY_NAME[word].ioctl, buffer, lambda *reply: replies.append(reply))
    (reply,) = replies
    return reply


def linear(path: str, length: int = 8) -> dict[str, Any]:
    return {"start": 0, "length": length, "type": "linear", "params": f"{path} 0"}


@pytest.mark.parametrize(
    ("personality", "major", "minors", "ram", "file"),
    [("auto", 253, [0, 1], "1:0", "7:0"), ("linux", 253, [0, 1], "1:0", "7:0"), ("netbsd", 169, [1, 2], "1:0", "14:0")],
)
def test_numbers_are_those_of_the_kernel(
    hosts: Hosts, personality: Personality, major: int, minors: list[int], ram: str, file: str, tmp_path: Path
) -> None:
    host = hosts(personality)
    image = tmp_path / "image"
    image.write_bytes(bytes(8192))
    assert host.mapper.major == major
    assert [ask(host, "create", name=name).get("minor", 0) for name in "ab"] == minors
    disks = [host.add_pdev("/dev/r=ram:1M"), host.add_pdev(f"/dev/f={image}")]
    assert ["{}:{}".format(*disk.dev) for disk in disks] == [ram, file]


def test_a_file_may_be_named_without_being_declared(hosts: Hosts, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8192))
    host = hosts("auto")
    ask(host, "create", name="a")
    assert "errno" not in ask(host, "reload", name="a", cmd_data=[linear(f"{tmp_path}/./image")])
    assert "errno" not in ask(host, "reload", name="a", cmd_data=[linear(str(image))])
    pdevs = ask(host, "pdevs")["cmd_data"]
    assert pdevs == [{"path": str(image), "dev": "7:0", "ref_cnt": 1, "size": 16}]


@pytest.mark.parametrize("personality", ["auto", "linux"])
def test_both_spellings_see_the_same_devices(hosts: Hosts, personality: Personality) -> None:
    host = hosts(personality)
    host.add_pdev("/dev/r=ram:1M")
    assert ioctl(host, "DEV_CREATE", name="a", uuid="U")[0] == 0
    spec = TargetSpec(start=0, length=8, type="linear", params="/dev/r 0")
    assert ioctl(host, "TABLE_LOAD", name="a", payload=(spec,))[0] == 0
    assert ask(host, "info", uuid="U")["flags"] & 0x60 == 0x40
    assert "errno" not in ask(host, "resume", name="a")
    table = ask(host, "table", name="a", flags=0x10)["cmd_data"]
    assert [(entry["type"], entry["params"]) for entry in table] == [("linear", "1:0 0")]
    result, written = ioctl(host, "DEV_REMOVE", name="a")
    assert (result, linux.parse_header(written).name) == (0, "a")
    assert ask(host, "names")["cmd_data"] == []
    assert ask(host, "pdevs")["cmd_data"] == []


def test_netbsd_answers_a_buffer_with_the_errno_the_command_meant(hosts: Hosts) -> None:
    host = hosts("netbsd")
    assert ioctl(host, "DEV_STATUS", name="a") == (-errno.ENOENT, bytes.fromhex("040000001000000000000000"))
    result, written = ioctl(host, "DEV_CREATE", name="a")
    assert (result, linux.parse_header(written).dev) == (0, 0xA901)
    assert ioctl(host, "REMOVE_ALL")[0] == -errno.EINVAL


@pytest.mark.parametrize(("personality", "expected"), [("auto", 0), ("linux", 0), ("netbsd", errno.EINVAL)])
def test_remove_all_in_plist_form(hosts: Hosts, personality: Personality, expected: int) -> None:
    host = hosts(personality)
    ask(host, "create", name="a")
    assert ask(host, "remove_all").get("errno", 0) == expected
    assert len(ask(host, "names")["cmd_data"]) == bool(expected)


@pytest.mark.parametrize("personality", ["auto", "linux", "netbsd"])
def test_without_privilege_only_what_netbsd_lets_anyone_do(hosts: Hosts, personality: Personality) -> None:
    host = hosts(personality)
    ask(host, "create", name="a")
    for command in ("version", "targets", "names", "pdevs"):
        assert "errno" not in ask(host, command, privileged=False), command
    for command in ("create", "remove", "remove_all", "waitevent", "nonsense", "log"):
        assert ask(host, command, privileged=False, name="a")["errno"] == errno.EPERM, command


@pytest.mark.parametrize("personality", ["auto", "linux"])
def test_keys_are_not_shown_to_anyone(hosts: Hosts, personality: Personality) -> None:
    pytest.importorskip("cryptography", reason="the extra `crypt` is not installed")
    host = hosts(personality)
    host.add_pdev("/dev/r=ram:1M")
    ask(host, "create", name="a")
    key = "00112233445566778899aabbccddeeff"
    crypt = {"start": 0, "length": 8, "type": "crypt", "params": f"aes-cbc-plain {key} 0 /dev/r 0"}
    assert "errno" not in ask(host, "reload", name="a", cmd_data=[crypt])
    asked = {"name": "a", "flags": 0x1010}
    assert key in ask(host, "table", **asked)["cmd_data"][0]["params"]
    shown = ask(host, "table", privileged=False, **asked)["cmd_data"][0]["params"]
    assert shown.startswith("aes-cbc-plain ")
    assert key not in shown


def test_a_long_list_fits_however_long(hosts: Hosts) -> None:
    host = hosts("linux")
    names = [f"device-{number:04}" for number in range(1000)]
    for name in names:
        ask(host, "create", name=name)
    assert [entry["name"] for entry in ask(host, "names")["cmd_data"]] == names


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("/dev/a", "expected /DEVICE=BACKING"),
        ("dev/a=ram:1M", "expected /DEVICE=BACKING"),
        ("/dev/a=ram:1X", "expected a number with an optional suffix"),
        ("/dev/a=ram:1M,rw", "expected dev=MAJ:MIN or ro"),
        ("/dev/a=ram:1M,dev=1", "expected dev=MAJ:MIN or ro"),
        ("/dev/taken=ram:1M", "exists already"),
        ("/dev/a=ram:1M,dev=5:5", "5:5 exists already"),
    ],
)
def test_a_bad_pdev_is_told_what_was_expected(hosts: Hosts, text: str, complaint: str) -> None:
    host = hosts("auto")
    host.add_pdev("/dev/taken=ram:1M,dev=5:5,ro")
    with pytest.raises(ValueError, match=complaint):
        host.add_pdev(text)
