"""The target types that are there: entry points of the group `dmserver.targets`, each naming a `Target` class.

Linux has the types of dm-mod from the start; the others come with their modules, each loaded when a table or
GET_TARGET_VERSION first names one of its types (`request_module("dm-%s")`). Clients such as LVM would rather run
modprobe than ask, so a registry has everything loaded unless `autoload` asks for the kernel's way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points

from ..model.dm_target import Target

__all__ = ["GROUP", "TargetRegistry"]

GROUP = "dmserver.targets"

#: What dm-mod registers at boot, in this order.
_BUILT_IN = ("error", "linear", "striped")


class TargetRegistry:
    """Target types by name; iteration gives the newest registered first, as LIST_VERSIONS does."""

    def __init__(self, kinds: Iterable[type[Target]] = (), *, autoload: bool = False) -> None:
        self._loaded: dict[str, type[Target]] = {}
        self._modules: dict[str, list[type[Target]]] = {}
        for kind in kinds:
            if autoload and kind.module != "dm-mod":
                self._modules.setdefault(kind.module or f"dm-{kind.name}", []).append(kind)
            else:
                self.register(kind)

    def register(self, kind: type[Target]) -> None:
        """Add a type (`dm_register_target`). ValueError when the name is taken."""
        if kind.name in self._loaded:
            raise ValueError(f"target type {kind.name!r} is registered already")
        self._loaded[kind.name] = kind

    def get(self, name: str) -> type[Target] | None:
        """The type called `name`, its module loaded if need be (`dm_get_target_type`)."""
        if name not in self._loaded:
            self._load(name)
        return self._loaded.get(name)

    def _load(self, name: str) -> None:
        for module, kinds in self._modules.items():
            if any(kind.name == name for kind in kinds):
                for kind in self._modules.pop(module):
                    self.register(kind)
                return

    def __iter__(self) -> Iterator[type[Target]]:
        return iter(reversed(self._loaded.values()))

    @classmethod
    def installed(cls, *, autoload: bool = False) -> TargetRegistry:
        """All types that installed packages offer."""
        points = {point.name: point for point in entry_points(group=GROUP)}
        names = [*(name for name in _BUILT_IN if name in points), *sorted(set(points) - set(_BUILT_IN))]
        return cls((points[name].load() for name in names), autoload=autoload)
