"""Identifiers: a typo in a key is seen without a look-up; request ids sort by time."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.ids import (
    key_hash,
    key_hint,
    key_is_well_formed,
    new_key,
    new_request_id,
    read_request_id,
    show_request_id,
)

PREFIX = "sk-cc-"
ALPHABET = string.ascii_letters + string.digits


def test_every_typo_of_one_character_shows() -> None:
    key = new_key(PREFIX)
    for place in range(len(key)):
        for other in ALPHABET + "-_ é":
            if other != key[place]:
                assert not key_is_well_formed(key[:place] + other + key[place + 1 :], PREFIX)


def test_every_swap_of_neighbours_shows() -> None:
    for _ in range(50):
        key = new_key(PREFIX)
        for place in range(len(key) - 1):
            first, second = key[place], key[place + 1]
            if first != second:
                assert not key_is_well_formed(key[:place] + second + first + key[place + 2 :], PREFIX)


def test_every_missing_or_doubled_character_shows() -> None:
    key = new_key(PREFIX)
    for place in range(len(key)):
        assert not key_is_well_formed(key[:place] + key[place + 1 :], PREFIX)
        assert not key_is_well_formed(key[: place + 1] + key[place:], PREFIX)


def test_keys_are_well_formed_different_and_of_the_documented_form() -> None:
    keys = {new_key(PREFIX) for _ in range(200)}
    assert len(keys) == 200
    for key in keys:
        assert key_is_well_formed(key, PREFIX)
        assert len(key) == len(PREFIX) + 49
        assert set(key.removeprefix(PREFIX)) <= set(ALPHABET)
        assert not key_is_well_formed(key, "sk-other-")


@given(st.text(max_size=80))
def test_no_text_that_was_not_made_here_is_a_key(text: str) -> None:
    assert not key_is_well_formed(text, PREFIX)
    assert not key_is_well_formed(PREFIX + text[:49], PREFIX)


def test_a_hint_tells_siblings_apart_and_gives_eight_characters_away() -> None:
    key = new_key(PREFIX)
    assert key_hint(key, PREFIX) == f"{key[:10]}…{key[-4:]}"
    assert len(key_hash(key.encode())) == 32
    assert key_hash(key.encode()) != key_hash(key[:-1].encode())


@given(st.lists(st.integers(0, 2**48 * 1000 - 1), min_size=2, max_size=20))
def test_request_ids_are_version_7_and_sort_by_their_millisecond(moments: list[int]) -> None:
    made = [(moment // 1000, new_request_id(moment)) for moment in moments]
    for millis, one in made:
        assert int.from_bytes(one[:6], "big") == millis
        assert (one[6] >> 4, one[8] >> 6) == (7, 0b10)
    assert [millis for millis, _ in sorted(made, key=lambda pair: pair[1])] == sorted(m for m, _ in made)


@given(st.binary(min_size=16, max_size=16))
def test_a_request_id_comes_back_from_how_it_is_shown(request_id: bytes) -> None:
    assert read_request_id(show_request_id(request_id)) == request_id


@pytest.mark.parametrize("text", ["req_", "req_00", "hello", "req_" + "0" * 31, "req_" + "0" * 34])
def test_anything_else_is_no_request_id(text: str) -> None:
    with pytest.raises(ValueError, match=r"req_|hexadecimal"):
        read_request_id(text)
