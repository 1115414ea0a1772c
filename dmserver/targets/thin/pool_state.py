"""The state of a thin pool: its mode, and what of its metadata is on the disk (`set_pool_mode` and `commit` of Linux
`drivers/md/dm-thin.c`).

One lock guards all of a pool (see `Committer`).
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING

from ...model.dm_target import BlockDevice, Op, submit
from ..actions import Actions
from ..persistent_data.block import BLOCK_SECTORS
from ..persistent_data.committer import Committer
from ..persistent_data.metadata import METADATA_FAILURES, errno_of
from .metadata import ThinMetadata

if TYPE_CHECKING:
    from ...model.dm_dev import DmDev

__all__ = ["Features", "Mode", "PoolState"]

NO_SPACE_TIMEOUT = 60


class Mode(IntEnum):
    """`enum pool_mode`."""

    WRITE = 0
    OUT_OF_DATA_SPACE = 1
    OUT_OF_METADATA_SPACE = 2
    READ_ONLY = 3
    FAIL = 4


_MODES = ("write", "out-of-data-space", "read-only", "read-only", "fail")


@dataclass(slots=True)
class Features:
    """`struct pool_features`."""

    mode: Mode = Mode.WRITE
    zero_new_blocks: bool = True
    discard_enabled: bool = True
    discard_passdown: bool = True
    error_if_no_space: bool = False


class PoolState(Committer):
    """Devices, metadata, mode and transactions of a pool; the bios are what `Pool` adds."""

    commit_operation = "dm_pool_commit_metadata"

    def __init__(
        self, device: DmDev, metadata_device: BlockDevice, data_device: BlockDevice, metadata: ThinMetadata
    ) -> None:
        super().__init__(device, metadata_device, [data_device], metadata)
        self.data_device = data_device
        self.metadata = metadata
        self.features = Features()
        self._adjusted = self._requested = Features()
        self.low_water_blocks = self.metadata_threshold = 0
        self._metadata_low = False
        self._no_space_since = 0

    @abstractmethod
    def _try_again(self) -> None:
        """What was held for want of space may go on."""

    @abstractmethod
    def _fail_retries(self, error: int, actions: Actions) -> None:
        """What was held for want of space fails."""

    @property
    def name(self) -> str:
        """`dm_device_name`."""
        return "{}:{}".format(*self.device.dev)

    @property
    def mode(self) -> Mode:
        return self.features.mode

    def log(self, text: str) -> None:
        self.device.mapper.events.log(f"device-mapper: thin: {text}")

    # -- modes ------------------------------------------------------------------------------------------

    def bind(self, adjusted: Features, requested: Features, low_water_blocks: int) -> None:
        """A table begins to be used (`bind_control_target`): the features it asked for, and those it can have, whose
        mode is kept up to date from now on."""
        with self.changes() as actions:
            new = adjusted.mode
            self.features = replace(adjusted, mode=self.mode)
            self._adjusted, self._requested = adjusted, requested
            self.low_water_blocks = low_water_blocks
            self.metadata_threshold = min(1024, self.metadata_device.size // BLOCK_SECTORS // 4)
            self._set_mode(new, actions)

    def set_mode(self, mode: Mode) -> None:
        """Change the mode, as far as that is possible."""
        with self.changes() as actions:
            self._set_mode(mode, actions)

    def _set_mode(self, new: Mode, actions: Actions) -> None:
        old = self.mode
        if new is Mode.WRITE and self.metadata.needs_check:
            self.log(f"{self.name}: unable to switch pool to write mode until repaired.")
            new = old if old in (Mode.OUT_OF_METADATA_SPACE, Mode.READ_ONLY) else Mode.READ_ONLY
        if old is Mode.FAIL:
            new = old
        if new > Mode.OUT_OF_DATA_SPACE:
            self._fail_retries(errno.EIO, actions)
        elif new is Mode.OUT_OF_DATA_SPACE and old is not new and not self.features.error_if_no_space:
            self._no_space_since += 1
            since = self._no_space_since
            self.device.mapper.work.later(NO_SPACE_TIMEOUT, lambda: self._no_space_for_long(since))
        elif new is Mode.WRITE:
            self.features.error_if_no_space = self._requested.error_if_no_space
        self.features.mode = self._adjusted.mode = new
        if old is not new:
            self._notify(actions)

    def _notify(self, actions: Actions) -> None:
        more = ""
        if self.mode is Mode.OUT_OF_DATA_SPACE:
            more = " (error IO)" if self.features.error_if_no_space else " (queue IO)"
        self.log(f"{self.name}: switching pool to {_MODES[self.mode]}{more} mode")
        actions.append(self.device.event)

    def _no_space_for_long(self, since: int) -> None:
        with self.changes() as actions:
            waiting = self.mode is Mode.OUT_OF_DATA_SPACE and not self.features.error_if_no_space
            if waiting and since == self._no_space_since:
                self.features.error_if_no_space = True
                self._notify(actions)
                self._fail_retries(errno.ENOSPC, actions)

    def operation_failed(self, what: str, failure: Exception, actions: Actions) -> None:
        """What was not committed is lost, and nothing more is written (`metadata_operation_failed`). To be called under
        the lock."""
        number = errno_of(failure)
        self.log(f"{self.name}: metadata operation '{what}' failed: error = {-number}")
        full = number == errno.ENOSPC
        if not full:
            self.log(f"{self.name}: aborting current metadata transaction")
        try:
            self.metadata.abort()
        except METADATA_FAILURES:
            self.log(f"{self.name}: failed to abort metadata transaction")
            self._set_mode(Mode.FAIL, actions)
            return
        if full:
            self._set_mode(Mode.OUT_OF_METADATA_SPACE, actions)
            return
        superblock = memoryview(self.metadata.set_needs_check())
        self._set_mode(Mode.READ_ONLY, actions)

        def written(error: int) -> None:
            if error:
                self.log(f"{self.name}: failed to set 'needs_check' flag in metadata")
                self.set_mode(Mode.FAIL)

        actions.append(lambda: submit(Op.WRITE, self.metadata_device, 0, superblock, written, fua=True))

    # -- commits ----------------------------------------------------------------------------------------

    @property
    def read_only(self) -> bool:
        return self.mode > Mode.OUT_OF_DATA_SPACE

    def commit(self) -> None:
        """Failures change the mode. Once anything was committed the superblock is written even if nothing changed: so a
        device that is gone is found out."""
        with self.changes() as actions:
            if not self.read_only:
                self.metadata.changed |= self.metadata.in_service
            self._check_metadata_low(actions)
        super().commit()

    def _succeeded(self, actions: Actions) -> None:
        if self.mode is Mode.OUT_OF_DATA_SPACE and self.metadata.free_data_blocks:
            self._set_mode(Mode.WRITE, actions)
            self._try_again()

    def _commit_due(self) -> None:
        with self.changes() as actions:
            self._timer = False
            if not self._committing:
                self._begin_commit(actions)

    def _check_metadata_low(self, actions: Actions) -> None:
        low = self.metadata.transaction.counts.free <= self.metadata_threshold
        if low and not self._metadata_low:
            self.log(f"{self.name}: reached low water mark for metadata device: sending event.")
            actions.append(self.device.event)
        self._metadata_low = low
