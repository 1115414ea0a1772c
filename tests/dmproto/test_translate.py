import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.vectors import linux_buffers, plists

from dmproto import linux, netbsd, proplib, translate
from dmproto.commands import BY_NAME
from dmproto.errors import BadBinary, BadDictionary, BadMessage, BadPlist, NotSayable
from dmproto.flags import DmFlag
from dmproto.objects import same
from dmproto.proplib import Unsigned
from dmproto.records import DeviceEntry, Header, Message
from dmproto.strategies import buffers, dictionaries
from dmproto.translate import Form, convert, from_binary, to_binary, to_dictionary, to_message
from dmproto.wire import huge_decode


def ordinary(name, *, body=b"", count=0, dev=0, device="", flags=4, version=(4, 0, 0), size=16384):
    """A request as libdevmapper sends it."""
    fields = struct.pack("<3I2IIiIIIQ128s", *version, size, 312, count, 0, flags, 0, 0, dev, device.encode())
    return (fields.ljust(312, b"\0") + body).ljust(size, b"\0")


def spec(start, length, kind, params):
    size = (40 + len(params) + 1 + 7) & ~7
    return (struct.pack("<QQiI16s", start, length, 0, size, kind.encode()) + params.encode()).ljust(size, b"\0")


def test_every_recorded_buffer_comes_back_as_it_was():
    taken = refused = 0
    for command, reply, data in linux_buffers():
        try:
            linux.parse(data, command, reply=reply)
        except BadBinary:
            refused += 1
            continue
        text = convert(data, source=Form.BINARY, target=Form.PLIST, command=command, reply=reply)
        assert convert(text, source=None, target=Form.BINARY, reply=reply) == data
        taken += 1
    assert taken > 7000
    assert refused < 300


def test_every_recorded_buffer_survives_json():
    for command, reply, data in linux_buffers()[::7]:
        try:
            linux.parse(data, command, reply=reply)
        except BadBinary:
            continue
        text = convert(data, source=Form.BINARY, target=Form.JSON, command=command, reply=reply)
        assert convert(text, source=None, target=Form.BINARY, reply=reply) == data
        plist = convert(text, source=None, target=Form.PLIST, reply=reply)
        assert plist == convert(data, source=Form.BINARY, target=Form.PLIST, command=command, reply=reply)


def test_every_recorded_dictionary_comes_back_as_it_was():
    taken = 0
    for reply, text in plists():
        try:
            obj = proplib.loads(text)
            command = netbsd.parse(obj, reply=reply).command
        except (BadPlist, BadDictionary):
            continue
        data = convert(text, source=None, target=Form.BINARY, reply=reply)
        assert same(from_binary(data, command, reply=reply), obj)
        taken += 1
    assert taken > 600


@pytest.mark.parametrize(
    ("data", "command", "wanted"),
    [
        (
            ordinary("TABLE_LOAD", body=spec(0, 128, "linear", "1:0 0"), count=1, dev=0xFD03, flags=0xC),
            "TABLE_LOAD",
            {
                "command": "reload",
                "minor": Unsigned(3),
                "flags": Unsigned(0xC),
                "cmd_data": [{"start": Unsigned(0), "length": Unsigned(128), "type": "linear", "params": "1:0 0"}],
            },
        ),
        (ordinary("DEV_SUSPEND", device="a"), "DEV_SUSPEND", {"command": "resume", "name": "a", "cmd_data": []}),
        (
            ordinary("DEV_SUSPEND", device="a", flags=6),
            "DEV_SUSPEND",
            {"command": "suspend", "name": "a", "flags": Unsigned(6), "cmd_data": []},
        ),
        (
            ordinary("TABLE_STATUS", device="a", flags=0x14),
            "TABLE_STATUS",
            {"command": "table", "name": "a", "flags": Unsigned(0x14), "cmd_data": []},
        ),
        (
            ordinary("DEV_RENAME", device="a", body=b"b\0"),
            "rename",
            {"command": "rename", "name": "a", "cmd_data": ["b"]},
        ),
        (
            ordinary("TARGET_MSG", device="a", body=bytes(8) + b"@stats_list\0"),
            "DM_TARGET_MSG",
            {"command": "message", "name": "a", "cmd_data": [{"sector": Unsigned(0), "message": "@stats_list"}]},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_ordinary_request_becomes_an_ordinary_dictionary(data, command, wanted):
    text = convert(data, source=None, target=Form.PLIST, command=command, strict=True)
    version = [Unsigned(4), Unsigned(0), Unsigned(0)]
    assert same(proplib.loads(text), {"version": version, "flags": Unsigned(4), **wanted})
    assert convert(text, source=None, target=Form.BINARY, strict=True) == data


def test_what_a_dictionary_cannot_say_stands_under_one_key():
    data = bytearray(ordinary("DEV_STATUS", size=2048, dev=7 << 8 | 1))
    data[36:40] = b"\1\0\0\0"
    data[2000] = 0xFF
    obj = from_binary(bytes(data), BY_NAME["DEV_STATUS"])
    assert same(
        obj["dm_ioctl"],
        {
            "data_size": Unsigned(2048),
            "padding": Unsigned(1),
            "major": Unsigned(7),
            "residue": [{"offset": Unsigned(2000), "bytes": "ff"}],
        },
    )
    assert to_binary(obj) == data
    with pytest.raises(NotSayable, match=r"dm_ioctl.\{data_size,padding,major,residue\}"):
        from_binary(bytes(data), BY_NAME["DEV_STATUS"], strict=True)
    with pytest.raises(NotSayable, match="dm_ioctl"):
        to_binary(obj, strict=True)


def test_what_a_buffer_cannot_say_stands_behind_it():
    obj = {"command": "mknodes", "name": "n" * 130, "flags": Unsigned(4), "colour": [True, b"x"]}
    data = to_binary(obj)
    assert data[16384:].startswith(translate.MARK)
    assert linux.parse(data, BY_NAME["DEV_STATUS"]).header.data_size == 16384  # so no kernel looks there
    assert same(from_binary(data, BY_NAME["DEV_STATUS"]), obj)
    with pytest.raises(NotSayable, match='name: struct dm_ioctl has no place for string "nnn'):
        to_binary(obj, strict=True)


def test_strict_takes_what_the_rules_carry_over():
    obj = {"command": "suspend", "name": "a", "version": [4, 0, 0]}
    data = to_binary(obj, strict=True)
    assert linux.parse(data, BY_NAME["DEV_SUSPEND"]).header == Header(
        data_size=16384, data_start=312, flags=DmFlag.SUSPEND, name="a"
    )


def test_a_tail_that_says_nothing_new_is_residue():
    data = ordinary("DEV_STATUS", device="a")
    tail = translate.MARK + proplib.dumps({"set": {"name": "a"}})
    assert to_binary(from_binary(data + tail, BY_NAME["DEV_STATUS"])) == data + tail


@pytest.mark.parametrize(
    "tail", [b"</plist>\n", b"<plist><array/></plist>\n", b"<plist><dict><key>set</key><string/></dict></plist>\n"]
)
def test_a_tail_of_another_kind_is_residue(tail):
    data = ordinary("DEV_STATUS", device="a") + translate.MARK + tail
    assert to_binary(from_binary(data, BY_NAME["DEV_STATUS"])) == data


@pytest.mark.parametrize(
    ("extension", "message"),
    [
        ("x", 'dm_ioctl: expected a dictionary, got string "x"'),
        ({"data_size": "x"}, 'dm_ioctl.data_size: expected an unsigned number, got string "x"'),
        ({"residue": [{"offset": 1}]}, "dm_ioctl.residue[0].bytes: the key is missing, expected a string"),
        ({"residue": [{"offset": 1, "bytes": "0"}]}, "dm_ioctl.residue[0].bytes: expected pairs of hexadecimal digits"),
    ],
)
def test_errors_in_the_extension_name_the_key(extension, message):
    with pytest.raises(BadDictionary) as caught:
        to_message({"command": "info", "dm_ioctl": extension})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (b"<plist><dict/></plist>", Form.PLIST),
        (b"\n <?xml ?><plist><dict><key>version</key>\n<string>4.0.0</string>", Form.DRAFT),
        (b'<plist><dict><dict ID="id">', Form.DRAFT),
        (b' {"command": "version"}', Form.JSON),
        (bytes([4]) + bytes(311), Form.BINARY),
    ],
)
def test_detect(data, form):
    assert translate.detect(data) is form


def test_the_caller_may_tell_the_command():
    text = b"<plist><dict><key>name</key><string>a</string></dict></plist>"
    data = convert(text, source=None, target=Form.BINARY, command="DM_DEV_STATUS")
    assert linux.parse(data, BY_NAME["DEV_STATUS"]).header.name == "a"
    with pytest.raises(ValueError, match="does not tell its command"):
        convert(data, source=Form.BINARY, target=Form.PLIST)


def test_a_plist_to_a_plist_becomes_canonical():
    text = b"<plist><dict><key>command</key><string>x</string><key>a</key><integer>0X10</integer></dict></plist>"
    assert convert(text, source=None, target=Form.PLIST) == proplib.dumps({"command": "x", "a": 16})


def test_the_profile_needs_a_direction_of_its_own():
    data = ordinary("DEV_STATUS", device="a")
    text = convert(data, source=None, target=Form.PLIST, command="info", profile="libdm")
    buffer = convert(text, source=None, target=Form.BINARY, reply=True, profile="libdm")
    assert linux.parse_header(buffer).name == "a"
    with pytest.raises(ValueError, match="profile libdm makes"):
        convert(data, source=None, target=Form.JSON, command="info", profile="libdm")
    with pytest.raises(ValueError, match="no profile 'lvm'"):
        convert(data, source=None, target=Form.PLIST, command="info", profile="lvm")


@given(buffers() | buffers(nearly=True))
def test_any_buffer_comes_back_as_it_was(drawn):
    data, command, reply = drawn
    try:
        linux.parse(data, command, reply=reply)
    except BadMessage:
        return
    for form in (Form.PLIST, Form.JSON, Form.DRAFT):
        text = convert(data, source=Form.BINARY, target=form, command=command, reply=reply)
        assert convert(text, source=form, target=Form.BINARY, reply=reply) == data


@given(dictionaries() | dictionaries(nearly=True), st.booleans())
def test_any_dictionary_comes_back_as_it_was(obj, reply):
    try:
        command = to_message(obj, reply=reply).command
        data = to_binary(obj, reply=reply)
    except BadMessage:
        return
    assert same(from_binary(data, command, reply=reply), obj)


@given(buffers())
def test_a_canonical_buffer_needs_no_extension(drawn):
    data, command, reply = drawn
    message = linux.parse(data, command, reply=reply)
    dev = message.header.dev
    entries = message.payload if isinstance(message.payload, tuple) else ()
    devs = [entry.dev for entry in entries if isinstance(entry, DeviceEntry)] + ([huge_decode(dev)] if dev else [])
    if all(major == netbsd.DM_MAJOR for major, _ in devs):
        assert "dm_ioctl" not in to_dictionary(message, strict=True)


def test_to_dictionary_of_a_message_that_was_not_parsed_needs_no_extension():
    message = Message(command=BY_NAME["TABLE_DEPS"], reply=True, header=Header(version=(4, 47, 0)), payload=(0x100,))
    assert "dm_ioctl" not in to_dictionary(message)
    assert to_message(to_dictionary(message), reply=True) == message
