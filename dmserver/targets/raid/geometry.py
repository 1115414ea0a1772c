"""Where a raid keeps what: chunks, copies and parities (Linux drivers/md/raid10.c, raid5.c and lib/raid6).

`Copied` is raid10's layouts; raid0 is one with one copy, raid1 with one chunk and as many copies as devices.
`Striped` is that of raid4, 5 and 6: rows of a chunk of each device, in which P and Q take turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..gf256 import inverse, power, table
from ..xor import xor

if TYPE_CHECKING:
    from .personality import Shape

__all__ = ["RAID10_OFFSET", "Copied", "Row", "Striped", "recover", "syndromes"]

#: A bit of raid10's layout numbers, which are near copies | far copies << 8 | what far copies turn among << 17.
RAID10_OFFSET = 1 << 16


@dataclass(frozen=True, slots=True)
class Copied:
    """Each chunk (0: all is one) has `near` copies on devices side by side, and each of those `far` copies, `stride`
    sectors further, that turn among `group` devices. With `offset` they lie below each row, else behind all of them."""

    devices: int
    chunk: int
    near: int
    far: int = 1
    offset: bool = False
    group: int = 1
    stride: int = 0

    @classmethod
    def of(cls, shape: Shape, dev_sectors: int) -> Copied:
        """`setup_geo` and `calc_sectors`."""
        level, layout, chunk, devices = shape
        if level != 10:
            return cls(devices, chunk, devices if level == 1 else 1)
        near, far = layout & 255, layout >> 8 & 255
        offset = bool(layout & RAID10_OFFSET)
        group = {0: devices, 1: devices // far, 2: near * far}[layout >> 17]
        chunks = dev_sectors // chunk // far * devices // near
        rows = -(-chunks * near * far // devices)
        return cls(devices, chunk, near, far, offset, group, chunk if offset else rows // far * chunk)

    def size(self, dev_sectors: int) -> int:
        """`raid10_size`: sectors of the array; md uses whole chunks of each device."""
        if not self.chunk:
            return dev_sectors
        return dev_sectors // self.chunk // self.far * self.devices // self.near * self.chunk

    def locate(self, sector: int) -> tuple[list[tuple[int, int]], int]:
        """(device, sector there) of each copy of an array's sector, and for how many sectors that holds."""
        if not self.chunk:
            return [(device, sector) for device in range(self.devices)], 1 << 63
        number, within = divmod(sector, self.chunk)
        rows = self.far if self.offset else 1
        places = []
        for copy in range(self.near):
            row, device = divmod(number * self.near + copy, self.devices)
            at = (row * rows) * self.chunk + within
            for turn in range(self.far):
                places.append((device, at + turn * self.stride))
                device = self._turn(device)
        return places, self.chunk - within

    def _turn(self, device: int) -> int:
        """The device of the next far copy."""
        start = device // self.group * self.group
        count = self.group
        rest = self.devices % self.group
        if rest and start + 2 * self.group > self.devices:  # the last group has those that are left, too
            start = self.devices - rest - self.group
            count += rest
        return start + (device + self.near - start) % count

    def first(self, at: int) -> int:
        """The first sector of devices that has to do with the array from `at` on; not of far copies."""
        return at // self.chunk * self.near // self.devices * self._row

    def last(self, at: int) -> int:
        """The sector behind all that have to do with the array up to `at`; not of far copies."""
        return -(-(-(-at // self.chunk) * self.near) // self.devices) * self._row

    @property
    def _row(self) -> int:
        return self.chunk * (self.far if self.offset else 1)


@dataclass(frozen=True, slots=True)
class Row:
    """`data`: the devices of the data chunks, in order. `exponents`: the powers of 2 that Q multiplies each by."""

    data: tuple[int, ...]
    p: int
    q: int | None
    exponents: dict[int, int]


@dataclass(frozen=True, slots=True)
class Striped:
    """`algorithm`: md's number of the layout."""

    devices: int
    chunk: int
    parity: int
    algorithm: int

    @classmethod
    def of(cls, shape: Shape) -> Striped:
        return cls(shape.devices, shape.chunk, 2 if shape.level == 6 else 1, shape.layout)

    @property
    def data(self) -> int:
        """Data chunks of a row."""
        return self.devices - self.parity

    def row(self, number: int) -> Row:
        """`raid5_compute_sector`."""
        p, q, data = (self._five if self.parity == 1 else self._six)(number)
        if self.algorithm in (8, 9, 10):  # the DDF layouts count all devices from the first
            first, exponents = 0, {device: device for device in data}
        else:
            first = 0 if q is None else (q + 1) % self.devices
            order = sorted(data, key=lambda device: (device - first) % self.devices)
            exponents = {device: exponent for exponent, device in enumerate(order)}
        return Row(tuple(data), p, q, exponents)

    def _five(self, number: int) -> tuple[int, None, list[int]]:
        turn = number % self.devices
        p = {0: self.data - turn, 1: turn, 2: self.data - turn, 3: turn, 4: 0, 5: self.data}[self.algorithm]
        if self.algorithm in (2, 3):
            return p, None, [(p + 1 + at) % self.devices for at in range(self.data)]
        return p, None, [device for device in range(self.devices) if device != p]

    def _six(self, number: int) -> tuple[int, int, list[int]]:
        devices, last = self.devices, self.devices - 1
        if self.algorithm == 5:
            return self.data, last, list(range(self.data))
        if self.algorithm >= 16:  # those of raid5 on all devices but the last, which has Q
            p, _, data = Striped(last, self.chunk, 1, self.algorithm - 16)._five(number)
            return p, last, data
        p = number % devices if self.algorithm == 8 else last - (number + (self.algorithm == 9)) % devices
        if self.algorithm == 10:
            return p, (p - 1) % devices, [(p + 1 + at) % devices for at in range(self.data)]
        q = (p + 1) % devices
        return p, q, [device for device in range(devices) if device not in (p, q)]


def _q_of(row: Row, blocks: dict[int, bytes]) -> bytes:
    return xor(*(blocks[device].translate(table(power(row.exponents[device]))) for device in row.data))


def syndromes(row: Row, blocks: dict[int, bytes]) -> dict[int, bytes]:
    """P, and Q if the row has it, by device, of all data blocks by device."""
    found = {row.p: xor(*(blocks[device] for device in row.data))}
    if row.q is not None:
        found[row.q] = _q_of(row, blocks)
    return found


def recover(row: Row, blocks: dict[int, bytes]) -> dict[int, bytes] | None:
    """All blocks of a row by device, of those that are there. None: too few are."""
    lost = [device for device in row.data if device not in blocks]
    whole = dict(blocks)
    if len(lost) == 1 and row.p in blocks:
        whole[lost[0]] = xor(blocks[row.p], *(blocks[device] for device in row.data if device in blocks))
    elif lost:
        if row.q not in blocks or len(lost) > 1 + (row.p in blocks):
            return None
        _solve(row, whole, lost)
    return syndromes(row, whole) | whole


def _solve(row: Row, whole: dict[int, bytes], lost: list[int]) -> None:
    """Fill in one or two lost data blocks with the help of Q."""
    assert row.q is not None
    zero = bytes(len(whole[row.q]))
    known = {device: whole.get(device, zero) for device in row.data}
    q = xor(whole[row.q], _q_of(row, known))
    one = power(row.exponents[lost[0]])
    if len(lost) == 1:
        whole[lost[0]] = q.translate(table(inverse(one)))
        return
    other = power(row.exponents[lost[1]])
    p = xor(whole[row.p], *known.values())
    first = xor(q, p.translate(table(other))).translate(table(inverse(one ^ other)))
    whole[lost[0]], whole[lost[1]] = first, xor(p, first)
