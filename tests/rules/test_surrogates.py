"""Halves of surrogate pairs in JSON text: what reads beside it gets a copy that can be read, of the same length."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.http.surrogates import without_halves
from farebox.upstreams.kinds.bodies import with_fields

pieces = st.sampled_from(["\ud83d", "\ude00", "\ud83d\ude00", "\\", "\\\\", "\\ud83d", "u", '"', "é", "\n", "x"])


@given(st.lists(pieces, max_size=12).map("".join))
def test_any_text_can_be_read_and_only_halves_have_changed(text: str) -> None:
    raw = json.dumps(text).encode()
    readable = without_halves(raw) or raw
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert msgspec.json.decode(readable) == whole
    assert len(readable) == len(raw)


@pytest.mark.parametrize(
    ("raw", "readable"),
    [
        (rb'"\uD83D"', rb'"\ufffd"'),
        (rb'"\ude00\ud83d"', rb'"\ufffd\ufffd"'),
        (rb'"\ud83d\ud83d\ude00"', rb'"\ufffd\ud83d\ude00"'),
        (rb'"\\ud83d \ud83d\ude00"', rb'"\\ud83d \ud83d\ude00"'),
        (rb'"\\\ud83d"', rb'"\\\ufffd"'),
    ],
    ids=["high", "low, then high", "high before a pair", "none", "behind a backslash"],
)
def test_a_half_becomes_the_character_for_what_cannot_be_shown(raw: bytes, readable: bytes) -> None:
    assert without_halves(raw) == readable


def test_a_text_without_surrogates_or_with_countless_ones_is_not_looked_through() -> None:
    assert without_halves(rb'"\u00e9"') is None
    assert without_halves(rb'"%b"' % (rb"\ud83d" * 20_000)) is None


def test_another_models_name_goes_into_a_body_with_a_half_in_it() -> None:
    body = rb'{"model":"a","messages":[{"role":"user","content":"\ud83d"}]}'
    assert with_fields(body, model="b") == rb'{"model":"b","messages":[{"role":"user","content":"\ufffd"}]}'
