"""The target types that are there: entry points of the group `dmserver.targets`, each naming a `Target` class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points

from ..model.dm_target import Target

__all__ = ["GROUP", "TargetRegistry"]

GROUP = "dmserver.targets"


class TargetRegistry:
    """Target types by name; iteration gives the newest registered first, as LIST_VERSIONS does."""

    def __init__(self, kinds: Iterable[type[Target]] = ()) -> None:
        self._kinds: dict[str, type[Target]] = {}
        for kind in kinds:
            self.register(kind)

    def register(self, kind: type[Target]) -> None:
        """Add a type (`dm_register_target`). ValueError when the name is taken."""
        if kind.name in self._kinds:
            raise ValueError(f"target type {kind.name!r} is registered already")
        self._kinds[kind.name] = kind

    def get(self, name: str) -> type[Target] | None:
        return self._kinds.get(name)

    def __iter__(self) -> Iterator[type[Target]]:
        return iter(reversed(self._kinds.values()))

    @classmethod
    def installed(cls) -> TargetRegistry:
        """All types that installed packages offer."""
        return cls(point.load() for point in entry_points(group=GROUP))
