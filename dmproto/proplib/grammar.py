"""proplib's text, read by the rules of its own reader: tags, strings, numbers, data.

The grammar is not XML. It is what prop_object.c, prop_number.c, prop_string.c and prop_data.c (June 2020) do, and
some of that surprises:

1. Blanks are space, tab, CR and LF. The text ends at the first NUL.
2. Before `<plist>` any mix of `<?xml ...>` and `<!DOCTYPE plist...>`, each up to the first `>`.
3. A comment may stand only where a start tag may: not in a scalar, not before `</plist>`, not in the prolog.
4. A tag has at most one attribute: a name up to a blank or `=`, any one such character, a value in double quotes, and
   `>` at once. The name may hold any other character, `>` and `/` too. A tag that ends in `/>` has none.
5. A closing tag may carry an attribute, which is ignored. `<key>` takes any, `<plist>` only `version`, `<data>` only
   `size`, every other start tag none.
6. In an array a closing tag of another type opens a value of that type: `</integer>5</integer>` is 5.
7. Scalars run to the next `<`. Five entities, no references by number, no CDATA.

`Reader` is the plain reading of these rules and alone decides what is an error; scanner.py goes faster where a text
is written the usual way.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from enum import Enum, auto
from typing import NamedTuple, NoReturn

from ..errors import BadPlist
from .objects import INT64_MAX, INT64_MIN, KEY_MAX, UINT64_MAX, Container, Object, Unsigned

__all__ = ["Kind", "Reader", "Tag"]

_BLANK = r"[ \t\r\n]"
_GAP = re.compile(rf"{_BLANK}*+")
_GAP_WITH_COMMENTS = re.compile(rf"(?:{_BLANK}*+<!--(?s:.*?)-->)*{_BLANK}*+")
_PROLOG = re.compile(rf"(?:{_BLANK}*+<(?:\?xml |!DOCTYPE plist)[^>]*+>)*{_BLANK}*+")
_TAG = re.compile(
    r"<(/?+)([^ \t\r\n/>]*+)"  # closing, name
    rf'(?:>|(/>)|{_BLANK}++([^ \t\r\n=]*+)[ \t\r\n=]"([^"]*+)">)'  # empty, attribute, value
)
_CONTENT = re.compile(r"[^<]*+")
_BLANKS = _GAP.fullmatch
_NO_ENTITY = re.compile(r"&(?!(?:amp|lt|gt|apos|quot);)")
#: `&amp;` comes last, for `&amp;lt;` is `&lt;`.
_ENTITIES = [("&lt;", "<"), ("&gt;", ">"), ("&apos;", "'"), ("&quot;", '"'), ("&amp;", "&")]
#: What strtoll(3) of base 0 takes: isspace(3) blanks, a sign, then hexadecimal, octal or decimal digits.
_NUMBER = re.compile(r"[ \t\n\v\f\r]*+([+-]?+)(?:0[xX]([0-9a-fA-F]++)|(0[0-7]*+)|([1-9][0-9]*+))")
_DATA = re.compile(rf"([A-Za-z0-9+/ \t\r\n]*+)(=?+){_BLANK}*+(=?+){_BLANK}*+").fullmatch
_PADDING = {0: "", 2: "==", 3: "="}  #: by the number of digits beyond the last whole group of four
_SCALARS = {"string", "integer", "data", "true", "false"}


class Kind(Enum):
    """Which tags the place allows (_prop_tag_type_t)."""

    START = auto()
    END = auto()
    EITHER = auto()


class Tag(NamedTuple):
    """One tag, beginning at `start`. `attribute` is None where there is none."""

    start: int
    name: str
    closing: bool
    empty: bool
    attribute: str | None
    value: str

    def __str__(self) -> str:
        return f"<{'/' if self.closing else ''}{self.name}{'/' if self.empty else ''}>"


class Reader:
    """A text and a position in it. Every method reads from `pos`, moves it on, and raises `BadPlist` at fault.

    `kernel` chooses the flavour without a range check (no ERANGE): a number out of range is clamped.
    """

    __slots__ = ("kernel", "pos", "text")

    def __init__(self, text: str, *, kernel: bool = False) -> None:
        self.text = text
        self.pos = 0
        self.kernel = kernel

    def fail(self, message: str, pos: int | None = None) -> NoReturn:
        place = self.pos if pos is None else pos
        raise BadPlist(message, offset=len(self.text[:place].encode("utf-8", "surrogateescape")))

    def _found(self) -> str:
        """What stands at the position, for an error message."""
        rest = self.text[self.pos : self.pos + 25]
        return repr(rest[:24] + "..." if len(rest) > 24 else rest) if rest else "the end of the text"

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.pos)
        assert match is not None  # every gap may be empty
        self.pos = match.end()

    def start(self) -> None:
        """The prolog and `<plist>`."""
        self._skip(_PROLOG)
        tag = self.tag(Kind.START, "<plist>")
        if tag.name != "plist" or tag.empty or tag.attribute not in (None, "version"):
            self.fail(f'expected <plist> or <plist version="1.0">, found {tag}', tag.start)

    def tag(self, kind: Kind, expected: str) -> Tag:
        """The next tag (_prop_object_internalize_find_tag); `expected` says in an error what should stand here."""
        self._skip(_GAP if kind is Kind.END else _GAP_WITH_COMMENTS)
        match = _TAG.match(self.text, self.pos)
        if match is None:
            self.fail(f"expected {expected}, found {self._found()}")
        closing, name, empty, attribute, value = match.groups()
        tag = Tag(self.pos, name, closing == "/", empty is not None, attribute, value or "")
        allowed = kind is Kind.EITHER or (kind is Kind.END) is tag.closing
        if not allowed or (tag.closing and tag.empty):
            self.fail(f"expected {expected}, found {tag}")
        self.pos = match.end()
        return tag

    def end(self, name: str) -> None:
        """The closing tag of `name`, before which only blanks may stand."""
        if (tag := self.tag(Kind.END, f"</{name}>")).name != name:
            self.fail(f"expected </{name}>, found {tag}", tag.start)

    def key(self) -> str | None:
        """The next key of a dictionary, or None at the dictionary's end."""
        tag = self.tag(Kind.EITHER, "<key> or </dict>")
        if tag.closing and tag.name == "dict":
            return None
        if tag.closing or tag.empty or tag.name != "key":
            self.fail(f"expected <key> or </dict>, found {tag}", tag.start)
        start = self.pos
        key = self.string(self._content(), start)
        if len(key) > KEY_MAX // 4 and len(key.encode("utf-8", "surrogateescape")) > KEY_MAX:
            self.fail(f"a key is longer than {KEY_MAX} bytes", start)
        self.end("key")
        return key

    def member(self, keyed: bool) -> tuple[str, Object, Container | None] | None:
        """The next member of a dictionary (`keyed`) or array: its key or "", and its `value`; None at the end."""
        key = ""
        if keyed:
            if (found := self.key()) is None:
                return None
            key = found
            tag = self.tag(Kind.START, "a value")
        else:
            tag = self.tag(Kind.EITHER, "a value or </array>")
            if tag.closing and tag.name == "array":
                return None
        return key, *self.value(tag)

    def value(self, tag: Tag) -> tuple[Object, Container | None]:
        """The value that `tag` opens; and again, if its members follow: a container is returned empty."""
        if tag.attribute is not None and tag.name != "data":
            self.fail(f"{tag} takes no attribute", tag.start)
        if tag.name in ("dict", "array"):
            container: Container = {} if tag.name == "dict" else []
            return container, None if tag.empty else container
        if tag.name not in _SCALARS:
            self.fail(f"{tag} is no type of a property list", tag.start)
        if tag.name in ("true", "false"):
            if not tag.empty:
                self.fail(f"expected <{tag.name}/>, found {tag}", tag.start)
            return tag.name == "true", None
        if tag.empty:
            if tag.name != "string":
                self.fail(f"{tag} may not be empty", tag.start)
            return "", None
        start = self.pos
        raw = self._content()
        if tag.name == "string":
            scalar: Object = self.string(raw, start)
        elif tag.name == "integer":
            scalar = self.number(raw, start)
        else:
            scalar = self.data(raw, start, size=tag)
        self.end(tag.name)
        return scalar, None

    def _content(self) -> str:
        """What stands up to the next `<`."""
        start = self.pos
        self._skip(_CONTENT)
        if self.pos == len(self.text):
            self.fail("the text ends within a value", start)
        return self.text[start : self.pos]

    def string(self, raw: str, start: int) -> str:
        """The text of a string or key (_prop_object_internalize_decode_string); `raw` stands at `start`."""
        if "&" not in raw:
            return raw
        if (bad := _NO_ENTITY.search(raw)) is not None:
            self.fail("expected &amp; &lt; &gt; &apos; or &quot;", start + bad.start())
        for entity, character in _ENTITIES:
            raw = raw.replace(entity, character)
        return raw

    def number(self, raw: str, start: int) -> int:
        """A number (_prop_number_internalize): `0x` makes it unsigned, so does a decimal over INT64_MAX."""
        value, end = _strtoll(raw)
        if not _BLANKS(raw, end):
            self.fail("expected a number in decimal, octal (0...) or hexadecimal (0x...)", start)
        if raw.startswith("0x"):
            if value > UINT64_MAX and not self.kernel:
                self.fail("a number is out of range", start)
            return Unsigned(min(value, UINT64_MAX))
        if INT64_MIN <= value <= INT64_MAX:
            return value
        if self.kernel:
            return max(INT64_MIN, min(value, INT64_MAX))
        # The library tries again with strtoull(3), except behind a '-' at once. That wraps a negative number round.
        if raw.startswith("-") or abs(value) > UINT64_MAX:
            self.fail("a number is out of range", start)
        return Unsigned(value & UINT64_MAX)

    def data(self, raw: str, start: int, size: Tag | None = None) -> bytes:
        """Base64 with its padding (_prop_data_internalize_decode), of so many bytes as the tag's `size` says."""
        match = _DATA(raw)
        if match is None:
            self.fail("expected base64", start)
        digits = "".join(match[1].split())
        padding = match[2] + match[3]
        if padding != _PADDING.get(len(digits) % 4):
            self.fail("base64 ends within a byte or is padded wrongly", start)
        data = a2b_base64(digits + padding)
        if size is not None and size.attribute is not None and not _says_size(size, len(data)):
            self.fail(f'<data> takes no attribute but size="{len(data)}", the bytes it holds', start)
        return data


def _says_size(tag: Tag, size: int) -> bool:
    """Whether the only attribute of <data> is true: strtoul(3) reads it, which wraps a negative number round."""
    value, end = _strtoll(tag.value)
    whole = end == len(tag.value) > 0 and abs(value) <= UINT64_MAX
    return tag.attribute == "size" and whole and value & UINT64_MAX == size


def _strtoll(text: str) -> tuple[int, int]:
    """strtoll(3) of base 0, unbounded: the value, and where it ends (at 0 if there is no number)."""
    match = _NUMBER.match(text)
    if match is None:
        return 0, 0
    sign, hexadecimal, octal, decimal = match.groups()
    if decimal is None:
        value = int(hexadecimal, 16) if octal is None else int(octal, 8)
    else:
        value = int(decimal) if len(decimal) <= 20 else UINT64_MAX + 1
    return -value if sign == "-" else value, match.end()
