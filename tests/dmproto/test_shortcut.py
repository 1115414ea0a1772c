import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.vectors import linux_buffers
from support.vectors import plists as recorded_plists

from dmproto import linux, proplib, shortcut
from dmproto.commands import BY_NAME
from dmproto.errors import BadMessage
from dmproto.records import DeviceEntry, Header, Message, TargetSpec
from dmproto.strategies import buffers, plists
from dmproto.translate import Form, convert, from_binary, to_binary


def said(data, command, reply):
    """The long way's text, None where it refuses the buffer."""
    try:
        return proplib.dumps(from_binary(data, command, reply=reply))
    except BadMessage:
        return None


def heard(text, reply):
    """The long way's buffer, None where it refuses the text."""
    try:
        return to_binary(proplib.loads(text), reply=reply)
    except BadMessage:
        return None


def test_recorded_buffers_become_the_text_of_the_long_way():
    taken = 0
    for command, reply, data in linux_buffers():
        text = shortcut.say(data, command, reply=reply)
        if text is not None:
            assert text == said(data, command, reply)
            assert shortcut.hear(text, reply=reply) == data
            taken += 1
    assert taken > 3000


def test_recorded_texts_become_the_buffer_of_the_long_way():
    taken = 0
    for reply, text in recorded_plists():
        data = shortcut.hear(text, reply=reply)
        if data is not None:
            assert data == heard(text, reply)
            taken += 1
    assert taken > 100


@given(buffers() | buffers(nearly=True))
def test_buffers_become_the_text_of_the_long_way(drawn):
    buffer, command, reply = drawn
    text = said(buffer, command, reply)
    assert shortcut.say(buffer, command, reply=reply) in (None, text)
    assert text is None or shortcut.hear(text, reply=reply) in (None, buffer)


@given(plists() | plists(nearly=True), st.booleans())
def test_texts_become_the_buffer_of_the_long_way(text, reply):
    assert shortcut.hear(text, reply=reply) in (None, heard(text, reply))


SIZES = st.sampled_from([0, 1, 7, 8, 305, 312, 353, 360, 16384])


@given(buffers(), SIZES, SIZES)
def test_buffers_of_any_size_become_the_text_of_the_long_way(drawn, more, behind):
    data, command, reply = drawn
    size = int.from_bytes(data[12:16], "little") + more
    buffer = data[:12] + size.to_bytes(4, "little") + data[16:] + bytes(more + behind)
    text = said(buffer, command, reply)
    assert shortcut.say(buffer, command, reply=reply) in (None, text)
    assert text is None or shortcut.hear(text, reply=reply) in (None, buffer)


@given(plists(), SIZES, SIZES, st.booleans())
def test_texts_of_any_size_become_the_buffer_of_the_long_way(text, size, whole, reply):
    numbers = {"data_size": size, "size": whole}
    told = [f"\t\t<key>{key}</key>\n\t\t<integer>{number:#x}</integer>\n" for key, number in numbers.items()]
    lines = "".join(told[not size : 1 + (whole > 0)])
    before, after, rest = text.partition(b"\t<key>flags</key>")
    changed = before + f"\t<key>dm_ioctl</key>\n\t<dict>\n{lines}\t</dict>\n".encode() + after + rest
    assert shortcut.hear(changed, reply=reply) in (None, heard(changed, reply))
    assert shortcut.hear(changed, reply=reply, strict=True) is None


HEADER = Header(version=(4, 48, 0), flags=4, dev=0x10FD2C, name="a")
TARGETS = (
    TargetSpec(start=0, length=1 << 40, type="linear", params="1:0 0"),
    TargetSpec(start=1 << 40, length=1, type="zero"),
    TargetSpec(start=(1 << 40) + 1, length=1, type="sixteen-letters!", params="x" * 5000),
)
DEVICES = (
    DeviceEntry(name="a", dev=(253, 0)),
    DeviceEntry(name="ab" * 60, dev=(253, 300), event_nr=7),
    DeviceEntry(name="\udcff", dev=(253, (1 << 20) - 1), uuid=""),
    DeviceEntry(name="d", dev=(253, 3), event_nr=(1 << 32) - 1, uuid="LVM-x"),
)


@pytest.mark.parametrize(
    ("name", "reply", "payload"),
    [
        ("DEV_STATUS", False, None),
        ("DEV_STATUS", True, None),
        ("DEV_SUSPEND", True, None),
        ("DEV_RENAME", True, None),
        ("TABLE_LOAD", False, TARGETS),
        ("TABLE_LOAD", False, TARGETS * 50),
        ("TABLE_STATUS", True, TARGETS),
        ("TABLE_STATUS", True, None),
        ("LIST_DEVICES", True, DEVICES),
        ("LIST_DEVICES", True, DEVICES[:1]),
        ("LIST_DEVICES", True, DEVICES[3:]),
        ("LIST_DEVICES", True, DEVICES * 512),
    ],
)
@pytest.mark.parametrize("version", [(4, 16, 0), (4, 48, 0)])
def test_these_take_the_short_way(name, reply, payload, version):
    if name == "LIST_DEVICES" and version == (4, 16, 0):
        payload = [replace(entry, event_nr=0, uuid=None) for entry in payload]  # the list did not tell them then
    header = replace(HEADER, version=version)
    buffer = linux.build(Message(command=BY_NAME[name], reply=reply, header=header, payload=payload))
    text = shortcut.say(buffer, BY_NAME[name], reply=reply)
    assert text == said(buffer, BY_NAME[name], reply)
    assert shortcut.hear(text, reply=reply) == buffer == heard(text, reply)


@pytest.mark.parametrize("place", [0, 1023, 1024, 2999])
def test_one_text_with_markup_sends_a_long_list_the_long_way(place):
    names = BY_NAME["LIST_DEVICES"]
    devices = [DeviceEntry(name="a&b" if n == place else "ab", dev=(253, n)) for n in range(3000)]
    buffer = linux.build(Message(command=names, reply=True, header=HEADER, payload=devices))
    assert shortcut.say(buffer, names, reply=True) is None


@pytest.mark.parametrize("event_nr", [0, 7])
@pytest.mark.parametrize("uuid", [None, "", "u"])
def test_texts_may_be_empty(event_nr, uuid):
    names = BY_NAME["LIST_DEVICES"]
    devices = (DeviceEntry(name="", dev=(253, 1), event_nr=event_nr, uuid=uuid),)
    buffer = linux.build(Message(command=names, reply=True, header=Header(version=(4, 48, 0)), payload=devices))
    text = shortcut.say(buffer, names, reply=True)
    assert text == said(buffer, names, True)
    assert shortcut.hear(text, reply=True) == buffer


@pytest.mark.parametrize("key", ["name", "uuid"])
def test_a_text_ends_at_its_nul(key):
    text = proplib.dumps(
        {
            "command": "info",
            "flags": proplib.Unsigned(4),
            key: "ab?c",
            "version": [proplib.Unsigned(4)] * 3,
            "cmd_data": [],
        }
    )
    assert shortcut.hear(text, reply=False)
    assert shortcut.hear(text.replace(b"?", b"\0"), reply=False) is None


def test_a_record_ends_at_its_nul():
    buffer = linux.build(
        Message(
            command=BY_NAME["TABLE_LOAD"],
            header=Header(name="x"),
            payload=(TargetSpec(start=0, length=8, type="ab?c", params="ab?c"),),
        )
    )
    text = shortcut.say(buffer, BY_NAME["TABLE_LOAD"], reply=False)
    assert shortcut.hear(text, reply=False) == buffer
    assert shortcut.hear(text.replace(b"?", b"\0", 1), reply=False) is None


def test_a_long_list_takes_little_memory():
    entries = [DeviceEntry(name=f"vg-lv{n:05}", dev=(253, n), event_nr=n % 3) for n in range(20_000)]
    buffer = linux.build(Message(command=BY_NAME["LIST_DEVICES"], reply=True, header=HEADER, payload=entries))
    tracemalloc.start()
    try:
        text = convert(buffer, source=Form.BINARY, target=Form.PLIST, command="names", reply=True)
        assert convert(text, source=Form.PLIST, target=Form.BINARY, reply=True) == buffer
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text)
    finally:
        tracemalloc.stop()
