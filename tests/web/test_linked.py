"""Sign-in with other providers, against one on loopback that speaks real HTTP and is scripted by the test.

It stands for GitHub and for a provider of OpenID Connect as their documents describe them: it keeps the code and the
PKCE challenge of each visit and checks what comes back. It says nothing about what theirs do beyond that.
"""

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pyotp
import pytest

from farebox.accounts.invitations import create_invitation
from farebox.clock import DAY_US, US_PER_S
from farebox.http.exchange import Exchange
from farebox.http.server import HttpServer
from farebox.secret import Secret
from tests.stage import OpenStage, Stage
from tests.web.browse import Browser, Page, browser_of, enter, mails_to

LINKED: Final = "/dashboard/settings/linked"
CAROL: Final = "carol@example.com"
CLIENT: Final = ("a client", "its secret: 100% & more")


class Scripted:
    """A provider: whom it says has come, and what it does wrong."""

    def __init__(self) -> None:
        self.port = 0
        self.person: dict[str, Any] = {"sub": "4711", "email": CAROL, "email_verified": True, "name": "Carol"}
        self.claims: dict[str, Any] = {}
        """Laid over those of the ID token."""
        self.visits: dict[str, dict[str, str]] = {}
        self.is_down = False
        self.is_terse = False
        """Whether its ID tokens name nothing but the subject."""
        self.info: dict[str, Any] = {}
        """Laid over what its UserInfo endpoint says."""
        self.home = ""
        """Where its page sends a real browser back to: whoever comes has agreed before."""

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def visit(self, away: str, code: str = "a code") -> str:
        """Do what its page does when somebody agrees. Answers the address that their browser goes back to."""
        parts = urlsplit(away)
        assert f"{parts.scheme}://{parts.netloc}" == self.issuer
        query = {name: values[0] for name, values in parse_qs(parts.query, strict_parsing=True).items()}
        assert (query["response_type"], query["client_id"]) == ("code", CLIENT[0])
        assert query["code_challenge_method"] == "S256"
        self.visits[code] = query
        back = urlsplit(query["redirect_uri"])
        return f"{back.path}?{urlencode({'code': code, 'state': query['state']})}"

    async def serve(self, exchange: Exchange) -> None:
        body = await exchange.read_body(1 << 16)
        headers = {name.decode(): value.decode() for name, value in exchange.headers}
        if exchange.path == "/authorize" and self.home:
            back = self.visit(f"{self.issuer}/authorize?{exchange.query}")
            exchange.respond(302, [(b"location", f"{self.home}{back}".encode())], b"")
            return
        status, told = (500, {}) if self.is_down else self._answer(exchange.path, headers, body)
        exchange.respond(status, [(b"content-type", b"application/json")], json.dumps(told).encode())

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        bearer = headers.get("authorization") == "Bearer a token"
        match path:
            case "/.well-known/openid-configuration":
                return 200, {
                    "issuer": self.issuer,
                    "authorization_endpoint": f"{self.issuer}/authorize",
                    "token_endpoint": f"{self.issuer}/token",
                    "userinfo_endpoint": f"{self.issuer}/userinfo",
                }
            case "/token" | "/login/oauth/access_token":
                return self._token(path, headers, dict(parse_qsl(body.decode(), strict_parsing=True)))
            case "/userinfo" if bearer:
                return 200, self.person | self.info
            case "/api/v3/user" if bearer:
                return 200, {"id": int(self.person["sub"]), "login": self.person["name"], "email": "shown@example.com"}
            case "/api/v3/user/emails" if bearer:
                other = {"email": "other@example.com", "primary": False, "verified": True}
                mine = {"email": self.person["email"], "primary": True, "verified": self.person["email_verified"]}
                return 200, [other, mine]
        return 404, {}

    def _token(self, path: str, headers: dict[str, str], form: dict[str, str]) -> tuple[int, Any]:
        """RFC 6749 4.1.3 and RFC 7636 4.6: a code counts once, for its client, with the verifier of its challenge."""
        visit = self.visits.pop(form["code"], None)
        if path == "/token":
            user, _, password = (
                base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode().partition(":")
            )
            client = tuple(parse_qs(f"a={user}&b={password}")[name][0] for name in "ab")
        else:
            client = (form["client_id"], form["client_secret"])
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if visit is None or client != CLIENT or visit["code_challenge"] != challenge:
            return 400, {"error": "invalid_grant"}
        if visit["redirect_uri"] != form["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        answer = {"access_token": "a token", "token_type": "bearer"}
        if path == "/token":
            person = {"sub": self.person["sub"]} if self.is_terse else self.person
            claims = {"iss": self.issuer, "aud": CLIENT[0], "exp": 2**40, "nonce": visit["nonce"], **person}
            pieces = ({"alg": "RS256"}, claims | self.claims)
            parts = [base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=").decode() for one in pieces]
            answer["id_token"] = ".".join((*parts, "c2ln"))
        return 200, answer


@pytest.fixture
async def provider() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    server = HttpServer(scripted.serve, on_bad_request=lambda exchange, _: exchange.respond(400, [], b""))
    scripted.port = await server.listen("127.0.0.1", 0)
    yield scripted
    await server.close(1)
    await server.shut()


@pytest.fixture(params=["oidc", "github"])
async def stage(request: pytest.FixtureRequest, open_stage: OpenStage, provider: Scripted) -> AsyncIterator[Stage]:
    async with configured(open_stage, provider, request.param) as opened:
        yield opened


@asynccontextmanager
async def configured(
    open_stage: OpenStage, provider: Scripted, kind: str = "oidc", sign_up: str = "open"
) -> AsyncIterator[Stage]:
    """Open a stage whose operator has set up the provider."""
    text = f"""
[site]
sign_up = "{sign_up}"
[[sign_in]]
name = "elsewhere"
kind = "{kind}"
client_id = "{CLIENT[0]}"
client_secret = "file:client.secret"
issuer = "{provider.issuer}"
title = "Elsewhere"
"""
    async with open_stage(text) as opened:
        yield opened


@pytest.fixture(autouse=True)
def secret_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in configurations have no spaces; a provider's secret that has needs its encoding right all the same."""
    (tmp_path / "client.secret").write_text("placeholder")

    reveal = Secret.reveal
    monkeypatch.setattr(Secret, "reveal", lambda self: CLIENT[1] if reveal(self) == "placeholder" else reveal(self))


async def leave(browser: Browser, path: str = "/login/with/elsewhere") -> str:
    """Follow a link to the provider. Answers the address there."""
    page = await browser.get(path, follow=False)
    assert page.status == 303, page.words
    return page.header("location")


async def arrive(browser: Browser, path: str, *, follow: bool = True) -> Page:
    """Come back from another site: a navigation that a browser marks as cross-site."""
    return await browser.get(path, {"sec-fetch-site": "cross-site"}, follow=follow)


async def with_provider(browser: Browser, provider: Scripted, path: str = "/login/with/elsewhere") -> Page:
    return await arrive(browser, provider.visit(await leave(browser, path)))


async def link(browser: Browser, provider: Scripted) -> Page:
    return await with_provider(browser, provider, f"{LINKED}/elsewhere")


async def identities(stage: Stage) -> list[tuple[Any, ...]]:
    return await stage.rows("SELECT i.id, a.email FROM identity i JOIN account a ON a.id = i.account_id ORDER BY i.id")


async def test_an_account_is_opened_signed_in_and_signed_in_again(stage: Stage, provider: Scripted) -> None:
    browser = browser_of(stage)
    assert "Continue with Elsewhere" in (await browser.get("/signup")).words
    page = await with_provider(browser, provider)
    assert page.path == "/dashboard"
    assert await identities(stage) == [("elsewhere:4711", CAROL)]
    ((plan, verified),) = await stage.rows("SELECT plan, verified_at FROM account WHERE email = ?", CAROL)
    assert (plan, verified is not None) == ("free", True)
    provider.person["email"] = "moved@example.com"
    other = browser_of(stage, "another browser")
    page = await with_provider(other, provider, "/login/with/elsewhere?next=/dashboard/keys")
    assert page.path == "/dashboard/keys"
    assert (await mails_to(stage, CAROL))[-1][0] == "A new sign-in at Farebox"
    assert len(await identities(stage)) == 1


async def test_a_signed_in_person_links_uses_and_unlinks_it(stage: Stage, provider: Scripted) -> None:
    browser = await enter(stage, stage.alice.email)
    assert (await browser.get(LINKED)).rows("Linked accounts")[0][1] == "none"
    page = await link(browser, provider)
    assert (page.path, page.rows("Linked accounts")[0][1]) == (LINKED, page.rows("Linked accounts")[0][1])
    assert page.rows("Linked accounts")[0][1] != "none"
    assert (await mails_to(stage, stage.alice.email))[-1][0] == "Elsewhere was linked to your account at Farebox"
    assert (await with_provider(browser_of(stage), provider)).path == "/dashboard"
    assert await identities(stage) == [("elsewhere:4711", stage.alice.email)]
    await browser.submit(await browser.get(LINKED), f"{LINKED}/elsewhere/unlink")
    assert await identities(stage) == []


async def test_it_is_one_factor_and_the_second_is_asked_for(stage: Stage, provider: Scripted) -> None:
    browser = await enter(stage, stage.alice.email)
    await link(browser, provider)
    secret = pyotp.random_base32()
    totp = "INSERT INTO totp (account_id, secret, set_at) VALUES (?, ?, ?)"
    sealed = stage.parts.seals.seal(secret.encode(), f"totp of account {stage.alice.account_id}")
    await stage.gateway.store.write([(totp, (stage.alice.account_id, sealed, stage.gateway.clock()))])
    stranger = browser_of(stage)
    assert (await with_provider(stranger, provider)).path == "/login/second"
    assert (await stranger.get("/dashboard")).path.startswith("/login")


async def test_an_address_that_has_an_account_is_never_taken_over(stage: Stage, provider: Scripted) -> None:
    provider.person["email"] = stage.alice.email.upper()
    browser = browser_of(stage)
    page = await with_provider(browser, provider)
    assert (page.status, "link it under settings" in page.words) == (422, True)
    assert (await browser.get("/dashboard")).path.startswith("/login")
    assert await identities(stage) == []


async def test_an_address_without_proof_opens_nothing(stage: Stage, provider: Scripted) -> None:
    provider.person["email_verified"] = False
    page = await with_provider(browser_of(stage), provider)
    assert (page.status, "no proof of your e-mail address" in page.words) == (422, True)
    assert not await stage.rows("SELECT 1 FROM account WHERE email = ?", CAROL)


async def test_what_comes_back_counts_once_and_in_its_own_browser(stage: Stage, provider: Scripted) -> None:
    mine, mallorys = browser_of(stage), browser_of(stage)
    path = provider.visit(await leave(mine))
    await mallorys.get("/login")
    refused = await arrive(mallorys, path)
    assert (refused.status, "another browser" in refused.words) == (422, True)
    assert (await arrive(mine, path)).path == "/dashboard"
    again = await arrive(mine, path)
    assert again.status == 422
    for wrong in ("", "?code=a", "?state=b", "?code=a&state=" + "c" * 5000, "?error=access_denied"):
        assert (await arrive(browser_of(stage), f"/login/from/elsewhere{wrong}")).status == 422
    assert not await stage.rows("SELECT 1 FROM challenge")


async def test_who_says_no_there_is_told_so_here(stage: Stage, provider: Scripted) -> None:
    browser = browser_of(stage)
    path = provider.visit(await leave(browser)).replace("code=a+code", "error=access_denied")
    page = await arrive(browser, path)
    assert (page.status, "did not let you through" in page.words, page.faults()) == (422, True, [])


async def test_one_of_theirs_opens_one_of_ours(stage: Stage, provider: Scripted) -> None:
    alice, bob = await enter(stage, stage.alice.email), await enter(stage, stage.bob.email)
    await link(alice, provider)
    page = await link(bob, provider)
    assert (page.status, "linked to another account" in page.words) == (422, True)
    provider.person["sub"] = "4712"
    page = await link(alice, provider)
    assert (page.status, "unlink that one first" in page.words) == (422, True)
    assert await identities(stage) == [("elsewhere:4711", stage.alice.email)]


async def test_linking_needs_a_fresh_proof_and_a_page_of_ours(stage: Stage, provider: Scripted) -> None:
    browser = await enter(stage, stage.alice.email)
    lured = await browser.get(f"{LINKED}/elsewhere", {"sec-fetch-site": "cross-site"}, follow=False)
    assert lured.header("location") == LINKED
    away = await leave(browser, f"{LINKED}/elsewhere")
    await browser.post("/logout")
    page = await arrive(browser, provider.visit(away))
    assert (page.status, "not signed in any more" in page.words) == (422, True)
    await browser.sign_in(stage.alice.email)
    await stage.gateway.store.write([("UPDATE session SET sure_at = sure_at - ?", (DAY_US,))])
    assert (await browser.get(f"{LINKED}/elsewhere", follow=False)).header("location").startswith("/confirm")
    assert (await browser.post(f"{LINKED}/elsewhere/unlink", follow=False)).header("location").startswith("/confirm")
    assert await identities(stage) == []


async def test_a_closed_account_stays_closed(stage: Stage, provider: Scripted) -> None:
    await with_provider(browser_of(stage), provider)
    await stage.gateway.store.write([("UPDATE account SET status = 'closed' WHERE email = ?", (CAROL,))])
    browser = browser_of(stage)
    page = await with_provider(browser, provider)
    assert "has been closed" in page.words
    assert (await browser.get("/dashboard")).path.startswith("/login")


async def test_a_provider_that_is_away_is_told_in_words(stage: Stage, provider: Scripted) -> None:
    browser = browser_of(stage)
    path = provider.visit(await leave(browser))
    provider.is_down = True
    page = await arrive(browser, path)
    assert (page.status, "Elsewhere" in page.words, page.faults()) == (503, True, [])
    assert not [event for event in stage.events if event["level"] == "error"]


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example"},
        {"aud": "another client"},
        {"aud": ["a client", "another"]},
        {"aud": ["a client", "another"], "azp": "another"},
        {"exp": 1},
        {"exp": "soon"},
        {"nonce": "another"},
        {"nonce": None},
        {"sub": ""},
        {"sub": "s" * 256},
        {"sub": None},
    ],
)
async def test_an_id_token_for_somebody_else_is_refused(
    open_stage: OpenStage, provider: Scripted, claims: dict[str, Any]
) -> None:
    async with configured(open_stage, provider) as stage:
        provider.claims = claims
        page = await with_provider(browser_of(stage), provider)
        assert (page.status, "not for this sign-in" in page.words) == (503, True)
        assert await identities(stage) == []


async def test_what_an_id_token_leaves_out_the_user_info_says(open_stage: OpenStage, provider: Scripted) -> None:
    """If it is about the same person."""
    async with configured(open_stage, provider) as stage:
        provider.is_terse = True
        provider.info = {"sub": "4712"}
        assert "no proof" in (await with_provider(browser_of(stage), provider)).words
        provider.info = {}
        assert (await with_provider(browser_of(stage), provider)).path == "/dashboard"
        assert await identities(stage) == [("elsewhere:4711", CAROL)]


async def test_where_sign_up_is_by_invitation_it_takes_one(open_stage: OpenStage, provider: Scripted) -> None:
    async with configured(open_stage, provider, sign_up="invitation") as stage:
        browser = browser_of(stage)
        assert (await with_provider(browser, provider)).status == 422
        assert (await with_provider(browser, provider, "/login/with/elsewhere?invitation=made-up")).status == 422
        assert not await stage.rows("SELECT 1 FROM account WHERE email = ?", CAROL)
        now_us, url = stage.gateway.clock(), stage.gateway.config.public_url
        made = await create_invitation(stage.gateway.store, url, "Farebox", by="test", now_us=now_us)
        page = await browser.get(made.url[made.url.index("/signup") :])
        (way,) = [path for path in page.links() if path.startswith("/login/with/")]
        assert (await with_provider(browser, provider, way)).path == "/dashboard"
        assert await stage.rows("SELECT used_at IS NOT NULL FROM invitation") in ([(1,)], [(True,)])


async def test_where_sign_up_is_closed_it_opens_nothing(open_stage: OpenStage, provider: Scripted) -> None:
    async with configured(open_stage, provider, sign_up="closed") as stage:
        assert (await with_provider(browser_of(stage), provider)).status == 422
        assert not await stage.rows("SELECT 1 FROM account WHERE email = ?", CAROL)


async def test_without_a_provider_there_is_nothing(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        browser = await enter(stage, stage.alice.email)
        assert "no other provider" in (await browser.get(LINKED)).words
        for path in ("/login/with/github", "/login/from/github?code=a&state=b", f"{LINKED}/github"):
            assert (await browser.get(path)).status in {404, 422}, path
        assert "Continue with" not in (await browser.get("/signup")).words


async def test_nothing_of_the_flow_is_kept_or_logged(stage: Stage, provider: Scripted) -> None:
    browser = browser_of(stage)
    path = provider.visit(await leave(browser), code="canary-code-7391")
    state = parse_qs(urlsplit(path).query)["state"][0]
    assert state not in repr(await stage.rows("SELECT * FROM challenge"))
    await arrive(browser, path)
    told = repr(stage.events) + repr(await stage.rows("SELECT * FROM identity"))
    for secret in (state, "canary-code-7391", "a token", CLIENT[1]):
        assert secret not in told
    assert provider.visits == {}


async def test_who_takes_too_long_begins_anew(stage: Stage, provider: Scripted) -> None:
    browser = browser_of(stage)
    path = provider.visit(await leave(browser))
    await stage.gateway.store.write([("UPDATE challenge SET ends_at = ends_at - ?", (600 * US_PER_S,))])
    assert (await arrive(browser, path)).status == 422
