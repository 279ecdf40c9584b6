"""What guards the pages: who may see and change what, headers, forms from elsewhere, and whatever garbage is sent."""

import itertools
import random
import re
from typing import Any, Final

import pytest
from starlette.routing import Route

from tests.stage import MODEL, Person, Stage
from tests.web.browse import PASSWORD, Browser, Page, account_of, browser_of, enter, make_key
from tests.web.operators import OPERATOR, enter_admin, forget_proof

CANARY: Final = "xylophone-canary-7391"
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
CHANGE_NOTHING: Final = {"/admin/viewing/end", "/admin/upstreams/{name}/test"}
"""Forms of operators that need no proof of the last minutes."""
SIGNED: Final = {"/webhooks/btcpay"}
"""Where no browser sends anything: a signature tells who does (tests/payments/test_btcpay_webhooks.py)."""
ALICES: Final = (
    "SELECT id, email, plan, status, role, verified_at FROM account WHERE id = ?",
    "SELECT * FROM api_key WHERE account_id = ? ORDER BY id",
    "SELECT b.key_id, limit_nanos, resets FROM key_budget b JOIN api_key k ON k.id = b.key_id WHERE account_id = ?",
    "SELECT * FROM alert WHERE account_id = ? ORDER BY id",
    "SELECT * FROM webhook WHERE account_id = ? ORDER BY id",
    "SELECT d.id, d.event FROM delivery d JOIN webhook w ON w.id = d.webhook_id WHERE account_id = ? ORDER BY d.id",
    "SELECT * FROM stopped_session WHERE account_id = ?",
    "SELECT * FROM credential WHERE account_id = ?",
    "SELECT * FROM totp WHERE account_id = ?",
    "SELECT * FROM recovery_code WHERE account_id = ? ORDER BY hash",
    "SELECT * FROM passkey WHERE account_id = ? ORDER BY id",
    "SELECT details FROM account WHERE id = ?",
    "SELECT hash, created_at, ends_at FROM session WHERE account_id = ? ORDER BY hash",
    "SELECT * FROM familiar WHERE account_id = ? ORDER BY hash",
    "SELECT id, sent_at FROM outbox WHERE recipient = (SELECT email FROM account WHERE id = ?) ORDER BY id",
)
"""What of an account nobody else may change."""


def routes(stage: Stage) -> list[Route]:
    """Give every route of the site: a new one is tried without being named here."""
    server: Any = stage.gateway._server
    found = server.handler.__self__._pages.__self__._app._app.routes
    assert len(found) > 20
    return [route for route in found if isinstance(route, Route)]


class Alices:
    """What alice has, and strangers shall neither see nor touch."""

    def __init__(self, browser: Browser, person: Person, values: dict[str, str]) -> None:
        self.browser = browser
        self.person = person
        self.values = values

    def path(self, route: Route) -> str:
        """Write an address of a route that is about alice's things."""
        return re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: self.values.get(found[1], "1"), route.path)

    def has(self, route: Route) -> bool:
        """Tell whether what an address of a route names is there."""
        return all(name in self.values for name in re.findall(r"\{(\w+)", route.path))

    def seen_in(self, page: Page) -> list[str]:
        """Name what of alice's shows on a page."""
        names = (self.values[name] for name in ("request_id", "name", "session"))
        secrets = (self.person.email, "alices-laptop", "alices-hook", "alices-phone", *names, CANARY)
        return [secret for secret in secrets if secret in page.text]


async def alices(stage: Stage) -> Alices:
    browser = await enter(stage, stage.alice.email, "alice's browser")
    person = await make_key(stage, browser, stage.alice.email, "alices-laptop")
    said = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": f"Say {CANARY}"}]}
    answer = await stage.post(person, said, headers={"x-claude-code-session-id": "alices-session"})
    assert answer.status == 200
    await answer.read(1 << 20)
    ((request_id,),) = await stage.rows("SELECT request_id FROM usage WHERE account_id = ?", person.account_id)
    ((key_id,),) = await stage.rows("SELECT id FROM api_key WHERE name = ?", "alices-laptop")
    ((session,),) = await stage.rows("SELECT hash FROM session WHERE account_id = ?", person.account_id)
    hook = {"url": "https://alices-hook.example/", "key.revoked": "on"}
    assert (await browser.post("/dashboard/settings/webhooks/new", hook)).status == 200
    await browser.post("/dashboard/settings/alerts", {"balance": "1"})
    ((webhook_id,),) = await stage.rows("SELECT id FROM webhook WHERE account_id = ?", person.account_id)
    passkey = (
        "INSERT INTO passkey (id, account_id, public_key, signs, name, transports, created_at) "
        "VALUES (?, ?, ?, 0, 'alices-phone', '[]', 1)"
    )
    await stage.gateway.store.write([(passkey, (b"alices-passkey", person.account_id, b""))])
    values = {
        "passkey": b"alices-passkey".hex(),
        "webhook_id": str(webhook_id),
        "delivery_id": "msg_of_alices",
        "request_id": f"req_{request_id.hex()}",
        "key_id": str(key_id),
        "name": session.hex()[:16],
        "session": "alices-session",
        "version": "0",
        "page": "quickstart",
        "slug": "quickstart",
        "account_id": str(person.account_id),
        "act": "suspend",
    }
    return Alices(browser, person, values)


async def state_of(stage: Stage, account_id: int) -> list[list[tuple[Any, ...]]]:
    return [await stage.rows(sql, account_id) for sql in ALICES]


async def test_nobody_sees_or_changes_what_is_anothers(stage: Stage) -> None:
    """Every route, by every method, as anonymous, as bob and as somebody suspended, pointed at alice's things."""
    hers = await alices(stage)
    suspended = await enter(stage, (await stage.person("carol@example.com", 5)).email)
    await stage.gateway.store.write([("UPDATE account SET status = 'suspended' WHERE email = 'carol@example.com'", ())])
    strangers = {"anonymous": browser_of(stage), "bob": await enter(stage, stage.bob.email), "suspended": suspended}
    before = await state_of(stage, hers.person.account_id)
    for route, method, (who, browser) in itertools.product(routes(stage), METHODS, strangers.items()):
        path = hers.path(route)
        cookies = dict(browser.cookies)
        page = await browser.send(method, path, b"name=x&new_password=" + b"y" * 30, {"sec-fetch-site": "same-origin"})
        browser.cookies = cookies
        told = f"{who} {method} {path}: {page.status}"
        assert page.status < 500, told
        assert not hers.seen_in(page), told
        if method not in (route.methods or set()):
            assert page.status == 405, told
        elif path.startswith("/admin"):
            assert page.status == 404, told
        elif path.startswith("/dashboard") and who == "anonymous":
            assert page.status == 303, told
            assert page.header("location").startswith("/login?next="), told
        elif re.search(r"/(keys|requests|work|webhooks|passkeys)/(?!new$)[^/]", path):
            assert page.status == 404, told
        if path in {"/logout", "/dashboard/sessions/end"} and method == "POST" and who != "anonymous":
            await browser.sign_in({"bob": stage.bob.email, "suspended": "carol@example.com"}[who])
    assert await state_of(stage, hers.person.account_id) == before
    assert (await hers.browser.get("/dashboard")).path == "/dashboard"
    assert (await stage.ask(hers.person))[0] == 200


async def test_an_operator_is_no_stranger_to_admin_alone(stage: Stage) -> None:
    """At /dashboard an operator is a customer like others; at /admin a change asks for a proof of the last minutes."""
    hers = await alices(stage)
    browser = await enter_admin(stage)
    before = await state_of(stage, hers.person.account_id)
    forms = b"name=x&reason=x&amount=5&kind=debit&plan=free&notes=x"
    for route, method in itertools.product(routes(stage), METHODS):
        path = hers.path(route)
        if method not in (route.methods or set()) or path in {"/logout", "/dashboard/sessions/end"}:
            continue
        is_change = path.startswith("/admin") and method != "GET" and route.path not in CHANGE_NOTHING
        if is_change:
            await forget_proof(stage)
        cookies = dict(browser.cookies)
        page = await browser.send(method, path, forms, {"sec-fetch-site": "same-origin"})
        browser.cookies = cookies
        told = f"{method} {path}: {page.status}"
        assert page.status < 500, told
        if is_change:
            assert page.status == 307, told
            assert page.header("location").startswith("/confirm?"), told
        elif path.startswith("/admin"):
            assert page.status in {200, 303, 404}, told
        else:
            assert not hers.seen_in(page), told
            assert page.status == 404 or not re.search(r"^/dashboard/(keys|requests|work)/[^/]", path), told
    assert await state_of(stage, hers.person.account_id) == before
    assert await stage.rows("SELECT action FROM audit_log WHERE actor = ?", OPERATOR) == [("letter.read",)]


async def test_an_operator_who_looks_as_alice_changes_nothing_of_hers(stage: Stage) -> None:
    """Every page of hers is shown or refused, every form is refused, and her account is as it was."""
    hers = await alices(stage)
    browser = await enter_admin(stage)
    await browser.post(f"/admin/customers/{hers.person.account_id}/view", {"reason": "a test"})
    before = await state_of(stage, hers.person.account_id)
    for route, method in itertools.product(routes(stage), METHODS):
        path = hers.path(route)
        if method not in (route.methods or set()) or not path.startswith("/dashboard"):
            continue
        page = await browser.send(method, path, b"name=x&lifetime=", {"sec-fetch-site": "same-origin"})
        told = f"{method} {path}: {page.status}"
        assert page.status == 403 if method != "GET" else page.status in {200, 303, 403, 404}, told
        if page.status == 200 and "html" in page.header("content-type"):
            assert "Nothing can be changed." in page.words or "</html>" not in page.text, told
    assert await state_of(stage, hers.person.account_id) == before
    assert (await browser.get("/dashboard/keys")).words.count("alices-laptop") > 0


async def test_a_suspended_customer_looks_at_everything_and_makes_no_key(stage: Stage) -> None:
    hers = await alices(stage)
    await stage.gateway.store.write([("UPDATE account SET status = 'suspended' WHERE email = ?", (stage.alice.email,))])
    for route in routes(stage):
        if "GET" in (route.methods or set()) and route.path.startswith("/dashboard"):
            page = await hers.browser.get(hers.path(route))
            assert page.status == (200 if hers.has(route) else 404), route.path
            if "html" in page.header("content-type"):
                assert "This account is suspended" in page.words
    before = await state_of(stage, hers.person.account_id)
    refused = await hers.browser.post("/dashboard/keys", {"name": "more"})
    assert refused.status == 403
    assert "gets no new keys" in refused.words
    closing = await hers.browser.post("/dashboard/close", {"password": PASSWORD})
    assert closing.status == 422
    assert await state_of(stage, hers.person.account_id) == before


async def test_every_page_is_valid_guarded_and_free_of_prompts(stage: Stage) -> None:
    """HTML without faults, nothing inline, a strict policy, nothing cached, and nothing of what was said."""
    hers = await alices(stage)
    visitors = (hers.browser, browser_of(stage), await enter_admin(stage))
    for browser, route in itertools.product(visitors, routes(stage)):
        if "GET" not in (route.methods or set()):
            continue
        page = await browser.get(hers.path(route))
        told = f"{page.path}: {page.status}"
        assert page.status in {200, 204, 404}, told
        assert CANARY not in page.text, told
        policy = page.header("content-security-policy")
        assert "unsafe" not in policy, told
        assert {"default-src 'none'", "script-src 'self'", "require-trusted-types-for 'script'"} <= set(
            policy.split("; ")
        ), told
        assert page.header("x-content-type-options") == "nosniff", told
        assert page.header("referrer-policy") == "same-origin", told
        assert page.header("cross-origin-opener-policy") == "same-origin", told
        if "html" in page.header("content-type"):
            assert page.faults() == [], told
            assert page.header("cache-control") == "no-store", told
            assert len(list(page.find("h1"))) == 1, told
            assert len(list(page.find("main"))) == 1, told
            for field in page.find("input"):
                assert field.get("type") == "hidden" or _is_labelled(page, field.get("id"), field), told


def _is_labelled(page: Page, field_id: str | None, field: Any) -> bool:
    inside = any(field in set(label.iter()) for label in page.find("label"))
    named = field_id is not None and any(label.get("for") == field_id for label in page.find("label"))
    return inside or named or field.get("aria-hidden") == "true" or bool(field.get("aria-label"))


async def test_error_pages_are_pages(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    for method, path, status in (
        ("GET", "/nothing/here", 404),
        ("GET", "/dashboard/keys/999999", 404),
        ("GET", "/dashboard/requests/req_00", 404),
        ("GET", "/dashboard/requests?id=req_00", 404),
        ("DELETE", "/dashboard", 405),
        ("POST", "/dashboard/keys", 422),
        ("POST", "/dashboard/email", 422),
        ("POST", "/dashboard/password", 422),
        ("POST", "/dashboard/close", 422),
        ("POST", "/verify", 422),
        ("POST", "/reset", 422),
        ("POST", "/email", 422),
        ("POST", "/signup", 422),
        ("POST", "/login", 422),
    ):
        page = await browser.send(method, path, b"name=", {"sec-fetch-site": "same-origin"})
        assert (method, path, page.status) == (method, path, status)
        assert page.faults() == []
        assert page.header("content-security-policy")
        assert len(list(page.find("h1"))) == 1


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": ""}, False),
        ({"sec-fetch-site": "cross-site", "origin": "SELF"}, False),
        ({"origin": "SELF"}, True),
        ({"origin": "HOST"}, True),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://["}, False),
        ({"origin": "HTTPS-HOST"}, False),
        ({"referer": "SELF"}, False),
        ({}, False),
    ],
)
async def test_forms_from_other_sites_do_nothing(
    stage: Stage,
    headers: dict[str, str],
    allowed: bool,  # noqa: FBT001  a column of the table
) -> None:
    """Fetch Metadata decides; where a browser has none, its Origin; where it has neither, nothing is done."""
    browser = await enter(stage, stage.alice.email)
    host = f"127.0.0.1:{stage.gateway.port}"
    words = {"SELF": browser.origin, "HOST": f"http://{host}", "HTTPS-HOST": f"https://{host}"}
    sent = {name: words.get(value, value) for name, value in headers.items()}
    page = await browser.send("POST", "/dashboard/keys", b"name=forged", sent)
    rows = await stage.rows("SELECT 1 FROM api_key WHERE name = 'forged'")
    assert page.status == (200 if allowed else 403)
    assert len(rows) == allowed
    if not allowed:
        assert "Content-Security-Policy".lower() in dict(page.headers)


async def test_no_route_takes_what_another_site_sends_unless_it_asks_for_a_signature(stage: Stage) -> None:
    browser = browser_of(stage)
    tried = set()
    for route in routes(stage):
        for method in (route.methods or set()) - {"GET", "HEAD"}:
            path = re.sub(r"\{\w+(?::\w+)?\}", "1", route.path)
            page = await browser.send(method, path, b"", {"sec-fetch-site": "cross-site"})
            assert page.status == (404 if route.path in SIGNED else 403), f"{method} {path}"
            tried.add(route.path)
    assert tried > SIGNED


GARBAGE: Final = (
    "", "%00", "%ff%fe", "%", "%zz", "..%2f..", "%0d%0aset-cookie:%20a=b", "-1", "0", "9" * 30, "1e9", "%F0%9D%94%98",
    "%3Cscript%3Ealert(1)%3C/script%3E", "{{7*7}}", "' OR 1=1 --", "req_" + "0" * 32, "req_zz", "1.req_" + "0" * 32,
    "9" * 18 + ".0." + "%00", "1.1.req_xx", "%E2%80%AE", "a" * 5000, "%u0000", "+", "&&==", "[]", "null", "%C0%80",
)  # fmt: skip
FIELDS: Final = ("session", "day", "limit", "resets", "networks", "requests_per_minute", "grace", "key", "model",
                 "status", "since", "before", "id", "metric", "by", "range", "token", "next", "email",
                 "password", "new_password", "name", "lifetime", "reason", "amount", "kind", "account", "q",
                 "ref")  # fmt: skip


async def test_no_garbage_makes_a_page_fail(stage: Stage) -> None:
    """In addresses, queries, forms, cookies and headers: refused or ignored, never a failure (fixed seed 4)."""
    hers = await alices(stage)
    chance = random.Random(4)
    operator = await enter_admin(stage)
    kept = {browser: dict(browser.cookies) for browser in (hers.browser, operator)}
    for route in routes(stage):
        if route.path == "/logout":
            continue
        browser = operator if route.path.startswith("/admin") else hers.browser
        for _ in range(12):
            path = re.sub(r"\{\w+(?::\w+)?\}", lambda _: chance.choice(GARBAGE).replace(" ", "+"), route.path)
            query = "&".join(f"{name}={chance.choice(GARBAGE)}" for name in chance.sample(FIELDS, 5)).replace(" ", "+")
            form = "&".join(f"{name}={chance.choice(GARBAGE)}" for name in chance.sample(FIELDS, 4)).encode()
            body = chance.choice((form, form * 40, b"\xff\x00" * 50, b'{"a": 1}', b"", b"&" * 5000))
            headers = {
                "sec-fetch-site": "same-origin",
                "content-type": chance.choice(
                    ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data", "x")
                ),
                "user-agent": chance.choice(("", "a\tb", "ü" * 300, "<b>")),
                "x-fragment": chance.choice(("usage", "main", "body", "nothing", "")),
                "accept-encoding": chance.choice(("gzip", "x", "")),
            }
            browser.cookies = {**kept[browser], "junk": chance.choice(("a", '"', "x" * 3000))}
            for method in sorted((route.methods or set()) - {"HEAD"}):
                sent = body if method == "POST" else b""
                page = await browser.send(method, f"{path}?{query}"[:7000], sent, headers)
                failed = [event for event in stage.events if event["level"] == "error"]
                assert page.status < 500, f"{method} {path}?{query} {body[:100]!r}: {failed}"
                assert "a=b" not in page.header("set-cookie")
                assert "<script>alert" not in page.text
                assert not [event for event in stage.events if event["level"] == "error"]


async def test_no_garbage_in_cookies_signs_anybody_in(stage: Stage) -> None:
    await alices(stage)
    for cookie in ("", "x", "%00", '"', "é", "0" * 43, "a" * 5000, "session=session", "' OR 1=1 --", "\t"):
        page = await browser_of(stage).get("/dashboard", {"cookie": f"session={cookie}; browser={cookie}"})
        assert page.path == "/login?next=/dashboard", cookie


async def test_a_form_too_large_is_not_read(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    page = await browser.post("/dashboard/keys", b"name=" + b"x" * (1 << 20))
    assert page.status == 413
    assert (await browser.post("/dashboard/keys", b"name=" + b"x" * 100_000)).status == 422
    assert (await browser.post("/dashboard/keys", b"&".join(b"name=x" for _ in range(201)))).status == 422


async def test_what_people_name_things_stays_text(stage: Stage) -> None:
    """Names, addresses and browsers come back as they were typed, and as nothing else."""
    evil = '<img src=x onerror="alert(1)">'
    browser = await enter(stage, stage.alice.email, evil)
    await make_key(stage, browser, stage.alice.email, evil)
    for path in ("/dashboard", "/dashboard/keys", "/dashboard/settings", "/dashboard/usage?by=key"):
        page = await browser.get(path)
        assert page.faults() == []
        assert not list(page.find("img"))
    assert evil in (await browser.get("/dashboard/keys")).words


async def test_keys_show_once_and_are_in_no_log(stage: Stage) -> None:
    hers = await alices(stage)
    for route in routes(stage):
        if "GET" in (route.methods or set()):
            assert hers.person.key not in (await hers.browser.get(hers.path(route))).text
    assert hers.person.key not in repr(stage.events)
    assert PASSWORD not in repr(stage.events)
    assert hers.person.account_id == await account_of(stage, stage.alice.email)


async def test_the_log_tells_who_tried_to_be_whom_and_nothing_they_said(stage: Stage) -> None:
    """Every proof of who somebody is that was tried, forms from elsewhere, and strangers at admin's door."""
    alice = stage.alice
    browser = await enter(stage, alice.email)
    assert (await browser_of(stage).post("/login", {"email": alice.email, "password": CANARY})).status == 422
    assert (await browser.get("/admin")).status == 404
    assert (await browser.send("POST", "/dashboard/keys", b"", {"sec-fetch-site": "cross-site"})).status == 403
    await browser.post("/dashboard/password", {"present": CANARY, "password": CANARY})
    await browser.post("/logout")
    told = [
        (one["event"], one["path"], one.get("status"), one.get("account_id"))
        for one in stage.events
        if one["event"] in {"authentication", "admin_refused", "form_from_elsewhere"}
    ]
    assert [one for one in told if one[1] != "/forgot"] == [
        ("authentication", "/reset", 200, None),
        ("authentication", "/login", 303, alice.account_id),
        ("authentication", "/login", 422, None),
        ("admin_refused", "/admin", 404, alice.account_id),
        ("form_from_elsewhere", "/dashboard/keys", None, None),
        ("authentication", "/dashboard/password", 422, alice.account_id),
        ("authentication", "/logout", 303, alice.account_id),
    ]
    assert CANARY not in str(stage.events)
    assert alice.email not in str(stage.events)
