"""crypt: a device whose sectors are encrypted (Linux `drivers/md/dm-crypt.c`).

Arguments: CIPHER KEY IV_OFFSET DEVICE START [NUM OPTION...]. CIPHER is `aes-xts-plain64` and the like, or
`capi:xts(aes)-plain64`; KEY is hexadecimal, `-` for none, or names a key of the kernel's keyring (see
`model.keyring`). Reads are decrypted when they come back, writes are encrypted into a buffer of their own.

With the option `integrity:SIZE:aead`, or with random IVs, each sector has SIZE bytes beside it, which the device
underneath keeps: one of the type integrity without a hash of its own.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence

from ...model.dm_target import (
    SECTOR_SIZE,
    Arguments,
    Bio,
    DmPdev,
    MapResult,
    Op,
    QueueLimits,
    StatusType,
    Target,
    TargetError,
    parse_sector,
    wrapped,
)
from ...model.keyring import Keyring
from ..shash import allocate as allocate_shash
from ..skcipher import Skcipher, allocate
from .aead import Aead, BadMessageError, allocate_aead
from .convert import Converter, SectorFormat
from .elephant import Elephant
from .ivmode import Benbi, Eboiv, IvMode, Plain, Plain64, Plain64Be, Random, Tcw
from .lmk import Lmk
from .spec import Spec, parse_spec

__all__ = ["Crypt"]

IV_MODES: dict[str, type[IvMode]] = {
    "plain": Plain,
    "plain64": Plain64,
    "plain64be": Plain64Be,
    "essiv": Plain64,
    "benbi": Benbi,
    "null": IvMode,
    "eboiv": Eboiv,
    "elephant": Elephant,
    "lmk": Lmk,
    "tcw": Tcw,
    "random": Random,
}
MAX_TAG_SIZE = 480
#: What the kernel can allocate for a key.
MAX_KEY_SIZE = 4 << 20
#: Options that change nothing but the status line: there are no crypt queues to steer.
FLAG_OPTIONS = (
    "allow_discards",
    "same_cpu_crypt",
    "submit_from_crypt_cpus",
    "no_read_workqueue",
    "no_write_workqueue",
)
_INTEGRITY = re.compile(r"integrity:([0-9]+)[^:]*:(.*)\Z")
_SECTOR_SIZE = re.compile(r"sector_size:([0-9]+)\Z")
_KEYRING = re.compile(r":([0-9]+):(.*)\Z")
_KEY_TYPES = ("logon", "user", "encrypted", "trusted")


class _Carried:
    """`sector`: where in the target a read began, in sectors."""

    sector = 0


class Crypt(Target):
    name = "crypt"
    version = (1, 24, 0)
    per_bio_data = _Carried
    num_flush_bios = 1

    def log(self, text: str, prefix: str = "") -> None:
        """dm-crypt.c includes a header of the trusted keys that puts its own name before every line."""
        self.printk(f"trusted_key: device-mapper: {self.name}: {text}")

    # -- construction -----------------------------------------------------------------------------------

    def ctr(self, argv: Sequence[str]) -> None:
        if len(argv) < 5:
            raise self.refuse("Not enough arguments")
        cipher, key, iv_offset, path, start = argv[:5]
        self.key_reference = ""
        self.key_size = _key_size(key)
        if self.key_size < 0:
            raise self.refuse("Cannot parse key size")
        if self.key_size >= MAX_KEY_SIZE:
            raise self.refuse("Cannot allocate encryption context", errno.ENOMEM)
        self._parse_options(Arguments(argv[5:]))
        self._set_cipher(cipher)
        self._set_first_key(key)
        self.suspended = False
        self.iv_offset = self._sector(iv_offset, "Invalid iv_offset sector")
        if self.iv_offset & (self.sector_size // SECTOR_SIZE - 1):
            raise self.refuse("Invalid iv_offset sector")
        self.dev = self.get_device(path)
        self.start = self._sector(start, "Invalid device sector")
        if self.is_aead or self.iv_mode == "random":
            self._check_integrity()
        self.converter = Converter(
            self.ciphers,
            self.iv,
            SectorFormat(
                self.sector_size, self.iv_offset, self.iv_large_sectors, self.tag_size, self.iv_mode == "random"
            ),
        )

    def _sector(self, text: str, complaint: str) -> int:
        try:
            return parse_sector(text)
        except ValueError:
            raise self.refuse(complaint) from None

    def _parse_options(self, args: Arguments) -> None:
        self.flags: set[str] = set()
        self.tag_size = 0
        self.integrity_profile = ""
        self.sector_size = SECTOR_SIZE
        self.iv_large_sectors = False
        if not args:
            return
        try:
            count = args.group(0, 8)
        except ValueError:
            raise self.refuse("Invalid number of feature args") from None
        for option in args.take(count):
            self._parse_option(option)
        if "allow_discards" in self.flags:
            self.num_discard_bios = 1

    def _parse_option(self, option: str) -> None:
        if option.lower() in FLAG_OPTIONS:
            self.flags.add(option.lower())
        elif match := _INTEGRITY.match(option):
            if not 0 < wrapped(match[1], 32) <= MAX_TAG_SIZE:
                raise self.refuse("Invalid integrity arguments")
            if match[2].lower() not in ("aead", "none"):
                raise self.refuse("Unknown integrity profile")
            self.tag_size, self.integrity_profile = wrapped(match[1], 32), match[2]
        elif match := _SECTOR_SIZE.match(option):
            size = wrapped(match[1], 16)
            if not SECTOR_SIZE <= size <= 4096 or size & size - 1:
                raise self.refuse("Invalid feature value for sector_size")
            if self.len & size // SECTOR_SIZE - 1:
                raise self.refuse("Device size is not multiple of sector_size feature")
            self.sector_size = size
        elif option.lower() == "iv_large_sectors":
            self.iv_large_sectors = True
        else:
            raise self.refuse("Invalid feature arguments")

    @property
    def is_aead(self) -> bool:
        """The cipher authenticates, too (`crypt_integrity_aead`)."""
        return self.integrity_profile.lower() == "aead"

    def _set_cipher(self, text: str) -> None:
        self.cipher_string = text
        try:
            spec = parse_spec(text, aead=self.is_aead)
        except ValueError as failure:
            raise self.refuse(str(failure)) from None
        self._allocate_cipher(spec)
        iv_size = self.any_cipher.iv_size
        if spec.iv_mode is not None and not iv_size:
            self.log("Selected cipher does not support IVs")
        self.iv_mode = "null" if spec.iv_mode is None or not iv_size else spec.iv_mode
        if self.iv_mode not in IV_MODES:
            raise self.refuse("Invalid IV mode")
        try:
            self.key_parts, self.key_extra_size = IV_MODES[self.iv_mode].split_key(self.key_size, spec.keys, iv_size)
        except ValueError:
            raise self.refuse("Unknown error") from None

    def _allocate_cipher(self, spec: Spec) -> None:
        if spec.hmac:
            try:
                allocate_shash(spec.hmac)
            except LookupError:
                raise self.refuse("Invalid AEAD cipher spec", errno.ENOMEM) from None
        self.ciphers: list[Skcipher] | Aead
        try:
            self.ciphers = allocate_aead(spec.api) if self.is_aead else [allocate(spec.api) for _ in range(spec.keys)]
        except LookupError:
            raise self.refuse("Error allocating crypto tfm", errno.ENOENT) from None
        except ValueError:
            raise self.refuse("Error allocating crypto tfm") from None

    @property
    def any_cipher(self) -> Skcipher | Aead:
        """What all ciphers have in common is asked of the first."""
        return self.ciphers if isinstance(self.ciphers, Aead) else self.ciphers[0]

    def _check_integrity(self) -> None:
        """The device underneath keeps our tags (`crypt_integrity_ctr`)."""
        profile = self.dev.bdev.limits.integrity
        if profile is None:
            raise self.refuse("Integrity profile not supported.")
        if profile.tag_size != self.tag_size:
            raise self.refuse("Integrity profile tag size mismatch.")
        if profile.interval != self.sector_size:
            raise self.refuse("Integrity profile sector size mismatch.")
        iv_size = self.any_cipher.iv_size if self.iv_mode == "random" else 0
        if isinstance(self.ciphers, Aead):
            try:
                self.ciphers.set_auth_size(self.tag_size - iv_size)
            except ValueError:
                raise self.refuse("Integrity AEAD auth tag size is not supported.") from None
        elif iv_size != self.tag_size:
            raise self.refuse("Not enough space for integrity tag in the profile.")

    # -- the key ----------------------------------------------------------------------------------------

    def _set_first_key(self, text: str) -> None:
        try:
            key = self._set_key(text)
        except TargetError as refusal:
            raise self.refuse("Error decoding and setting key", refusal.errno) from None
        try:
            self.iv = IV_MODES[self.iv_mode](self.any_cipher, self.sector_size)
        except ValueError:
            raise self.refuse("Error creating IV") from None
        try:
            self.iv.set_key(key)
        except ValueError:
            raise self.refuse("Error initialising IV") from None

    def _set_key(self, text: str) -> bytes:
        """Give the ciphers their keys. Returns what is the IV mode's part; TargetError when there is no such key."""
        if not self.key_size and text != "-":
            raise TargetError(errno.EINVAL)
        known: bytes | None = None
        if match := _KEYRING.match(text):
            if re.search(r"\s", match[2]):
                self.log("whitespace chars not allowed in key string")
                raise TargetError(errno.EINVAL)
            kind, _, description = match[2].partition(":")
            if kind not in _KEY_TYPES or not description:
                raise TargetError(errno.EINVAL)
            known = self.shared(Keyring).get((kind, description))
            if known is None:
                raise TargetError(errno.ENOKEY)
            if len(known) != self.key_size:
                raise TargetError(errno.EINVAL)
        self.key_valid = False
        try:
            key = known if known is not None else bytes.fromhex(text[: 2 * self.key_size]) if self.key_size else b""
            extra = len(key) - self.key_extra_size
            if extra < 0:
                raise ValueError(f"{len(key)} bytes of key: expected {self.key_extra_size} for the IV alone")
            ciphers: Sequence[Skcipher | Aead] = [self.ciphers] if isinstance(self.ciphers, Aead) else self.ciphers
            part = extra // len(ciphers)
            for number, cipher in enumerate(ciphers):
                cipher.set_key(key[number * part : (number + 1) * part])
        except ValueError:
            raise TargetError(errno.EINVAL) from None
        self.key = key
        self.key_reference = f":{self.key_size}:{match[2]}" if match else ""
        self.key_valid = True
        return key[extra:]

    def message(self, argv: Sequence[str]) -> str | None:
        words = [word.lower() for word in argv[:2]]
        if len(words) == 2 and words[0] == "key":
            if not self.suspended:
                self.log("not suspended during key manipulation.")
                raise TargetError(errno.EINVAL)
            if words[1] == "set" and len(argv) == 3:
                if _key_size(argv[2]) != self.key_size:
                    raise TargetError(errno.EINVAL)
                self._change_key(argv[2])
                return None
            if words[1] == "wipe" and len(argv) == 2:
                self.key = bytes(self.key_size)
                self.key_reference = ""
                self.key_valid = False
                return None
        self.log("unrecognised message received.")
        raise TargetError(errno.EINVAL)

    def _change_key(self, text: str) -> None:
        key = self._set_key(text)
        try:
            self.iv.set_key(key)
        except ValueError:
            raise TargetError(errno.EINVAL) from None

    def preresume(self) -> None:
        if not self.key_valid:
            self.log("aborting resume - crypt key is not set.")
            raise TargetError(errno.EAGAIN)

    def postsuspend(self) -> None:
        self.suspended = True

    def resume(self) -> None:
        self.suspended = False

    # -- data -------------------------------------------------------------------------------------------

    def map(self, bio: Bio) -> MapResult:
        bio.bdev = self.dev.bdev
        if bio.op is Op.FLUSH:
            return MapResult.REMAPPED
        sector = self.offset(bio.sector)
        bio.sector = self.start + sector
        if bio.data is None:
            return MapResult.REMAPPED
        if (sector | bio.nr_sectors) & (self.sector_size // SECTOR_SIZE - 1):
            return MapResult.KILL
        bio.per_bio.sector = sector
        if bio.op is Op.WRITE:
            data, tags = self.converter.encrypt(bio.data, sector)
            bio.data = memoryview(data)
            bio.tags = memoryview(tags) if self.tag_size else None
        elif self.tag_size:
            blocks = bio.nr_sectors * SECTOR_SIZE // self.sector_size
            bio.tags = memoryview(bytearray(self.tag_size * blocks))
        return MapResult.REMAPPED

    def end_io(self, bio: Bio, error: int) -> int:
        if bio.op is not Op.READ or error:
            return error
        assert bio.data is not None
        sector = bio.per_bio.sector
        try:
            bio.data[:] = memoryview(self.converter.decrypt(bio.data, sector, bio.tags or b""))
        except BadMessageError as bad:
            at = sector + bad.number * (self.sector_size // SECTOR_SIZE)
            self.log(f"dm-{self.table.device.minor}: INTEGRITY AEAD ERROR, sector {at}")
            return errno.EILSEQ
        return 0

    # -- what it tells ----------------------------------------------------------------------------------

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.INFO:
            return ""
        options = [option for option in FLAG_OPTIONS if option in self.flags]
        if self.tag_size:
            options.append(f"integrity:{self.tag_size}:{self.integrity_profile}")
        if self.sector_size != SECTOR_SIZE:
            options.append(f"sector_size:{self.sector_size}")
        if self.iv_large_sectors:
            options.append("iv_large_sectors")
        key = self.key_reference or self.key.hex() or "-"
        words = [self.cipher_string, key, str(self.iv_offset), self.dev.number, str(self.start)]
        return " ".join([*words, str(len(options)), *options] if options else words)

    def ima_status(self) -> str:
        values: dict[str, object] = {option: option in self.flags for option in FLAG_OPTIONS}
        values["iv_large_sectors"] = self.iv_large_sectors
        if self.tag_size:
            values["integrity_tag_size"], values["cipher_auth"] = self.tag_size, self.integrity_profile
        if self.sector_size != SECTOR_SIZE:
            values["sector_size"] = self.sector_size
        values |= {"cipher_string": self.cipher_string, "key_size": self.key_size}
        values |= {"key_parts": self.key_parts, "key_extra_size": self.key_extra_size}
        values["key_mac_size"] = self.ciphers.mac_size if isinstance(self.ciphers, Aead) else 0
        return self.ima_line(values)

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.dev, self.start, self.len

    def io_hints(self, limits: QueueLimits) -> None:
        limits.logical_block_size = max(limits.logical_block_size, self.sector_size)
        limits.physical_block_size = max(limits.physical_block_size, self.sector_size)
        limits.io_min = max(limits.io_min, self.sector_size)


def _key_size(text: str) -> int:
    """Bytes of a key, less than 0 when a reference to a keyring does not parse (`get_key_size`)."""
    if not text.startswith(":"):
        return len(text) // 2
    match = _KEYRING.match(text)
    if match is None:
        return -1
    size = wrapped(match[1], 32)
    return size - (1 << 32) if size >> 31 else size
