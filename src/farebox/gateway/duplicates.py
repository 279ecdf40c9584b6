"""Fields that are given twice are refused wherever money hangs on them: whoever reads the first where we read the
last sees another price, or a feature that is switched off.

Values that account for every byte leave no room for a second field: so it is with what the SDKs send, and cheap to
see. Else the keys are decoded into objects that are each their own, so that none hides another.
"""

from typing import Final

import msgspec

from farebox.errors import InvalidRequest

Fields = dict[str, msgspec.Raw]
"""A JSON object's values, undecoded, by name."""

_CROWD_BYTES: Final = 2**20
_CROWD: Final = 250_000


class _Name:
    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def _own(_: type, text: str) -> _Name:
    return _Name(text)


_object: Final = msgspec.json.Decoder(Fields)
_objects: Final = msgspec.json.Decoder(list[Fields])
_names: Final = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=_own)
_lists_of_names: Final = msgspec.json.Decoder(list[dict[_Name, msgspec.Raw]], dec_hook=_own)


def read_object(raw: bytes | msgspec.Raw) -> Fields:
    """Decode an object, one level deep. Raises InvalidRequest for a field given twice, DecodeError for no object."""
    fields = _object.decode(raw)
    if _bytes_of(fields) != len(raw):
        _refuse_repeats(_names.decode(raw))
    return fields


def read_objects(raw: bytes | msgspec.Raw) -> list[Fields]:
    """Decode a list of objects, two levels deep, as `read_object` does."""
    items = _objects.decode(raw)
    size = len(items) + 1  # brackets and commas
    for fields in items:
        size += _bytes_of(fields)
    if size != len(raw):
        for names in _lists_of_names.decode(raw):
            _refuse_repeats(names)
    return items


def read_pairs(raw: bytes | msgspec.Raw) -> list[tuple[str, msgspec.Raw]]:
    """Decode an object, one level deep, with all its fields: of those given twice neither is lost."""
    return [(name.text, value) for name, value in _names.decode(raw).items()]


def refuse_crowd(body: bytes) -> None:
    """Refuse a large body of countless tiny values, which would keep everybody waiting while it is looked through.

    No model's context holds so many: what fills large bodies is embedded data.
    """
    if len(body) > _CROWD_BYTES and max(body.count(b"{"), body.count(b"["), body.count(b'"') // 8) > _CROWD:
        raise InvalidRequest(f"the body holds more than {_CROWD} objects, lists or fields; send less")


def _bytes_of(fields: Fields) -> int:
    """Count the bytes of an object written without white space and escaped names."""
    size = 1  # two braces, less the comma that the last field has not
    for name, value in fields.items():
        size += len(name) + len(value) + 4  # two quotes, a colon, a comma
    return size


def _refuse_repeats(names: dict[_Name, msgspec.Raw]) -> None:
    seen: set[str] = set()
    for name in names:
        if name.text in seen:
            raise InvalidRequest(f"{name.text[:100]}: the field is given twice; give it once")
        seen.add(name.text)
