"""The example of docs/writing-a-target.md: installed for real, found by its entry point, and doing I/O."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stacks import Stack, pattern
from support.targets import flush, read, write

from dmserver.model.dm_target import StatusType, TargetError
from dmserver.targets.registry import GROUP

PACKAGE = Path(__file__).parents[2] / "example_target"
PAGE = Path(__file__).parents[3] / "docs" / "writing-a-target.md"

pytest.importorskip("hatchling", reason="hatchling, which builds the package, is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip put it."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", site, PACKAGE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture
def stack(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.syspath_prepend(str(site))
    stack = Stack()
    yield stack
    stack.close()
    sys.modules.pop("dm_rot", None)


def test_found_by_its_entry_point(stack: Stack) -> None:
    assert "rot" in {point.name for point in importlib.metadata.entry_points(group=GROUP)}
    assert [kind.version for kind in stack.registry if kind.name == "rot"] == [(1, 0, 0)]


def test_does_io(stack: Stack) -> None:
    stack.ram(64)
    dev = stack.device("r", (0, 32, "rot", "1:0 13"), (32, 32, "linear", "1:0 32"))
    plain = pattern(1, 0, 64)
    assert read(dev, 0, 34) == bytes((byte - 13) % 256 for byte in plain[:16384]) + plain[16384:17408]
    data = bytearray(b"secret!!" * 64)
    write(dev, 3, bytes(data))
    flush(dev)
    assert read(dev, 3, 1) == data
    disk = stack.mapper.disks.by_dev((1, 0))
    assert disk is not None
    assert read(disk, 3, 1) == bytes((byte + 13) % 256 for byte in data)
    assert dev.live is not None
    assert dev.live.targets[0].status(StatusType.TABLE) == "1:0 13"


def test_refuses_bad_arguments(stack: Stack) -> None:
    stack.ram(64)
    for params in ("", "1:0", "1:0 x", "1:0 256"):
        with pytest.raises(TargetError, match="Expected a device and a number"):
            stack.load(stack.mapper.create(f"r{params}"), [(0, 32, "rot", params)])


def test_page_shows_the_package() -> None:
    shown = re.findall(r"```(?:python|toml)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert shown[:2] == [(PACKAGE / name).read_text() for name in ("pyproject.toml", "dm_rot.py")]
