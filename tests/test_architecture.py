"""The house's layers: which rooms may import which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]

#: A room, and what of the house its modules import. What is imported for type checkers only does not count.
LAYERS = {
    "dmproto": {"dmproto"},
    "dmserver/io": {"dmproto.wire", "dmserver.io", "dmserver.model.dm_target"},
    "dmserver/model": {"dmproto.wire", "dmserver.io", "dmserver.model"},
    "dmserver/targets": {"dmserver.model.dm_target", "dmserver.model.keyring", "dmserver.targets"},
    "dmserver/control": {"dmproto", "dmserver.control", "dmserver.io", "dmserver.model", "dmserver.targets.registry"},
}


def imports(body: list[ast.stmt], package: list[str]) -> Iterator[str]:
    """The modules of the house that statements import, at run time."""
    for statement in body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name.startswith(("dmproto", "dmserver")))
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) + 1 - node.level] if node.level else []
                module = ".".join([*base, *filter(None, [node.module])])
                if module.startswith(("dmproto", "dmserver")):
                    yield module


@pytest.mark.parametrize("room", LAYERS)
def test_a_room_imports_only_what_lies_below(room: str) -> None:
    files = sorted((HOUSE / room).rglob("*.py"))
    assert files
    strange = {
        f"{file.relative_to(HOUSE)}: {module}"
        for file in files
        for module in imports(ast.parse(file.read_text()).body, list(file.relative_to(HOUSE).parent.parts))
        if not any(module == known or module.startswith(known + ".") for known in LAYERS[room])
    }
    assert not strange
