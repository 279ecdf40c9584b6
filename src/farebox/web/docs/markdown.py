"""Turns Markdown into parts of a page: words on one side, code on the other. Classes only, no style and no script."""

import re
from collections.abc import Sequence
from typing import Any, Final

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup, escape
from msgspec import Struct
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

LANGUAGES: Final = {"cURL": "curl", "Python": "python", "TypeScript": "typescript", "Claude Code": "claude-code"}
"""The names that code samples stand under, and how addresses and scripts call them."""
_WIDE: Final = 3
"""A table of so many columns gets the whole width, unless its part has samples beside it."""
_WORDS: Final = re.compile(r"[^a-z0-9]+")


class Code(Struct, frozen=True):
    """A sample: its name ("Python"), its text, and that text coloured."""

    title: str
    language: str
    text: str
    html: Markup


class Box(Struct, frozen=True):
    """Samples that stand in each other's place, a tab each; or a single one."""

    id: str
    codes: tuple[Code, ...]

    @property
    def is_choice(self) -> bool:
        return self.codes[0].language != ""

    def chosen(self, language: str) -> Code:
        """Give the sample in a language, or the first where there is none."""
        return next((code for code in self.codes if code.language == language), self.codes[0])


class Part(Struct, frozen=True):
    """A heading with what is below it; the first part of a page has none."""

    id: str
    title: str
    html: Markup
    boxes: tuple[Box, ...] = ()
    is_wide: bool = False
    """It has a table that wants the whole width."""


class Row(Struct, frozen=True):
    """Parts that stand one below the other, and the samples that stay beside all of them."""

    parts: tuple[Part, ...]

    @property
    def boxes(self) -> tuple[Box, ...]:
        return self.parts[0].boxes


class Text(Struct, frozen=True):
    """A page: its title, the paragraph that sums it up, and its parts."""

    title: str
    summary: str
    parts: tuple[Part, ...]

    @property
    def rows(self) -> list[Row]:
        """Lay the parts out: those without samples of their own go on beside the ones before them."""
        rows: list[list[Part]] = []
        for part in self.parts:
            if not rows or part.boxes or part.is_wide or rows[-1][-1].is_wide:
                rows.append([])
            rows[-1].append(part)
        return [Row(tuple(parts)) for parts in rows]


def read(source: str) -> Text:
    """Read a page of the manual: its title, a paragraph that sums it up, then sections.

    A fence with a name after its language ("sh cURL") is a sample and goes to the side; those that follow each other
    and are named by a language share a box.
    """
    markdown = _markdown()
    tokens = markdown.parse(source)
    assert [token.type for token in tokens[:4]] == ["heading_open", "inline", "heading_close", "paragraph_open"]
    parts = [_part(markdown, chunk) for chunk in _chunks(tokens[3:])]
    return Text(tokens[1].content, _plain(tokens[4]), tuple(parts))


def read_plain(source: str, title: str) -> Text:
    """Read a text of the operator's, such as terms: its own title or else this one. HTML in it stays text."""
    markdown = _markdown()
    tokens = markdown.parse(source)
    if tokens and tokens[0].type == "heading_open" and tokens[0].tag == "h1":
        title, tokens = _plain(tokens[1]), tokens[3:]
    for token in tokens:
        if token.tag == "h1":
            token.tag = "h2"
    return Text(title, "", (Part("", "", _render(markdown, tokens, title)),))


def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("fence", _fence)
    markdown.add_render_rule("table_open", _table_open)
    markdown.add_render_rule("table_close", _table_close)
    return markdown


def _chunks(tokens: Sequence[Token]) -> list[list[Token]]:
    """Cut a page before each heading of the second level."""
    chunks: list[list[Token]] = [[]]
    for token in tokens:
        if token.type == "heading_open" and token.tag == "h2":
            chunks.append([])
        chunks[-1].append(token)
    return chunks


def _part(markdown: MarkdownIt, tokens: list[Token]) -> Part:
    title = ""
    if tokens and tokens[0].type == "heading_open":
        title, tokens = _plain(tokens[1]), tokens[3:]
    name = slug(title)
    words = [token for token in tokens if not _is_sample(token)]
    html = _render(markdown, words, title or "Overview")
    boxes = tuple(_boxes(tokens, name or "top"))
    return Part(name, title, html, boxes, is_wide=not boxes and _columns(words) >= _WIDE)


def _columns(tokens: Sequence[Token]) -> int:
    """Count the columns of the widest table."""
    heads = [0]
    for token in tokens:
        if token.type == "thead_open":
            heads.append(0)
        heads[-1] += token.type == "th_open"
    return max(heads)


def _boxes(tokens: Sequence[Token], name: str) -> list[Box]:
    found: list[list[Code]] = []
    joins = False
    for token in tokens:
        if not _is_sample(token):
            joins = False
            continue
        code = _code(token)
        if joins and code.language:
            found[-1].append(code)
        else:
            found.append([code])
        joins = bool(code.language)
    return [Box(f"{name}-code-{number}", tuple(codes)) for number, codes in enumerate(found, 1)]


def _is_sample(token: Token) -> bool:
    return token.type == "fence" and token.level == 0 and " " in token.info.strip()


def _code(token: Token) -> Code:
    lexer, _, title = token.info.strip().partition(" ")
    return Code(title, LANGUAGES.get(title, ""), token.content.rstrip("\n"), colour(token.content.rstrip("\n"), lexer))


def colour(text: str, language: str) -> Markup:
    """Colour code by classes tok-…; a language that nobody knows stays plain."""
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return escape(text)
    return Markup(highlight(text, lexer, HtmlFormatter(nowrap=True, classprefix="tok-")).rstrip("\n"))  # noqa: S704


def _render(markdown: MarkdownIt, tokens: Sequence[Token], title: str) -> Markup:
    tables = 0
    for at, token in enumerate(tokens):
        if token.attrs.get("style"):
            token.attrs["class"] = "num" if "right" in str(token.attrs.pop("style")) else ""
        if token.type == "heading_open":
            token.attrs["id"] = slug(_plain(tokens[at + 1]))
        if token.type == "table_open":
            tables += 1
            token.meta = {"label": title if tables == 1 else f"{title}, table {tables}"}
        if token.type == "bullet_list_open" and _begins_with_code(tokens[at + 3]):
            token.attrs["class"] = "fields"
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))  # noqa: S704  made of tokens, HTML is off


def _begins_with_code(token: Token) -> bool:
    """Tell a list of fields: the first thing in it is a name set as code, then its type in italics."""
    kinds = [child.type for child in token.children or []]
    return kinds[:1] == ["code_inline"] and "em_open" in kinds[:3]


def _plain(token: Token) -> str:
    return "".join(child.content or " " for child in token.children or [] if child.type in _TEXT)


_TEXT: Final = frozenset({"text", "code_inline", "softbreak"})


def slug(title: str) -> str:
    """Turn a heading into the name it is linked to by."""
    return _WORDS.sub("-", title.lower()).strip("-")


def _fence(_: RendererHTML, tokens: Sequence[Token], at: int, options: OptionsDict, env: EnvType) -> str:  # noqa: ARG001
    token = tokens[at]
    language = token.info.strip().partition(" ")[0]
    return f'<div class="code"><pre tabindex="0" data-copy>{colour(token.content.rstrip(), language)}</pre></div>\n'


def _table_open(_: RendererHTML, tokens: Sequence[Token], at: int, *__: Any) -> str:
    label = escape(tokens[at].meta["label"])
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">\n<table>\n'


def _table_close(*_: Any) -> str:
    return "</table>\n</div>\n"
