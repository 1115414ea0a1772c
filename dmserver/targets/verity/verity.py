"""verity: a device whose every block is checked against a tree of hashes (Linux `drivers/md/dm-verity-target.c`).

Arguments: VERSION DATA_DEVICE HASH_DEVICE DATA_BLOCK_SIZE HASH_BLOCK_SIZE DATA_BLOCKS HASH_START ALGORITHM ROOT_DIGEST
SALT|- [NUM OPTION...]; sizes in bytes, HASH_START in hash blocks. Read-only tables only. `veritysetup format` makes the
tree: level 0 holds the digests of data blocks, each further level those of the level below; the root digest is that of
the single block on top.

With use_fec_from_device, fec_blocks, fec_start and fec_roots, what does not match is mended if possible: `fec`.
A signed root hash (root_hash_sig_key_desc) is refused with ENOKEY: there is no key that signatures are trusted for.
restart_on_corruption and panic_on_corruption fail the bio, as the default does: no machine is ours to restart.
"""

from __future__ import annotations

import errno
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

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
    parse_sector,
    parse_u32,
)
from ...model.keyring import Keyring
from .. import shash
from .fec import MAX_ROOTS, MIN_ROOTS, Fec, Layout

__all__ = ["Verity"]

PAGE_SIZE = 4096
INT_MAX = (1 << 31) - 1
MAX_OPTIONS = 14
MAX_LEVELS = 63
MAX_CORRUPTED_ERRORS = 100
#: Bytes of verified hash blocks that are kept.
CACHE_SIZE = 8 << 20
#: `enum verity_block_type`.
BLOCK_TYPES = ("data", "metadata")
MODES = ("ignore_corruption", "restart_on_corruption", "panic_on_corruption")
FEC_OPTIONS = ("use_fec_from_device", "fec_blocks", "fec_start", "fec_roots")
SIGNATURE_OPTION = "root_hash_sig_key_desc"
FLAGS = ("ignore_zero_blocks", "check_at_most_once", "try_verify_in_tasklet")


class _Carried:
    """`block`: the first data block of a bio; `checked`: its data were. `unverified`: hash blocks that did not match
    but are believed all the same (ignore_corruption). `hopeless`: data blocks that could not be mended."""

    block = 0
    checked = False

    def __init__(self) -> None:
        self.unverified: dict[int, bytes] = {}
        self.hopeless: set[int] = set()


class Verity(Target):
    name = "verity"
    version = (1, 9, 0)
    per_bio_data = _Carried

    # -- construction -----------------------------------------------------------------------------------

    def ctr(self, argv: Sequence[str]) -> None:
        if not self.table.read_only:
            raise self.refuse("Device must be readonly")
        if len(argv) < 10:
            raise self.refuse("Not enough arguments")
        options = self._option_words(Arguments(argv[10:]))
        self.format = self._uint(argv[0], "Invalid version")
        if self.format > 1:
            raise self.refuse("Invalid version")
        self.data = self.get_device(argv[1], "Data device lookup failed")
        self.hash = self.get_device(argv[2], "Hash device lookup failed")
        self.data_block = self._block_size(argv[3], self.data, PAGE_SIZE, "Invalid data device block size")
        self.hash_block = self._block_size(argv[4], self.hash, INT_MAX, "Invalid hash device block size")
        self.data_blocks = self._blocks(argv[5], self.data_block, "Invalid data blocks")
        if self.len > self.data_blocks * self.data_block // SECTOR_SIZE:
            raise self.refuse("Data device is too small")
        self.hash_start = self._blocks(argv[6], self.hash_block, "Invalid hash start")
        self._set_algorithm(argv[7])
        if len(argv[8]) != 2 * self.digest_size or not _is_hex(argv[8]):
            raise self.refuse("Invalid root digest")
        self.root_digest = bytes.fromhex(argv[8])
        if argv[9] != "-" and (len(argv[9]) % 2 or not _is_hex(argv[9])):
            raise self.refuse("Invalid salt")
        self.salt = bytes.fromhex(argv[9]) if argv[9] != "-" else b""
        self._parse_options(options)
        self._lay_out()
        self.fec = self._make_fec()
        self.zero_digest = self._digest(bytes(self.data_block)) if "ignore_zero_blocks" in self.flags else None
        self.validated: set[int] | None = set() if "check_at_most_once" in self.flags else None
        self.hash_failed = False
        self.corrupted_errors = 0
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def _uint(self, text: str, complaint: str) -> int:
        try:
            return parse_u32(text)
        except ValueError:
            raise self.refuse(complaint) from None

    def _block_size(self, text: str, pdev: DmPdev, most: int, complaint: str) -> int:
        size = self._uint(text, complaint)
        if not pdev.bdev.limits.logical_block_size <= size <= most or size & size - 1:
            raise self.refuse(complaint)
        return size

    def _blocks(self, text: str, size: int, complaint: str) -> int:
        try:
            blocks = parse_sector(text)
        except ValueError:
            raise self.refuse(complaint) from None
        if blocks * (size // SECTOR_SIZE) >= 1 << 64:
            raise self.refuse(complaint)
        return blocks

    def _set_algorithm(self, name: str) -> None:
        self.algorithm = name
        try:
            self.shash = shash.allocate(name)
        except LookupError:
            raise self.refuse("Cannot initialize hash function", errno.ENOENT) from None
        self.digest_size = self.shash.digest_size
        self.log(f'{name} using implementation "{name}-generic"')
        if self.hash_block < 2 * self.digest_size:
            raise self.refuse("Digest size too big")

    def _option_words(self, args: Arguments) -> Arguments:
        """The options, whose number is checked before all else."""
        try:
            return Arguments(args.take(args.group(0, MAX_OPTIONS) if args else 0))
        except ValueError:
            raise self.refuse("Invalid number of feature args") from None

    def _parse_options(self, words: Arguments) -> None:
        self.mode = ""
        self.flags: set[str] = set()
        self.fec_dev: DmPdev | None = None
        self.fec_blocks = self.fec_start = self.fec_roots = 0
        signed = False
        while words:
            word = words.shift()
            option = word.lower()
            if option in MODES:
                if self.mode:
                    raise self.refuse("Conflicting error handling parameters")
                self.mode = option
            elif option in FLAGS:
                if option == "check_at_most_once" and self.data_blocks > INT_MAX:
                    raise self.refuse("device too large to use check_at_most_once", errno.E2BIG)
                self.flags.add(option)
            elif option == SIGNATURE_OPTION:
                signed = self._find_signature(words)
            elif option in FEC_OPTIONS:
                if not words:
                    raise self.refuse("FEC feature arguments require a value")
                self._parse_fec_option(option, words.shift())
            else:
                self.log(f"Unrecognized verity feature request: {word}")
                raise self.refuse("Unrecognized verity feature request")
        if signed:
            raise self.refuse("Root hash verification failed", errno.ENOKEY)

    def _find_signature(self, words: Arguments) -> bool:
        """Whether the key with a signature, which the next word describes, has anything in it."""
        if not words:
            raise self.refuse("DM Verity Sig Verification Signature key not specified")
        signature = self.shared(Keyring).get(("user", words.shift()))
        if signature is None:
            raise self.refuse("DM Verity Sig Verification Invalid key specified", errno.ENOKEY)
        return bool(signature)

    def _parse_fec_option(self, option: str, value: str) -> None:
        if option == "use_fec_from_device":
            self.fec_dev = self.get_device(value, "FEC device lookup failed")
        elif option == "fec_roots":
            self.fec_roots = self._uint(value, "Invalid fec_roots") & 0xFF
            if not MIN_ROOTS <= self.fec_roots <= MAX_ROOTS:
                raise self.refuse("Invalid fec_roots")
        else:
            setattr(self, option, self._blocks(value, self.data_block, f"Invalid {option}"))

    def _make_fec(self) -> Fec | None:
        """`verity_fec_ctr`."""
        if self.fec_dev is None:
            return None
        if self.data_block != self.hash_block:
            raise self.refuse("Block sizes must match to use FEC")
        if not self.fec_roots:
            raise self.refuse("Missing fec_roots")
        if not self.fec_blocks:
            raise self.refuse("Missing fec_blocks")
        if self.fec_blocks < self.data_blocks + self.hash_end - self.hash_start:
            raise self.refuse("Invalid fec_blocks")
        if self.hash.bdev.bytes // self.hash_block < self.hash_start + self.fec_blocks - self.data_blocks:
            raise self.refuse("Hash device is too small for fec_blocks", errno.E2BIG)
        layout = Layout(self.data, self.data_blocks, self.hash, self.hash_start, self.data_block)
        fec = Fec(self, self.fec_dev, self.fec_blocks, self.fec_start, self.fec_roots, layout)
        if max(self.fec_dev.bdev.bytes // self.data_block - self.fec_start, 0) < fec.rounds * self.fec_roots:
            raise self.refuse("FEC device is too small", errno.E2BIG)
        if self.data.bdev.bytes // self.data_block < self.data_blocks:
            raise self.refuse("Data device is too small", errno.E2BIG)
        return fec

    def _lay_out(self) -> None:
        """Where each level of the tree begins, in hash blocks; the top comes first."""
        self.fan_bits = (self.hash_block // self.digest_size).bit_length() - 1
        levels = 0
        while self.data_blocks and self.data_blocks - 1 >> self.fan_bits * levels:
            levels += 1
        if levels > MAX_LEVELS:
            raise self.refuse("Too many tree levels", errno.E2BIG)
        self.level_start = [0] * levels
        position = self.hash_start
        for level in reversed(range(levels)):
            self.level_start[level] = position
            position += -(-self.data_blocks >> self.fan_bits * (level + 1))
        self.hash_end = position
        if self.hash.bdev.bytes // self.hash_block < position:
            raise self.refuse("Hash device is too small", errno.E2BIG)

    # -- the tree ---------------------------------------------------------------------------------------

    def _digest(self, data: bytes | bytearray | memoryview) -> bytes:
        return self.shash.digest(self.salt, data) if self.format else self.shash.digest(data, self.salt)

    def _place(self, block: int, level: int) -> tuple[int, int]:
        """(hash block, offset in it) of what covers a data block on a level."""
        position = block >> self.fan_bits * level
        index = position & (1 << self.fan_bits) - 1
        slot = self.hash_block >> self.fan_bits if self.format else self.digest_size
        return self.level_start[level] + (position >> self.fan_bits), index * slot

    def _wanted(self, block: int, carried: _Carried) -> tuple[bytes, int | None]:
        """The digest that a data block has to have; or, if some hash block on the way to it is yet to be read, its
        digest and number."""
        digest = self.root_digest
        for level in reversed(range(len(self.level_start))):
            number, offset = self._place(block, level)
            with self._lock:
                data = self._cache.get(number) or carried.unverified.get(number)
            if data is None:
                return digest, number
            digest = data[offset : offset + self.digest_size]
        return digest, None

    def _keep(self, number: int, data: bytes) -> None:
        with self._lock:
            self._cache[number] = data
            while len(self._cache) * self.hash_block > CACHE_SIZE:
                self._cache.popitem(last=False)

    # -- the way of a bio -------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        sector, step = self.offset(bio.sector), self.data_block // SECTOR_SIZE
        if (sector | bio.nr_sectors) & step - 1:
            self.log("unaligned io")
            return MapResult.KILL
        if sector + bio.nr_sectors > self.data_blocks * step:
            self.log("io out of range")
            return MapResult.KILL
        if bio.op is not Op.READ:
            return MapResult.KILL
        bio.bdev, bio.sector = self.data.bdev, sector
        bio.per_bio.block = sector // step
        return MapResult.REMAPPED

    def end_io(self, bio: Bio, error: int) -> int | EndIo:
        if error or bio.per_bio.checked:
            return error
        return self._check(bio)

    def _check(self, bio: Bio) -> int | EndIo:
        """Check the data of a bio; INCOMPLETE while hash blocks are being read."""
        carried: _Carried = bio.per_bio
        assert bio.data is not None
        for start in range(0, len(bio.data), self.data_block):
            block = carried.block + start // self.data_block
            if self.validated is not None and block in self.validated:
                continue
            digest, missing = self._wanted(block, carried)
            if missing is not None:
                self._fetch(carried, missing, digest, lambda error: self._go_on(bio, error))
                return EndIo.INCOMPLETE
            data = bio.data[start : start + self.data_block]
            if digest == self.zero_digest:
                data[:] = bytes(self.data_block)
            elif self._digest(data) == digest:
                if self.validated is not None:
                    self.validated.add(block)
            elif self.fec is not None and block not in carried.hopeless:
                self._mend_data(self.fec, bio, block, data, digest)
                return EndIo.INCOMPLETE
            elif self._corrupted("data", block):
                return errno.EIO
        return 0

    def _go_on(self, bio: Bio, error: int = 0) -> None:
        """Check again, now that something was read."""
        result = error or self._check(bio)
        if isinstance(result, int):
            bio.per_bio.checked = True
            bio.endio(result)

    def _mend_data(self, fec: Fec, bio: Bio, block: int, data: memoryview, digest: bytes) -> None:
        """Mend a data block, once all is at hand that tells whether those that share its codes are good."""
        carried: _Carried = bio.per_bio
        lost: set[int] = set()

        def is_bad(other: int, found: bytes) -> bool:
            if other >= self.data_blocks:
                return False
            wanted, missing = self._wanted(other, carried)
            return missing is None and self._digest(found) != wanted

        def gather() -> None:
            for other in fec.members(block):
                if other < self.data_blocks:
                    wanted, missing = self._wanted(other, carried)
                    if missing is not None and missing not in lost:
                        self._fetch(carried, missing, wanted, lambda error, number=missing: gathered(error, number))  # type: ignore[misc]  # its default
                        return
            fec.decode(block, is_bad, lambda mended: self._digest(mended) == digest, done)

        def gathered(error: int, number: int) -> None:
            if error:
                lost.add(number)
            gather()

        def done(mended: bytes | None) -> None:
            if mended is None:
                carried.hopeless.add(block)
            else:
                data[:] = mended
            self._go_on(bio)

        gather()

    def _fetch(self, carried: _Carried, number: int, digest: bytes, then: Callable[[int], None]) -> None:
        """Read a hash block, so that `_wanted` finds it; `then(errno)`."""
        buffer = bytearray(self.hash_block)

        def is_good(data: bytes | bytearray) -> bool:
            return self._digest(data) == digest

        def read(error: int) -> None:
            if error:
                then(error)
            elif is_good(buffer) or self.fec is None:
                found(bytes(buffer))
            else:
                place = self.fec.number_of_hash_block(number)
                self.fec.decode(place, lambda block, data: False, is_good, found)

        def found(data: bytes | None) -> None:
            if data is not None and is_good(data):
                self._keep(number, data)
            elif self._corrupted("metadata", number):
                then(errno.EIO)
                return
            else:
                carried.unverified[number] = bytes(buffer)
            then(0)

        self.submit(Op.READ, self.hash.bdev, number * self.hash_block // SECTOR_SIZE, memoryview(buffer), read)

    def _corrupted(self, kind: str, block: int) -> bool:
        """Tell of a block that does not match; whether the bio has to fail for it (`verity_handle_err`)."""
        self.hash_failed = True
        if self.corrupted_errors < MAX_CORRUPTED_ERRORS:
            self.corrupted_errors += 1
            self.log(f"{self.data.number}: {kind} block {block} is corrupted")
            self.uevent(DM_VERITY_ERR_BLOCK_NR=f"{BLOCK_TYPES.index(kind)},{block}")
            if self.corrupted_errors == MAX_CORRUPTED_ERRORS:
                self.log(f"{self.data.number}: reached maximum errors")
        return self.mode != "ignore_corruption"

    def postsuspend(self) -> None:
        """What was verified of the tree may be another by the resume (`dm_bufio_client_reset`)."""
        with self._lock:
            self._cache.clear()

    # -- what it tells ----------------------------------------------------------------------------------

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.INFO:
            return "C" if self.hash_failed else "V"
        options = [self.mode] if self.mode else []
        options += [flag for flag in FLAGS if flag in self.flags]
        if self.fec is not None:
            fec = self.fec
            values = (fec.dev.number, str(fec.blocks), str(fec.start), str(fec.roots))
            options += [word for pair in zip(FEC_OPTIONS, values, strict=True) for word in pair]
        words = [
            str(self.format),
            self.data.number,
            self.hash.number,
            str(self.data_block),
            str(self.hash_block),
            str(self.data_blocks),
            str(self.hash_start),
            self.algorithm,
            self.root_digest.hex(),
            self.salt.hex() or "-",
        ]
        return " ".join([*words, str(len(options)), *options] if options else words)

    def ima_status(self) -> str:
        values: dict[str, object] = {
            "hash_failed": "C" if self.hash_failed else "V",
            "verity_version": self.format,
            "data_device_name": self.data.number,
            "hash_device_name": self.hash.number,
            "verity_algorithm": self.algorithm,
            "root_digest": self.root_digest.hex(),
            "salt": self.salt.hex() or "-",
            "ignore_zero_blocks": self.zero_digest is not None,
            "check_at_most_once": self.validated is not None,
        }
        return self.ima_line(values | ({"verity_mode": self.mode} if self.mode else {}))

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.data, 0, self.len

    def io_hints(self, limits: QueueLimits) -> None:
        limits.logical_block_size = max(limits.logical_block_size, self.data_block)
        limits.physical_block_size = max(limits.physical_block_size, self.data_block)
        limits.io_min = max(limits.io_min, self.data_block)


def _is_hex(text: str) -> bool:
    return re.fullmatch(r"[0-9a-fA-F]*", text) is not None
