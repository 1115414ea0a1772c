"""Flag bits of `struct dm_ioctl.flags` (Linux `include/uapi/linux/dm-ioctl.h`) and of the dictionary's
`flags` (NetBSD `sys/dev/dm/netbsd-dm.h`). The two systems use the same bits for the same things.
"""

from __future__ import annotations

from enum import IntFlag

__all__ = ["DmFlag", "NameListFlag", "flag_names"]


class DmFlag(IntFlag):
    """`flags` of a request or reply. The comment says who sets the bit: in (caller), out (kernel)."""

    READONLY = 1 << 0  # in/out
    SUSPEND = 1 << 1  # in/out
    EXISTS = 1 << 2  # NetBSD in/out; Linux echoes it (libdevmapper's "exists" of old)
    PERSISTENT_DEV = 1 << 3  # in
    STATUS_TABLE = 1 << 4  # in
    ACTIVE_PRESENT = 1 << 5  # out
    INACTIVE_PRESENT = 1 << 6  # out
    BUFFER_FULL = 1 << 8  # out
    SKIP_BDGET = 1 << 9  # in, ignored
    SKIP_LOCKFS = 1 << 10  # in
    NOFLUSH = 1 << 11  # in
    QUERY_INACTIVE = 1 << 12  # in
    UEVENT_GENERATED = 1 << 13  # out
    UUID = 1 << 14  # in
    SECURE_DATA = 1 << 15  # in
    DATA_OUT = 1 << 16  # out
    DEFERRED_REMOVE = 1 << 17  # in/out
    INTERNAL_SUSPEND = 1 << 18  # out
    IMA_MEASUREMENT = 1 << 19  # in


class NameListFlag(IntFlag):
    """`flags` behind the event number in a `struct dm_name_list` entry."""

    HAS_UUID = 1
    DOESNT_HAVE_UUID = 2


def flag_names(value: int) -> list[str]:
    """Names of the set bits, lowest first; a bit without a name is given as hexadecimal."""
    return [DmFlag(1 << bit).name or hex(1 << bit) for bit in range(value.bit_length()) if value >> bit & 1]
