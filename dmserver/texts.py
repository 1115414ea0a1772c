"""The text of property lists, in and out. Megabytes of it take seconds: that is done in a thread, one message after
another, and the loop goes on meanwhile."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from dmproto import proplib
from dmproto.errors import BadMessage, BadPlist
from dmproto.objects import describe
from dmproto.stream import JsonMessage, PlistMessage

__all__ = ["TextThread", "decode", "encode", "failure", "is_long"]

_Result = TypeVar("_Result")

_log = logging.getLogger("dmserver")

#: What takes milliseconds: bytes of a request, entries of a reply.
_LONG_TEXT, _LONG_LIST = 1 << 17, 1 << 11


def is_long(message: PlistMessage | JsonMessage, reply: dict[str, Any] | None = None) -> bool:
    """Whether the text of a request, or of the reply to it, is work for the thread."""
    data = reply.get("cmd_data") if reply else None
    return len(message.data) >= _LONG_TEXT or (isinstance(data, list) and len(data) >= _LONG_LIST)


def decode(message: PlistMessage | JsonMessage, limit: int) -> dict[str, Any] | BadMessage:
    """The dictionary of a request, or why there is none; `limit` bytes and more are refused."""
    try:
        if isinstance(message, JsonMessage):
            request = proplib.loads_json(message.data, max_size=limit)
        else:
            request = proplib.loads(message.data, flavour="kernel", max_size=limit)
    except BadMessage as wrong:
        return wrong
    return request if isinstance(request, dict) else BadPlist(f"expected a dictionary, got {describe(request)}")


def encode(reply: dict[str, Any], *, json: bool) -> bytes:
    """The text of a reply, or of the failure to write it."""
    dumps = proplib.dumps_json if json else proplib.dumps
    try:
        return dumps(reply)
    except ValueError as wrong:
        number = wrong.errno if isinstance(wrong, BadMessage) else errno.EIO
        return dumps({"errno": number, "error": str(wrong)})


def failure(wrong: BadMessage) -> dict[str, Any]:
    """The reply to a message that is not to be had."""
    return {"errno": wrong.errno, "error": str(wrong)}


class TextThread:
    """Does work one after another in a thread that is started for the first, and tells the loop through `call_soon`."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], None]) -> None:
        self._call_soon = call_soon
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = self._closed = False

    def run(self, work: Callable[[], _Result], then: Callable[[_Result], None], failed: Callable[[], None]) -> None:
        """Do `work`; afterwards the loop calls `then` with its result, or `failed` if it raised, which is logged."""
        self._work.put(lambda: self._do(work, then, failed))
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name="dm-text", daemon=True).start()

    def close(self) -> None:
        """Call nobody any more. Work under way ends in its own time, which may be after the loop's."""
        with self._lock:
            self._closed = True
        self._work.put(None)

    def _run(self) -> None:
        while (do := self._work.get()) is not None and not self._closed:
            do()
            del do  # what it holds may be large

    def _do(self, work: Callable[[], _Result], then: Callable[[_Result], None], failed: Callable[[], None]) -> None:
        try:
            result = work()
        except Exception:
            _log.exception("a property list failed in an unforeseen way")
            tell = failed
        else:
            tell = partial(then, result)
        with self._lock:
            if not self._closed:
                self._call_soon(tell)
