import pytest
from support.vectors import linux_buffers

from dmproto import draft2008, linux, proplib
from dmproto.commands import BY_NAME
from dmproto.errors import BadDictionary, BadMessage, BadPlist
from dmproto.objects import same
from dmproto.proplib import Unsigned
from dmproto.records import DeviceEntry, Header, Message, TargetMessage, TargetSpec, TargetVersion
from dmproto.translate import Form, convert

LOAD = b"""
<!-- DM_TABLE_LOAD as the draft has it -->
<dict>
  <key>version</key> <string>4.0.0</string>
  <key>target_count</key> <integer>2</integer>
  <key>flags</key> <integer>0x8</integer>
  <key>dev</key> <integer>0xa902</integer>
  <key>name</key> <string/>
  <dict>
    <dict ID="id">
      <key>sector_start</key> <integer>0</integer>
      <key>length</key> <integer>100</integer>
      <key>target_type</key> <string>zero</string>
    </dict>
    <dict ID="id">
      <key>sector_start</key> <integer>100</integer>
      <key>length</key> <integer>100</integer>
      <key>target_type</key> <string>linear</string>
      <key>aditional info</key> <string>/dev/wdba 384</string>
    </dict>
  </dict>
</dict>
"""


def plist(text):
    return b'<plist version="1.0">' + text + b"</plist>"


def test_the_drafts_own_notation():
    obj = draft2008.loads(plist(LOAD), command=BY_NAME["TABLE_LOAD"])
    message = draft2008.parse(obj)
    assert message.header == Header(flags=8, target_count=2, dev=0xA902)
    assert message.payload == (
        TargetSpec(start=0, length=100, type="zero"),
        TargetSpec(start=100, length=100, type="linear", params="/dev/wdba 384"),
    )
    assert same(draft2008.build(message), obj)


def test_a_list_at_the_top():
    text = b"""<dict>
      <dict ID="id"><key>version</key><string>1.0.2</string><key>name</key><string>linear</string></dict>
      <dict ID="b"><key>version</key><string>1.0.3</string><key>name</key><string>striped</string></dict>
    </dict>"""
    message = draft2008.parse(draft2008.loads(plist(text), command=BY_NAME["LIST_VERSIONS"]), reply=True)
    assert message.payload == (
        TargetVersion(name="linear", version=(1, 0, 2)),
        TargetVersion(name="striped", version=(1, 0, 3)),
    )


def test_one_record_needs_no_child():
    text = b"""<dict><key>command</key><string>reload</string><dict><key>sector_start</key><integer>0</integer>
               <key>length</key><integer>8</integer><key>target_type</key><string>linear</string>
               <key>additional info</key><string>/dev/wd0a 0</string></dict></dict>"""
    (spec,) = draft2008.parse(draft2008.loads(plist(text))).payload
    assert spec == TargetSpec(start=0, length=8, type="linear", params="/dev/wd0a 0")


def test_rename():
    text = b"<dict><key>name</key><string>old</string><dict><key>name</key><string>new</string></dict></dict>"
    message = draft2008.parse(draft2008.loads(plist(text), command=BY_NAME["DEV_RENAME"]))
    assert (message.header.name, message.payload) == ("old", "new")


@pytest.mark.parametrize(
    "message",
    [
        Message(
            command=BY_NAME["LIST_DEVICES"],
            reply=True,
            payload=tuple(DeviceEntry(name=f"d{n}", dev=(253, n), event_nr=n, uuid=None) for n in range(11)),
        ),
        Message(command=BY_NAME["TABLE_DEPS"], reply=True, payload=(0x10, 0x10A82C)),
        Message(command=BY_NAME["TABLE_DEPS"], reply=True),
        Message(command=BY_NAME["TARGET_MSG"], payload=TargetMessage(sector=1, message="m")),
        Message(command=BY_NAME["DEV_SET_GEOMETRY"], payload="1024 1 64 0"),
        Message(command=BY_NAME["VERSION"], header=Header(dev=0x10FD2C, event_nr=9, uuid="u")),
    ],
    ids=lambda message: message.command.name,
)
def test_build_is_the_inverse_of_parse(message):
    text = draft2008.dumps(draft2008.build(message))
    assert draft2008.parse(draft2008.loads(text), reply=message.reply) == message


def test_what_it_writes_is_a_property_list():
    message = draft2008.parse(draft2008.loads(plist(LOAD), command=BY_NAME["TABLE_LOAD"]))
    text = draft2008.dumps(draft2008.build(message))
    assert proplib.loads(text) == draft2008.loads(text)
    with pytest.raises(BadPlist):
        proplib.loads(plist(LOAD))


def test_recorded_buffers_survive_the_draft():
    count = 0
    for command, reply, data in linux_buffers()[::5]:  # test_translate.py has all of them
        try:
            linux.parse(data, command, reply=reply)
        except BadMessage:
            continue
        draft = convert(data, source=Form.BINARY, target=Form.DRAFT, command=command, reply=reply)
        assert convert(draft, source=None, target=Form.BINARY, reply=reply) == data
        count += 1
    assert count > 1400


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"version": "4"}, 'version: expected a version such as "4.0.0", got string "4"'),
        ({"version": [4, 0, 0]}, "version: expected a string, got array of 3"),
        ({"dev": "x"}, 'dev: expected an unsigned number, got string "x"'),
        ({"command": "reload", "cmd_data": "x"}, 'cmd_data: expected a dictionary, got string "x"'),
        (
            {"command": "reload", "cmd_data": {"a": {"sector_start": Unsigned(1), "length": "l"}}},
            'cmd_data.a.length: expected an unsigned number, got string "l"',
        ),
    ],
)
def test_errors_name_the_key(keys, message):
    with pytest.raises(BadDictionary) as caught:
        draft2008.parse({"command": "info", **keys})
    assert str(caught.value) == message


def test_a_text_that_is_no_dictionary():
    with pytest.raises(BadPlist, match="no dictionary"):
        draft2008.loads(plist(b"<array/>"))


def test_keys_that_only_one_form_knows_stay_when_nobody_knows_them():
    obj = {"command": "info", "name": "a", "flags": Unsigned(4), "version": "4.0.0", "colour": "red"}
    data = convert(draft2008.dumps(obj), source=Form.DRAFT, target=Form.BINARY)
    plist = convert(data, source=Form.BINARY, target=Form.PLIST, command="info")
    assert proplib.loads(plist)["colour"] == "red"
    assert same(draft2008.loads(convert(plist, source=None, target=Form.DRAFT)), obj)


def test_comments_without_an_end_cost_no_more_than_others():
    with pytest.raises(BadPlist):
        draft2008.loads(plist(b"<dict>" + b"<!--" * 200_000 + b"</dict>"))
