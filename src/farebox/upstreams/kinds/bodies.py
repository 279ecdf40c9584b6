"""Changes to a request body that leave every other field as it came."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from farebox.errors import InvalidRequest
from farebox.http.surrogates import without_halves

_LARGE_BYTES: Final = 2**20
T = TypeVar("T")
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_fields(body: bytes, **changes: object) -> bytes:
    """Set top-level fields of a JSON object, or take out those that are None.

    Values of other fields stay byte for byte; only what stands between them is written anew. Where there are halves of
    surrogate pairs, U+FFFD stands in their place. Raises InvalidRequest for a body that cannot be read here.
    """
    try:
        try:
            fields: dict[str, object] = dict(_fields.decode(body))
        except msgspec.DecodeError:
            fields = dict(_fields.decode(without_halves(body) or body))
    except (msgspec.DecodeError, RecursionError):  # how deep is too deep depends on who reads
        raise InvalidRequest("the body cannot be read: it must be a JSON object, nested 500 levels at most") from None
    for name, value in changes.items():
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = value
    return msgspec.json.encode(fields)


async def beside(body: bytes, rewrite: Callable[..., T], *args: Any, **named: Any) -> T:
    """Rewrite a body: beside the loop, where others are served meanwhile, when it is large."""
    if len(body) < _LARGE_BYTES:
        return rewrite(body, *args, **named)
    return await asyncio.to_thread(rewrite, body, *args, **named)
