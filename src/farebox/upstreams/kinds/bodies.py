"""Changes to a request body that leave every other field as it came."""

from typing import Final

import msgspec

from farebox.http.surrogates import without_halves

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_fields(body: bytes, **changes: object) -> bytes:
    """Set top-level fields of a JSON object, or take out those that are None.

    Values of other fields stay byte for byte; only what stands between them is written anew. Where there are halves of
    surrogate pairs, U+FFFD stands in their place.
    """
    try:
        fields: dict[str, object] = dict(_fields.decode(body))
    except msgspec.DecodeError:
        fields = dict(_fields.decode(without_halves(body) or body))
    for name, value in changes.items():
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = value
    return msgspec.json.encode(fields)
