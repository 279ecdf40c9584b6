"""The manual as a whole: its pages in order, each written in Markdown with this server's own figures in it."""

import functools
import json
from typing import Any, Final

import jinja2
from msgspec import Struct

import farebox
from farebox.accounts.signing import KEYS_PATH
from farebox.events.courier import TRIES
from farebox.events.webhooks import DATA, EVENTS
from farebox.web.docs.advice import advice, write_size, write_span
from farebox.web.docs.endpoint import Endpoint, Schema
from farebox.web.docs.endpoints import endpoints
from farebox.web.docs.markdown import Text, read
from farebox.web.docs.openapi import openapi
from farebox.web.offer import Offer
from farebox.web.pages import write_balance, write_cost, write_count, write_price

CONTENTS: Final = {
    "Begin": ("quickstart", "claude-code", "sdks", "authentication"),
    "Reference": (
        "messages",
        "streaming",
        "count-tokens",
        "batches",
        "models",
        "openai",
        "offered",
        "limits",
        "errors",
    ),
    "Money": ("billing", "top-ups"),
    "Your account": ("signing-in", "account", "quotes", "receipts", "status-line", "webhooks"),
}
"""All pages by their groups, in the order they are read."""
FEATURES: Final = {
    "threads": "`thread`",
    "fallbacks": "`fallbacks`",
    "fallback_credit": "`fallback_credit_token`",
    "advisor": "tools `advisor_*`",
    "mcp": "`mcp_servers` and tools `mcp_toolset`",
    "code_execution": "tools `code_execution_*`",
    "containers": "`container`",
    "compaction": "`compaction`",
    "files": "files by `file_id`",
    "user_profiles": "`user_profile_id` and `billing_policy`",
    "workspaces": "`workspace_id`",
    "web_search": "tools `web_search_*`",
    "web_fetch": "tools `web_fetch_*`",
    "url_sources": "images and documents by `url`",
    "fast": '`speed: "fast"`',
}
"""What of a request each switch of `[features]` lets through."""


class Page(Struct, frozen=True):
    """A page of the manual. `source` is its Markdown, which is its twin for machines, too."""

    slug: str
    group: str
    source: str
    text: Text


class Book:
    """The manual of one server. Its pages are rendered together, once, by whoever first asks for them."""

    def __init__(self, offer: Offer, site_name: str, support_email: str) -> None:
        self._offer = offer
        self._title = site_name
        self._support_email = support_email
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("farebox.web.docs", "text"),
            autoescape=False,  # noqa: S701  this makes Markdown; what becomes HTML of it is escaped there
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            undefined=jinja2.StrictUndefined,
        )
        self._environment.filters.update(
            balance=write_balance,
            cost=write_cost,
            price=write_price,
            count=write_count,
            size=write_size,
            span=write_span,
        )

    @functools.cached_property
    def pages(self) -> dict[str, Page]:
        """All pages by name, in order. The first time takes about a tenth of a second."""
        values = self._values()
        pages = {}
        for group, slugs in CONTENTS.items():
            for slug in slugs:
                source = self._environment.get_template(f"{slug}.md").render(values)
                pages[slug] = Page(slug, group, source, read(source))
        return pages

    @functools.cached_property
    def openapi(self) -> bytes:
        """/openapi.json."""
        offer = self._offer
        described = openapi(endpoints(offer), advice(offer), offer, f"{self._title} API", farebox.__version__)
        return json.dumps(described, indent=1, ensure_ascii=False).encode()

    @functools.cached_property
    def index(self) -> str:
        """/llms.txt (llmstxt.org): what there is to read, and where."""
        lines = [
            f"# {self._title}\n",
            f"> The Anthropic Messages API at {self._offer.base_url}, paid per token from a prepaid balance.\n",
        ]
        for group in CONTENTS:
            lines.append(f"## {group}\n")
            lines += [self._entry(page) for page in self.pages.values() if page.group == group]
            lines.append("")
        public_url = self._offer.public_url
        lines += [
            "## More\n",
            f"- [All pages in one]({public_url}/llms-full.txt)",
            f"- [The API as OpenAPI 3.1]({public_url}/openapi.json)",
        ]
        return "\n".join(lines) + "\n"

    @functools.cached_property
    def whole(self) -> str:
        """/llms-full.txt: every page, one after the other."""
        return "\n\n".join(page.source.rstrip("\n") for page in self.pages.values()) + "\n"

    def _entry(self, page: Page) -> str:
        return f"- [{page.text.title}]({self._offer.public_url}/docs/{page.slug}.md): {page.text.summary}"

    def _values(self) -> dict[str, Any]:
        offer = self._offer
        return {
            "site_name": self._title,
            "support_email": self._support_email,
            "offer": offer,
            "limits": offer.limits,
            "base_url": offer.base_url,
            "path": offer.base_url.removeprefix(offer.public_url),
            "public_url": offer.public_url,
            "keys_path": KEYS_PATH,
            "model": offer.sample.id,
            "key": f"{offer.key_prefix}your-key",
            "refused": [words for name, words in FEATURES.items() if not offer.features.get(name)],
            "errors": advice(offer),
            "api": {endpoint.slug.replace("-", "_"): endpoint for endpoint in endpoints(offer)},
            "curl": functools.partial(_curl, offer.base_url),
            "fields": _fields,
            "events": EVENTS,
            "event_data": {name: ", ".join(f"`{field}`" for field in fields) for name, fields in DATA.items()},
            "webhook_tries": TRIES,
            "private_webhooks": offer.private_webhooks,
            "json": _json,
        }


def _curl(base_url: str, endpoint: Endpoint, path: str = "", flags: str = "", **more: Any) -> str:
    """Write the call of an endpoint, with its example as the body and `more` in it."""
    url = f"{base_url}{path or endpoint.path}"
    quote = "'" if "?" in url else ""  # some shells take it for a pattern
    lines = [
        f"curl {flags}{quote}{url}{quote}",
        '-H "x-api-key: $FAREBOX_KEY"',
    ]
    if endpoint.example is not None:
        lines += [
            '-H "anthropic-version: 2023-06-01"',
            '-H "content-type: application/json"',
            "-d '" + _json({**endpoint.example, **more}).replace("\n", "\n  ") + "'",
        ]
    return " \\\n  ".join(lines)


def _json(value: Schema) -> str:
    """Write JSON as people do: an object a line for each field, what is within on one line where it fits."""
    lines = [f"  {json.dumps(name)}: {_inner(field)}" for name, field in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def _inner(value: Any) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) <= 66:
        return flat
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  ")


def _fields(endpoint: Endpoint, place: str = "body") -> str:
    """Write an endpoint's fields as a list: name, type, whether it is required, and what it means."""
    return "\n".join(
        f"- `{field.name}` *{field.kind}*{' **required**' if field.required else ''}\n\n  {field.words}\n"
        for field in endpoint.fields
        if field.place == place
    )
