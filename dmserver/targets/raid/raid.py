"""raid: md's levels 0, 1, 4, 5, 6 and 10 (Linux `drivers/md/dm-raid.c`).

Arguments: those of `params`. `super` is what the metadata devices hold, `mirror` and `parity` are
the ways of data, `sync` is what goes on in the background.

Not there, and refused: raid10's far and offset layouts, a journal, and all that changes the shape of a raid in place
(takeover, reshape, `delta_disks`, a `data_offset` but 0). As in the kernel, raid10 needs metadata devices.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from ...model.dm_target import (
    Arguments,
    Bio,
    DmPdev,
    EndIo,
    MapResult,
    Op,
    QueueLimits,
    StatusType,
    Target,
    TargetError,
    is_suspended,
)
from .array import Array, Carried, Member
from .geometry import Near, Striped
from .mirror import Copies
from .params import MAX_DEVICES, TYPES, Params
from .parity import Parity
from .super import MAX_SECTOR, SUPPORTS_V190, Bitmap, Superblock
from .sync import Sync

__all__ = ["Raid"]

#: Sectors of a journal at least (`MIN_RAID456_JOURNAL_SPACE`), and entries of a stripe cache (`NR_STRIPES`).
JOURNAL_SPACE, STRIPES = 8192, 256

_INVALID = "Unable to assemble array: Invalid superblocks"


class Raid(Target):
    name = "raid"
    version = (1, 15, 1)
    per_bio_data = Carried
    num_flush_bios = 1

    # -- construction -----------------------------------------------------------------------------------

    def ctr(self, argv: Sequence[str]) -> None:
        if not argv:
            raise self.refuse("No arguments")
        if argv[0].lower() not in TYPES:
            raise self.refuse("Unrecognised raid_type")
        args = Arguments(argv[1:])
        kind = TYPES[argv[0].lower()]
        count = self._number(args, 0, len(args) - 1, "Cannot understand number of raid parameters")
        after = Arguments(argv[2 + count :])
        complaint = "Cannot understand number of raid devices parameters"
        devices = self._number(after, 1, (len(after) - 1) // 2, complaint)
        if devices > MAX_DEVICES:
            raise self.refuse("Invalid number of supplied raid devices")
        if devices <= kind.parity:
            raise self.refuse("Insufficient number of devices")
        self.params = Params(kind, devices)
        self.params.parse(args, count, self.len, self.refuse, self.log)
        self._refuse_journal()
        args.shift()
        self.max_io_len = self.params.chunk or int(self.params.given.get("region_size", 0))
        self.members = [self._member(number, args) for number in range(devices)]
        self.capacity = self.len
        self.persistent = any(member.meta for member in self.members)
        self.array = self._create_array()
        self._analyse_superblocks()
        if not any(member.data for member in self.members):
            raise self.refuse("Invalid rdev size")
        if self.params.reshapes or (self.persistent and not self.params.is_near):
            raise self.refuse("Reshape not supported")
        self._run()
        self.sync = Sync(self.array, int(self.params.given.get("max_recovery_rate", 0)))
        self.suspended, self._resumed = True, False
        self._asked = ""
        if kind.parity:
            self._set_stripe_cache()
        self._configure_discards()

    def _number(self, args: Arguments, least: int, most: int, complaint: str) -> int:
        try:
            return args.number(least, most)
        except ValueError:
            raise self.refuse(complaint) from None

    def _refuse_journal(self) -> None:
        """A journal is not there; before that its device may be missing, or too small."""
        if path := self.params.given.get("journal_dev"):
            journal = self.get_device(path, "raid4/5/6 journal device lookup failure")
            if journal.bdev.size < JOURNAL_SPACE:
                raise self.refuse("No space for raid4/5/6 journal", errno.ENOSPC)
            raise self.refuse("Failed to run raid array")

    def _set_stripe_cache(self) -> None:
        """`rs_set_raid456_stripe_cache`; we have no such cache."""
        entries = int(self.params.given.get("stripe_cache", STRIPES))
        least = self.params.chunk // 2
        if entries < least:
            self.log(f"Adjusting requested {entries} stripe cache entries to {least} to suit stripe size")
            entries = least
        if entries != STRIPES:
            if not 16 < entries <= 32768:
                raise self.refuse("Failed to set raid4/5/6 stripe cache size")
            self.log(f"{entries} stripe cache entries")
        if "stripe_cache" in self.params.given:
            self.params.given["stripe_cache"] = str(entries)

    def _configure_discards(self) -> None:
        """`configure_discard_support`: those of parity would have to read zeroes for sure."""
        for member in self.members:
            if member.data is None or not member.data.bdev.limits.discard:
                return
            if self.params.kind.parity:
                self.log("raid456 discard support disabled due to discard_zeroes_data uncertainty.")
                self.log("Set dm-raid.devices_handle_discard_safely=Y to override.")
                return
        self.num_discard_bios = 1

    def _member(self, number: int, args: Arguments) -> Member:
        """`parse_dev_params`."""
        rebuild = number in self.params.rebuild
        meta_path, path = args.shift(), args.shift()
        meta = None if meta_path == "-" else self.get_device(meta_path, "RAID metadata device lookup failure")
        if path == "-":
            if rebuild:
                raise self.refuse("Drive designated for rebuild not specified")
            if meta:
                raise self.refuse("No data device supplied with metadata device")
            return Member(number, None, None, in_sync=False)
        member = Member(number, meta, self.get_device(path, "RAID device lookup failure"))
        member.write_mostly = number in self.params.write_mostly
        if rebuild:
            member.in_sync, member.recovered = False, 0
        return member

    def _create_array(self) -> Array:
        """Its sizes are `rs_set_dev_and_array_sectors`."""
        kind, devices, chunk = self.params.kind, len(self.members), self.params.chunk
        copies = {0: 1, 1: devices, 10: self.params.copies}.get(kind.level, 0)
        data = devices - kind.parity
        sectors = self.len
        if kind.level != 1:
            sectors, rest = divmod(self.len * max(copies, 1), data)
            if rest:
                raise self.refuse("Target length not divisible by number of data devices")
        if any(member.data and member.data.bdev.size < sectors for member in self.members):
            raise self.refuse("Component device(s) too small")
        if chunk:  # md uses whole chunks of each device
            self.capacity = min(self.len, sectors // chunk * data // max(copies, 1) * chunk)
        layout = copies | 1 << 8 if kind.level == 10 else kind.algorithm
        shape = (kind.level, layout, chunk)
        if copies:
            return Copies(self, self.members, sectors, Near(devices, chunk, copies), shape)
        return Parity(self, self.members, sectors, Striped(devices, chunk, kind.parity, kind.algorithm), shape)

    # -- superblocks ------------------------------------------------------------------------------------

    def _analyse_superblocks(self) -> None:
        """Read what the metadata devices say of the array (`analyse_superblocks`)."""
        if not self.persistent or self.params.kind.level == 0:
            return
        if self._held_up:
            raise self.refuse("Metadata device is suspended", errno.EAGAIN)
        self.array.bitmap = Bitmap(self.array.sync_max, self.params.region_size)
        if "sync" in self.params.given:  # whatever they say: `preresume` starts anew
            return
        for member in self.members:
            if member.meta:
                self._load_superblock(member)
        known = [member for member in self.members if member.superblock]
        freshest = max((m.superblock for m in known if m.superblock), key=lambda sb: sb.events, default=None)
        self._check_new(freshest)
        if freshest:
            self._take(freshest)
        lost = [m for m in self.members if not m.in_sync or not m.meta]
        if not self.array.enough() or (self.params.kind.level == 1 and len(lost) == len(self.members)):
            raise self.refuse("Insufficient redundancy to activate array")

    def _load_superblock(self, member: Member) -> None:
        assert member.meta is not None
        block = bytearray(member.meta.bdev.limits.logical_block_size)
        if self.do_io(Op.READ, member.meta.bdev, 0, memoryview(block)):
            self.log(f"Failed to read superblock of device at position {member.number}")
            member.faulty, member.in_sync = True, False
        elif member.in_sync:
            member.superblock = Superblock.unpack(block)

    def _check_new(self, freshest: Superblock | None) -> None:
        """Devices without superblock are all new, or to be rebuilt (`super_init_validation`)."""
        there = [member for member in self.members if member.meta and not member.faulty]
        new = [member for member in there if member.superblock is None]
        rebuilds = [member for member in there if not member.in_sync]
        for member in rebuilds:
            self.log(f"Device {member.number} specified for rebuild; clearing superblock")
        if freshest is None:
            self.log("Superblocks created for new raid set")
            if not rebuilds and "nosync" not in self.params.given:
                self.array.resync_at = 0
        elif new and not rebuilds:
            self.log(
                "New device injected into existing raid set without 'delta_disks' or 'rebuild' parameter specified"
            )
            raise self.refuse(_INVALID)
        elif len(new) != len(rebuilds):
            self.log(
                f"{len(rebuilds)} 'rebuild' devices cannot be injected into a raid set with "
                f"{len(new) - len(rebuilds)} other first-time devices"
            )
            raise self.refuse(_INVALID)

    def _take(self, freshest: Superblock) -> None:
        """What the superblock with most events says holds."""
        array = self.array
        if freshest.compatible != SUPPORTS_V190:
            raise self.refuse("Unable to assemble array: Unknown flag(s) in compatible feature flags")
        if freshest.incompatible:
            raise self.refuse("Unable to assemble array: No incompatible feature flags supported yet")
        shape = (freshest.level, freshest.layout, freshest.chunk)
        count = len(self.members) if self.params.kind.level != 1 else freshest.devices  # mirrors may come and go
        if shape != array.shape or freshest.devices != count:
            self.log(f"superblock of {freshest.devices} devices of level, layout, chunk {shape}, not {array.shape}")
            raise self.refuse("takeover not possible")
        if "nosync" not in self.params.given:
            array.resync_at = freshest.resync_offset
            if freshest.array_sectors < self.len and array.resync_at == MAX_SECTOR:
                array.resync_at = freshest.array_sectors if array.sync_max == self.len else freshest.sectors
        array.events = max(freshest.events, 1)
        for member in self.members:
            superblock = member.superblock
            if superblock is None:
                continue
            if superblock.position != member.number:
                self.log(f"raid device #{superblock.position} now at position #{member.number}")
                if self.params.kind.level != 1:
                    self.log("Cannot change device positions in raid set")
                    raise self.refuse(_INVALID)
            if superblock.position in freshest.failed or superblock.recovery_offset != MAX_SECTOR:
                member.in_sync, member.recovered = False, 0

    def _run(self) -> None:
        """What md's personalities say when they start, and when they do not."""
        level, count = self.params.kind.level, len(self.members)
        active = sum(member.usable and member.in_sync for member in self.members)
        if level == 10 and not self.persistent:
            self.array.printk("unsupported raid10 layout: 0x       0")
        elif not self.array.enough():
            self.array.printk(f"not enough operational devices ({count - active}/{count} failed)")
        else:
            self._say_active(level, active, count)
            return
        self.printk("md: pers->run() failed ...")
        raise self.refuse("Failed to run raid array", errno.EIO if self.params.kind.parity else errno.EINVAL)

    def _say_active(self, level: int, active: int, count: int) -> None:
        if level and self.array.resync_at != MAX_SECTOR:
            self.array.printk("not clean -- starting background reconstruction")
        if self.params.kind.parity:
            for member in self.members:
                if member.data and member.in_sync:
                    name = os.path.basename(member.data.path)
                    self.array.printk(f"device {name} operational as raid disk {member.number}")
            algorithm = self.params.kind.algorithm
            self.array.printk(f"raid level {level} active with {active} out of {count} devices, algorithm {algorithm}")
        elif level:
            self.array.printk(f"active with {active} out of {count} {'mirrors' if level == 1 else 'devices'}")

    # -- the way of a bio -------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        if bio.op is Op.FLUSH:
            self.array.flush(bio)
            return MapResult.SUBMITTED
        bio.per_bio.at = self.offset(bio.sector)
        if bio.per_bio.at + bio.nr_sectors > self.capacity:
            return MapResult.KILL
        if bio.op is Op.READ or self.params.kind.level == 0:
            return self.array.read(bio)
        self.array.write(bio)
        return MapResult.SUBMITTED

    def end_io(self, bio: Bio, error: int) -> int | EndIo:
        carried: Carried = bio.per_bio
        member, carried.member = carried.member, None
        if error and member is not None and self.params.kind.level:
            self.array.retry(bio, member)
            return EndIo.INCOMPLETE
        return error

    # -- suspend and resume -----------------------------------------------------------------------------

    def presuspend(self) -> None:
        self.sync.stop()

    def presuspend_undo(self) -> None:
        self.sync.thaw()

    def postsuspend(self) -> None:
        self.suspended = True
        self.sync.drain()  # a removal does not wait for it
        if not self._held_up:  # else the disks say what they said: more to be made equal than need be
            self.array.clear_bitmap()
            self._save()

    @property
    def _held_up(self) -> bool:
        """Metadata devices would answer only after a resume, for which nobody would be left."""
        return any(is_suspended(member.meta.bdev) for member in self.members if member.meta)

    def preresume(self) -> None:
        if self._held_up:
            raise TargetError(errno.EAGAIN)
        if self._resumed:
            self._revive()
        else:
            self.array.load_bitmap()
            if self.persistent and "sync" in self.params.given:
                self.array.resync_at = 0
        self._save()

    def _revive(self) -> None:
        """Failed devices whose superblocks can be read take part again (`attempt_restore_of_faulty_devices`)."""
        for member in self.members:
            if member.faulty and member.meta:
                block = bytearray(member.meta.bdev.limits.logical_block_size)
                if not self.do_io(Op.READ, member.meta.bdev, 0, memoryview(block)):
                    self.log(
                        f"Faulty {self.params.kind.name} device #{member.number} has readable super block.  "
                        "Attempting to revive it."
                    )
                    member.faulty, member.recovered = False, 0

    def _save(self) -> None:
        if self.persistent and self.params.kind.level:
            self.array.save()

    def resume(self) -> None:
        self.suspended, self._resumed = False, True
        asked, self._asked = self._asked, ""
        if self.params.kind.level:
            self.sync.thaw()
            if asked and not self.sync.action:
                self.sync.request(asked)

    # -- messages ---------------------------------------------------------------------------------------

    def message(self, argv: Sequence[str]) -> None:
        """idle, frozen, resync, recover, check or repair (`raid_message`)."""
        action = argv[0].lower()
        if self.params.kind.level == 0:
            raise TargetError(errno.EINVAL)
        if self.suspended:
            self._message_suspended(action)
            return
        self.sync.frozen = action == "frozen"
        if action in ("idle", "frozen"):
            self.sync.interrupt()
            self.sync.wake()
        elif self.sync.action:
            raise TargetError(errno.EBUSY)
        elif action in ("check", "repair"):
            self.sync.request(action)
        elif action not in ("resync", "recover"):
            raise TargetError(errno.EINVAL)
        else:
            self.sync.wake()

    def _message_suspended(self, action: str) -> None:
        """What is asked for now begins with the resume."""
        if action not in ("idle", "frozen", "resync", "recover", "check", "repair"):
            raise TargetError(errno.EINVAL)
        if action in ("check", "repair"):
            self._asked = action

    # -- what it tells ----------------------------------------------------------------------------------

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.TABLE:
            names = [_name(pdev) for member in self.members for pdev in (member.meta, member.data)]
            return " ".join([self.params.kind.name, *self.params.words(), str(len(self.members)), *names])
        health = "".join(map(self._health, self.members))
        mismatches = self.sync.mismatches if self.sync.last == "check" else 0
        words = (self._level_name, len(self.members), health, self._progress, self._state, mismatches, 0, "-")
        return " ".join(map(str, words))

    @property
    def _level_name(self) -> str:
        """The last of the types with this level and layout (`get_raid_type_by_ll`)."""
        return "raid10" if self.params.kind.level == 10 else self.params.kind.name

    def ima_status(self) -> str:
        values: dict[str, object] = {"raid_type": self._level_name, "raid_disks": len(self.members)}
        values["raid_state"] = self._state
        values |= {f"raid_device_{member.number}_status": self._health(member) for member in self.members}
        if self.params.kind.parity:
            values["journal_dev_mode"] = "invalid"
        return self.ima_line(values)

    @property
    def _state(self) -> str:
        return "frozen" if self.sync.frozen and self.params.kind.level else self.sync.action or "idle"

    @property
    def _done(self) -> int:
        """How far what goes on is, or how much is in sync (`rs_get_progress`)."""
        array, sync = self.array, self.sync
        if sync.action or (sync.frozen and sync.interrupted):
            return sync.at
        return min([array.resync_at, array.sync_max, *(member.recovered for member in array.recovering)])

    @property
    def _progress(self) -> str:
        if self.params.kind.level == 0:
            return f"{self.array.dev_sectors}/{self.array.dev_sectors}"
        return f"{self._done}/{self.array.sync_max}"

    def _health(self, member: Member) -> str:
        """A letter: Alive, dead, or alive and not in sync (`__raid_dev_status`)."""
        if member.data is None:
            return "-"
        if member.faulty:
            return "D"
        state = self._state
        if state in ("check", "repair") or self.params.kind.level == 0:
            return "A"
        if state != "recover" and (state == "resync" or self._done < self.array.sync_max):
            return "A" if any(not m.in_sync for m in self.array.recovering) and member.in_sync else "a"
        return "A" if member.in_sync else "a"

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        for member in self.members:
            if member.data:
                yield member.data, 0, self.array.dev_sectors

    def io_hints(self, limits: QueueLimits) -> None:
        if self.params.chunk:
            limits.io_min = self.params.chunk * 512
            limits.io_opt = limits.io_min * (len(self.members) - self.params.kind.parity)


def _name(pdev: DmPdev | None) -> str:
    return pdev.number if pdev else "-"
