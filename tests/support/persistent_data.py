"""Persistent data for tests: transactions of which nothing is ever read."""

from __future__ import annotations

from dmserver.targets.persistent_data.transaction import Transaction

__all__ = ["transaction"]


def unreadable(block: int) -> bytes:
    raise AssertionError(f"block {block} was read")


def transaction(blocks: int = 4000) -> Transaction:
    """One on a device of `blocks` blocks, all free and all in memory."""
    found = Transaction(unreadable)
    found.counts.extend(blocks)
    return found
