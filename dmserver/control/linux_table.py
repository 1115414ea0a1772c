"""Linux's commands that change tables: load and clear (drivers/md/dm-ioctl.c, dm-table.c)."""

from __future__ import annotations

import errno
from struct import Struct

from dmproto.flags import DmFlag
from dmproto.wire import to_text

from ..model.args import split_args
from ..model.dm_dev import DmDev
from ..model.dm_table import DmTable
from ..model.dm_target import Target, TargetError, TargetFeature
from . import linux_uevent
from .linux_call import Call, Refusal
from .linux_limits import fits
from .linux_resolver import LinuxResolver

__all__ = ["table_clear", "table_load"]

MAX_TARGETS = 1 << 20
MAX_SECTORS = (1 << 54) - 1

_SPEC = Struct("<QQiI")  # sector_start, length, status, next; target_type[16] follows
_SPEC_SIZE = 40

#: The kernel's names of errnos, where one has two.
_SYMBOLS = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}

#: `enum dm_queue_mode`.
_BIO_BASED, _REQUEST_BASED = 1, 2


def table_load(call: Call) -> None:
    """table_load(): build a table from the specs and put it into the inactive slot. A failure leaves the slot alone."""
    device = call.find_device()
    if call.target_count > MAX_TARGETS:
        raise Refusal(errno.EOVERFLOW)
    resolver = LinuxResolver(device.mapper, call.session.locate)
    table = DmTable(device, resolver, read_only=call.has(DmFlag.READONLY))
    try:
        _populate(call, table)
        _check_type(call, device, table)
        if not device.has_disk:
            _make_disk(call, device, table)
    except BaseException:
        table.destroy()
        raise
    old, device.inactive = device.inactive, table
    call.set(DmFlag.INACTIVE_PRESENT)
    call.status(device)
    if old is not None:
        old.destroy()


def _make_disk(call: Call, device: DmDev, table: DmTable) -> None:
    """dm_setup_md_queue(): the block device appears with the first table, which must fit."""
    if not fits(table):
        call.control.complain("core: Cannot calculate initial queue limits")
        raise Refusal(errno.EINVAL, "unable to set up device queue for new table.")
    device.has_disk = True
    linux_uevent.added(device)


def _populate(call: Call, table: DmTable) -> None:
    """populate_table(): `next` counts from the current spec on; only sizes and NULs inside data_size are trusted."""
    if not call.target_count:
        raise Refusal(errno.EINVAL, "populate_table: no targets specified")
    at, step = 0, call.data_start
    for _ in range(call.target_count):
        at += step
        params = call.text_from(at + _SPEC_SIZE) if step >= _SPEC_SIZE else None
        if params is None:
            raise Refusal(errno.EINVAL, "unable to find target")
        start, length, _status, step = _SPEC.unpack_from(call.buffer, at)
        kind = call.text_from(at + _SPEC.size)
        _add_target(call, table, to_text(kind or b""), start, length, to_text(params))


def _add_target(call: Call, table: DmTable, kind: str, start: int, length: int, params: str) -> None:
    """dm_table_add_target()."""
    try:
        target_type = _admit(call, table, kind, start, length)
        table.add_target(target_type, start, length, split_args(params))
    except TargetError as failure:
        name = _SYMBOLS.get(failure.errno, str(failure.errno))
        words = failure.message or "Unknown error"
        call.control.complain(f"table: {table.device.dev[0]}:{table.device.minor}: {kind}: {words} (-{name})")
        raise Refusal(failure.errno, "error adding target to table") from failure


def _admit(call: Call, table: DmTable, kind: str, start: int, length: int) -> type[Target]:
    """The checks before a constructor runs. TargetError for those that a target type makes."""
    complaint = ""
    first = type(table.targets[0]) if table.targets else None
    target_type = None
    if first and TargetFeature.SINGLETON in first.features:
        complaint = f"target type {first.name} must appear alone in table"
    elif not length:
        complaint = "zero-length target"
    elif start + length > MAX_SECTORS:
        complaint = "too large device"
    elif (target_type := call.control.registry.get(kind)) is None:
        complaint = f"{kind}: unknown target type"
    if target_type is None:
        call.control.complain(f"table: {table.device.dev[0]}:{table.device.minor}: {complaint}")
        raise Refusal(errno.EINVAL, "error adding target to table")
    if target_type is not first:
        _admit_type(table, target_type, first)
    if start != table.size:
        raise TargetError(errno.EINVAL, "Gap in table")
    return target_type


def _admit_type(table: DmTable, target_type: type[Target], first: type[Target] | None) -> None:
    features = target_type.features
    if first and TargetFeature.SINGLETON in features:
        raise TargetError(errno.EINVAL, "singleton target type must appear alone in table")
    if TargetFeature.ALWAYS_WRITEABLE in features and table.read_only:
        raise TargetError(errno.EINVAL, "target type may not be included in a read-only table")
    if first and TargetFeature.IMMUTABLE in features | first.features:
        raise TargetError(errno.EINVAL, "immutable target type cannot be mixed with other target types")


def _check_type(call: Call, device: DmDev, table: DmTable) -> None:
    """dm_table_determine_type(), and what table_load() asks of a table that is to replace another."""
    wildcards = [TargetFeature.WILDCARD in target.features for target in table.targets]
    as_before = all(wildcards) and device.has_disk and device.request_based
    request_based = as_before or any(target.request_based for target in table.targets)
    if request_based:
        _check_request_based(call, table)
    if not table.pdevs and device.live:
        request_based = request_based and device.request_based
    fixed, new = (_immutable(each) for each in (device.live, table))
    if fixed and fixed is not new and not any(wildcards):
        raise Refusal(errno.EINVAL, f"can't replace immutable target type {fixed.name}")
    if device.has_disk and device.request_based != request_based:
        old_type, new_type = (_REQUEST_BASED if each else _BIO_BASED for each in (device.request_based, request_based))
        raise Refusal(
            errno.EINVAL, f"can't change device type (old={old_type} vs new={new_type}) after initial table load."
        )
    device.request_based = request_based


def _check_request_based(call: Call, table: DmTable) -> None:
    complaint = ""
    if len(table.targets) > 1:
        complaint = "request-based DM doesn't support multiple targets"
    elif not all(pdev.bdev.request_based for pdev, _, _ in table.devices()):
        complaint = "table load rejected: including non-request-stackable devices"
    if complaint:
        call.control.complain(f"table: {complaint}")
        call.control.complain("table: unable to determine table type")
        raise Refusal(errno.EINVAL)


def _immutable(table: DmTable | None) -> type[Target] | None:
    """dm_table_get_immutable_target_type()."""
    first = table.targets[0] if table and table.targets else None
    return type(first) if first and TargetFeature.IMMUTABLE in first.features else None


def table_clear(call: Call) -> None:
    """table_clear(): empty the inactive slot."""
    device = call.find_device()
    table, device.inactive = device.inactive, None
    call.clear(DmFlag.INACTIVE_PRESENT)
    call.status(device)
    if table is not None:
        table.destroy()
