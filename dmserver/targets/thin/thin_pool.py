"""thin-pool: the space that thin devices share, and messages that make them (Linux `drivers/md/dm-thin.c`).

Arguments: METADATA DATA BLOCK_SIZE LOW_WATER_MARK [NUM FEATURE...], sizes in sectors, the mark in blocks. Messages:
create_thin ID, create_snap ID ORIGIN, delete ID, set_transaction_id OLD NEW, reserve_metadata_snap,
release_metadata_snap.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ...model.dm_target import (
    SECTOR_SIZE,
    Arguments,
    Bio,
    DmPdev,
    MapResult,
    QueueLimits,
    StatusType,
    Target,
    TargetError,
    TargetFeature,
    parse_uint,
)
from ..persistent_data.block import BLOCK_SECTORS
from ..persistent_data.device import metadata_blocks
from ..persistent_data.metadata import METADATA_FAILURES, MetadataError
from ..persistent_data.space_map import MAX_METADATA_BLOCKS
from .pool import Pool
from .pool_state import Features, Mode
from .pools import Pools
from .thin import parse_device_id

__all__ = ["ThinPool"]

_MIN_BLOCK_SIZE, _MAX_BLOCK_SIZE = 128, 2 << 20

#: Sectors of a metadata device from which on the log says that it is too large (`THIN_METADATA_MAX_SECTORS_WARNING`).
_WARNING_SIZE = (255 << 14) * BLOCK_SECTORS

#: What each feature argument sets, in the order of a status line.
_FEATURES = {
    "skip_block_zeroing": ("zero_new_blocks", False),
    "ignore_discard": ("discard_enabled", False),
    "no_discard_passdown": ("discard_passdown", False),
    "read_only": ("mode", Mode.READ_ONLY),
    "error_if_no_space": ("error_if_no_space", True),
}


class ThinPool(Target):
    name = "thin-pool"
    version = (1, 22, 0)
    features = TargetFeature.SINGLETON | TargetFeature.ALWAYS_WRITEABLE | TargetFeature.IMMUTABLE
    num_flush_bios = 1

    # -- construction -----------------------------------------------------------------------------------

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) < 4:
            raise self.refuse("Invalid argument count")
        if argv[0] == argv[1]:
            raise self.refuse("Error setting metadata or data device")
        self.requested = self._parse_features(Arguments(argv[4:]))
        self.adjusted = replace(self.requested)
        self.metadata_dev = self.get_device(argv[0], "Error opening metadata block device")
        self._warn_if_too_big()
        self.data_dev = self.get_device(argv[1], "Error getting data device")
        try:
            block_size = parse_uint(argv[2], 64)
            if not _MIN_BLOCK_SIZE <= block_size <= _MAX_BLOCK_SIZE or block_size % _MIN_BLOCK_SIZE:
                raise ValueError(f"{argv[2]}: expected a multiple of {_MIN_BLOCK_SIZE} up to {_MAX_BLOCK_SIZE}")
        except ValueError:
            raise self.refuse("Invalid block size") from None
        try:
            self.low_water_blocks = parse_uint(argv[3], 64)
        except ValueError:
            raise self.refuse("Invalid low water mark") from None
        self.pool = self._find_pool(block_size)
        if self.requested.discard_enabled and self.requested.discard_passdown:
            self.num_discard_bios = 1
            self.discards_supported = True

    def _parse_features(self, args: Arguments) -> Features:
        features = Features()
        if not args:
            return features
        try:
            count = args.group(0, 4)
        except ValueError:
            raise self.refuse("Invalid number of pool feature arguments") from None
        for word in args.take(count):
            if word.lower() not in _FEATURES:
                raise self.refuse("Unrecognised pool feature requested")
            setattr(features, *_FEATURES[word.lower()])
        return features

    def _find_pool(self, block_size: int) -> Pool:
        pools, device = self.shared(Pools), self.table.device
        created = pools.of(device) is None
        read_only = self.requested.mode is Mode.READ_ONLY
        pool = pools.find(device, self.metadata_dev.bdev, self.data_dev.bdev, block_size, read_only=read_only)
        if created:
            pool.features.discard_enabled = self.requested.discard_enabled
        elif pool.features.discard_enabled is not self.requested.discard_enabled:
            raise self.refuse("Discard support cannot be disabled once enabled")
        pools.take(pool)
        return pool

    def _warn_if_too_big(self) -> None:
        device = self.metadata_dev.bdev
        if device.size > _WARNING_SIZE:
            name, most = device.path.rpartition("/")[2], MAX_METADATA_BLOCKS * BLOCK_SECTORS
            self._log(f"Metadata device {name} is larger than {most} sectors: excess space will not be used.")

    def dtr(self) -> None:
        self.shared(Pools).release(self.pool)

    def _log(self, text: str) -> None:
        self.log(text, "thin")

    # -- the pool's own device --------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        bio.bdev = self.data_dev.bdev
        return MapResult.REMAPPED

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.data_dev, 0, self.len

    def io_hints(self, limits: QueueLimits) -> None:
        size = self.pool.block_size * SECTOR_SIZE
        if limits.io_opt < size or limits.io_opt % size:
            limits.io_min = limits.io_opt = size
        if self.adjusted.discard_enabled and self.adjusted.discard_passdown and not self.data_dev.bdev.limits.discard:
            name = self.data_dev.bdev.path.rpartition("/")[2]
            self._log(f"Data device ({name}) discard unsupported: Disabling discard passdown.")
            self.adjusted.discard_passdown = False
        if not self.adjusted.discard_passdown:
            limits.discard = False

    # -- suspension -------------------------------------------------------------------------------------

    def presuspend(self) -> None:
        self.pool.suspend()

    def presuspend_undo(self) -> None:
        self.pool.resume()

    def postsuspend(self) -> None:
        self.pool.commit()

    def preresume(self) -> None:
        pool = self.pool
        pool.bind(self.adjusted, self.requested, self.low_water_blocks)
        if pool.mode is not Mode.FAIL:
            self._grow_data(self.len // self.pool.block_size)
            self._grow_metadata(metadata_blocks(self.metadata_dev.bdev))
            pool.commit()

    def _grow_data(self, blocks: int) -> None:
        pool, metadata = self.pool, self.pool.metadata
        old = metadata.data_blocks
        if blocks < old:
            self._log(f"{pool.name}: pool target ({blocks} blocks) too small: expected {old}")
            raise TargetError(errno.EINVAL)
        if blocks == old:
            return
        if metadata.needs_check:
            self._log(f"{pool.name}: unable to grow the data device until repaired.")
            return
        if old:
            self._log(f"{pool.name}: growing the data device from {old} to {blocks} blocks")
        with pool.quiet():
            metadata.resize_data(blocks)

    def _grow_metadata(self, blocks: int) -> None:
        pool, metadata = self.pool, self.pool.metadata
        old = metadata.metadata_blocks
        if blocks < old:
            self._log(f"{pool.name}: metadata device ({blocks} blocks) too small: expected {old}")
            raise TargetError(errno.EINVAL)
        if blocks == old:
            return
        if metadata.needs_check:
            self._log(f"{pool.name}: unable to grow the metadata device until repaired.")
            return
        self._warn_if_too_big()
        self._log(f"{pool.name}: growing the metadata device from {old} to {blocks} blocks")
        if pool.mode is Mode.OUT_OF_METADATA_SPACE:
            pool.set_mode(Mode.WRITE)
        with pool.quiet():
            metadata.resize_metadata(blocks)

    def resume(self) -> None:
        self.pool.resume()

    # -- status -----------------------------------------------------------------------------------------

    def refresh_status(self) -> None:
        pool = self.pool
        if pool.mode is not Mode.FAIL and not self.table.device.suspended:
            pool.commit()

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.TABLE:
            words = [word for word, (field, value) in _FEATURES.items() if getattr(self.requested, field) is value]
            fields = (self.metadata_dev.number, self.data_dev.number, self.pool.block_size, self.low_water_blocks)
            return " ".join(map(str, (*fields, len(words), *words))) + " "
        pool, metadata = self.pool, self.pool.metadata
        if pool.mode is Mode.FAIL:
            return "Fail"
        with pool.lock:
            used_metadata = metadata.metadata_blocks - metadata.free_metadata_blocks
            used_data = metadata.data_blocks - metadata.free_data_blocks
            words = [
                f"{metadata.transaction_id} {used_metadata}/{metadata.metadata_blocks}",
                f"{used_data}/{metadata.data_blocks}",
                str(metadata.held_root or "-"),
                *self._states(),
                "needs_check" if metadata.needs_check else "-",
                str(pool.metadata_threshold),
            ]
        return " ".join(words) + " "

    def _states(self) -> Iterator[str]:
        features = self.pool.features
        yield {Mode.WRITE: "rw", Mode.OUT_OF_DATA_SPACE: "out_of_data_space"}.get(features.mode, "ro")
        if not features.discard_enabled:
            yield "ignore_discard"
        else:
            yield "discard_passdown" if features.discard_passdown else "no_discard_passdown"
        yield "error_if_no_space" if features.error_if_no_space else "queue_if_no_space"

    # -- messages ---------------------------------------------------------------------------------------

    def message(self, argv: Sequence[str]) -> None:
        pool = self.pool
        if pool.mode >= Mode.OUT_OF_METADATA_SPACE:
            self._log(f"{pool.name}: unable to service pool target messages in READ_ONLY or FAIL mode")
            raise TargetError(errno.EOPNOTSUPP)
        handler = _MESSAGES.get(argv[0].lower())
        if handler is None:
            self._log(f"Unrecognised thin pool target message received: {argv[0]}")
            raise TargetError(errno.EINVAL)
        handler(self, argv)
        pool.commit()

    def _count(self, argv: Sequence[str], expected: int) -> None:
        if len(argv) != expected:
            self._log(f"Message received with {len(argv)} arguments instead of {expected}.")
            raise TargetError(errno.EINVAL)

    def _id(self, text: str) -> int:
        try:
            return parse_device_id(text)
        except ValueError:
            self._log(f"Message received with invalid device id: {text}")
            raise TargetError(errno.EINVAL) from None

    def _change(self, complaint: str, change: Callable[[], None]) -> None:
        number = errno.EIO
        with self.pool.quiet() as actions:
            try:
                change()
                return
            except MetadataError as refusal:
                number = refusal.errno
                for message in refusal.messages:
                    self.log(message, "thin metadata")
            except METADATA_FAILURES as failure:
                self.pool.operation_failed("message", failure, actions)
        self._log(complaint)
        raise TargetError(number)

    def _create_thin(self, argv: Sequence[str]) -> None:
        self._count(argv, 2)
        number = self._id(argv[1])
        complaint = f"Creation of new thinly-provisioned device with id {argv[1]} failed."
        self._change(complaint, lambda: self.pool.metadata.create_thin(number))

    def _create_snap(self, argv: Sequence[str]) -> None:
        self._count(argv, 3)
        number, origin = self._id(argv[1]), self._id(argv[2])
        complaint = f"Creation of new snapshot {argv[1]} of device {argv[2]} failed."
        self._change(complaint, lambda: self.pool.metadata.create_snap(number, origin))

    def _delete(self, argv: Sequence[str]) -> None:
        self._count(argv, 2)
        number = self._id(argv[1])
        self._change(f"Deletion of thin device {argv[1]} failed.", lambda: self.pool.metadata.delete(number))

    def _set_transaction_id(self, argv: Sequence[str]) -> None:
        self._count(argv, 3)
        numbers = []
        for text, what in zip(argv[1:], ("id", "new id"), strict=True):
            try:
                numbers.append(parse_uint(text, 64))
            except ValueError:
                self._log(f"set_transaction_id message: Unrecognised {what} {text}.")
                raise TargetError(errno.EINVAL) from None
        complaint = f"Failed to change transaction id from {argv[1]} to {argv[2]}."
        self._change(complaint, lambda: self.pool.metadata.set_transaction_id(*numbers))

    def _reserve_metadata_snap(self, argv: Sequence[str]) -> None:
        self._count(argv, 1)
        self.pool.commit()
        self._change("reserve_metadata_snap message failed.", self.pool.metadata.reserve_snapshot)

    def _release_metadata_snap(self, argv: Sequence[str]) -> None:
        self._count(argv, 1)
        self._change("release_metadata_snap message failed.", self.pool.metadata.release_snapshot)


_MESSAGES: dict[str, Callable[[ThinPool, Sequence[str]], None]] = {
    "create_thin": ThinPool._create_thin,
    "create_snap": ThinPool._create_snap,
    "delete": ThinPool._delete,
    "set_transaction_id": ThinPool._set_transaction_id,
    "reserve_metadata_snap": ThinPool._reserve_metadata_snap,
    "release_metadata_snap": ThinPool._release_metadata_snap,
}
