"""NetBSD's list of physical devices: the path is the key, of which 31 bytes are kept."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from dmserver.control.netbsd_resolver import MAX_DEV_NAME, NetbsdResolver
from dmserver.host import Host
from dmserver.model.dm_dev import DmDev
from dmserver.model.dm_table import DmTable

LONG = "/dev" + "/" * 40 + "ram0"


class Tables:
    """A device that takes references, as tables of it would."""

    def __init__(self, host: Host) -> None:
        host.add_pdev("/dev/ram0=ram:1M")
        self.host = host
        self.device = DmDev(host.mapper, 99, "x", "")
        self.resolver = NetbsdResolver(host.mapper, mended=False)

    def take(self, path: str) -> str:
        table = DmTable(self.device, lambda path: self.resolver.resolve(path, self.device))
        return table.get_device(path).path


@pytest.fixture
def tables() -> Iterator[Tables]:
    host = Host("netbsd")
    yield Tables(host)
    host.close()


def test_the_same_spelling_shares_a_device_another_is_busy(tables: Tables) -> None:
    assert [tables.take("/dev/ram0") for _ in range(2)] == ["/dev/ram0"] * 2
    assert [pdev.ref_cnt for pdev in tables.host.mapper.pdevs] == [2]
    with pytest.raises(OSError, match="busy") as failure:
        tables.take("/dev//ram0")
    assert failure.value.errno == errno.EBUSY


def test_a_long_path_is_never_found_again_but_what_it_is_cut_to_is(tables: Tables) -> None:
    kept = LONG[: MAX_DEV_NAME - 1]
    assert tables.take(LONG) == kept
    with pytest.raises(OSError, match="busy"):
        tables.take(LONG)
    assert tables.take(kept) == kept
    assert [pdev.ref_cnt for pdev in tables.host.mapper.pdevs] == [2]


def test_any_minor_of_device_mapper_can_be_opened(tables: Tables) -> None:
    tables.take("/dev/mapper/dm77")
    (pdev,) = tables.host.mapper.pdevs
    assert (pdev.number, pdev.bdev.size) == ("169:77", 0)


def test_a_disk_that_others_have_open_is_busy(tables: Tables) -> None:
    tables.host.mapper.disks.lookup("/dev/ram0").open()
    with pytest.raises(OSError, match="busy"):
        tables.take("/dev/ram0")
