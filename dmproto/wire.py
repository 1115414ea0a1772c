"""What both spellings are made of: sizes, text, device numbers.

Text is `str` decoded as UTF-8 with surrogateescape (`to_text`), so that any byte a kernel passes survives.
Sectors are 512 bytes. `Dev` numbers are `(major, minor)` pairs; `huge_encode`/`huge_decode` and
`netbsd_encode`/`netbsd_decode` are the two systems' packed forms.
"""

from __future__ import annotations

__all__ = [
    "DATA_OFFSET",
    "DM_NAME_LEN",
    "DM_UUID_LEN",
    "HEADER_SIZE",
    "MAX_DATA_SIZE",
    "SECTOR_SIZE",
    "VERSION_SIZE",
    "Dev",
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
