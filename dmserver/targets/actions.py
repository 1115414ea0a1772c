"""What is decided under a target's lock and done once that is free: bios to send, work to start."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Actions", "run"]

Actions = list[Callable[[], None]]


def run(actions: Actions) -> None:
    """Perform what was collected under the lock."""
    for action in actions:
        action()
