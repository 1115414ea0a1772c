"""Keys that tables may name instead of holding them (`:32:logon:DESCRIPTION`): the kernel's keyring, as far as somebody
saw keys added to it. Nothing can be read back from the real one."""

from __future__ import annotations

__all__ = ["Keyring"]


class Keyring(dict[tuple[str, str], bytes]):
    """Keys by type ("logon", "user") and description."""
