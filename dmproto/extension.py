"""The key under which a dictionary keeps what `struct dm_ioctl` says and it has no key for (specs/translation.md)."""

from __future__ import annotations

from .objects import Array, Dictionary, Key, Number, String

__all__ = ["EXTENSION", "EXTENSION_KEY"]

EXTENSION_KEY = "dm_ioctl"

#: What a dictionary has no key for. Absent keys are as the canonical encoding has them.
EXTENSION = Dictionary(
    Key("size", Number(32), flow="in/out", source="length of the buffer"),
    Key("data_size", Number(32), flow="in/out", source="dm_ioctl.data_size"),
    Key("data_start", Number(32), flow="in/out", source="dm_ioctl.data_start"),
    Key("padding", Number(32), flow="in/out", source="dm_ioctl.padding"),
    Key("major", Number(32), flow="in/out", source="MAJOR(dm_ioctl.dev)"),
    Key("dev", Number(64), flow="in/out", source="dm_ioctl.dev"),
    Key(
        "residue",
        Array(
            Dictionary(
                Key("offset", Number(32), required=True, flow="in/out", source="bytes from the start"),
                Key("bytes", String(), required=True, flow="in/out", source="hexadecimal digits"),
            )
        ),
        flow="in/out",
        source="bytes that the fields do not tell",
    ),
)
