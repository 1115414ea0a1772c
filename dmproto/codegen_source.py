"""The source that `codegen.fuse` compiles: one class for a struct or a chain of structs."""

from __future__ import annotations

import keyword
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from construct import Array, Bytes, Construct, FormatField, IfThenElse, Padded, Rebuild, Renamed, Struct

from .schema import Align, Chain, FixedText, Text

__all__ = ["write_source"]

#: Names that the generated code uses itself.
_TAKEN = {
    *(
        "aligned",
        "append",
        "base",
        "count",
        "data",
        "end",
        "entries",
        "first",
        "following",
        "index",
        "last",
        "next",
        "obj",
    ),
    *("offset", "pack", "parts", "size", "start", "stop", "tail"),
}


def write_source(schema: Construct, name: str) -> str:
    """The source of a class `name` for `schema`. Raises TypeError naming the part that cannot be fused."""
    if isinstance(schema, Chain):
        return _ChainWriter(name, _Plan.of(schema.subcon), schema).source()
    return _StructWriter(name, _Plan.of(schema)).source()


@dataclass
class _Run:
    """Consecutive fields of fixed size: one `struct.Struct`."""

    format: str = ""
    variables: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)  #: dict items, as source
    arguments: list[str] = field(default_factory=list)  #: what to pack, as source
    preparation: list[str] = field(default_factory=list)  #: statements before packing
    checks: list[str] = field(default_factory=list)  #: conditions under which the schema must object
    constants: list[str] = field(default_factory=list)  #: assignments outside the class

    @property
    def size(self) -> int:
        return struct.calcsize("<" + self.format)

    @property
    def targets(self) -> list[str]:
        """The variables to unpack into; a single one with its comma."""
        return self.variables if len(self.variables) > 1 else [f"{variable}," for variable in self.variables]

    def add(self, name: str, sub: Construct) -> bool:
        """Take a field in; False when its size is not fixed."""
        variable = _variable(name) if name else ""
        if isinstance(sub, Padded):
            self.format += f"{sub.sizeof()}x"
        elif isinstance(sub, FormatField):
            self._number(name, variable, sub, _key(name))
        elif isinstance(sub, Rebuild) and isinstance(sub.subcon, FormatField):
            self._number(name, variable, sub.subcon, _expression(sub.func, _key))
        elif isinstance(sub, Array) and isinstance(sub.subcon, FormatField) and isinstance(sub.count, int):
            parts = [f"{variable}_{n}" for n in range(sub.count)]
            self.format += sub.subcon.fmtstr[1:] * sub.count
            self.variables += parts
            self.results.append(f'"{name}": [{", ".join(parts)}]')
            self.arguments.append(f'*obj["{name}"]')
        elif isinstance(sub, Bytes) and isinstance(sub.length, int):
            self.format += f"{sub.length}s"
            self.variables.append(variable)
            self.results.append(f'"{name}": {variable}')
            self.arguments.append(variable)
            self.preparation.append(f"{variable} = {_key(name)}")
            self.checks.append(f"len({variable}) != {sub.length}")
        elif isinstance(sub, FixedText):
            self._fixed_text(name, variable, sub)
        else:
            return False
        return True

    def _number(self, name: str, variable: str, sub: FormatField, argument: str) -> None:
        if sub.fmtstr[0] != "<" and sub.length > 1:
            raise TypeError(f"cannot fuse {name}: {sub.fmtstr} is not little-endian")
        self.format += sub.fmtstr[1:]
        self.variables.append(variable)
        self.results.append(f'"{name}": {variable}')
        self.arguments.append(argument)

    def _fixed_text(self, name: str, variable: str, sub: FixedText) -> None:
        self.format += f"{sub.limit}s" + (f"{sub.size - sub.limit}x" if sub.size > sub.limit else "")
        self.variables.append(variable)
        self.arguments.append(variable)
        if sub.size <= 16:  # few different ones: remember them
            self.constants += [f"{name}_texts = Texts()", f"{name}_codes = Codes({sub.limit})"]
            self.results.append(f'"{name}": {name}_texts[{variable}]')
            self.preparation.append(f"{variable} = {name}_codes[{_key(name)}]")
            return
        text = f'{variable}.partition(b"\\0")[0].decode("utf-8", "surrogateescape")'
        self.results.append(f'"{name}": {text}')
        self.preparation.append(f'{variable} = {_key(name)}.encode("utf-8", "surrogateescape")')
        self.checks.append(f"len({variable}) > {sub.limit} or 0 in {variable}")


@dataclass
class _Plan:
    """A struct as pieces: [fixed] [text [alignment fixed]] [optional text] [counted numbers]."""

    head: _Run = field(default_factory=_Run)
    text: str = ""
    modulus: int = 1
    after: _Run = field(default_factory=_Run)
    optional: str = ""
    condition: Any = None
    counted: str = ""
    count: Any = None
    number: str = ""

    @classmethod
    def of(cls, schema: Struct) -> _Plan:
        plan = cls()
        for name, sub in _fields(schema):
            if not plan._take(name, sub):
                raise TypeError(f"cannot fuse {name or type(sub).__name__} here: {sub!r}")
        return plan

    def _take(self, name: str, sub: Construct) -> bool:
        if self.optional or self.counted:
            return False
        if isinstance(sub, Text):
            taken, self.text = not self.text, name
            return taken
        if isinstance(sub, Align):
            taken, self.modulus = bool(self.text) and self.modulus == 1, sub.modulus
            return taken
        if isinstance(sub, IfThenElse) and isinstance(sub.thensubcon, Text):
            self.optional, self.condition = name, sub.condfunc
            return bool(self.after.format)
        if isinstance(sub, Array) and isinstance(sub.subcon, FormatField) and not isinstance(sub.count, int):
            self.counted, self.count, self.number = name, sub.count, sub.subcon.fmtstr[1:]
            return not self.text
        return (self.after if self.text else self.head).add(name, sub)

    @property
    def fixed(self) -> bool:
        return not self.text and not self.counted

    @property
    def result(self) -> list[str]:
        texts = [f'"{self.text}": {_variable(self.text)}'] if self.text else []
        rest = [f'"{name}": {_variable(name)}' for name in (self.optional, self.counted) if name]
        return self.head.results + texts + self.after.results + rest


def _variable(name: str) -> str:
    """The local variable of a field."""
    return name + "_" if keyword.iskeyword(name) or name in _TAKEN else name


def _key(name: str) -> str:
    """A field of the object being built, as source."""
    return f'obj["{name}"]'


def _expression(expression: Any, reference: Callable[[str], str]) -> str:
    """A Construct expression such as `this.flags & 1` as source; `reference` makes source of a field's name."""
    source = repr(expression).replace("len_(", "len(")
    source = re.sub(r"this\['(\w+)'\]", lambda match: reference(match[1]), source)
    return source[1:-1] if source.startswith("(") else source


class _Writer:
    """What the classes for a struct and for a chain have in common: reading and packing of one struct."""

    where = '"(parsing)"'  #: source of the path in which a bad struct is reported
    building_path = '"(building)"'
    built = "obj"  #: source of what the schema is asked to build in its place

    def __init__(self, name: str, plan: _Plan) -> None:
        self.name, self.plan = name, plan
        self.lines: list[str] = []

    def emit(self, depth: int, *lines: str) -> None:
        self.lines += ["    " * depth + line if line else "" for line in lines]

    def listing(self, depth: int, opening: str, items: list[str], closing: str) -> None:
        """`opening items closing` on one line, or on several when that is too long."""
        line = opening + ", ".join(items) + closing
        if 4 * depth + len(line) <= 110:
            self.emit(depth, line)
            return
        self.emit(depth, opening)
        rows = [""]
        for item in items:
            if rows[-1] and 4 * depth + len(rows[-1]) + len(item) > 100:
                rows.append("")
            rows[-1] += f" {item}," if rows[-1] else f"{item},"
        self.emit(depth + 1, *rows)
        self.emit(depth, closing)

    def constants(self, modulus: int) -> None:
        plan = self.plan
        if plan.head.format:
            self.emit(
                0, f'head = Struct("<{plan.head.format}")', "unpack_head, pack_head = head.unpack_from, head.pack"
            )
        if plan.after.format:
            self.emit(0, f'unpack_after = Struct("<{plan.after.format}").unpack_from')
        if plan.text:
            self.emit(0, f'packs = Packs("{plan.head.format}", "{plan.after.format}", {modulus})')
        for constant in plan.head.constants:
            self.emit(0, constant)
        self.emit(0, "", "")

    def refuse(self, depth: int, condition: str) -> None:
        self.emit(depth, f"if {condition}:", f"    raise refusal(schema, data, offset, end, {self.where})")

    def refuse_otherwise(self, depth: int) -> None:
        """The end of a `try` around reading: bytes.index found no NUL, or the data ended inside the head."""
        self.emit(depth, "except (ValueError, struct_error):")
        self.emit(depth + 1, f"raise refusal(schema, data, offset, end, {self.where}) from None")

    def object_to(self, depth: int, *conditions: str) -> None:
        if conditions:
            self.emit(
                depth,
                f"if {' or '.join(conditions)}:",
                f"    raise objection(schema, {self.built}, {self.building_path})",
            )

    def read(self, depth: int) -> str:
        """Statements that read the struct at `offset`. Returns the source of the offset behind it."""
        plan = self.plan
        stop = f"offset + {plan.head.size}"
        if plan.text:
            self.emit(depth, f"start = {stop}")
            stop = "start"
        if plan.head.format:
            if not plan.text:  # else the search for its NUL says that the head ends behind the data
                self.refuse(depth, f"{stop} > end")
            self.listing(depth, "(", plan.head.targets, ") = unpack_head(data, offset)")
        if plan.text:
            self._read_text(depth, plan.text, stop)
            stop = f"{_variable(plan.text)}_end + 1"
        if plan.after.format:
            self.emit(depth, f"aligned = ({_variable(plan.text)}_end + {plan.modulus}) & -{plan.modulus}")
            self.emit(depth, f"stop = aligned + {plan.after.size}")
            self.refuse(depth, "stop > end")
            self.listing(depth, "(", plan.after.targets, ") = unpack_after(data, aligned)")
            stop = "stop"
        if plan.optional:
            self.emit(depth, f"{_variable(plan.optional)} = None")
            self.emit(depth, f"if {_expression(plan.condition, _variable)}:")
            self._read_text(depth + 1, plan.optional, "stop")
            self.emit(depth + 1, f"stop = {_variable(plan.optional)}_end + 1")
            stop = "stop"
        if plan.counted:
            count, width = _expression(plan.count, _variable), struct.calcsize("<" + plan.number)
            self.emit(depth, f"stop = {stop} + {width} * {count}")
            self.refuse(depth, "stop > end")
            numbers = f'unpack_from(f"<{{{count}}}{plan.number}", data, {stop})'
            self.emit(depth, f"{_variable(plan.counted)} = list({numbers})")
            stop = "stop"
        return stop

    def _read_text(self, depth: int, name: str, start: str) -> None:
        variable = _variable(name)
        self.emit(depth, f"{variable}_end = data.index(0, {start}, end)")
        self.emit(depth, f'{variable} = data[{start} : {variable}_end].decode("utf-8", "surrogateescape")')

    def prepare(self, depth: int) -> None:
        """Statements that encode the texts of `obj`, and object to what does not fit."""
        plan = self.plan
        self.emit(depth, *plan.head.preparation)
        checks = list(plan.head.checks)
        if plan.text:
            self._encode(depth, plan.text)
            checks.append(f"0 in {_variable(plan.text)}")
        self.object_to(depth, *checks)
        if plan.text:
            self.emit(depth, f"pack, base = packs[len({_variable(plan.text)})]")
        if plan.optional:
            variable = _variable(plan.optional)
            self.emit(depth, 'tail = b""', f"if {_expression(plan.condition, _key)}:")
            self._encode(depth + 1, plan.optional)
            self.object_to(depth + 1, f"0 in {variable}")
            self.emit(depth + 1, f'tail = {variable} + b"\\0"')

    def _encode(self, depth: int, name: str) -> None:
        self.emit(depth, f'{_variable(name)} = {_key(name)}.encode("utf-8", "surrogateescape")')

    def pack(self, depth: int, opening: str, closing: str, following: str = "") -> None:
        """A statement around the packed struct; `following` is what goes into the field `next`."""
        plan = self.plan
        head = [following if following and argument == _key("next") else argument for argument in plan.head.arguments]
        texts = [_variable(plan.text)] if plan.text else []
        packer = "pack(" if plan.text else "pack_head("
        self.listing(depth, opening + packer, head + texts + plan.after.arguments, ")" + closing)


class _StructWriter(_Writer):
    def source(self) -> str:
        plan = self.plan
        self.constants(plan.modulus)
        self.emit(0, f"class {self.name}(Fused):", '    """Written from the schema of the same name."""', "")
        if plan.fixed:
            self.emit(1, "def parse(self, data, offset=0, end=None, **context):")
            self.emit(2, "if end is None:", "    end = len(data)")
            self.read(2)
            self.listing(2, "return {", plan.result, "}")
            self.emit(0, "")
            self.emit(1, "def walk(self, data, offset, end):")
            self.emit(2, f"return self.parse(data, offset, end), offset + {plan.head.size}", "")
        else:
            self.emit(1, "def parse(self, data, offset=0, end=None, **context):")
            self.emit(2, "return self.walk(data, offset, len(data) if end is None else end)[0]", "")
            self.emit(1, "def walk(self, data, offset, end):")
            if plan.text:
                self.emit(2, "try:")
                stop = self.read(3)
                self.refuse_otherwise(2)
            else:
                stop = self.read(2)
            self.listing(2, "return {", plan.result, f"}}, {stop}")
            self.emit(0, "")
        self.emit(1, "parse_at = parse", "", "def build(self, obj, **context):")
        self.emit(2, "try:")
        self.prepare(3)
        behind = " + tail" if plan.optional else ""
        if plan.counted:
            variable = _variable(plan.counted)
            self.emit(3, f"{variable} = {_key(plan.counted)}")
            behind = f' + pack_numbers(f"<{{len({variable})}}{plan.number}", *{variable})'
        self.pack(3, "return ", behind)
        self.emit(
            2, "except struct_error:", f"    raise objection(schema, {self.built}, {self.building_path}) from None"
        )
        return "\n".join(self.lines) + "\n"


class _ChainWriter(_Writer):
    where = 'f"(parsing)[{len(entries)}]"'
    building_path = 'f"(building)[{index}]"'
    built = '{**obj, "next": 0}'

    def __init__(self, name: str, plan: _Plan, chain: Chain) -> None:
        super().__init__(name, plan)
        self.chain = chain
        if not plan.text or "next" not in [name for name, _ in _fields(chain.subcon)]:
            raise TypeError(f"cannot fuse a chain of {name} without a field next and a text")

    def source(self) -> str:
        self.constants(self.plan.modulus if self.plan.after.format else 8)
        self.emit(0, f"class {self.name}(Fused):", '    """Written from the schema of the same name."""', "")
        self._parse()
        self._build()
        return "\n".join(self.lines) + "\n"

    def _parse(self) -> None:
        chain = self.chain
        count, pass_count = (", count", ", count") if chain.counted else ("", "")
        keyword_only = ", *, count" if chain.counted else ""
        self.emit(1, f"def parse(self, data, offset=0, end=None{keyword_only}, **context):")
        self.emit(2, f"return self.walk(data, offset, len(data) if end is None else end{pass_count})[0]", "")
        self.emit(1, "parse_at = parse", "", f"def walk(self, data, offset, end{count}):")
        self.emit(2, "entries = []", "append = entries.append")
        if chain.from_first:
            self.emit(2, "first = offset")
        if chain.counted:
            empty = "count < 1 or offset == end" if chain.partial else "count < 1"
            self.emit(2, f"if {empty}:", "    return entries, offset")
        self.emit(2, "try:", "    while True:")
        stop = self.read(4)
        self.listing(4, "append({", self.plan.result, "})")
        if chain.counted:
            self.emit(4, "count -= 1")
        ends = ["not count" if chain.counted else "not next_"]
        if chain.partial:
            ends.append(f"{stop} == end")
        self.emit(4, f"if {' or '.join(ends)}:", f"    return entries, {stop}")
        base = "first" if chain.from_first else "offset"
        self.emit(4, f"following = {base} + next_", "if not start <= following < end:")
        where = 'f"(parsing)[{len(entries) - 1}]"'
        self.emit(5, f"raise bad_next(next_, {base}, start, end, {where}, offset + {chain.next_at})")
        self.emit(4, "offset = following")
        self.refuse_otherwise(2)
        self.emit(0, "")

    def _build(self) -> None:
        chain, plan = self.chain, self.plan
        size = "size" if plan.optional else "base"
        following = (
            f"offset + {size}" if chain.from_first else size if chain.counted else f"{size} if index != last else 0"
        )
        self.emit(1, "def build(self, entries, **context):")
        self.emit(2, "parts = []", "append = parts.append")
        if chain.from_first:
            self.emit(2, "offset = 0")
        if not chain.counted:
            self.emit(2, "last = len(entries) - 1")
        self.emit(2, "for index, obj in enumerate(entries):", "    try:")
        self.prepare(4)
        if plan.optional:
            self.emit(4, "size = (base + len(tail) + 7) & -8")
            self.pack(4, "append((", ' + tail).ljust(size, b"\\0"))', following)
        else:
            self.pack(4, "append(", ")", following)
        if chain.from_first:
            self.emit(4, f"offset += {size}")
        self.emit(
            3, "except struct_error:", f"    raise objection(schema, {self.built}, {self.building_path}) from None"
        )
        used = "base + len(tail)" if plan.after.format else f"{plan.head.size + 1} + len({_variable(plan.text)})"
        self.emit(2, "if parts:", f"    parts[-1] = parts[-1][: {used}]", 'return b"".join(parts)')


def _fields(schema: Struct) -> list[tuple[str, Construct]]:
    return [(sub.name, sub.subcon if isinstance(sub, Renamed) else sub) for sub in schema.subcons]
