from __future__ import annotations

import errno
from importlib.metadata import EntryPoint

import pytest

from dmserver.model.dm_target import Target
from dmserver.targets.linear import Linear
from dmserver.targets.registry import TargetRegistry
from dmserver.targets.zero import Zero


def names(registry: TargetRegistry) -> list[str]:
    return [kind.name for kind in registry]


def test_types_of_dm_mod_are_there_and_modules_come_when_they_are_named() -> None:
    registry = TargetRegistry.installed()
    assert names(registry) == ["striped", "linear", "error"]
    assert registry.get("snapshot-origin") is not None
    assert names(registry)[:3] == ["snapshot-merge", "snapshot-origin", "snapshot"]
    assert registry.get("zero") is Zero
    assert names(registry)[0] == "zero"
    assert registry.get("no such type") is None


@pytest.mark.parametrize(
    ("name", "loaded"),
    [
        ("raid1", ["raid"]),
        ("log_writes", ["log-writes"]),
        ("thin_pool", ["thin-pool", "thin"]),
        ("thin", []),
        ("cache-smq", ["cache"]),
        ("round-robin", ["multipath"]),
        ("unstripe", ["unstriped"]),
    ],
)
def test_a_module_comes_by_other_names_than_those_of_its_types(name: str, loaded: list[str]) -> None:
    registry = TargetRegistry.installed()
    kind = registry.get(name)
    assert kind is None
    assert names(registry)[:-3] == loaded


def test_modules_go_by_the_names_of_their_types_too() -> None:
    registry = TargetRegistry.installed()
    modules = registry.modules()
    assert modules["dm-snapshot-merge"] == modules["dm-snapshot"] == "dm-snapshot"
    assert modules["dm-mod"] == "dm-mod"
    assert not {"dm-linear", "dm-thin"} & modules.keys()
    assert registry.modprobe("dm-snapshot")
    assert registry.modules() == modules


def test_a_name_is_registered_once() -> None:
    registry = TargetRegistry([Zero])
    with pytest.raises(ValueError, match=r"'zero' is registered already"):
        registry.register(type("Other", (Target,), {"name": "zero"}))


def test_types_that_cannot_be_read_now_are_there_later(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = TargetRegistry.installed()

    def fail(point: EntryPoint) -> None:
        raise OSError(errno.EMFILE, "Too many open files", point.value)

    with monkeypatch.context() as patch:
        patch.setattr(EntryPoint, "load", fail)
        with pytest.raises(OSError, match="Too many open files"):
            registry.get("linear")
    assert registry.get("linear") is Linear
