"""Exceptions of the protocol. Each knows the errno a kernel would answer with.

`DmError` is never raised itself. What a caller did wrong with our own API is a plain `TypeError` or
`ValueError`; what a peer sent wrong is a `BadMessage`, and it carries the evidence: the offset or the key
path, what stood there, and what was expected.
"""

from __future__ import annotations

import errno as _errno

__all__ = ["BadBinary", "BadDictionary", "BadMessage", "BadPlist", "DmError", "MessageTooLarge", "NotSayable"]


class DmError(Exception):
    """Base of every exception of this package. `errno` is a positive number from <errno.h>."""

    errno: int = _errno.EINVAL


class BadMessage(DmError, ValueError):
    """A peer's message cannot be understood. `str()` is a sentence for a person.

    `offset` counts bytes from the start of the message; `path` names fields or keys from the outside in
    (`cmd_data[2].start`). Either may be absent (None, "").
    """

    def __init__(self, message: str, *, offset: int | None = None, path: str = "") -> None:
        self.message = message
        self.offset = offset
        self.path = path
        place = f" at offset {offset}" if offset is not None else ""
        super().__init__(f"{path}: {message}{place}" if path else f"{message}{place}")


class BadBinary(BadMessage):
    """A `struct dm_ioctl` buffer or one of its payloads is malformed."""


class BadPlist(BadMessage):
    """Text is not a property list that proplib accepts (the kernel answers EIO)."""

    errno = _errno.EIO


class BadDictionary(BadMessage):
    """A property list parsed, but it is not a device-mapper dictionary."""


class MessageTooLarge(BadMessage):
    """A message is larger than the receiver takes. Send a smaller one, or raise the receiver's limit."""

    errno = _errno.E2BIG


class NotSayable(BadMessage):
    """A field of one form has no place in the other, and extension keys were refused (`--strict`)."""
