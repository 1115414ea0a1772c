"""What a table and the superblocks say together: a new raid, one that goes on, or one that changes (`raid_ctr` and
`analyse_superblocks` of Linux drivers/md/dm-raid.c).

The superblocks tell what the array is, the table what it is to be. Another level takes over at once; another layout,
chunk or number of devices needs a reshape, which needs free space on the devices (`data_offset`); without it, what the
table asks for is ignored.
"""

from __future__ import annotations

import errno

from ...model.dm_target import Op, Target
from .array import Array, Member
from .mirror import Copies
from .params import MIN_FREE, Params, describe, is_known
from .parity import Parity
from .personality import Layout, Shape
from .reshape import Reshape
from .super import MAX_SECTOR, SUPPORTS_V190, Bitmap, Superblock
from .takeover import can_take_over

__all__ = ["Assembly"]

_INVALID = "Unable to assemble array: Invalid superblocks"
_NOT_RUN = "Failed to run raid array"


class Assembly:
    """Makes `array`; `reshapes`: the table asks for a reshape. Shapes and offsets are as on the disks now."""

    def __init__(self, target: Target, params: Params, members: list[Member]) -> None:
        self.target = target
        self.params = params
        self.members = members
        self.persistent = any(member.meta for member in members)
        self.array = Array(target, members)
        self.dev_sectors = self._dev_sectors()
        #: What the array is.
        self.shape = self.wanted = params.shape
        self.offset = self.new_offset = 0
        self.freshest: Superblock | None = None
        self.reshapes = False

    def build(self) -> None:
        if self.persistent and self.wanted.level:
            self._read_superblocks()
        if not any(member.data for member in self.members):
            raise self.target.refuse("Invalid rdev size")
        self._decide()
        self._set_offsets()
        if len(self.members) < self.shape.devices or not is_known(self.shape):
            raise self.target.refuse(_NOT_RUN)
        layout = self.layout(self.shape, self.offset)
        self._check_sizes(self.dev_sectors + max(self.offset, self.new_offset))
        self.array.personality = self._resumed(layout) or layout
        if self.persistent and self.wanted.level:
            if "sync" not in self.params.given:
                self._check_redundancy()
            self.array.bitmap = Bitmap(self.array.personality.sync_max, self.params.region_size)

    def layout(self, shape: Shape, offset: int) -> Layout:
        if shape.level in (5, 6):
            return Parity(self.array, shape, self.dev_sectors, offset)
        return Copies(self.array, shape, self.dev_sectors, offset)

    def _dev_sectors(self) -> int:
        """What the table uses of each device (`rs_set_dev_and_array_sectors`)."""
        kind, sectors = self.params.kind, self.target.len
        if kind.level == 10:
            if self.params.delta < 0:
                raise self.target.refuse("Bogus raid10 data copies or delta disks")
            sectors *= self.params.copies
        if kind.level != 1:
            sectors, rest = divmod(sectors, len(self.members) - kind.parity)
            if rest:
                raise self.target.refuse("Target length not divisible by number of data devices")
        self._check_sizes(sectors)
        return sectors

    def _check_sizes(self, sectors: int) -> None:
        if any(member.data and member.data.bdev.size < sectors for member in self.members):
            raise self.target.refuse("Component device(s) too small")

    def _check_redundancy(self) -> None:
        lost = [member for member in self.members if not member.in_sync or not member.meta]
        if not self.array.personality.enough() or (self.shape.level == 1 and len(lost) == len(self.members)):
            raise self.target.refuse("Insufficient redundancy to activate array")

    # -- superblocks ------------------------------------------------------------------------------------

    def _read_superblocks(self) -> None:
        if "sync" in self.params.given:  # whatever they say: `preresume` starts anew
            return
        for member in self.members:
            if member.meta:
                self._load_superblock(member)
        known = [member.superblock for member in self.members if member.superblock]
        self.freshest = max(known, key=lambda superblock: superblock.events, default=None)
        self._check_new()
        if self.freshest:
            self._take(self.freshest)

    def _load_superblock(self, member: Member) -> None:
        block = self._read_block(member)
        if block is None:
            self.target.log(f"Failed to read superblock of device at position {member.number}")
            member.faulty, member.in_sync = True, False
        elif member.in_sync:
            member.superblock = Superblock.unpack(block)

    def _read_block(self, member: Member) -> bytearray | None:
        """The block of a superblock; None: it cannot be read."""
        assert member.meta is not None
        block = bytearray(member.meta.bdev.limits.logical_block_size)
        return None if self.target.do_io(Op.READ, member.meta.bdev, 0, memoryview(block)) else block

    def outdated(self) -> bool:
        """The table that is replaced has reshaped the array since the superblocks were read."""
        if self.freshest is None:
            return False
        blocks = [self._read_block(member) for member in self.members if member.meta and member.superblock]
        found = [superblock for block in blocks if block and (superblock := Superblock.unpack(block))]
        now = max(found, key=lambda superblock: superblock.events, default=self.freshest)
        return now.level == self.freshest.level and now.place != self.freshest.place

    def _check_new(self) -> None:
        """Devices without superblock are all new, to be rebuilt, or to be added (`super_init_validation`)."""
        there = [member for member in self.members if member.meta and not member.faulty]
        new = [member for member in there if member.superblock is None]
        rebuilds = [member for member in there if not member.in_sync]
        for member in rebuilds:
            self.target.log(f"Device {member.number} specified for rebuild; clearing superblock")
        if self.freshest is None:
            self.target.log("Superblocks created for new raid set")
            if not rebuilds and "nosync" not in self.params.given:
                self.array.resync_at = 0
        elif not rebuilds and new and len(new) != self.params.delta:
            self.target.log(
                "New device injected into existing raid set without 'delta_disks' or 'rebuild' parameter specified"
            )
            raise self.target.refuse(_INVALID)
        elif rebuilds and len(new) != len(rebuilds):
            self.target.log(
                f"{len(rebuilds)} 'rebuild' devices cannot be injected into a raid set with "
                f"{len(new) - len(rebuilds)} other first-time devices"
            )
            raise self.target.refuse(_INVALID)
        elif rebuilds and self.freshest.reshape_position != MAX_SECTOR:
            position = self.freshest.reshape_position
            self.target.log(f"'rebuild' specified while raid set is being reshaped (reshape_position={position})")
            raise self.target.refuse(_INVALID)

    def _take(self, freshest: Superblock) -> None:
        """What the superblock with most events says holds."""
        if freshest.compatible != SUPPORTS_V190:
            raise self.target.refuse("Unable to assemble array: Unknown flag(s) in compatible feature flags")
        if freshest.incompatible:
            raise self.target.refuse("Unable to assemble array: No incompatible feature flags supported yet")
        if freshest.reshape_position != MAX_SECTOR and self.params.delta:
            self.target.log("Reshape requested but raid set is still reshaping")
            raise self.target.refuse(_INVALID)
        self.shape = Shape(freshest.level, freshest.layout, freshest.chunk, freshest.devices)
        if freshest.reshape_position != MAX_SECTOR:
            self.shape = self.shape._replace(devices=freshest.devices - freshest.delta)
        self.offset, self.new_offset = freshest.data_offset, freshest.new_data_offset
        if "nosync" not in self.params.given:
            self.array.resync_at = freshest.resync_offset
        self.array.events = max(freshest.events, 1)
        for member in self.members:
            if member.superblock:
                self._take_member(member, member.superblock, freshest)

    def _take_member(self, member: Member, superblock: Superblock, freshest: Superblock) -> None:
        if superblock.position != member.number:
            self._check_position()
            self.target.log(f"raid device #{superblock.position} now at position #{member.number}")
        if superblock.position in freshest.failed or superblock.recovery_offset != MAX_SECTOR:
            member.in_sync, member.recovered = False, 0

    def _check_position(self) -> None:
        """Devices that stand in another order: mirrors may, and those that a level takes over."""
        levels = (self.shape.level, self.wanted.level)
        if self.shape.level == 10 and describe(self.shape.layout)[1] == "near":
            if self.shape.devices % (self.shape.layout & 255) or self.wanted.devices % self.params.copies:
                raise self.target.refuse("Cannot change raid10 near set to odd # of devices!")
        elif levels not in ((10, 0), (0, 10)) and self.wanted.level != 1:
            raise self.target.refuse("Cannot change device positions in raid set")

    # -- what is to be done -----------------------------------------------------------------------------

    def _decide(self) -> None:
        found, shape, wanted = self.freshest, self.shape, self.wanted
        if found is None:
            return
        if found.reshape_position != MAX_SECTOR:
            if self.dev_sectors not in (found.sectors, found.sectors - self._free):
                raise self.target.refuse("Can't resize a reshaping raid set", errno.EPERM)
        elif wanted.level != shape.level:
            self._take_over()
        elif self.array.resync_at >= self.dev_sectors and self._reshape_requested():
            if self._free or shape.level == 1:
                self._prepare_reshape()
        else:
            self._resize(found)

    @property
    def _free(self) -> int:
        """Sectors of each device that a reshape has (`_get_reshape_sectors`)."""
        return max(abs(self.offset - self.new_offset), self.params.data_offset)

    def _resize(self, found: Superblock) -> None:
        if self.params.rebuild:
            self.array.resync_at = MAX_SECTOR
        elif (
            self.dev_sectors > found.sectors
            and self.array.resync_at == MAX_SECTOR
            and "nosync" not in self.params.given
        ):
            self.array.resync_at = found.sectors if self.shape.level in (5, 6) else found.array_sectors

    def _take_over(self) -> None:
        """Another level with the data where they are (`rs_setup_takeover`)."""
        if self.array.resync_at < self.dev_sectors or not (
            is_known(self.shape) and can_take_over(self.shape, self.wanted)
        ):
            raise self.target.refuse("takeover not possible")
        self.shape = self.wanted
        self.array.resync_at = MAX_SECTOR
        self.array.unmarked = bool(self.params.rebuild)

    def _reshape_requested(self) -> bool:
        now, wanted, delta = self.shape, self.wanted, self.params.delta
        change = bool(delta) or (now.layout, now.chunk) != (wanted.layout, wanted.chunk)
        if now.level == 1:
            return bool(delta) or (not change and now.devices != wanted.devices)
        if now.level == 10:
            return change and describe(wanted.layout)[1] != "far" and delta >= 0
        return change

    def _prepare_reshape(self) -> None:
        """`rs_prepare_reshape`."""
        now, wanted = self.shape, self.wanted
        self.array.resync_at = MAX_SECTOR
        if now.level == 1:
            for member in self.members[now.devices :]:
                if member.superblock is None:
                    member.in_sync, member.recovered = False, 0
            self.shape = now._replace(devices=wanted.devices)
        elif now.level == 10 and now.devices != wanted.devices and self._mirrors_change():
            if wanted.devices % self.params.copies:
                raise self.target.refuse("Can't reshape raid10 mirror groups")
            self.shape = now._replace(layout=self.params.layout(self.params.copies, "near"), devices=wanted.devices)
        else:
            self.reshapes = True

    def _mirrors_change(self) -> bool:
        copies, form = describe(self.shape.layout)
        return form == "near" and copies != self.params.copies

    def _set_offsets(self) -> None:
        """Where the data begin, and where they are to begin (`rs_adjust_data_offsets`)."""
        free, delta = self.params.data_offset, self.params.delta
        if "data_offset" not in self.params.given:
            if self.shape.level in (0, 1) or (self.shape.level == 10 and describe(self.wanted.layout)[1] == "far"):
                self.offset = self.new_offset = 0
            return
        if delta:
            self.offset, self.new_offset = (free, 0) if delta > 0 else (0, free)
        else:
            self.offset = self.offset if free else 0
            self.new_offset = 0 if self.offset else free
        first = self.members[0].data
        if free and first and first.bdev.size - self.dev_sectors < MIN_FREE:
            way = "forward" if self.offset else "backward"
            raise self.target.refuse(f"No space for {way} reshape", errno.ENOSPC)

    # -- reshape ----------------------------------------------------------------------------------------

    def _resumed(self, old: Layout) -> Reshape | None:
        """The reshape that the superblocks tell of."""
        found = self.freshest
        if found is None or found.reshape_position == MAX_SECTOR:
            return None
        shape = Shape(*found.new, found.devices)
        if len(self.members) < shape.devices or shape.level != old.shape.level or not is_known(shape):
            raise self.target.refuse(_NOT_RUN)
        backwards = found.delta < 0 or (not found.delta and found.backwards)
        new = self.layout(shape, self.new_offset)
        reshape = Reshape(old, new, found.reshape_position, backwards=backwards)
        if not reshape.on_boundary:
            self.target.printk(f"md/{new.name}:mdX: reshape_position not on a stripe boundary")
            raise self.target.refuse(_NOT_RUN)
        return reshape

    def check_reshape(self) -> None:
        """Once the array runs: refuse the reshape that the table asks for, or have the first resume begin it
        (`rs_check_reshape`, and `check_reshape` of the levels)."""
        now = self.array.personality
        if not self.reshapes or not isinstance(now, Layout):
            return
        if not all(member.usable and member.in_sync for member in now.members):
            raise self.target.refuse("Can't reshape degraded raid set", errno.EPERM)
        old, new, wanted = describe(now.shape.layout), describe(self.wanted.layout), self.wanted
        if wanted.level == 10 and (old[1] == "far" or old[0] != new[0]):
            raise self.target.refuse("Reshape check failed")
        if min(now.size, self.target.len) % wanted.chunk:
            raise self.target.refuse("Reshape check failed")
        if wanted.level != 10 and now.shape.devices == 2:  # the same on both, whatever layout and chunk
            now = self.layout(Shape(wanted.level, wanted.layout, wanted.chunk, 2), self.offset)
            self.array.personality = now
        self.array.plan = lambda: self._plan(now)

    def _plan(self, now: Layout) -> Reshape | None:
        """What begins; None: it cannot (`rs_setup_reshape`, and `start_reshape` of the levels)."""
        delta, devices = self.params.delta, now.shape.devices + self.params.delta
        if not self.params.kind.least <= devices <= len(self.members):
            return None
        layout = self.wanted.layout
        if delta and layout != now.shape.layout:
            self.target.log(f"Ignoring invalid layout change with delta_disks={delta}")
            layout = now.shape.layout
        new = self.layout(Shape(now.shape.level, layout, self.wanted.chunk, devices), self.new_offset)
        backwards = delta < 0 or (not delta and not self.offset)
        reshape = Reshape(now, new, None, backwards=backwards)
        if not reshape.limit or reshape.window() is None or (delta >= 0 and new.size < min(now.size, self.target.len)):
            return None
        for member in new.members[now.shape.devices :]:  # nothing is on those yet that could be missing
            member.in_sync, member.recovered = not member.faulty, MAX_SECTOR
        return reshape
