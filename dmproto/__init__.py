"""The device-mapper control protocol: Linux's binary form, NetBSD's property-list form, and the way between.

    >>> from dmproto import Form, Header, Message, TargetSpec, build, command, convert, parse, proplib
    >>> load = command("reload")  # or "DM_TABLE_LOAD"
    >>> zero = TargetSpec(start=0, length=8, type="zero")
    >>> buffer = build(Message(command=load, header=Header(name="x"), payload=(zero,)))
    >>> parse(buffer, load).payload == (zero,)
    True
    >>> text = convert(buffer, source=Form.BINARY, target=Form.PLIST, command=load)
    >>> proplib.loads(text)["cmd_data"]
    [{'length': Unsigned(8), 'params': '', 'start': Unsigned(0), 'type': 'zero'}]
    >>> convert(text, source=Form.PLIST, target=Form.BINARY) == buffer
    True

`parse` and `build` are for the binary form, `to_message` and `to_dictionary` for dictionaries, `convert` for texts and
buffers of every `Form`; `RequestStream` and `ReplyStream` cut a socket's bytes into messages. All that is refused
raises a `DmError`. The submodules hold more: `proplib`, `netbsd`, `draft2008` and `libdm` for dictionaries,
`captures`, `strace` and `explain` for recordings and people, `codegen` for schemas, `strategies` for tests.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import proplib
    from .commands import COMMANDS, Command, CommandFlag, Payload, command
    from .errors import BadBinary, BadDictionary, BadMessage, BadPlist, DmError, MessageTooLarge, NotSayable
    from .flags import DmFlag, NameListFlag, flag_names
    from .linux import build, parse, parse_header
    from .records import DeviceEntry, Header, Message, TargetMessage, TargetSpec, TargetVersion
    from .stream import (
        CLOSED,
        NEED_DATA,
        BinaryReply,
        BinaryRequest,
        Event,
        JsonMessage,
        Malformed,
        PlistMessage,
        ReplyStream,
        RequestStream,
        binary_reply,
        binary_request,
    )
    from .translate import Form, convert, detect, to_dictionary, to_message
    from .wire import Dev, huge_decode, huge_encode, netbsd_decode, netbsd_encode, to_bytes, to_text

__all__ = [
    "CLOSED",
    "COMMANDS",
    "NEED_DATA",
    "BadBinary",
    "BadDictionary",
    "BadMessage",
    "BadPlist",
    "BinaryReply",
    "BinaryRequest",
    "Command",
    "CommandFlag",
    "Dev",
    "DeviceEntry",
    "DmError",
    "DmFlag",
    "Event",
    "Form",
    "Header",
    "JsonMessage",
    "Malformed",
    "Message",
    "MessageTooLarge",
    "NameListFlag",
    "NotSayable",
    "Payload",
    "PlistMessage",
    "ReplyStream",
    "RequestStream",
    "TargetMessage",
    "TargetSpec",
    "TargetVersion",
    "binary_reply",
    "binary_request",
    "build",
    "command",
    "convert",
    "detect",
    "flag_names",
    "huge_decode",
    "huge_encode",
    "netbsd_decode",
    "netbsd_encode",
    "parse",
    "parse_header",
    "proplib",
    "to_bytes",
    "to_dictionary",
    "to_message",
    "to_text",
]

#: Where each name is, to be loaded when it is first asked for: a program that needs but a part should start quickly.
_LATER = {
    **dict.fromkeys(("COMMANDS", "Command", "CommandFlag", "Payload", "command"), "commands"),
    **dict.fromkeys(("BadBinary", "BadDictionary", "BadMessage", "BadPlist", "DmError"), "errors"),
    **dict.fromkeys(("MessageTooLarge", "NotSayable"), "errors"),
    **dict.fromkeys(("DmFlag", "NameListFlag", "flag_names"), "flags"),
    **dict.fromkeys(("build", "parse", "parse_header"), "linux"),
    **dict.fromkeys(("DeviceEntry", "Header", "Message"), "records"),
    **dict.fromkeys(("TargetMessage", "TargetSpec", "TargetVersion"), "records"),
    **dict.fromkeys(("CLOSED", "NEED_DATA", "BinaryReply", "BinaryRequest", "Event", "JsonMessage"), "stream"),
    **dict.fromkeys(("Malformed", "PlistMessage", "ReplyStream", "RequestStream"), "stream"),
    **dict.fromkeys(("binary_reply", "binary_request"), "stream"),
    **dict.fromkeys(("Form", "convert", "detect", "to_dictionary", "to_message"), "translate"),
    **dict.fromkeys(("Dev", "huge_decode", "huge_encode", "netbsd_decode", "netbsd_encode"), "wire"),
    **dict.fromkeys(("to_bytes", "to_text"), "wire"),
}


def __getattr__(name: str) -> Any:
    if name == "proplib":
        return import_module(".proplib", __name__)
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    return value
