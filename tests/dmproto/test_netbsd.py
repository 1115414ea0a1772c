import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.vectors import plists

from dmproto import netbsd, proplib
from dmproto.commands import BY_NAME, BY_VERB
from dmproto.errors import BadDictionary, BadPlist
from dmproto.flags import DmFlag
from dmproto.objects import same
from dmproto.proplib import Unsigned
from dmproto.records import DeviceEntry, Header, Message, TargetMessage, TargetSpec, TargetVersion


def request(**keys):
    return {"command": "version", "version": [Unsigned(4), Unsigned(0), Unsigned(0)], **keys}


def test_every_recorded_dictionary_comes_back_as_it_was():
    taken = refused = 0
    for reply, text in plists():
        try:
            obj = proplib.loads(text)
            message = netbsd.parse(obj, reply=reply)
        except (BadPlist, BadDictionary):
            refused += 1
            continue
        taken += 1
        assert same(netbsd.build(message), obj)
    assert taken > 600
    assert refused < 150


def test_a_reload_is_a_table_load():
    obj = request(
        command="reload",
        name="vg-lv",
        flags=Unsigned(4),
        cmd_data=[{"start": Unsigned(0), "length": Unsigned(100), "type": "linear", "params": "/dev/wd1a 384"}],
    )
    assert netbsd.parse(obj) == Message(
        command=BY_NAME["TABLE_LOAD"],
        header=Header(name="vg-lv", flags=4, target_count=1),
        payload=(TargetSpec(start=0, length=100, type="linear", params="/dev/wd1a 384"),),
    )


@pytest.mark.parametrize(
    ("command", "reply", "payload", "cmd_data"),
    [
        ("names", True, (DeviceEntry(name="a", dev=(253, 3)),), [{"dev": Unsigned(3), "name": "a"}]),
        (
            "names",
            True,
            (DeviceEntry(name="a", dev=(253, 3), event_nr=9, uuid="u"),),
            [{"dev": Unsigned(3), "name": "a", "event_nr": Unsigned(9), "uuid": "u"}],
        ),
        ("deps", True, (0x10A82C,), [Unsigned(0x10A82C)]),
        (
            "targets",
            True,
            (TargetVersion(name="linear", version=(1, 0, 2)),),
            [{"name": "linear", "ver": [Unsigned(1), Unsigned(0), Unsigned(2)]}],
        ),
        ("rename", False, "new", ["new"]),
        ("setgeometry", False, "1024 1 64 0", ["1024 1 64 0"]),
        (
            "message",
            False,
            TargetMessage(sector=5, message="hello"),
            [{"sector": Unsigned(5), "message": "hello"}],
        ),
        ("message", True, "0: 0+8 8 - -", ["0: 0+8 8 - -"]),
        ("message", True, None, None),
        ("remove_all", False, None, []),
    ],
)
def test_cmd_data(command, reply, payload, cmd_data):
    message = Message(command=BY_VERB[command], reply=reply, payload=payload)
    obj = netbsd.build(message)
    assert same(obj.get("cmd_data"), cmd_data)
    assert netbsd.parse(obj, reply=reply) == message


def test_a_status_reply_tells_the_slot_as_a_signed_number():
    spec = TargetSpec(start=0, length=8, type="zero", status=-1)
    message = Message(
        command=BY_NAME["TABLE_STATUS"],
        reply=True,
        header=Header(flags=DmFlag.STATUS_TABLE, target_count=1),
        payload=(spec,),
    )
    (record,) = netbsd.build(message)["cmd_data"]
    assert type(record["status"]) is int
    assert netbsd.build(message)["command"] == "table"


@pytest.mark.parametrize(
    ("name", "flags", "verb"),
    [
        ("DEV_SUSPEND", 0, "resume"),
        ("DEV_SUSPEND", DmFlag.SUSPEND, "suspend"),
        ("TABLE_STATUS", 0, "status"),
        ("TABLE_STATUS", DmFlag.STATUS_TABLE, "table"),
        ("DEV_STATUS", DmFlag.SUSPEND, "info"),
    ],
)
def test_flags_choose_the_verb(name, flags, verb):
    assert netbsd.verb(BY_NAME[name], flags) == verb


def test_the_verb_decides_about_suspend_in_a_request():
    assert netbsd.parse(request(command="suspend")).header.flags == DmFlag.SUSPEND
    assert netbsd.parse(request(command="resume", flags=Unsigned(6))).header.flags == DmFlag.EXISTS


def test_minors_get_the_major():
    obj = request(command="info", minor=Unsigned(300))
    assert netbsd.parse(obj).header.dev == 0x10FD2C
    assert netbsd.parse(obj, major=169).header.dev == 0x10A92C
    assert same(netbsd.build(netbsd.parse(obj, major=169), major=169), obj)


def test_a_minor_of_0_is_a_device_too():
    assert netbsd.parse(request(minor=Unsigned(0))).header.dev == 253 << 8


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"command": 5}, "command: expected a string, got number 5"),
        ({"command": "list"}, 'command: unknown command "list", expected one of armpoll, clear, '),
        ({"version": "4.0.0"}, 'version: expected an array of 3, got string "4.0.0"'),
        ({"minor": "1"}, 'minor: expected an unsigned number, got string "1"'),
        ({"command": "reload"}, "cmd_data: the key is missing, expected an array"),
        ({"command": "rename", "cmd_data": []}, "cmd_data[0]: the element is missing, expected a string"),
        (
            {"command": "reload", "cmd_data": [{"start": 0, "length": 1, "type": "zero"}, {"start": "x"}]},
            'cmd_data[1].start: expected an unsigned number, got string "x"',
        ),
    ],
)
def test_errors_name_the_key(keys, message):
    with pytest.raises(BadDictionary) as caught:
        netbsd.parse(request(**keys))
    assert str(caught.value).startswith(message)


def test_no_dictionary_at_all():
    with pytest.raises(BadDictionary, match=r"^expected a dictionary, got array of 0$"):
        netbsd.parse([])


OBJECTS = st.recursive(
    st.booleans()
    | st.integers(0, 2**64 - 1).map(Unsigned)
    | st.integers(-(2**63), -1)
    | st.text()
    | st.binary(min_size=1),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=20), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(BY_VERB)), st.dictionaries(st.text(max_size=20), OBJECTS), st.booleans())
def test_unknown_keys_survive(verb, unknown, reply):
    obj = {**unknown, **request(command=verb, cmd_data=[])}
    if not reply and BY_VERB[verb].takes.value in ("NUL-terminated string", "struct dm_target_msg"):
        obj["cmd_data"] = [{"message": "m"}] if verb == "message" else ["text"]
    for known in netbsd.HEADER.by_name.keys() - {"command", "version"}:
        obj.pop(known, None)
    assert same(netbsd.build(netbsd.parse(obj, reply=reply)), obj)


@given(st.dictionaries(st.sampled_from("abc"), OBJECTS), st.dictionaries(st.sampled_from("abc"), OBJECTS))
def test_a_difference_leads_from_one_to_the_other(one, other):
    assert same(netbsd.apply(dict(other), netbsd.difference(one, other)), one)


@pytest.mark.parametrize("key", ["command", "version", "flags"])
def test_errors_quote_no_more_than_a_line(key: str) -> None:
    with pytest.raises(BadDictionary) as caught:
        netbsd.parse({"command": "info", key: "x" * 100_000})
    assert len(str(caught.value)) < 400
