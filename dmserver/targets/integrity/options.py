"""The optional arguments of dm-integrity, and the algorithms that they name."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ...model.dm_target import SECTOR_SIZE, Arguments, DmPdev, Target, parse_sector, parse_u32
from ..shash import Shash
from ..shash import allocate as allocate_shash
from ..skcipher import Skcipher
from ..skcipher import allocate as allocate_skcipher

__all__ = ["Algorithm", "Options", "get_cipher", "get_mac", "parse_number", "parse_options"]

#: Options with a number, and what it is when they are not given.
NUMBERS = {
    "journal_sectors": 0,
    "interleave_sectors": 32768,
    "buffer_sectors": 128,
    "journal_watermark": 50,
    "commit_time": 10000,
    "block_size": SECTOR_SIZE,
    "sectors_per_bit": 32768,
    "bitmap_flush_interval": 10000,
}
FLAGS = ("recalculate", "reset_recalculate", "allow_discards", "fix_padding", "fix_hmac", "legacy_recalculate")
ALGORITHMS = ("internal_hash", "journal_crypt", "journal_mac")


class Algorithm(NamedTuple):
    """`ALGORITHM[:KEY]`, as it was given, perhaps empty; None: not given."""

    name: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.name}" if self.key is None else f"{self.name}:{self.key}"


@dataclass(slots=True)
class Options:
    """`numbers` by name, `flags` that were given, `algorithms` by name; `meta_dev`: the device for all but data."""

    numbers: dict[str, int] = field(default_factory=lambda: dict(NUMBERS))
    flags: set[str] = field(default_factory=set)
    algorithms: dict[str, Algorithm] = field(default_factory=lambda: dict.fromkeys(ALGORITHMS, Algorithm()))
    meta_dev: DmPdev | None = None


def parse_number(target: Target, parse: Callable[[str], int], text: str, complaint: str) -> int:
    """`parse(text)`, or the target's refusal."""
    try:
        return parse(text)
    except ValueError:
        raise target.refuse(complaint) from None


def parse_options(target: Target, args: Arguments) -> Options:
    """The group of optional arguments. TargetError as the kernel refuses them."""
    options = Options()
    try:
        count = args.group(0, 18)
    except ValueError:
        raise target.refuse("Invalid number of feature args") from None
    for option in args.take(count):
        name, colon, value = option.partition(":")
        if colon and name in NUMBERS:
            parse = parse_sector if name == "sectors_per_bit" else parse_u32
            options.numbers[name] = _checked(target, name, parse_number(target, parse, value, "Invalid argument"))
        elif colon and name == "meta_device":
            options.meta_dev = target.get_device(value)
        elif colon and name in ALGORITHMS:
            options.algorithms[name] = _algorithm(target, value, f"Invalid {name} argument")
        elif option in FLAGS:
            options.flags.add(option)
        else:
            raise target.refuse("Invalid argument")
    return options


def _checked(target: Target, name: str, value: int) -> int:
    if name == "journal_watermark" and value > 100:
        raise target.refuse("Invalid argument")
    if name == "block_size" and (not SECTOR_SIZE <= value <= 4096 or value & value - 1):
        raise target.refuse("Invalid block_size argument")
    return max(value, 1) if name in ("journal_sectors", "buffer_sectors") else value


def _algorithm(target: Target, text: str, complaint: str) -> Algorithm:
    name, colon, key = text.partition(":")
    if len(key) % 2 or not re.fullmatch(r"[0-9a-fA-F]*", key):
        raise target.refuse(complaint)
    return Algorithm(name, key if colon else None)


def get_mac(target: Target, algorithm: Algorithm, unknown: str, bad_key: str) -> Shash | None:
    """A hash with its key; None when there is to be none. TargetError with one of the complaints."""
    if algorithm.name is None:
        return None
    try:
        found = allocate_shash(algorithm.name)
    except LookupError:
        raise target.refuse(unknown, errno.ENOENT) from None
    try:
        if algorithm.key is not None:
            found.set_key(bytes.fromhex(algorithm.key))
    except OSError as failure:
        raise target.refuse(bad_key, failure.errno or errno.EINVAL) from None
    if found.needs_key:
        raise target.refuse(bad_key, errno.ENOKEY)
    return found


def get_cipher(target: Target, algorithm: Algorithm) -> Skcipher | None:
    """The journal's cipher with its key; None when there is to be none. TargetError when it is not to be had."""
    if algorithm.name is None:
        return None
    try:
        found = allocate_skcipher(algorithm.name)
    except LookupError:
        raise target.refuse("Invalid journal cipher", errno.ENOENT) from None
    except ValueError:
        raise target.refuse("Invalid journal cipher") from None
    try:
        found.set_key(bytes.fromhex(algorithm.key or ""))
    except ValueError:
        if algorithm.key is not None:
            raise target.refuse("Error setting encryption key") from None
        target.log(f"Error on encrypt: {-errno.ENOKEY}")
        what = "encrypt journal" if found.block_size == 1 else "generate iv"
        raise target.refuse(f"Unable to {what}", errno.ENOKEY) from None
    return found
