"""NetBSD's target types: how numbers and parameters are read; the recordings have the rest."""

from __future__ import annotations

import pytest

from dmserver.control.netbsd_targets import MAX_ARGC, NETBSD_TARGETS, atoi64, split_params


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0),
        ("x", 0),
        ("-5", 0),
        ("12abc", 12),
        ("0x10", 0),
        ("18446744073709551617", 1),
        ("0" * 5000 + "7", 7),
        ("\u0663", 0),
    ],
)
def test_atoi64_reads_leading_digits_and_wraps(text: str, value: int) -> None:
    assert atoi64(text) == value


def test_parameters_are_split_at_blanks_and_tabs_only() -> None:
    assert split_params("  a\t b\nc  ") == ["a", "b\nc"]
    assert split_params("a\\ b") == ["a\\", "b"]
    assert len(split_params("x " * 100)) == MAX_ARGC


def test_the_types_stand_in_the_drivers_order() -> None:
    assert list(NETBSD_TARGETS) == ["linear", "striped", "error", "zero"]
