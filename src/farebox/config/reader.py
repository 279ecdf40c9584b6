"""Read tables into Structs, collecting every problem instead of stopping at the first.

Each problem says where (file and line, or variable), what was seen and what would be right. Secrets are
never quoted.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import inspect

from farebox.config.locate import Path as KeyPath
from farebox.config.locate import line_of
from farebox.secret import Secret

Table = TypeVar("Table", bound=msgspec.Struct)
_SHOWN_CHARS = 60


@cache
def _fields_of(type_: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    """Give the fields of a table with their types as msgspec sees them, which takes it a while to find out."""
    info = inspect.type_info(type_)
    assert isinstance(info, inspect.StructType)
    return info.fields


class Wrong(Exception):
    """A value does not fit; the text says what would."""


class Reader:
    """One document being read: its lines, the variables laid over it, and the problems found so far."""

    def __init__(
        self,
        file: Path | None,
        lines: Mapping[KeyPath, int],
        variables: Mapping[KeyPath, str],
        read_secret: Callable[[str], Secret],
    ) -> None:
        self._problems: list[tuple[int, str]] = []
        self._file = file
        self._lines = lines
        self._variables = variables
        self._read_secret = read_secret

    @property
    def problems(self) -> list[str]:
        """What was wrong, in the order of the lines."""
        told = sorted(self._problems, key=lambda problem: problem[0])
        return list(dict.fromkeys(text for _, text in told))

    def where(self, path: KeyPath) -> str:
        """Name the line or the variable that a value came from."""
        if variable := self._variables.get(path):
            return variable
        name = self._file.name if self._file else "configuration"
        line = line_of(self._lines, path)
        return f"{name}:{line}" if line else name

    def problem(self, path: KeyPath, text: str) -> None:
        """Note that what is at `path` is wrong; the text goes on from the key's name."""
        line = 0 if path in self._variables else line_of(self._lines, path) or 0
        self._problems.append((line, f"{self.where(path)}: {dotted(path)} {text}"))

    def unknown_keys(self, path: KeyPath, table: Mapping[str, Any], known: Iterable[str], hint: str = "") -> None:
        """Note the keys that mean nothing here, each with the likeliest one that does."""
        names = list(known)
        for key in table:
            if key not in names:
                near = difflib.get_close_matches(key, names, 1, 0.6)
                help_text = f"did you mean {near[0]}?" if near else hint or f"known here: {', '.join(names)}"
                self.problem((*path, key), f"is not a setting; {help_text}")

    def struct(self, path: KeyPath, table: Any, type_: type[Table]) -> Table | None:
        """Read a whole table. None when something in it was wrong, which is then among the problems."""
        if not isinstance(table, dict):
            self.problem(path, f"is {show(table)}; it must be a table: [{dotted(path)}] with its settings below")
            return None
        self.unknown_keys(path, table, type_.__struct_fields__)
        return self.fields(path, table, type_)

    def fields(self, path: KeyPath, table: Mapping[str, Any], type_: type[Table]) -> Table | None:
        """Read the keys of a table that belong to `type_`, leaving others alone."""
        values: dict[str, Any] = {}
        complete = True
        for field in _fields_of(type_):
            here = (*path, field.name)
            if field.name in table:
                try:
                    values[field.name] = self._value(here, table[field.name], field.type)
                except Wrong as wrong:
                    complete = False
                    if str(wrong):
                        self.problem(here, str(wrong))
            elif field.required:
                complete = False
                self.problem(here, f"is missing; it must be {expected(field.type)}")
        return type_(**values) if complete else None

    def _value(self, path: KeyPath, value: Any, type_: inspect.Type) -> Any:
        """Convert one value. Raises Wrong, without words when the problems have them already."""
        match type_:
            case inspect.Metadata(type=inner):
                return self._described(path, value, inner, type_)
            case inspect.UnionType(types=types):
                choices = [t for t in types if not isinstance(t, inspect.NoneType)]
                table = next((t for t in choices if isinstance(t, inspect.DictType)), None)
                return self._value(path, value, table if table and isinstance(value, dict) else choices[0])
            case inspect.DictType(value_type=inner) if isinstance(value, dict):
                return {key: self._value((*path, key), one, inner) for key, one in value.items()}
            case inspect.CustomType(cls=cls) if cls is Secret:
                return self._secret(value)
            case inspect.StructType(cls=cls):
                read = self.struct(path, value, cls)
                if read is None:
                    raise Wrong
                return read
            case inspect.VarTupleType(item_type=item_type):
                return self._items(path, value, type_, item_type)
            case inspect.FloatType() | inspect.DecimalType() if _is_number(value):
                number = float(value) if isinstance(type_, inspect.FloatType) else Decimal(value)
                if _in_range(number, type_):
                    return number
            case inspect.IntType() if type(value) is int and _in_range(value, type_):
                return value
            case inspect.BoolType() if isinstance(value, bool):
                return value
            case inspect.StrType() if isinstance(value, str) and len(value) >= (type_.min_length or 0):
                return value
            case inspect.LiteralType(values=choices) if value in choices:
                return value
        raise Wrong(f"is {show(value)}; it must be {expected(type_)}")

    def _described(self, path: KeyPath, value: Any, inner: inspect.Type, type_: inspect.Metadata) -> Any:
        """Convert a text whose pattern msgspec knows and whose description is written for people."""
        read = self._value(path, value, inner)
        if isinstance(inner, inspect.StrType) and inner.pattern:
            try:
                msgspec.convert(read, Annotated[str, msgspec.Meta(pattern=inner.pattern)])
            except msgspec.ValidationError:
                raise Wrong(f"is {show(value)}; it must be {expected(type_)}") from None
        return read

    def _secret(self, value: Any) -> Secret:
        if not isinstance(value, str):
            raise Wrong('must be "env:NAME", "file:PATH" or the secret itself, in quotes')
        return self._read_secret(value)

    def _items(self, path: KeyPath, value: Any, type_: inspect.Type, item_type: inspect.Type) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Wrong(f"is {show(value)}; it must be {expected(type_)}")
        items, complete = [], True
        for position, item in enumerate(value):
            try:
                items.append(self._value((*path, position), item, item_type))
            except Wrong as wrong:
                complete = False
                if str(wrong):
                    self.problem((*path, position), str(wrong))
        if not complete:
            raise Wrong
        return tuple(items)


def dotted(path: KeyPath) -> str:
    """Write a path as people do: upstreams[1].name, counting from 1."""
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def show(value: Any) -> str:
    """Quote a value as TOML writes it, shortened."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, dict):
        text = "a table"
    elif isinstance(value, list):
        text = f"a list of {len(value)}"
    else:
        text = str(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def expected(type_: inspect.Type) -> str:
    """Say in words what a type takes."""
    match type_:
        case inspect.Metadata(extra_json_schema=schema) if schema and "description" in schema:
            return str(schema["description"])
        case inspect.Metadata(type=inner):
            return expected(inner)
        case inspect.UnionType(types=types):
            return expected(next(t for t in types if not isinstance(t, inspect.NoneType)))
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"a whole number{_range(type_)}"
        case inspect.FloatType():
            return f"a number{_range(type_)}"
        case inspect.DecimalType():
            return "a number"
        case inspect.LiteralType(values=choices):
            return " or ".join(show(choice) for choice in choices)
        case inspect.VarTupleType(item_type=inspect.StructType()):
            return "a list of tables"
        case inspect.VarTupleType():
            return 'a list of texts such as ["a", "b"]'
        case inspect.StructType():
            return "a table such as { input = 3, output = 15 }"
        case inspect.StrType(min_length=1):
            return "a text in quotes that is not empty"
        case _:
            return "a text in quotes"


def _is_number(value: Any) -> bool:
    return type(value) is int or (isinstance(value, Decimal) and value.is_finite())


def _bounds(type_: Any) -> tuple[Any, Any, Any]:
    """Give (at least, more than, at most). A number without bounds of its own must be above zero."""
    at_least, above, at_most = (
        getattr(type_, "ge", None),
        getattr(type_, "gt", None),
        getattr(type_, "le", None),
    )
    if at_least is None and above is None and not isinstance(type_, inspect.DecimalType):
        above = 0
    return at_least, above, at_most


def _in_range(value: float | Decimal, type_: inspect.Type) -> bool:
    at_least, above, at_most = _bounds(type_)
    return not (
        (at_least is not None and value < at_least)
        or (above is not None and value <= above)
        or (at_most is not None and value > at_most)
    )


def _range(type_: Any) -> str:
    at_least, above, at_most = _bounds(type_)
    if at_least is not None and at_most is not None:
        return f" from {at_least} to {at_most}"
    if at_least is not None:
        return f" of at least {at_least}"
    return f" above {above}" + (f" and at most {at_most}" if at_most is not None else "")
