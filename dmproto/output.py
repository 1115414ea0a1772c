"""What a tool prints: lines whose reader may have had enough (`... | head`), and why something failed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

__all__ = ["print_lines", "reason"]


def print_lines(lines: Iterable[str]) -> bool:
    """Print them; False when the reader did not want all."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere
        return False
    return True


def reason(error: Exception) -> str:
    """An exception in words: `PATH: what the system says`, or its text."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
