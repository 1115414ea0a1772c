"""The short way of a request: monitors ask the same all day, and while nothing has changed, the same bytes get the same
answer.

A reply that depends on its request and on the devices' state alone (`quick`) is kept until the state is another one
(`Mapper.generation`). Everything else goes the long way.
"""

from __future__ import annotations

from collections.abc import Callable

from dmproto.stream import binary_reply

from .control.session import Session
from .model.mapper import Mapper

__all__ = ["Answers"]

_SHORT = 512  #: bytes of a request up to which looking it up costs less than answering it
_MANY = 1024


class Answers:
    """Whole replies by whole binary requests. `quick(session, number, buffer)` is `Host.quick`."""

    def __init__(self, mapper: Mapper, quick: Callable[[Session, int, bytes], bytes | None]) -> None:
        self._mapper = mapper
        self._quick = quick
        self._generation: object = None
        self._known: dict[bytes, bytes] = {}

    def get(self, message: bytes) -> bytes | None:
        """What is known to be the answer to the superuser's `message`."""
        if self._generation is not self._mapper.generation or len(message) > _SHORT:
            return None
        return self._known.get(message)

    def find(self, session: Session, number: int, buffer: bytes, message: bytes) -> bytes | None:
        """The answer to an ioctl, if it can be told at once; `message` is the whole request."""
        generation = self._mapper.generation
        written = self._quick(session, number, buffer)
        if written is None:
            return None
        reply = binary_reply(0, written)
        if len(message) <= _SHORT:
            if self._generation is not generation or len(self._known) >= _MANY:
                self._known.clear()
                self._generation = generation
            self._known[message] = reply
        return reply
