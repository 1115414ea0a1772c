"""What the device-mapper tells the world: the global event number, uevents, and the log of complaints."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from dmproto.wire import to_bytes

__all__ = ["Events", "Uevent"]

#: Lines of the log that are kept.
LOG_LINES = 1000


class Uevent(NamedTuple):
    """A kernel uevent: `action`@`devpath` and KEY=value lines, in the kernel's order."""

    action: str
    devpath: str
    env: dict[str, str]

    def lines(self) -> list[str]:
        return [f"{self.action}@{self.devpath}", *(f"{key}={value}" for key, value in self.env.items())]


class Events:
    """Subscribers are called in the thread in which the event happens, possibly an I/O thread."""

    def __init__(self) -> None:
        self.global_nr = 0
        self.seqnum = 0
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self._lock = threading.Lock()
        self._pollers: list[Callable[[], None]] = []
        self._listeners: list[Callable[[Uevent], None]] = []
        self._log_sinks: list[Callable[[str], None]] = []

    def bump(self) -> None:
        """`dm_issue_global_event`: the global event number goes up and pollers look at it."""
        with self._lock:
            self.global_nr += 1
        for poller in tuple(self._pollers):
            poller()

    def uevent(self, event: Uevent) -> None:
        """Send a uevent to whoever listens."""
        for listener in tuple(self._listeners):
            listener(event)

    def send(self, action: str, path: str, subsystem: str, **keys: str) -> None:
        """Send the next uevent, with the keys that all have around those given (`kobject_uevent_env`)."""
        self.seqnum += 1
        env = {"ACTION": action, "DEVPATH": path, "SUBSYSTEM": subsystem, **keys, "SEQNUM": str(self.seqnum)}
        self.uevent(Uevent(action, path, env))

    def log(self, line: str) -> None:
        """A line as the kernel would log it; of what is no printable ASCII only the codes, as /dev/kmsg shows it."""
        if not (line.isascii() and line.isprintable()) or "\\" in line:
            line = "".join(_printable(byte) for byte in to_bytes(line))
        self.lines.append(line)
        for sink in tuple(self._log_sinks):
            sink(line)

    def on_bump(self, poller: Callable[[], None]) -> Callable[[], None]:
        """Call `poller` after each bump; returns the function that ends it."""
        self._pollers.append(poller)
        return lambda: self._pollers.remove(poller)

    def on_uevent(self, listener: Callable[[Uevent], None]) -> Callable[[], None]:
        """Call `listener` with each uevent; returns the function that ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def on_log(self, sink: Callable[[str], None]) -> Callable[[], None]:
        """Call `sink` with each line; returns the function that ends it."""
        self._log_sinks.append(sink)
        return lambda: self._log_sinks.remove(sink)


def _printable(byte: int) -> str:
    return f"\\x{byte:02x}" if byte < 0x20 or byte > 0x7E or byte == ord("\\") else chr(byte)
