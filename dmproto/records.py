"""Typed records, the same for both spellings. Text and device numbers are those of `wire`."""

from __future__ import annotations

from dataclasses import dataclass, field

from .commands import Command
from .wire import Dev

__all__ = [
    "DeviceEntry",
    "Header",
    "Keys",
    "Message",
    "Payloads",
    "Residue",
    "TargetMessage",
    "TargetSpec",
    "TargetVersion",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetSpec:
    """One line of a table or of its status: `struct dm_target_spec` and the string behind it.

    `start` and `length` in sectors. `params` is the parameter string, or the status line in a reply.
    """

    start: int
    length: int
    type: str
    params: str = ""
    status: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceEntry:
    """One device of a list: `struct dm_name_list`. `uuid` is None where the list does not tell."""

    name: str
    dev: Dev
    event_nr: int = 0
    uuid: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetVersion:
    """One target type: `struct dm_target_versions`."""

    name: str
    version: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetMessage:
    """A message to the target at `sector`: `struct dm_target_msg`."""

    sector: int
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The fixed fields of `struct dm_ioctl`. `dev` is the packed number, as it stands on the wire."""

    version: tuple[int, int, int] = (4, 0, 0)
    data_size: int = 0
    data_start: int = 0
    target_count: int = 0
    open_count: int = 0
    flags: int = 0
    event_nr: int = 0
    padding: int = 0
    dev: int = 0
    name: str = ""
    uuid: str = ""


#: What can follow a header, by `Payload`: chains are tuples of records, deps a tuple of packed dev numbers.
Payloads = (
    tuple[TargetSpec, ...]
    | tuple[DeviceEntry, ...]
    | tuple[TargetVersion, ...]
    | tuple[int, ...]
    | TargetMessage
    | str
    | None
)

#: Runs of bytes in which a message differs from the canonical encoding of its fields: (offset, bytes).
Residue = tuple[tuple[int, bytes], ...]

#: Keys in which a dictionary differs from what its fields make: (key, object), or (key, None) where it has none.
Keys = tuple[tuple[str, object], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One whole request or reply, in either spelling.

    `size` is the length of the binary form in bytes (0: whatever the canonical encoding needs). `residue` (of the
    binary form) and `keys` (of the dictionary) keep what the fields cannot say, so that nothing of a parsed message
    is lost; a canonical message has none.
    """

    command: Command
    reply: bool = False
    header: Header = field(default_factory=Header)
    payload: Payloads = None
    size: int = 0
    residue: Residue = ()
    keys: Keys = ()
