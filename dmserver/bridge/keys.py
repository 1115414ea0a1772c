"""Keys that programs give to the kernel and then name in tables. Nobody can read a logon key back, so they are seen
when they come; and when they go, since a table that names one is refused then."""

from __future__ import annotations

import os
import re

from dmserver.model.keyring import Keyring
from dmserver.model.mapper import Mapper

from .supervisor import CONTINUE, Call, Outcome

__all__ = ["Keys"]

KEY_MAX = 32767  # bytes that add_key(2) takes
KINDS = ("logon", "user")
KEYCTL_REVOKE, KEYCTL_UNLINK, KEYCTL_INVALIDATE = 3, 9, 21
#: A line of /proc/keys: serial, flags, usage, expiry, permissions, uid, gid, type, "description: bytes".
_LINE = re.compile(r"([0-9a-f]+) \S+ +(\d+) +\S+ \S+ +\S+ +\S+ +(\S+) +(.*): \d+\n")


class Keys:
    """The calls that add keys, and take them away."""

    def __init__(self, mapper: Mapper) -> None:
        self._mapper = mapper

    @property
    def _keyring(self) -> Keyring:
        keyring = self._mapper.shared.setdefault(Keyring, Keyring())
        assert isinstance(keyring, Keyring)
        return keyring

    def add_key(self, call: Call) -> Outcome:
        kind, description = os.fsdecode(call.string(0)), os.fsdecode(call.string(1))
        if kind in KINDS:
            self._keyring[kind, description] = call.caller.read(call.args[2], min(call.args[3], KEY_MAX))
        return CONTINUE

    def keyctl(self, call: Call) -> Outcome:
        """A key that is unlinked lives on where another keyring has it."""
        operation, serial = (arg & 0xFFFFFFFF for arg in call.args[:2])
        if operation in (KEYCTL_REVOKE, KEYCTL_UNLINK, KEYCTL_INVALIDATE) and self._keyring:
            usage, kind, description = _look_up(serial)
            if operation != KEYCTL_UNLINK or usage <= 1:
                self._keyring.pop((kind, description), None)
        return CONTINUE


def _look_up(serial: int) -> tuple[int, str, str]:
    """(usage, type, description) of a key that we may see; nothing of any other."""
    with open("/proc/keys", errors="surrogateescape") as lines:
        for line in lines:
            if (match := _LINE.match(line)) and int(match[1], 16) == serial:
                return int(match[2]), match[3], match[4]
    return 0, "", ""
