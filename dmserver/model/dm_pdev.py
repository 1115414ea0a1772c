"""Physical devices: one `DmPdev` per device that tables use, opened once, counted by reference.

NetBSD `dm_pdev.c` keys its list by the path string; Linux's `dm_get_device` goes by device number. The key is the
control module's choice, so both live in one list, newest first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator

from ..io.blockdev import BlockDevice

__all__ = ["DmPdev", "PdevList"]

#: The holder of every exclusive open that device-mapper makes (`_dm_claim_ptr`).
DM_CLAIM = "device-mapper"


class DmPdev:
    """A physical device in use. `ref_cnt` counts the references of all tables; `users` the opens among them."""

    __slots__ = ("bdev", "key", "path", "ref_cnt", "users")

    def __init__(self, key: Hashable, path: str, bdev: BlockDevice) -> None:
        self.key = key
        self.path = path
        self.bdev = bdev
        self.ref_cnt = 0
        self.users: Counter[Hashable] = Counter()

    @property
    def number(self) -> str:
        """`MAJ:MIN`, as status lines name devices."""
        major, minor = self.bdev.dev
        return f"{major}:{minor}"

    def __repr__(self) -> str:
        return f"<DmPdev {self.path} {self.number} ref_cnt={self.ref_cnt}>"


class PdevList:
    """All physical devices in use. A `user` is one mapped device in one mode: it opens a device once, however
    many references it has."""

    def __init__(self) -> None:
        self._pdevs: dict[Hashable, DmPdev] = {}

    def find(self, key: Hashable) -> DmPdev | None:
        return self._pdevs.get(key)

    def incr(self, key: Hashable, path: str, bdev: BlockDevice, user: Hashable) -> DmPdev:
        """One more reference; the first one of a user opens the device. OSError when that fails."""
        pdev = self._pdevs.get(key) or DmPdev(key, path, bdev)
        if not pdev.users[user]:
            pdev.bdev.open(holder=DM_CLAIM)
            self._pdevs[key] = pdev
        pdev.users[user] += 1
        pdev.ref_cnt += 1
        return pdev

    def decr(self, pdev: DmPdev, user: Hashable) -> None:
        """One reference less; a user's last one closes the device, the very last one forgets it."""
        pdev.ref_cnt -= 1
        pdev.users[user] -= 1
        if not pdev.users[user]:
            del pdev.users[user]
            pdev.bdev.close(holder=DM_CLAIM)
        if not pdev.ref_cnt:
            del self._pdevs[pdev.key]

    def __iter__(self) -> Iterator[DmPdev]:
        """Newest first."""
        return iter(reversed(self._pdevs.values()))

    def __len__(self) -> int:
        return len(self._pdevs)
