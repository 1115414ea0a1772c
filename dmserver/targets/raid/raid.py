"""raid: md's levels 0, 1, 4, 5, 6 and 10 (Linux `drivers/md/dm-raid.c`).

Arguments: those of `params`. `super` is what the metadata devices hold, and `assembly` what follows from both; `mirror`
and `parity` are the ways of data, and `reshape` from one to another; `sync` is what goes on in the background.

Not there, and refused: a journal. As in the kernel, raid10 needs metadata devices.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from ...model.dm_target import (
    SECTOR_SIZE,
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
from .array import Carried, Member
from .assembly import Assembly
from .params import MAX_DEVICES, TYPES, Params, type_name
from .personality import Layout
from .super import MAX_SECTOR
from .sync import Sync

__all__ = ["Raid"]

#: Sectors of a journal at least (`MIN_RAID456_JOURNAL_SPACE`), and entries of a stripe cache (`NR_STRIPES`).
JOURNAL_SPACE, STRIPES = 8192, 256


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
        self.devices = [self._open(number, args) for number in range(devices)]
        self._assemble()
        self.suspended, self._resumed = True, False
        self._asked = ""
        if kind.parity:
            self._set_stripe_cache()
        self._configure_discards()

    def _assemble(self) -> None:
        """Set `array`, and what it needs."""
        self.members = [self._member(number, *pair) for number, pair in enumerate(self.devices)]
        self.persistent = any(member.meta for member in self.members)
        self.assembly = Assembly(self, self.params, self.members)
        if self.persistent and self.params.kind.level and self._held_up:
            raise self.refuse("Metadata device is suspended", errno.EAGAIN)
        self.assembly.build()
        self.array = self.assembly.array
        self._run()
        self.assembly.check_reshape()
        chunks = [self.params.chunk, self.array.personality.shape.chunk, self.array.now.shape.chunk]
        self.max_io_len = min(chunks) or int(self.params.given.get("region_size", 0))
        self.sync = Sync(self.array, int(self.params.given.get("max_recovery_rate", 0)))

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

    def _open(self, number: int, args: Arguments) -> tuple[DmPdev | None, DmPdev | None]:
        """Metadata and data device (`parse_dev_params`)."""
        meta_path, path = args.shift(), args.shift()
        meta = None if meta_path == "-" else self.get_device(meta_path, "RAID metadata device lookup failure")
        if path == "-":
            if number in self.params.rebuild:
                raise self.refuse("Drive designated for rebuild not specified")
            if meta:
                raise self.refuse("No data device supplied with metadata device")
            return None, None
        return meta, self.get_device(path, "RAID device lookup failure")

    def _member(self, number: int, meta: DmPdev | None, data: DmPdev | None) -> Member:
        if data is None:
            return Member(number, None, None, in_sync=False)
        member = Member(number, meta, data, write_mostly=number in self.params.write_mostly)
        if number in self.params.rebuild:
            member.in_sync, member.recovered = False, 0
        return member

    def _run(self) -> None:
        """What md's personalities say when they start, and when they do not."""
        level, members = self.params.kind.level, self.array.personality.members
        count = len(members)
        active = sum(member.usable and member.in_sync for member in members)
        if level == 10 and not self.persistent:
            self.array.printk("unsupported raid10 layout: 0x       0")
        elif not self.array.personality.enough():
            self.array.printk(f"not enough operational devices ({count - active}/{count} failed)")
        else:
            self._say_active(level, active, count)
            return
        self.printk("md: pers->run() failed ...")
        raise self.refuse("Failed to run raid array", errno.EIO if self.params.kind.parity else errno.EINVAL)

    def _say_active(self, level: int, active: int, count: int) -> None:
        if self.array.reshape:
            self.array.printk("reshape will continue")
        if level and self.array.resync_at != MAX_SECTOR:
            self.array.printk("not clean -- starting background reconstruction")
        if self.params.kind.parity:
            for member in self.members:
                if member.data and member.in_sync and member in self.array.personality.members:
                    name = os.path.basename(member.data.path)
                    self.array.printk(f"device {name} operational as raid disk {member.number}")
            algorithm = self.array.personality.shape.layout
            self.array.printk(f"raid level {level} active with {active} out of {count} devices, algorithm {algorithm}")
        elif level:
            self.array.printk(f"active with {active} out of {count} {'mirrors' if level == 1 else 'devices'}")

    # -- the way of a bio -------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        if bio.op is Op.FLUSH:
            self.array.flush(bio)
            return MapResult.SUBMITTED
        personality = self.array.personality
        bio.per_bio.at = self.offset(bio.sector)
        if bio.per_bio.at + bio.nr_sectors > personality.size:
            return MapResult.KILL
        if bio.op is Op.READ or self.params.kind.level == 0:
            return personality.read(bio)
        personality.write(bio)
        return MapResult.SUBMITTED

    def end_io(self, bio: Bio, error: int) -> int | EndIo:
        carried: Carried = bio.per_bio
        member, carried.member = carried.member, None
        if error and member is not None and self.params.kind.level:
            layout = self.array.personality
            assert isinstance(layout, Layout)  # a reshape remaps nothing
            layout.retry(bio, member)
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
        if self.persistent and not self._held_up:  # else the disks say what they said: more to be made equal
            self.array.clear_bitmap()
            self.array.save()

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
            if self.persistent and self.assembly.outdated():
                self._assemble()
            self.array.load_bitmap()
            self.array.begin_reshape()
            if self.persistent and "sync" in self.params.given:
                self.array.resync_at = 0
        if self.persistent and self.params.kind.level:
            self.array.save()

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
        elif self.sync.action or self.array.reshape:
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
            now, shape = self.array.now.shape, self.array.personality.shape
            words = self.params.words(shape.chunk, now.layout, shape.devices - now.devices)
            return " ".join([self.params.kind.name, *words, str(len(self.members)), *names])
        array, health = self.array.personality, "".join(map(self._health, self.members))
        mismatches = self.sync.mismatches if self.sync.last == "check" else 0
        told = (self._progress, self._state, mismatches, array.offset, "-")
        return " ".join(map(str, (type_name(array.shape), array.shape.devices, health, *told)))

    def ima_status(self) -> str:
        shape = self.array.personality.shape
        values: dict[str, object] = {"raid_type": type_name(shape), "raid_disks": shape.devices}
        values["raid_state"] = self._state
        values |= {f"raid_device_{member.number}_status": self._health(member) for member in self.members}
        if self.params.kind.parity:
            values["journal_dev_mode"] = "invalid"
        return self.ima_line(values)

    @property
    def _state(self) -> str:
        if self.sync.frozen and self.params.kind.level:
            return "frozen"
        return self.sync.action or ("reshape" if self.array.reshape else "idle")

    @property
    def _done(self) -> int:
        """How far what goes on is, or how much is in sync (`rs_get_progress`)."""
        array, sync = self.array, self.sync
        if sync.action or (sync.frozen and sync.interrupted):
            return sync.at
        if array.reshape:
            return array.reshape.progress
        return min([array.resync_at, array.personality.sync_max, *(member.recovered for member in array.recovering)])

    @property
    def _progress(self) -> str:
        if self.params.kind.level == 0:
            return "/".join([str(self.array.personality.dev_sectors)] * 2)
        return f"{self._done}/{self.array.personality.sync_max}"

    def _health(self, member: Member) -> str:
        """A letter: Alive, dead, or alive and not in sync (`__raid_dev_status`)."""
        if member.data is None:
            return "-"
        if member.faulty:
            return "D"
        state = self._state
        if state in ("check", "repair") or self.params.kind.level == 0:
            return "A"
        if state == "reshape":
            return "a"
        if state != "recover" and (state == "resync" or self._done < self.array.personality.sync_max):
            return "A" if any(not m.in_sync for m in self.array.recovering) and member.in_sync else "a"
        return "A" if member.in_sync else "a"

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        for member in self.members:
            if member.data:
                yield member.data, 0, self.array.personality.dev_sectors

    def io_hints(self, limits: QueueLimits) -> None:
        if chunk := self.array.now.shape.chunk:
            limits.io_min = chunk * SECTOR_SIZE
            limits.io_opt = limits.io_min * (self.array.personality.shape.devices - self.params.kind.parity)


def _name(pdev: DmPdev | None) -> str:
    return pdev.number if pdev else "-"
