"""cache: a slow device of which a fast one keeps what is used most (Linux `drivers/md/dm-cache-target.c`).

Arguments: METADATA_DEVICE CACHE_DEVICE ORIGIN_DEVICE BLOCK_SIZE #FEATURES [writeback|writethrough|passthrough]
[metadata2] [no_discard_passdown] POLICY #POLICY_ARGS [KEY VALUE]...

A miss goes to the origin. `policy` decides what is moved to the cache and from it, `mover` moves it, `bios` has the way
of a bio. Metadata that begin with zeroes are formatted by the first load.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Sequence

from ...model.dm_target import (
    SECTOR_SIZE,
    Arguments,
    Bio,
    DmPdev,
    EndIo,
    MapResult,
    QueueLimits,
    StatusType,
    Target,
    TargetError,
    is_suspended,
    parse_uint,
    wrapped,
)
from ..actions import Actions
from ..persistent_data.block import BLOCK_SECTORS, Corrupt
from ..persistent_data.metadata import METADATA_FAILURES, MetadataError, errno_of
from ..persistent_data.space_map import MAX_METADATA_BLOCKS
from .bios import Bios, CacheBio
from .metadata import Mapping
from .policy import KINDS, Policy, Settings
from .state import CacheState, Features, IoMode, Mode
from .store import Stores
from .superblock import Stats

__all__ = ["Cache"]

_MIN_BLOCK_SIZE, _MAX_BLOCK_SIZE = 64, 2 << 20
_MOST_FEATURES, _MOST_POLICY_ARGS = 3, 1024
#: Sectors of a metadata device from which on the log says that it is too large.
_WARNING_SIZE = 16 << 21

_MANY_BLOCKS = 1 << 20

_RANGE = re.compile(r"\s*([0-9]+)(?:-\s*([0-9]+))?\Z", re.ASCII)


class Cache(Target):
    name = "cache"
    version = (2, 3, 0)
    per_bio_data = CacheBio
    num_flush_bios = 2
    flush_supported = True
    num_discard_bios = 1
    discards_supported = True

    # -- construction -----------------------------------------------------------------------------------

    def ctr(self, argv: Sequence[str]) -> None:
        args = Arguments(argv)
        self._take_devices(args)
        block_size = self._parse_block_size(args)
        features = self._parse_features(args)
        kind, settings = self._parse_policy(args)
        self._arguments = argv[3:]
        self.max_io_len = block_size
        self._cache_blocks = 0
        self._set_cache_size(self.cache_dev.bdev.size // block_size)
        if kind not in KINDS:
            self.log("unknown policy type", "cache-policy")
            raise self.refuse("Error creating cache's policy")
        self._settings = Settings(KINDS[kind])
        self._configure(settings)
        self._create(block_size, features)

    def _next(self, args: Arguments) -> str:
        if not args:
            raise self.refuse("Insufficient args")
        return args.shift()

    def _take_devices(self, args: Arguments) -> None:
        self.metadata_dev = self.get_device(self._next(args), "Error opening metadata device")
        device = self.metadata_dev.bdev
        if device.size > _WARNING_SIZE:
            name, most = device.path.rpartition("/")[2], MAX_METADATA_BLOCKS * BLOCK_SECTORS
            self.log(f"Metadata device {name} is larger than {most} sectors: excess space will not be used.")
        self.cache_dev = self.get_device(self._next(args), "Error opening cache device")
        self.origin_dev = self.get_device(self._next(args), "Error opening origin device")
        if self.len > self.origin_dev.bdev.size:
            raise self.refuse("Device size larger than cached device")

    def _parse_block_size(self, args: Arguments) -> int:
        try:
            size = parse_uint(self._next(args), 64)
        except ValueError:
            size = 0
        if not _MIN_BLOCK_SIZE <= size <= _MAX_BLOCK_SIZE or size % _MIN_BLOCK_SIZE:
            raise self.refuse("Invalid data block size")
        if size > self.cache_dev.bdev.size:
            raise self.refuse("Data block size is larger than the cache device")
        return size

    def _parse_features(self, args: Arguments) -> Features:
        try:
            words = args.take(args.group(0, _MOST_FEATURES))
        except ValueError:
            raise self.refuse("Invalid number of cache feature arguments") from None
        features, modes = Features(), {mode.value: mode for mode in IoMode}
        chosen = 0
        for word in map(str.lower, words):
            if word in modes:
                features.io_mode = modes[word]
                chosen += 1
            elif word == "metadata2":
                features.metadata_version = 2
            elif word == "no_discard_passdown":
                features.discard_passdown = False
            else:
                raise self.refuse("Unrecognised cache feature requested")
        if chosen > 1:
            raise self.refuse("Duplicate cache io_mode features requested")
        return features

    def _parse_policy(self, args: Arguments) -> tuple[str, list[str]]:
        kind = self._next(args)
        try:
            return kind, args.take(args.group(0, _MOST_POLICY_ARGS))
        except ValueError:
            raise self.refuse("Invalid number of policy arguments") from None

    def _set_cache_size(self, blocks: int) -> None:
        if blocks > _MANY_BLOCKS and self._cache_blocks != blocks:
            self.log(
                f"You have created a cache device with a lot of individual cache blocks ({blocks})\n"
                "All these mappings can consume a lot of kernel memory, and take some time to read/write.\n"
                "Please consider increasing the cache block size to reduce the overall cache block count."
            )
        self._cache_blocks = blocks

    def _configure(self, settings: Sequence[str]) -> None:
        complaint = "Error setting cache policy's config values"
        if len(settings) % 2:
            self.log("Odd number of policy arguments given but they should be <key> <value> pairs.")
            raise self.refuse(complaint)
        for key, value in zip(settings[::2], settings[1::2], strict=True):
            if not self._set_config_value(key, value):
                raise self.refuse(complaint)

    def _set_config_value(self, key: str, value: str) -> bool:
        try:
            if line := self._settings.set(key, value):
                self.log(line, "cache-policy-smq")
        except ValueError:
            self.log(f"bad config value for {key}: {value}")
            return False
        return True

    def _create(self, block_size: int, features: Features) -> None:
        stores = self.shared(Stores)
        metadata_device = self.metadata_dev.bdev
        self._store = stores.take(self.table.device, metadata_device, block_size, features.metadata_version)
        policy = Policy(self._settings.kind, self._cache_blocks, self.now)
        origin, cache = self.origin_dev.bdev, self.cache_dev.bdev
        self._state = CacheState(
            self.table, origin, cache, block_size, self.len, features, self._settings, policy, self._store
        )
        self._bios = Bios(self._state)
        self._sized = self._loaded = False
        try:
            self._may_write()
        except TargetError:
            stores.release(self._store)
            raise
        policy.migrates &= features.io_mode is not IoMode.PASSTHROUGH

    def _may_write(self) -> None:
        with self._store.changes() as actions:
            self._state.set_mode(Mode.WRITE, actions)
        if self._state.mode is not Mode.WRITE:
            raise self.refuse("Unable to get write access to metadata, please check/repair metadata.")

    def dtr(self) -> None:
        self.shared(Stores).release(self._store)

    # -- bios -------------------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        return self._bios.map(bio, self.offset(bio.sector))

    def end_io(self, bio: Bio, error: int) -> int | EndIo:
        return self._bios.end_io(bio, error)

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.cache_dev, 0, self.cache_dev.bdev.size
        yield self.origin_dev, 0, self.len

    def io_hints(self, limits: QueueLimits) -> None:
        size = self._state.block_size * SECTOR_SIZE
        if limits.io_opt < size or limits.io_opt % size:
            limits.io_min = limits.io_opt = size
        features, origin = self._state.features, self.origin_dev.bdev
        if features.discard_passdown and not origin.limits.discard:
            name = origin.path.rpartition("/")[2]
            self.log(f"Origin device ({name}) discard unsupported: Disabling discard passdown.")
            features.discard_passdown = False
        if features.discard_passdown:
            limits.discard_granularity = origin.limits.discard_granularity
        else:
            limits.discard_granularity = self._state.discards.block_size * SECTOR_SIZE

    # -- suspension -------------------------------------------------------------------------------------

    def presuspend(self) -> None:
        with self._store.lock:
            self._bios.mover.allowed = False

    def presuspend_undo(self) -> None:
        self.resume()

    def postsuspend(self) -> None:
        if self._bios.drain() and self._state.mode is Mode.WRITE and self._loaded:
            self._sync_metadata()

    def _sync_metadata(self) -> None:
        """Leave everything in the metadata (`sync_metadata`). If that fails, all blocks will be dirty."""
        state, metadata = self._state, self._store.metadata
        counters = state.counters
        steps = (
            ("dirty bitset", "dm_cache_set_dirty_bits", lambda: metadata.set_dirty(state.dirty)),
            ("discard bitset", "dm_cache_set_discard", self._write_discards),
            ("hints", "dm_cache_write_hints", self._write_hints),
        )
        try:
            with self._store.quiet() as actions:
                metadata.stats = Stats(
                    counters.read_hits, counters.read_misses, counters.write_hits, counters.write_misses
                )
                for what, operation, write in steps:
                    self._try("could not write " + what, operation, write, actions)
                metadata.clean = not state.read_only
        except TargetError:
            return  # a commit hangs on a device that is suspended; the metadata on the disk are not clean
        self._store.commit()
        if state.read_only:
            state.log("could not write cache metadata")

    def _try(self, complaint: str, operation: str, step: Callable[[], None], actions: Actions) -> None:
        if not self._state.read_only:
            try:
                step()
                return
            except METADATA_FAILURES as failure:
                self._state.operation_failed(operation, failure, actions)
        self._state.log(complaint)

    def _write_discards(self) -> None:
        discards = self._state.discards
        self._store.metadata.set_discards(discards.block_size, discards.blocks, discards.members)

    def _write_hints(self) -> None:
        kind = self._settings.kind
        self._store.metadata.write_hints(kind.name.encode(), kind.version, self._state.policy.hints())

    def preresume(self) -> None:
        if not self._loaded and is_suspended(self.metadata_dev.bdev):
            raise TargetError(errno.EAGAIN)
        self._can_resume()
        self._store.adopt(self._state)
        metadata = self._store.metadata
        with self._store.quiet() as actions:
            if not self._loaded:
                self._read(actions)
            self._resize(self.cache_dev.bdev.size // self._state.block_size, actions)
            if not self._loaded:
                self._load(actions)
            in_use = metadata.clean
            if in_use:
                metadata.clean = False
        if in_use:
            self._store.commit()

    def _can_resume(self) -> None:
        """A table that failed to resume once is not tried again."""
        if self._sized and not self._loaded:
            complaint = "unable to resume cache due to missing proper cache table reload"
            if self._state.mode is not Mode.WRITE:
                complaint = "unable to resume a failed-loaded cache, please check metadata."
            self._state.log(complaint)
            raise TargetError(errno.EINVAL)

    def _read(self, actions: Actions) -> None:
        """Have all metadata in memory: later, nobody could wait for them."""
        try:
            self._store.metadata.read()
        except METADATA_FAILURES as failure:
            self._state.log("could not load cache mappings")
            self._state.operation_failed("dm_cache_load_mappings", failure, actions)
            raise TargetError(errno_of(failure)) from None

    def _resize(self, blocks: int, actions: Actions) -> None:
        state = self._state
        if self._sized and blocks == self._cache_blocks:
            return
        if blocks > self._cache_blocks:
            state.log("unable to extend cache due to missing cache table reload")
            raise TargetError(errno.EINVAL)
        if dirty := sorted(cblock for cblock in state.dirty if cblock >= blocks):
            state.log(f"unable to shrink cache; cache block {dirty[0]} is dirty")
            raise TargetError(errno.EINVAL)
        try:
            self._store.metadata.resize(blocks)
        except (*METADATA_FAILURES, MetadataError) as failure:
            number = errno_of(failure)
            for message in failure.messages if isinstance(failure, MetadataError) else ():
                self.log(message, "cache metadata")
            state.log("could not resize cache metadata")
            state.operation_failed("dm_cache_resize", OSError(number, ""), actions)
            raise TargetError(number) from None
        state.policy.shrink(blocks)
        self._set_cache_size(blocks)
        self._sized = True

    def _load(self, actions: Actions) -> None:
        """What is cached, and what is discarded."""
        state, metadata, kind = self._state, self._store.metadata, self._settings.kind
        what = ("could not load cache mappings", "dm_cache_load_mappings")
        try:
            mappings = list(metadata.mappings(kind.name.encode(), kind.version[0], kind.hint_size))
            if len({mapping.oblock for mapping in mappings}) < len(mappings):
                raise Corrupt("an origin block is cached twice")
            mappings, gone = self._filter(mappings)
            what = ("invalidation failed; couldn't update on disk metadata", "dm_cache_remove_mapping")
            for mapping in gone:
                metadata.remove(mapping.cblock)
            what = ("could not load origin discards", "dm_cache_load_discards")
            discards = metadata.discards()
        except METADATA_FAILURES as failure:
            state.log(what[0])
            state.operation_failed(what[1], failure, actions)
            raise TargetError(errno_of(failure)) from None
        state.policy.load(mappings)
        state.dirty.update(mapping.cblock for mapping in mappings if mapping.dirty)
        state.discards.load(*discards)
        self._loaded = True

    def _filter(self, mappings: list[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
        """Those of blocks that the origin has, and those that it has no more (`load_filtered_mapping`). TargetError
        when a block is dirty that may not be."""
        passthrough = self._state.features.io_mode is IoMode.PASSTHROUGH
        kept: list[Mapping] = []
        gone: list[Mapping] = []
        for mapping in mappings:
            inside = mapping.oblock < self._state.origin_blocks
            if mapping.dirty and not inside:
                raise self._too_dirty(errno.EFBIG, f"unable to shrink origin; cache block {mapping.cblock} is dirty")
            if mapping.dirty and passthrough:
                raise self._too_dirty(errno.EBUSY, "cannot enter passthrough mode unless all blocks are clean")
            (kept if inside else gone).append(mapping)
        return kept, gone

    def _too_dirty(self, number: int, complaint: str) -> TargetError:
        self._state.log(complaint)
        self._state.log("could not load cache mappings")
        return TargetError(number)

    def resume(self) -> None:
        with self._store.changes() as actions:
            self._bios.mover.allowed = True
            self._bios.look_again(actions)

    # -- what it shows ----------------------------------------------------------------------------------

    @property
    def _devices(self) -> tuple[str, str, str]:
        return self.metadata_dev.number, self.cache_dev.number, self.origin_dev.number

    def refresh_status(self) -> None:
        if self._state.mode is not Mode.FAIL and not self.table.device.suspended:
            with self._store.changes():
                self._store.metadata.changed = True  # the counters are
            self._store.commit()

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.TABLE:
            return " ".join([*self._devices, *self._arguments])
        state, metadata = self._state, self._store.metadata
        if state.mode is Mode.FAIL:
            return "Fail"
        with self._store.lock:
            counters = state.counters
            counts = (
                *(counters.read_hits, counters.read_misses, counters.write_hits, counters.write_misses),
                *(counters.demotions, counters.promotions),
            )
            blocks = metadata.metadata_blocks
            words = [
                f"{BLOCK_SECTORS} {blocks - metadata.free_metadata_blocks}/{blocks}",
                f"{state.block_size} {state.policy.residency}/{self._cache_blocks}",
                *(str(count & 0xFFFFFFFF) for count in counts),
                str(len(state.dirty)),
                *self._flags(),
                f"2 migration_threshold {self._settings.migration_threshold}",
                f"{self._settings.kind.name} {self._settings.kind.config_values()}",
                "ro" if state.mode is Mode.READ_ONLY else "rw",
                "needs_check" if metadata.needs_check else "-",
            ]
        return " ".join(words) + " "

    def _flags(self) -> list[str]:
        features = self._state.features
        words = ["metadata2"] * (features.metadata_version == 2)
        words.append(features.io_mode.value)
        words += ["no_discard_passdown"] * (not features.discard_passdown)
        return [str(len(words)), *words]

    def ima_status(self) -> str:
        state = self._state
        features, (metadata, cache, origin) = state.features, self._devices
        return self.ima_line(
            {
                "metadata_mode": ("rw", "ro", "fail")[state.mode],
                "cache_metadata_device": metadata,
                "cache_device": cache,
                "cache_origin_device": origin,
                "writethrough": features.io_mode is IoMode.WRITETHROUGH,
                "writeback": features.io_mode is IoMode.WRITEBACK,
                "passthrough": features.io_mode is IoMode.PASSTHROUGH,
                "metadata2": features.metadata_version == 2,
                "no_discard_passdown": not features.discard_passdown,
            }
        )

    # -- messages ---------------------------------------------------------------------------------------

    def message(self, argv: Sequence[str]) -> None:
        if self._state.read_only:
            self._state.log("unable to service cache target messages in READ_ONLY or FAIL mode")
            raise TargetError(errno.EOPNOTSUPP)
        if argv[0].lower() == "invalidate_cblocks":
            self._invalidate_cblocks(argv[1:])
        elif len(argv) != 2 or not self._set_config_value(*argv):
            raise TargetError(errno.EINVAL)

    def _invalidate_cblocks(self, ranges: Sequence[str]) -> None:
        if self._state.features.io_mode is not IoMode.PASSTHROUGH:
            self._state.log("cache has to be in passthrough mode for invalidation")
            raise TargetError(errno.EPERM)
        for text in ranges:
            cblocks = self._parse_range(text)
            with self._store.quiet() as actions:
                for cblock in cblocks:
                    self._invalidate(cblock, actions)
                actions.append(self._bios.wake)

    def _parse_range(self, text: str) -> range:
        log, blocks = self._state.log, self._cache_blocks
        match = _RANGE.match(text)
        if match is None:
            log(f"invalid cblock range '{text}'")
            raise TargetError(errno.EINVAL)
        begin = wrapped(match[1], 32)
        end = wrapped(match[2], 32) if match[2] else begin + 1 & 0xFFFFFFFF
        if begin >= blocks:
            log(f"begin cblock out of range: {begin} >= {blocks}")
        elif end > blocks:
            log(f"end cblock out of range: {end} > {blocks}")
        elif begin >= end:
            log(f"invalid cblock range: {begin} >= {end}")
        else:
            return range(begin, end)
        raise TargetError(errno.EINVAL)

    def _invalidate(self, cblock: int, actions: Actions) -> None:
        state = self._state
        if cblock in state.dirty or not state.policy.invalidate(cblock):
            return
        try:
            self._store.metadata.remove(cblock)
        except METADATA_FAILURES as failure:
            state.log("invalidation failed; couldn't update on disk metadata")
            state.operation_failed("dm_cache_remove_mapping", failure, actions)
            raise TargetError(errno_of(failure)) from None
