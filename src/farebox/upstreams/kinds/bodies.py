"""Changes to a request body that leave every other field as it came."""

from typing import Final

import msgspec

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_fields(body: bytes, **changes: object) -> bytes:
    """Set top-level fields of a JSON object, or take out those that are None.

    Values of other fields stay byte for byte; only what stands between them is written anew.
    """
    fields: dict[str, object] = dict(_fields.decode(body))
    for name, value in changes.items():
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = value
    return msgspec.json.encode(fields)
