"""When metadata are committed: one transaction after the other, none of them in the way of a bio.

One lock guards the metadata and whatever else its owner keeps; it is held for bookkeeping only. What has to be done
after is collected in a list of actions. While a commit is being written nothing changes the metadata.
"""

from __future__ import annotations

import errno
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from ...model.dm_target import TURN, BlockDevice, TargetError, is_suspended, wait_for
from ..actions import Actions, run
from .commit import write_commit
from .metadata import METADATA_FAILURES, Metadata

if TYPE_CHECKING:
    from ...model.dm_dev import DmDev

__all__ = ["Changes", "Committer"]


class Changes:
    """A lock that is held, and what to do after, if nothing was raised. Every bio takes one, so it is no generator."""

    __slots__ = ("_actions", "_lock")

    def __init__(self, lock: threading.Condition) -> None:
        self._lock = lock
        self._actions: Actions = []

    def __enter__(self) -> Actions:
        self._lock.acquire()
        return self._actions

    def __exit__(self, kind: type[BaseException] | None, *failure: object) -> None:
        self._lock.release()
        if kind is None:
            run(self._actions)


class Committer(ABC):
    """The transactions of `metadata` on `metadata_device`, which tell of data on `data_devices`. A suspension of
    `device` waits for a commit under way."""

    #: What the log calls a commit (the kernel's function).
    commit_operation: ClassVar[str]

    def __init__(
        self, device: DmDev, metadata_device: BlockDevice, data_devices: Sequence[BlockDevice], metadata: Metadata[Any]
    ) -> None:
        self.device = device
        self.metadata_device = metadata_device
        self._data_devices = data_devices
        self._metadata = metadata
        self.lock = threading.Condition(threading.RLock())
        self._commit_first: list[Callable[[int], None]] = []
        self._committing = False

    # -- what the owner defines -------------------------------------------------------------------------

    @property
    @abstractmethod
    def read_only(self) -> bool:
        """No commit is possible any more."""

    @abstractmethod
    def operation_failed(self, what: str, failure: Exception, actions: Actions) -> None:
        """Something could not be done to the metadata, so what was not committed is lost."""

    @abstractmethod
    def _succeeded(self, actions: Actions) -> None:
        """A commit is done."""

    @abstractmethod
    def _wake(self) -> None:
        """There may be work to do, which a commit was in the way of."""

    # -- what the owner uses ----------------------------------------------------------------------------

    def changes(self) -> Changes:
        """Hold the lock; what was collected is done once it is free."""
        return Changes(self.lock)

    @contextmanager
    def quiet(self) -> Iterator[Actions]:
        """`changes` while no commit is under way, for the thread of commands, which may wait. TargetError(EAGAIN) when
        that might be for ever."""
        with self.changes() as actions:
            while self._committing:
                if self.held_up:
                    raise TargetError(errno.EAGAIN)
                self.lock.wait(TURN)
            yield actions

    def commit(self) -> None:
        """Commit and wait for it, as far as that has an end; for the thread of commands."""

        def start(done: Callable[[int], None]) -> None:
            with self.changes() as actions:
                self.after_commit(done, actions)

        wait_for(start, self.metadata_device, *self._data_devices)

    def after_commit(self, then: Callable[[int], None], actions: Actions) -> None:
        """Call `then(errno)` once all changes so far are on the disk. To be called under the lock."""
        self._commit_first.append(then)
        if not self._committing:
            self._begin_commit(actions)

    @property
    def held_up(self) -> bool:
        """A commit might wait until a device underneath is resumed, which only the thread of commands does."""
        return any(map(is_suspended, (self.metadata_device, *self._data_devices)))

    def _begin_commit(self, actions: Actions) -> None:
        """Call `_commit_first` once all changes are on the disk."""
        waiting, self._commit_first = self._commit_first, []
        error = 0
        if self.read_only:
            error = errno.EIO
        elif self._metadata.changed:
            try:
                commit = self._metadata.prepare_commit()
            except METADATA_FAILURES as failure:
                self.operation_failed(self.commit_operation, failure, actions)
                error = errno.EIO
            else:
                self._committing = True
                io = self.device.io
                io.hold()
                done = partial(self._end_commit, waiting, io.release)
                actions.append(lambda: write_commit(commit, self.metadata_device, self._data_devices, done))
                return
        actions.extend(partial(each, error) for each in waiting)

    def _end_commit(self, waiting: list[Callable[[int], None]], release: Callable[[], None], error: int) -> None:
        with self.changes() as actions:
            self._committing = False
            if error:
                self.operation_failed(self.commit_operation, OSError(error, ""), actions)
            else:
                self._metadata.committed()
                self._succeeded(actions)
            actions.extend(partial(each, error and errno.EIO) for each in waiting)
            self.lock.notify_all()
        release()
        self._wake()
