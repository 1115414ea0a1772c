"""Messages: to the device-mapper core ('@...') and to targets (drivers/md/dm-ioctl.c: target_message())."""

from __future__ import annotations

import errno
from struct import Struct

from dmproto.flags import DmFlag
from dmproto.wire import DATA_OFFSET, to_bytes, to_text

from ..model.args import split_args
from ..model.dm_dev import DmDev
from ..model.dm_target import Target, TargetError
from .linux_call import Call, Refusal
from .linux_stats import STATS_MESSAGES

__all__ = ["target_message"]

_SECTOR = Struct("<Q")


def target_message(call: Call) -> None:
    """A message to the core or to the target at a sector; a string it returns becomes the reply's data."""
    device = call.find_device()
    start = call.data_start
    message = call.text_from(start + 8) if start >= DATA_OFFSET else None
    if message is None:
        raise Refusal(errno.EINVAL, "Invalid target message parameters.")
    argv = split_args(to_text(message))
    if not argv:
        raise Refusal(errno.EINVAL, "Empty message received.")
    (sector,) = _SECTOR.unpack_from(call.buffer, start)
    call.result_room()
    to_core = argv[0].startswith("@")
    answer = _core_message(call, device, argv) if to_core else _to_target(call, device, sector, argv)
    call.status(device)
    if answer is not None:
        _reply(call, to_bytes(answer))


def _reply(call: Call, text: bytes) -> None:
    call.set(DmFlag.DATA_OUT)
    room = call.result_room()
    if len(text) + 1 >= room:
        call.set(DmFlag.BUFFER_FULL)
        return
    at = call.data_start
    call.buffer[at : at + len(text) + 1] = text + b"\0"
    call.data_size = at + len(text) + 1


def _core_message(call: Call, device: DmDev, argv: list[str]) -> str | None:
    """message_for_md()."""
    if argv[0].lower() == "@cancel_deferred_remove":
        if len(argv) != 1:
            raise Refusal(errno.EINVAL, "Invalid arguments for @cancel_deferred_remove")
        device.deferred_remove = False
        return None
    handler = STATS_MESSAGES.get(argv[0].lower())
    if handler is not None:
        try:
            answer = handler(device, argv[1:], call.result_room())
        except ValueError:
            call.control.complain(f"stats: Invalid parameters for message {argv[0]}")
            raise Refusal(errno.EINVAL) from None
        return _untouched(call) if answer == "" else answer
    raise Refusal(errno.EINVAL, f"Unsupported message sent to DM core: {argv[0]}")


def _untouched(call: Call) -> str:
    """What a reply says into which nothing was written: the first bytes of the request's data, the sector above all."""
    return to_text(call.text_from(call.data_start) or b"")


def _to_target(call: Call, device: DmDev, sector: int, argv: list[str]) -> str | None:
    table = device.live
    if table is None:
        raise Refusal(errno.EINVAL, "The device has no table.")
    target = table.find_target(sector)
    if target is None:
        raise Refusal(errno.EINVAL, "Target message sector outside device.")
    if type(target).message is Target.message:
        raise Refusal(errno.EINVAL, "Target type does not support messages")
    try:
        return target.message(argv)
    except TargetError as failure:
        raise Refusal(failure.errno) from failure
