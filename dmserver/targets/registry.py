"""The target types that are there: entry points of the group `dmserver.targets`, each naming a `Target` class.

Linux has the types of dm-mod from the start; the others come with their modules, each loaded when a table or
GET_TARGET_VERSION first names one of its types (`request_module("dm-%s")`). The types of other packages are there
from the start, like modules that somebody loaded by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model.dm_target import Target

__all__ = ["GROUP", "TargetRegistry"]

GROUP = "dmserver.targets"
_OURS = "dmserver.targets."

#: Types whose modules, dm-mod and dm-snapshot, register several of them: in this order.
_BUILT_IN = ("error", "linear", "striped")
_IN_ORDER = (*_BUILT_IN, "snapshot", "snapshot-origin", "snapshot-merge")

#: Types that their modules have no alias for: they are there once something else loaded those.
_WITHOUT_ALIAS = ("thin",)

#: Names that no type has and that bring a module all the same: its aliases, its file, and modules that need it.
_MORE_NAMES = {
    **dict.fromkeys(("raid0", "raid1", "raid10", "raid4", "raid5", "raid6"), "dm-raid"),
    "unstripe": "dm-unstriped",
    **dict.fromkeys(("cache-smq", "cache-default", "cache-mq", "cache-cleaner"), "dm-cache"),
    **dict.fromkeys(("round-robin", "queue-length", "service-time"), "dm-multipath"),
}


class TargetRegistry:
    """Target types by name; iteration gives the newest registered first, as LIST_VERSIONS does."""

    def __init__(self, kinds: Iterable[type[Target]] = ()) -> None:
        self._loaded: dict[str, type[Target]] = {}
        self._modules: dict[str, list[type[Target]]] = {}
        self._installed = True
        for kind in kinds:
            self.register(kind)

    def register(self, kind: type[Target]) -> None:
        """Add a type (`dm_register_target`). ValueError when the name is taken."""
        self._look()
        if kind.name in self._loaded:
            raise ValueError(f"target type {kind.name!r} is registered already")
        self._loaded[kind.name] = kind

    def get(self, name: str) -> type[Target] | None:
        """The type called `name`, its module loaded if need be (`dm_get_target_type`)."""
        self._look()
        if name not in self._loaded:
            self._load(name)
        return self._loaded.get(name)

    def _load(self, name: str) -> None:
        name = name.replace("_", "-")  # to modprobe they are one
        if name in _MORE_NAMES:
            self.modprobe(_MORE_NAMES[name])
            return
        for module, kinds in self._modules.items():
            if name not in _WITHOUT_ALIAS and any(kind.name == name for kind in kinds):
                self.modprobe(module)
                return

    def modprobe(self, module: str) -> bool:
        """Load a module (`dm-snapshot`), unless that is done already. False when there is no such module."""
        self._look()
        for kind in self._modules.pop(module, ()):
            self.register(kind)
        return any(_module(kind) == module for kind in self._loaded.values())

    def modules(self) -> dict[str, str]:
        """The modules that there are, loaded or not, by every name that modprobe(8) knows them by: their own, and an
        alias for each type (`dm-snapshot-merge`)."""
        self._look()
        kinds = [*self._loaded.values(), *(kind for kinds in self._modules.values() for kind in kinds)]
        names = {f"dm-{kind.name}": _module(kind) for kind in kinds if kind.name not in _BUILT_IN + _WITHOUT_ALIAS}
        return names | {module: module for module in map(_module, kinds)}

    def __iter__(self) -> Iterator[type[Target]]:
        self._look()
        return iter(reversed(self._loaded.values()))

    @classmethod
    def installed(cls) -> TargetRegistry:
        """All types that installed packages offer; they are looked for when the first is asked for."""
        registry = cls()
        registry._installed = False
        return registry

    def _look(self) -> None:
        """Find what packages offer, unless that is done already. OSError when it cannot be read now: it is tried again
        the next time."""
        if self._installed:
            return
        from importlib.metadata import entry_points

        points = {point.name: point for point in entry_points(group=GROUP)}
        names = [*(name for name in _IN_ORDER if name in points), *sorted(set(points) - set(_IN_ORDER))]
        kinds = [points[name].load() for name in names]
        self._installed = True
        for kind in kinds:
            if kind.module == "dm-mod" or not kind.__module__.startswith(_OURS):
                self.register(kind)
            else:
                self._modules.setdefault(_module(kind), []).append(kind)


def _module(kind: type[Target]) -> str:
    return kind.module or f"dm-{kind.name}"
