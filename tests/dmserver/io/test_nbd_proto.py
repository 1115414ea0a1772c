"""The structs of the NBD protocol have the sizes that its document gives, and errors that exist on the wire."""

from __future__ import annotations

import errno

import pytest

from dmserver.io import nbd_proto


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("HANDSHAKE", 18),
        ("OPTION", 16),
        ("OPTION_REPLY", 20),
        ("REQUEST", 28),
        ("SIMPLE_REPLY", 16),
        ("STRUCTURED_REPLY", 20),
        ("INFO_EXPORT", 12),
        ("INFO_BLOCK_SIZES", 14),
        ("EXTENT", 8),
    ],
)
def test_sizes(name: str, size: int) -> None:
    assert getattr(nbd_proto, name).size == size


@pytest.mark.parametrize(
    ("error", "wire"),
    [(0, 0), (errno.EPERM, 1), (errno.EIO, 5), (errno.ENOSPC, 28), (errno.EOPNOTSUPP, 95), (errno.ENXIO, 5)],
)
def test_wire_error(error: int, wire: int) -> None:
    assert nbd_proto.wire_error(error) == wire
