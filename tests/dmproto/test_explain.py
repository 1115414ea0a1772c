"""dmproto.explain: what people read, and what they must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.linux_vectors import FILES, ioctls

from dmproto import linux, translate
from dmproto.commands import BY_NAME
from dmproto.errors import BadBinary
from dmproto.explain import explain, render, shown
from dmproto.flags import DmFlag
from dmproto.proplib import Unsigned
from dmproto.records import DeviceEntry, Header, Message, Payloads, TargetMessage, TargetSpec, TargetVersion

KEY = "f0112233445566778899aabbccddeeff"


def message(command: str, payload: Payloads = None, /, *, reply: bool = False, **fields: Any) -> Message:
    return Message(command=BY_NAME[command], reply=reply, header=Header(**fields), payload=payload)


def text_of(said: dict[str, Any]) -> str:
    return "\n".join(render(said)) + json.dumps(said)


def test_every_field_is_named() -> None:
    said = explain(
        message(
            "TABLE_LOAD",
            (TargetSpec(start=0, length=16, type="striped", params="2 8 1:0 0 1:1 8", status=1),),
            version=(4, 47, 0),
            data_size=16384,
            data_start=312,
            target_count=1,
            open_count=3,
            flags=DmFlag.EXISTS | DmFlag.READONLY | 1 << 30,
            event_nr=5,
            padding=9,
            dev=0x10FD2C,
            name="vg-lv",
            uuid="LVM-1",
        )
    )
    assert said == {
        "command": "DM_TABLE_LOAD",
        "verb": "reload",
        "direction": "request",
        "version": "4.47.0",
        "data_size": 16384,
        "data_start": 312,
        "target_count": 1,
        "open_count": 3,
        "flags": ["READONLY", "EXISTS", "0x40000000"],
        "event_nr": 5,
        "padding": 9,
        "dev": "253:300",
        "name": "vg-lv",
        "uuid": "LVM-1",
        "data": [
            {
                "start": 0,
                "length": 16,
                "type": "striped",
                "status": 1,
                "params": "2 8 1:0 0 1:1 8",
                "fields": {
                    "chunk_size": "8",
                    "stripes": [{"device": "1:0", "offset": "0"}, {"device": "1:1", "offset": "8"}],
                },
            }
        ],
    }
    assert list(render(said))[:3] == [
        "DM_TABLE_LOAD (reload) request",
        "  version       4.47.0",
        "  data_size     16384",
    ]
    assert "sectors 0 to 16: striped" in text_of(said)


@pytest.mark.parametrize(
    ("name", "payload", "data"),
    [
        (
            "LIST_DEVICES",
            (DeviceEntry(name="a", dev=(253, 1), event_nr=2, uuid="U"), DeviceEntry(name="b", dev=(253, 2))),
            [{"name": "a", "dev": "253:1", "event_nr": 2, "uuid": "U"}, {"name": "b", "dev": "253:2", "event_nr": 0}],
        ),
        ("LIST_VERSIONS", (TargetVersion(name="zero", version=(1, 2, 0)),), [{"name": "zero", "version": "1.2.0"}]),
        ("TABLE_DEPS", (0x100, 0x810), ["1:0", "8:16"]),
        ("TARGET_MSG", "an answer", "an answer"),
        ("TABLE_STATUS", (TargetSpec(start=0, length=8, type="striped", params="2 1:0 1:1 1 AA"),), None),
    ],
)
def test_replies(name: str, payload: Payloads, data: object) -> None:
    said = explain(message(name, payload, reply=True))
    if data is None:
        assert said["data"][0]["fields"] == {"devices": ["1:0", "1:1"], "groups": "1", "health": "AA"}
    else:
        assert said["data"] == data
    assert list(render(said))


def test_udev_cookies_are_told_from_event_numbers() -> None:
    said = explain(message("DEV_REMOVE", event_nr=0x60ABCD))
    assert said["udev"] == {"flags": ["DISABLE_LIBRARY_FALLBACK", "PRIMARY_SOURCE"], "cookie": "0x0d4dabcd"}
    assert "udev" not in explain(message("DEV_WAIT", event_nr=7))
    assert explain(message("DEV_RENAME", event_nr=0x1000000))["udev"] == {"flags": ["0x100"]}


@pytest.mark.parametrize(
    "secret",
    [
        message("TABLE_LOAD", (TargetSpec(start=0, length=8, type="crypt", params=f"aes {KEY} 0 1:0 0"),)),
        message(
            "TABLE_STATUS", (TargetSpec(start=0, length=8, type="crypt", params=f"aes {KEY}"),), reply=True, flags=16
        ),
        message(
            "TABLE_LOAD",
            (TargetSpec(start=0, length=8, type="integrity", params=f"1:0 0 - J 1 internal_hash:hmac(sha256):{KEY}"),),
        ),
        message("TARGET_MSG", TargetMessage(sector=0, message=f"key set {KEY}")),
        message("TARGET_MSG", TargetMessage(sector=0, message=KEY), flags=DmFlag.SECURE_DATA),
        message("TARGET_MSG", KEY, reply=True, flags=DmFlag.SECURE_DATA),
        message("TABLE_LOAD", (TargetSpec(start=0, length=8, type="linear", params=KEY),), flags=DmFlag.SECURE_DATA),
    ],
)
def test_secrets_are_shown_only_on_demand(secret: Message) -> None:
    assert KEY not in text_of(explain(secret))
    assert "redacted" in text_of(explain(secret))
    assert KEY in text_of(explain(secret, show_secrets=True))


def test_bytes_behind_a_secret_are_not_shown_either() -> None:
    table = (TargetSpec(start=0, length=8, type="crypt", params="aes - 0 1:0 0"),)
    data = bytearray(linux.build(message("TABLE_LOAD", table)))
    data[1000:1016] = bytes.fromhex(KEY)
    parsed = linux.parse(bytes(data), BY_NAME["TABLE_LOAD"])
    assert KEY not in text_of(explain(parsed))
    assert KEY in text_of(explain(parsed, show_secrets=True))


def test_bytes_that_no_field_tells() -> None:
    data = bytearray(linux.build(message("DEV_CREATE", name="x")))
    data[310] = 0xAB
    said = explain(linux.parse(bytes(data), BY_NAME["DEV_CREATE"]))
    assert said["residue"] == [{"offset": 310, "length": 1, "bytes": "ab"}]
    assert "  other bytes   1 at offset 310: ab" in render(said)


@pytest.mark.parametrize(("kind", "shown"), [("zero", "0xbb904000"), ("crypt", "(redacted)")])
def test_the_pointer_of_netbsds_first_struct_is_named(kind: str, shown: str) -> None:
    table = (TargetSpec(start=0, length=8, type=kind),)
    buffer = bytearray(linux.build(message("TABLE_LOAD", table, name="x", data_start=320)))
    header = linux.netbsd_dm_ioctl.parse(buffer)
    buffer[:320] = linux.netbsd_dm_ioctl.build({**header, "user_space_addr": 0xBB904000})
    parsed = linux.parse(bytes(buffer), BY_NAME["TABLE_LOAD"])
    assert parsed.payload == table
    assert explain(parsed)["user_space_addr"] == shown
    assert linux.build(parsed) == buffer


def test_keys_that_no_field_tells() -> None:
    obj = {"command": "names", "flags": Unsigned(0), "colour": "blue", "cmd_data": "x"}
    said = explain(translate.to_message(obj))
    assert said["keys"]["colour"] == 'string "blue"'
    assert any('colour string "blue"' in line for line in render(said))
    secret = {"command": "reload", "flags": Unsigned(0), "cmd_data": [], "colour": KEY}
    assert KEY not in text_of(explain(translate.to_message(secret)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded_messages(path: Path) -> None:
    """Whatever parses can be explained, as JSON and as printable lines."""
    for step in ioctls(path):
        if step["cmd"] not in BY_NAME:
            continue
        for data, reply in ((step["request"], False), (step["written"], True)):
            try:
                parsed = linux.parse(data, BY_NAME[step["cmd"]], reply=reply)
            except BadBinary:
                assert step["errno"] != "0"
                continue
            said = explain(parsed)
            assert json.loads(json.dumps(said)) == said
            assert all(line.isprintable() for line in render(said))


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("vg-lv", "vg-lv"),
        ("a b", "a b"),
        ("", '""'),
        (" a", '" a"'),
        ("\x1b[31m", '"\\x1b[31m"'),
        ("\udcff", '"\\xff"'),
        ("é", "é"),
    ],
)
def test_text_is_fit_for_a_terminal(text: str, safe: str) -> None:
    assert shown(text) == safe
