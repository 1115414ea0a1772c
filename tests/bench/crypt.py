"""Crypt: reading and writing 1M through a crypt device on memory, against the cipher calls alone."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

from compare import Report, interleave

SIZE = 1 << 20
SECTORS = SIZE // 512


def run(report: Report) -> None:
    """The peer makes one context of the package `cryptography` for each sector, with its IV, and nothing else."""
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError as missing:
        report.title += f" -- left out: {missing}"
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from support.stacks import Stack

    from dmserver.io.bio import Op
    from dmserver.io.submit import submit_and_wait

    data = memoryview(bytearray(range(256)) * (SIZE // 256))
    keys = {"aes-xts-plain64": bytes(range(64)), "aes-cbc-essiv:sha256": bytes(range(32))}

    def ecb(key: bytes, block: bytes) -> bytes:
        return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)

    essiv = hashlib.sha256(keys["aes-cbc-essiv:sha256"]).digest()
    ivs: dict[str, list[bytes]] = {
        "aes-xts-plain64": [number.to_bytes(16, "little") for number in range(SECTORS)],
        "aes-cbc-essiv:sha256": [ecb(essiv, number.to_bytes(16, "little")) for number in range(SECTORS)],
    }
    stack = Stack()
    for number, (cipher, key) in enumerate(keys.items()):
        stack.ram(SECTORS)
        dev = stack.device(f"d{number}", (0, SECTORS, "crypt", f"{cipher} {key.hex()} 0 1:{number} 0"))
        mode = modes.XTS if "xts" in cipher else modes.CBC

        def raw(encrypt: bool, key: bytes = key, cipher: str = cipher, mode: Callable[..., object] = mode) -> None:
            aes = algorithms.AES(key)
            for sector, iv in enumerate(ivs[cipher]):
                one = Cipher(aes, mode(iv))
                (one.encryptor() if encrypt else one.decryptor()).update(data[sector * 512 : sector * 512 + 512])

        for op, encrypt in ((Op.READ, False), (Op.WRITE, True)):
            medians = interleave(
                {
                    "ours": lambda op=op, dev=dev: submit_and_wait(dev, op, 0, SECTORS, data),
                    "cryptography": lambda encrypt=encrypt, raw=raw: raw(encrypt),
                }
            )
            report.add(f"{cipher} {op.value}", medians, "ours", ["cryptography"], 2.0)
    stack.close()
