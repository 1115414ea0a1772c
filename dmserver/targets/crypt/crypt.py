"""crypt: a device whose sectors are encrypted (Linux `drivers/md/dm-crypt.c`).

Arguments: CIPHER KEY IV_OFFSET DEVICE START [NUM OPTION...]. CIPHER is `aes-xts-plain64` and the like, or
`capi:xts(aes)-plain64`; KEY is hexadecimal, `-` for none, or names a key of the kernel's keyring (see
`model.keyring`). Reads are decrypted when they come back, writes are encrypted into a buffer of their own.

The IV mode random is refused as on a device without room for integrity tags, which none here has.
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
    parse_u32,
    wrapped,
)
from ...model.keyring import Keyring
from .elephant import Elephant
from .ivmode import Benbi, Eboiv, IvMode, Plain, Plain64, Plain64Be, Tcw
from .lmk import Lmk
from .skcipher import Data, Skcipher, allocate

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
    "random": IvMode,
}
MAX_TAG_SIZE = 480
#: Options that change nothing but the status line: there are no crypt queues to steer.
FLAG_OPTIONS = (
    "allow_discards",
    "same_cpu_crypt",
    "submit_from_crypt_cpus",
    "no_read_workqueue",
    "no_write_workqueue",
)
_INTEGRITY = re.compile(r"integrity:([0-9]+):(.*)\Z")
_SECTOR_SIZE = re.compile(r"sector_size:([0-9]+)\Z")
_KEYRING = re.compile(r":([0-9]+):(.*)\Z")
U64 = (1 << 64) - 1
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
        self._parse_options(Arguments(argv[5:]))
        self._allocate_cipher(cipher)
        self._set_first_key(key)
        self.suspended = False
        self.iv_offset = self._sector(iv_offset, "Invalid iv_offset sector")
        if self.iv_offset & (self.sector_size // SECTOR_SIZE - 1):
            raise self.refuse("Invalid iv_offset sector")
        self.dev = self.get_device(path)
        self.start = self._sector(start, "Invalid device sector")
        if self.iv_mode == "random":
            raise self.refuse("Integrity profile not supported.")

    def _sector(self, text: str, complaint: str) -> int:
        try:
            return parse_sector(text)
        except ValueError:
            raise self.refuse(complaint) from None

    def _parse_options(self, args: Arguments) -> None:
        self.flags: set[str] = set()
        self.integrity = ""
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
            self.integrity = f"{wrapped(match[1], 32)}:{match[2]}"
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

    def _allocate_cipher(self, text: str) -> None:
        self.cipher_string = text
        aead = self.integrity.lower().endswith(":aead")
        if text.startswith("capi:"):
            count, api, iv_mode = self._parse_capi(text[len("capi:") :])
        elif "(" in text or aead:
            raise self.refuse("Bad cipher specification")
        else:
            count, api, iv_mode = self._parse_legacy(text)
        try:
            if aead:
                raise LookupError(f"no AEAD cipher {api!r}")
            self.ciphers: list[Skcipher] = [allocate(api) for _ in range(count)]
        except LookupError:
            raise self.refuse("Error allocating crypto tfm", errno.ENOENT) from None
        except ValueError:
            raise self.refuse("Error allocating crypto tfm") from None
        if iv_mode is not None and not self.ciphers[0].iv_size:
            self.log("Selected cipher does not support IVs")
            iv_mode = None
        self.iv_mode = iv_mode or "null"
        if self.iv_mode not in IV_MODES or iv_mode == "":
            raise self.refuse("Invalid IV mode")
        try:
            self.key_parts, self.key_extra_size = IV_MODES[self.iv_mode].split_key(
                self.key_size, count, self.ciphers[0].iv_size
            )
        except ValueError:
            raise self.refuse("Unknown error") from None

    def _parse_capi(self, text: str) -> tuple[int, str, str | None]:
        """`API[-IV[:OPTIONS]]`, as (number of keys, name of the cipher, IV mode)."""
        text, options = _cut_last(text, ":")
        api, iv_mode = _cut_last(text, "-")
        if iv_mode == "essiv":
            if options is None:
                raise self.refuse("Digest algorithm missing for ESSIV mode")
            api = f"essiv({api},{options})"
        return 64 if iv_mode == "lmk" else 1, api, iv_mode

    def _parse_legacy(self, text: str) -> tuple[int, str, str | None]:
        """`CIPHER[:KEYCOUNT]-MODE-IV[:OPTIONS]`, likewise."""
        words, rest = _cut(text, "-")
        cipher, keys = _cut(words, ":")
        mode, rest = _cut(rest, "-")
        iv_mode, options = _cut(rest, ":")
        try:
            count = 1 if keys is None else parse_u32(keys)
            if not count or count & count - 1:
                raise ValueError(f"{count}: expected a power of two")
        except ValueError:
            raise self.refuse("Bad cipher key count specification") from None
        if mode is None or (mode == "plain" and iv_mode is None):
            mode, iv_mode = "cbc", "plain"
        if mode != "ecb" and iv_mode is None:
            raise self.refuse("IV mechanism required")
        api = f"{mode}({cipher})"
        if iv_mode == "essiv":
            if options is None:
                raise self.refuse("Digest algorithm missing for ESSIV mode")
            api = f"essiv({api},{options})"
        return count, api, iv_mode

    # -- the key ----------------------------------------------------------------------------------------

    def _set_first_key(self, text: str) -> None:
        try:
            key = self._set_key(text)
        except TargetError as refusal:
            raise self.refuse("Error decoding and setting key", refusal.errno) from None
        try:
            self.iv = IV_MODES[self.iv_mode](self.ciphers[0], self.sector_size)
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
            kind, _, description = match[2].partition(":")
            if kind not in _KEY_TYPES or not description or re.search(r"\s", text):
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
            part = extra // len(self.ciphers)
            for number, cipher in enumerate(self.ciphers):
                cipher.set_key(key[number * part : (number + 1) * part])
        except ValueError:
            raise TargetError(errno.EINVAL) from None
        self.key = key
        self.key_reference = text if known is not None else ""
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
            bio.data = memoryview(self._crypt(bio.data, sector, encrypt=True))
        return MapResult.REMAPPED

    def end_io(self, bio: Bio, error: int) -> int:
        if bio.op is Op.READ and not error:
            assert bio.data is not None
            bio.data[:] = memoryview(self._crypt(bio.data, bio.per_bio.sector, encrypt=False))
        return error

    def _crypt(self, data: memoryview, sector: int, *, encrypt: bool) -> Data:
        """`sector` of the target, without the IV offset."""
        step = self.sector_size // SECTOR_SIZE
        first = sector + self.iv_offset
        sectors = [at & U64 for at in range(first, first + len(data) // SECTOR_SIZE, step)]
        counted = [at // step for at in sectors] if self.iv_large_sectors else sectors

        def crypt(data: Data, ivs: Sequence[bytes]) -> Data:
            if len(self.ciphers) == 1:
                cipher = self.ciphers[0]
                return cipher.encrypt(data, ivs) if encrypt else cipher.decrypt(data, ivs)
            out = bytearray()
            for number, (at, iv) in enumerate(zip(sectors, ivs, strict=True)):
                cipher = self.ciphers[at & len(self.ciphers) - 1]
                part = data[number * self.sector_size : (number + 1) * self.sector_size]
                out += cipher.encrypt(part, [iv]) if encrypt else cipher.decrypt(part, [iv])
            return out

        return self.iv.encrypt(data, counted, crypt) if encrypt else self.iv.decrypt(data, counted, crypt)

    # -- what it tells ----------------------------------------------------------------------------------

    def status(self, kind: StatusType) -> str:
        if kind is StatusType.INFO:
            return ""
        options = [option for option in FLAG_OPTIONS if option in self.flags]
        if self.integrity:
            options.append(f"integrity:{self.integrity}")
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
        if self.integrity:
            values["integrity_tag_size"], values["cipher_auth"] = self.integrity.split(":")
        if self.sector_size != SECTOR_SIZE:
            values["sector_size"] = self.sector_size
        values |= {"cipher_string": self.cipher_string, "key_size": self.key_size}
        values |= {"key_parts": self.key_parts, "key_extra_size": self.key_extra_size, "key_mac_size": 0}
        return self.ima_line(values)

    def iterate_devices(self) -> Iterator[tuple[DmPdev, int, int]]:
        yield self.dev, self.start, self.len

    def io_hints(self, limits: QueueLimits) -> None:
        limits.logical_block_size = max(limits.logical_block_size, self.sector_size)
        limits.physical_block_size = max(limits.physical_block_size, self.sector_size)
        limits.io_min = max(limits.io_min, self.sector_size)


def _cut(text: str | None, at: str) -> tuple[str | None, str | None]:
    """What is before and behind the first `at`; None for what is not there at all (`strsep`)."""
    if text is None:
        return None, None
    first, found, rest = text.partition(at)
    return first, rest if found else None


def _cut_last(text: str, at: str) -> tuple[str, str | None]:
    """Likewise, at the last one (`strrchr`)."""
    first, found, rest = text.rpartition(at)
    return (first, rest) if found else (text, None)


def _key_size(text: str) -> int:
    """Bytes of a key, -1 when a reference to a keyring does not parse (`get_key_size`)."""
    if not text.startswith(":"):
        return len(text) // 2
    match = _KEYRING.match(text)
    return wrapped(match[1], 32) if match else -1
