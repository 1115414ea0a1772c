"""Property lists as NetBSD's proplib knows them: the objects, their text, and the JSON form of 2025."""

from .json import dumps_json, loads_json
from .objects import KEY_MAX, MAX_DEPTH, MAX_SIZE, MAX_TABS, Object, Unsigned
from .scanner import loads
from .writer import dumps

__all__ = [
    "KEY_MAX",
    "MAX_DEPTH",
    "MAX_SIZE",
    "MAX_TABS",
    "Object",
    "Unsigned",
    "dumps",
    "dumps_json",
    "loads",
    "loads_json",
]
