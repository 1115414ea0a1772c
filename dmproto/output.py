"""Standard output of a tool whose reader may have had enough: `... | head`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

__all__ = ["print_lines"]


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
