"""dmproto.strategies: what it draws is what it says, and every reader stands what is nearly right."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from dmproto import linux, proplib, strategies, translate
from dmproto.commands import Command
from dmproto.errors import BadBinary, BadMessage
from dmproto.proplib import Unsigned
from dmproto.records import Message, TargetSpec
from dmproto.wire import to_bytes, to_text


@given(strategies.messages())
def test_messages_are_canonical_and_survive(message: Message) -> None:
    assert message.residue == ()
    assert linux.parse(linux.build(message), message.command, reply=message.reply) == message


@given(strategies.buffers())
def test_buffers_go_through_the_dictionary_unharmed(drawn: tuple[bytes, Command, bool]) -> None:
    data, command, reply = drawn
    assert translate.to_binary(translate.from_binary(data, command, reply=reply), reply=reply) == data


@given(strategies.buffers(nearly=True))
def test_nearly_right_buffers_are_kept_whole_or_refused_with_the_place(drawn: tuple[bytes, Command, bool]) -> None:
    data, command, reply = drawn
    try:
        message = linux.parse(data, command, reply=reply)
    except BadBinary as error:
        place = error
    else:
        assert linux.build(message) == data
        return
    assert place.path
    assert place.offset is not None
    assert 0 <= place.offset <= len(data)


@given(strategies.plists(), st.booleans())
def test_plists_are_as_proplib_writes_them(text: bytes, flavour: bool) -> None:
    assert proplib.dumps(proplib.loads(text, flavour="kernel" if flavour else "library")) == text


@given(st.one_of(strategies.plists(nearly=True), strategies.jsons(nearly=True)), st.booleans())
def test_nearly_right_texts_are_read_or_refused(text: bytes, reply: bool) -> None:
    """Nothing but the documented exceptions comes out."""
    for target in translate.Form:
        try:
            assert isinstance(translate.convert(text, source=None, target=target, reply=reply), bytes)
        except BadMessage as error:
            assert str(error)
        except ValueError as error:
            assert translate.detect(text) is translate.Form.BINARY, error


@given(strategies.tables(device="8:1", size=4096))
def test_tables_have_no_gaps(table: tuple[TargetSpec, ...]) -> None:
    ends = [spec.start + spec.length for spec in table]
    assert [spec.start for spec in table] == [0, *ends[:-1]]
    assert all("8:1" in spec.params for spec in table if spec.type in ("linear", "striped"))


@given(strategies.names(), strategies.uuids())
def test_names_and_uuids_fit(name: str, uuid: str) -> None:
    assert 1 <= len(to_bytes(name)) <= 127
    assert 1 <= len(to_bytes(uuid)) <= 128
    assert "/" not in name
    assert "\0" not in name + uuid
    assert to_text(to_bytes(name)) == name


@given(strategies.dictionaries())
def test_dictionaries_hold_property_list_objects(obj: dict[str, object]) -> None:
    assert isinstance(obj["command"], str)
    assert isinstance(obj["flags"], Unsigned)


def test_without_hypothesis_the_error_says_what_to_install() -> None:
    program = "import sys; sys.modules['hypothesis'] = None; import dmproto.strategies"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ImportError: dmproto.strategies needs hypothesis: pip install 'dmproto[strategies]'" in run.stderr
