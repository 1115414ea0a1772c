"""The public surface: what `dmproto` exports, what that costs, and that a user's type checker sees all of it."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import dmproto

#: Everything a program may rely on. A name that goes breaks programs; one that comes is a promise.
SURFACE = """
CLOSED COMMANDS NEED_DATA BadBinary BadDictionary BadMessage BadPlist BinaryReply BinaryRequest Command CommandFlag Dev
DeviceEntry DmError DmFlag Event Form Header JsonMessage Malformed Message MessageTooLarge NameListFlag NotSayable
Payload PlistMessage ReplyStream RequestStream TargetMessage TargetSpec TargetVersion binary_reply binary_request build
command convert detect flag_names huge_decode huge_encode netbsd_decode netbsd_encode parse parse_header proplib
to_bytes to_dictionary to_message to_text
"""

PROGRAM = """\
from dmproto import (
    CLOSED, NEED_DATA, BinaryRequest, DmError, Form, Message, RequestStream, TargetSpec, build, command, convert, parse
)

def relay(stream: RequestStream, data: bytes) -> list[bytes]:
    texts: list[bytes] = []
    stream.receive_data(data)
    while (event := stream.next_event()) is not NEED_DATA:
        if event is CLOSED:
            break
        reveal_type(event)
        if isinstance(event, BinaryRequest):
            try:
                texts.append(convert(event.buffer, source=Form.BINARY, target=Form.PLIST, command="reload"))
            except DmError as error:
                print(error.errno, error)
    return texts

message: Message = parse(build(Message(command=command("names"))), command("names"))
reveal_type(message.header.version)
TargetSpec(start="0", length=8, type="zero")
"""


def test_the_names() -> None:
    assert sorted(dmproto.__all__) == sorted(SURFACE.split())
    assert {name for name in dmproto.__all__ if not hasattr(dmproto, name)} == set()


def test_each_name_is_public_where_it_comes_from_and_documented() -> None:
    for name in dmproto.__all__:
        value = getattr(dmproto, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name
            assert name in sys.modules[value.__module__].__all__


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'dmproto' has no attribute 'nonsense'"):
        _ = dmproto.nonsense
    with pytest.raises(ImportError):
        from dmproto import nonsense  # noqa: F401  # the import is what is tested


def test_the_example() -> None:
    results = doctest.testmod(dmproto)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import dmproto", set()),
        ("from dmproto import DmFlag, command, to_text", set()),
        ("from dmproto import Message", {"dataclasses"}),
        ("from dmproto import *", {"construct", "dataclasses"}),
    ],
)
def test_an_import_takes_no_more_than_it_needs(statement: str, loaded: set[str]) -> None:
    dear = {"construct", "dataclasses", "hypothesis", "argparse"}
    program = f"import sys; {statement}; print(*{dear} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert set(out.split()) == loaded


def test_a_strict_type_checker_knows_every_name(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(PROGRAM)
    everything = "".join(f"from dmproto import {name} as {name}_\nreveal_type({name}_)\n" for name in dmproto.__all__)
    (tmp_path / "everything.py").write_text(everything)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache", "user.py", "everything.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    lines = [line for line in checked.stdout.splitlines() if not line.startswith("Found")]
    user = [line.partition(": ")[2] for line in lines if line.startswith("user.py")]
    assert user == [
        'note: Revealed type is "dmproto.stream.PlistMessage | dmproto.stream.JsonMessage | '
        'dmproto.stream.BinaryRequest | dmproto.stream.BinaryReply | dmproto.stream.Malformed"',
        'note: Revealed type is "tuple[int, int, int]"',
        'error: Argument "start" to "TargetSpec" has incompatible type "str"; expected "int"  [arg-type]',
    ]
    types = [line for line in lines if line.startswith("everything.py")]
    assert len(types) == len(dmproto.__all__)
    assert not [line for line in types if "Revealed type" not in line or '"Any"' in line]
