"""Lines: the locator finds what tomllib read, whatever the document looks like."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.config.locate import line_of, locate

DOCUMENTS = {
    "strings that look like headers": ('a = """\n[b]\nc = 1\n"""\nd = 1\n', {("a",): 1, ("d",): 5}),
    "literal strings": ("a = '''\n[b]\n'''\nd = 1\n", {("d",): 4}),
    "lists over lines": ('a = [\n  "]", # ]\n  [1],\n]\nb = 2\n', {("a",): 1, ("b",): 5}),
    "inline tables": ('a = { b = "}", c = [1] }\nd = 1', {("a",): 1, ("d",): 2}),
    "dotted keys": ('a.b."c.d" = 1', {("a", "b", "c.d"): 1, ("a",): 1}),
    "lists of tables": ("[[a]]\nb = 1\n[[a]]\n\nb = 2\n[[a.c]]\nd = 1", {("a", 1, "b"): 5, ("a", 1, "c", 0, "d"): 7}),
    "sub-tables of a list": (
        "[[a]]\n[a.b]\nc = 1\n[[a]]\n[a.b]\nc = 1",
        {("a", 0, "b", "c"): 3, ("a", 1, "b", "c"): 6},
    ),
    "comments and quotes": ("# it's\na = 1 # [x]\n\n[ b . 'c d' ] # y\nd = \"#\"\ne = 1", {("b", "c d", "e"): 6}),
    "windows lines": ("[a]\r\nb = 1\r\nc = 2\r\n", {("a", "c"): 3}),
    "escaped quotes": ('a = "\\"]\\\\"\nb = """x\\"""" \nc = 1', {("b",): 2, ("c",): 3}),
}


@pytest.mark.parametrize(("text", "lines"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_keys_are_found_on_their_lines(text: str, lines: dict[tuple[str | int, ...], int]) -> None:
    tomllib.loads(text)
    found = locate(text)
    assert {path: found.get(path) for path in lines} == lines


def test_what_has_no_line_of_its_own_stands_where_its_table_does() -> None:
    lines = locate("\n[[a]]\nb = { c = 1 }\n")
    assert line_of(lines, ("a", 0, "b", "c")) == 3
    assert line_of(lines, ("a", 0, "x")) == 2
    assert line_of(lines, ("y",)) is None


VALUES = st.sampled_from(
    ["1", '"#"', "'''\n[x]\ny = 1\n'''", '"""\n]"""', "[1,\n 2]", "{ a = [1] }", "'['", "1979-05-27", "-inf"]
)


@given(parts=st.lists(st.tuples(st.sampled_from(["", "# c\n", "\n"]), VALUES), max_size=8), in_table=st.booleans())
def test_any_mixture_of_values_leaves_every_key_on_its_line(parts: list[tuple[str, str]], *, in_table: bool) -> None:
    text = "[t]\n" if in_table else ""
    expected: dict[tuple[str | int, ...], int] = {}
    for number, (before, value) in enumerate(parts):
        text += before
        key = f"k{number}"
        expected[("t", key) if in_table else (key,)] = text.count("\n") + 1
        text += f"{key} = {value} # {value[:1]}\n"
    tomllib.loads(text)
    assert {path: line for path, line in locate(text).items() if path != ("t",)} == expected
