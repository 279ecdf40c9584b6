"""A browser without a window: keeps cookies, follows redirects, fills in and sends the forms that a page shows.

It speaks to a real gateway over its socket. What it can do, a browser without JavaScript can.
"""

import functools
import gzip
import re
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import html5lib

from farebox.books.ledger import credit
from farebox.http.client import HttpClient
from farebox.ids import new_request_id
from farebox.money import NANOS_PER_USD
from tests.stage import Person, Stage

PASSWORD: Final = "seven quiet otters read maps"
_REDIRECTS: Final = 5
_BODY_BYTES: Final = 1 << 26
_NS: Final = "{http://www.w3.org/1999/xhtml}"


class Page:
    """An answer: its status, headers, text, and the elements of it."""

    def __init__(self, path: str, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        self.path = path
        """Where the browser is now, query included."""
        self.status = status
        self.headers = [(name.decode(), value.decode()) for name, value in headers]
        self.body = body
        """As it came, compressed if it was."""

    @property
    def text(self) -> str:
        packed = self.header("content-encoding") == "gzip"
        return (gzip.decompress(self.body) if packed else self.body).decode()

    @property
    def words(self) -> str:
        """What a reader sees: the text of the main part without markup, spaces folded."""
        found = list(self.find("main"))
        return _words(found[0] if found else self.tree)

    def header(self, name: str) -> str:
        """Give a header; several of one name joined by commas, none as nothing."""
        return ", ".join(value for key, value in self.headers if key.lower() == name)

    @functools.cached_property
    def tree(self) -> ET.Element:
        parsed: ET.Element = html5lib.parse(self.text)
        return parsed

    def faults(self) -> list[str]:
        """Name what is no valid HTML, and what the content security policy would not let in."""
        parser = html5lib.HTMLParser()
        parser.parse(self.text)
        wrong = [f"line {at[0]}: {code} {values}" for at, code, values in parser.errors]
        ids = [element.get("id") for element in self.tree.iter() if element.get("id")]
        wrong += [f"id {name!r} twice" for name in {one for one in ids if ids.count(one) > 1}]
        for element in self.tree.iter():
            name = str(element.tag).removeprefix(_NS)
            wrong += [f"<{name} {key}>" for key in element.attrib if key == "style" or key.startswith("on")]
            inline = name == "style" or (
                name == "script" and not element.get("src") and element.get("type") != "application/json"
            )
            wrong += [f"inline <{name}>"] if inline else []
            for key in ("src", "href", "action"):
                target = element.get(key, "")
                ours = name == "a" or not re.match(r"(https?:)?//", target)
                wrong += [] if ours and not target.startswith(("javascript:", "data:")) else [f"{name} {key}={target}"]
        return wrong

    def find(self, tag: str, **attributes: str) -> Iterator[ET.Element]:
        """Give the elements of a kind with these attributes."""
        for element in self.tree.iter():
            if str(element.tag).rpartition("}")[2] == tag and all(
                element.get(key.rstrip("_").replace("_", "-")) == value for key, value in attributes.items()
            ):
                yield element

    def rows(self, label: str) -> list[list[str]]:
        """Give the cells of the table in the region of this name, its head left out."""
        (region,) = self.find("div", aria_label=label)
        return [[_words(cell) for cell in row] for row in region.iter(f"{_NS}tr") if row.find(f"{_NS}td") is not None]

    def links(self) -> list[str]:
        return [link.get("href", "") for link in self.find("a")]

    def form(self, action: str = "") -> tuple[str, str, dict[str, str]]:
        """Give method, target and filled-in fields of the form that goes to this path, or of the only one in main."""
        places = [self.tree] if action else list(self.find("main"))
        forms = [form for place in places for form in place.iter(f"{_NS}form")]
        chosen = [form for form in forms if not action or urllib.parse.urlsplit(form.get("action", "")).path == action]
        assert len(chosen) == 1, f"{len(chosen)} forms for {action or 'this page'} at {self.path}"
        form = chosen[0]
        fields = {field.get("name", ""): _value(field) for kind in _FIELDS for field in form.iter(_NS + kind)}
        target = urllib.parse.urldefrag(form.get("action") or self.path.partition("?")[0]).url
        return form.get("method", "get").upper(), target, {name: value for name, value in fields.items() if name}


_FIELDS: Final = ("input", "select", "textarea")


def _value(field: ET.Element) -> str:
    if field.tag == f"{_NS}select":
        options = list(field.iter(f"{_NS}option"))
        chosen = [one for one in options if one.get("selected") is not None] or options[:1]
        return chosen[0].get("value", "") if chosen else ""
    if field.get("type") == "checkbox":
        return field.get("value", "on") if field.get("checked") is not None else ""
    return field.get("value", "") if field.tag != f"{_NS}textarea" else field.text or ""


_APART: Final = frozenset(
    {"br", "button", "dd", "div", "dt", "h1", "h2", "h3", "label", "li", "option", "p", "td", "th", "title", "tr"}
)


def _words(element: ET.Element) -> str:
    """Give the text of an element as one line, what stands in cells and paragraphs of its own apart."""
    pieces: list[str] = []

    def walk(one: ET.Element) -> None:
        space = " " if str(one.tag).rpartition("}")[2] in _APART else ""
        pieces.append(space + (one.text or ""))
        for child in one:
            walk(child)
            pieces.append(child.tail or "")
        pieces.append(space)

    walk(element)
    return " ".join("".join(pieces).split())


class Browser:
    """One browser of one person. Sends what a browser of today sends with forms; `fetch_site=None`: an old one."""

    def __init__(self, client: HttpClient, *, origin: str = "http://127.0.0.1", agent: str = "a browser") -> None:
        self._client = client
        self.origin = origin
        self.agent = agent
        self.cookies: dict[str, str] = {}
        self.set_cookies: list[str] = []
        """Every Set-Cookie as it came."""

    async def get(self, path: str, headers: Mapping[str, str] | None = None, *, follow: bool = True) -> Page:
        page = await self.send("GET", path, b"", {"sec-fetch-site": "same-origin", **(headers or {})})
        return await self._follow(page) if follow else page

    async def post(
        self,
        path: str,
        fields: Mapping[str, str] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        follow: bool = True,
    ) -> Page:
        body = fields if isinstance(fields, bytes) else urllib.parse.urlencode(fields or {}).encode()
        sent = {"sec-fetch-site": "same-origin", "content-type": "application/x-www-form-urlencoded", **(headers or {})}
        page = await self.send("POST", path, body, sent)
        return await self._follow(page) if follow else page

    async def submit(self, page: Page, action: str = "", **fields: str) -> Page:
        """Send a form of a page as it is filled in, with these fields changed. None but its own fields are taken."""
        method, target, filled = page.form(action)
        assert set(fields) <= set(filled), f"{target} has {sorted(filled)}"
        filled.update(fields)
        if method == "POST":
            return await self.post(target, filled)
        return await self.get(f"{re.split('[?#]', target)[0]}?{urllib.parse.urlencode(filled)}")

    async def send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Page:
        """Send one request and keep the cookies of the answer."""
        fields = [("user-agent", self.agent), *headers.items()]
        if self.cookies:
            fields.append(("cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items())))
        answer = await self._client.request(
            method, path, [(name.encode(), value.encode()) for name, value in fields], body, first_byte_s=30
        )
        page = Page(path, answer.status, answer.headers, await answer.read(_BODY_BYTES))
        for name, value in page.headers:
            if name.lower() == "set-cookie":
                self._keep(value)
        return page

    async def sign_up(self, stage: Stage, email: str, password: str = PASSWORD) -> Page:
        """Open an account, confirm the address by the mail, and sign in. Answers the page one lands on."""
        await self.submit(await self.get("/signup"), email=email, password=password)
        await self.submit(await self.get(await mailed_path(stage, email)))
        return await self.sign_in(email, password)

    async def sign_in(self, email: str, password: str = PASSWORD) -> Page:
        return await self.submit(await self.get("/login"), "/login", email=email, password=password)

    async def _follow(self, page: Page) -> Page:
        for _ in range(_REDIRECTS):
            if page.status not in {301, 302, 303, 307, 308}:
                return page
            target = page.header("location")
            assert target.startswith("/"), f"sent away to {target}"
            page = await self.send("GET", target, b"", {"sec-fetch-site": "same-origin"})
        raise AssertionError(f"round in circles at {page.path}")

    def _keep(self, cookie: str) -> None:
        self.set_cookies.append(cookie)
        name, _, rest = cookie.partition("=")
        value, _, attributes = rest.partition(";")
        if "max-age=0" in attributes.lower():
            self.cookies.pop(name, None)
        else:
            self.cookies[name] = value.strip('"')


def browser_of(stage: Stage, agent: str = "a browser") -> Browser:
    """Open a browser for a gateway."""
    return Browser(stage.client, origin=stage.gateway.config.public_url, agent=agent)


async def mails_to(stage: Stage, email: str) -> list[tuple[str, str]]:
    """Give subject and text of every mail written to an address, oldest first."""
    rows = await stage.rows("SELECT subject, body FROM outbox WHERE recipient = ? ORDER BY id", email)
    return [(subject, body) for subject, body in rows]


async def mailed_path(stage: Stage, email: str) -> str:
    """Give the path of the link in the last mail to an address."""
    _, body = (await mails_to(stage, email))[-1]
    found = re.search(r"https?://[^/\s]+(/\S+\?token=\S+)", body)
    assert found, body
    return found[1]


async def fund(stage: Stage, email: str, usd: float) -> None:
    """Put money into somebody's balance, as the operator does."""
    account_id = await account_of(stage, email)
    transfer_id = f"test:{new_request_id(stage.gateway.clock()).hex()}"
    await stage.gateway.ledger.post(
        credit(transfer_id, account_id, round(usd * NANOS_PER_USD), code="credit", actor="test", memo="a gift")
    )


async def account_of(stage: Stage, email: str) -> int:
    return int((await stage.rows("SELECT id FROM account WHERE email = ?", email))[0][0])


async def make_key(stage: Stage, browser: Browser, email: str, name: str = "laptop") -> Person:
    """Make a key in the dashboard. Answers the customer who can call with it."""
    page = await browser.submit(await browser.get("/dashboard/keys"), "/dashboard/keys", name=name)
    (shown,) = page.find("input", id="key")
    return Person(await account_of(stage, email), email, shown.get("value", ""))


async def enter(stage: Stage, email: str, agent: str = "a browser") -> Browser:
    """Sign somebody in whose account the operator has opened, with a password chosen by a mailed link."""
    browser = browser_of(stage, agent)
    if not await stage.rows(
        "SELECT 1 FROM credential c JOIN account a ON a.id = c.account_id WHERE a.email = ?", email
    ):
        await browser.submit(await browser.get("/forgot"), email=email)
        await browser.submit(await browser.get(await mailed_path(stage, email)), password=PASSWORD)
    await browser.sign_in(email)
    return browser
