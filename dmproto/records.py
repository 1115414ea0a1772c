"""Typed records, the same for both spellings.

Text is `str` decoded as UTF-8 with surrogateescape (`to_text`), so that any byte a kernel passes survives.
Sectors are 512 bytes. `dev` numbers are `(major, minor)` pairs; `huge_encode`/`huge_decode` and
`netbsd_encode`/`netbsd_decode` are the two systems' packed forms.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .commands import Command

__all__ = [
    "DATA_OFFSET",
    "DM_NAME_LEN",
    "DM_UUID_LEN",
    "HEADER_SIZE",
    "MAX_DATA_SIZE",
    "SECTOR_SIZE",
    "VERSION_SIZE",
    "Dev",
    "DeviceEntry",
    "Header",
    "Keys",
    "Message",
    "Payloads",
    "Residue",
    "TargetMessage",
    "TargetSpec",
    "TargetVersion",
    "huge_decode",
    "huge_encode",
    "netbsd_decode",
    "netbsd_encode",
    "to_bytes",
    "to_text",
]

SECTOR_SIZE = 512
VERSION_SIZE = 12  #: bytes of `dm_ioctl.version`, all that comes back from a failure
DATA_OFFSET = 305  #: offsetof(struct dm_ioctl, data): the shortest message, and a reply without data
HEADER_SIZE = 312  #: sizeof(struct dm_ioctl) on LP64
MAX_DATA_SIZE = 1 << 30  #: the largest data_size that the kernel takes, in bytes
DM_NAME_LEN = 128  #: bytes of `name`, its NUL included
DM_UUID_LEN = 129  #: bytes of `uuid`, its NUL included

Dev = tuple[int, int]


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


def to_text(data: bytes) -> str:
    """Bytes of a name, parameter or message as text; undecodable bytes survive as surrogates."""
    return data.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """The inverse of `to_text`."""
    return text.encode("utf-8", "surrogateescape")


def huge_encode(dev: Dev) -> int:
    """Linux `huge_encode_dev`: the low 32 bits of `dm_ioctl.dev`."""
    major, minor = dev
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def huge_decode(value: int) -> Dev:
    """Linux `huge_decode_dev`: only the low 32 bits of `value` count."""
    return (value >> 8 & 0xFFF, value & 0xFF | value >> 12 & 0xFFF00)


def netbsd_encode(dev: Dev) -> int:
    """NetBSD `makedev` (sys/types.h): `((maj<<8)&0xfff00) | ((min<<12)&0xfff00000) | (min&0xff)`."""
    major, minor = dev
    return major << 8 & 0xFFF00 | minor << 12 & 0xFFF00000 | minor & 0xFF


def netbsd_decode(value: int) -> Dev:
    """NetBSD `major()` and `minor()`."""
    return (value >> 8 & 0xFFF, value & 0xFF | value >> 12 & 0xFFF00)
