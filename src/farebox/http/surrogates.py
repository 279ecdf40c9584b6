r"""JSON text with halves of surrogate pairs ("\ud83d" alone): valid by RFC 8259 8.2, no Unicode, no parser's friend.

Clients and models do write it, where a text was cut in the middle of a character. It crosses as it came; only what
reads beside it needs a copy without.
"""

import re
from typing import Final

_MOST: Final = 10_000
"""Surrogates in one text; more are not looked through."""
_SURROGATES: Final = re.compile(
    rb"(?<!\\)((?:\\\\)*)\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2}))"
)


def without_halves(text: bytes) -> bytes | None:
    """Put U+FFFD in the place of every half of a pair. None where there is none, or more than anybody needs."""
    count = text.count(rb"\ud") + text.count(rb"\uD")
    if not 0 < count <= _MOST:
        return None
    return _SURROGATES.sub(lambda found: found[1] + rb"\ufffd" if found[2] else found[0], text)
