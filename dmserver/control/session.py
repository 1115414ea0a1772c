"""An open control node: what a client is to the device-mapper, whichever door it came through."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Cancel", "Session"]

#: Ends a parked command: it is answered with EINTR at once.
Cancel = Callable[[], None]


class Session:
    """`privileged`: CAP_SYS_ADMIN, or NetBSD's superuser. `event_nr`: the global event number at open or at the last
    DEV_ARM_POLL; the node is readable when it differs from the mapper's (`dm_poll`). `locate` turns a path of a table
    into what it means to the client: an absolute path here, or `MAJ:MIN`; None: paths are ours."""

    __slots__ = ("event_nr", "locate", "privileged")

    def __init__(self, *, privileged: bool = True, event_nr: int = 0) -> None:
        self.privileged = privileged
        self.event_nr = event_nr
        self.locate: Callable[[str], str] | None = None
