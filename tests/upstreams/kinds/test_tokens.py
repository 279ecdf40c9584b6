"""Access tokens: one renewal at a time, the old one for as long as it is good, and clear words when there is none."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from farebox.http.failures import ConnectFailed
from farebox.upstreams.kinds.tokens import Tokens
from tests.upstreams.kinds.clouds import Answered, Cloud, Request, Said, running


class Issuer(Cloud):
    """Hands out tokens, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.life_s: float = 3600
        self.open = asyncio.Event()
        self.open.set()

    def answer(self, request: Request) -> Answered:
        assert request.raw == b"grant=canary+%26+more"
        body = {"access_token": f"token-{len(self.requests)}", "expires_in": self.life_s}
        return 200, {"content-type": "application/json"}, [json.dumps(body).encode()]


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with running(Issuer()) as started:
        yield started


@pytest.fixture
async def tokens(issuer: Issuer) -> AsyncIterator[Tokens]:
    made = Tokens(f"{issuer.url}/oauth", lambda: {"grant": "canary & more"})
    yield made
    await made.close()


async def test_many_calls_at_once_have_one_token(issuer: Issuer, tokens: Tokens) -> None:
    got = await asyncio.gather(*(tokens.bearer() for _ in range(100)))
    assert set(got) == {b"Bearer token-1"}
    assert await tokens.bearer() == b"Bearer token-1"
    assert len(issuer.requests) == 1


async def test_a_call_that_is_given_up_takes_no_token_from_the_others(tokens: Tokens) -> None:
    first, second = asyncio.create_task(tokens.bearer()), asyncio.create_task(tokens.bearer())
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"Bearer token-1"
    assert first.cancelled()


async def test_it_is_renewed_before_its_end_while_the_old_one_serves(issuer: Issuer, tokens: Tokens) -> None:
    await tokens.bearer()
    tokens._renew_at = tokens._rests_until = 0
    assert await tokens.bearer() == b"Bearer token-1"  # without waiting
    assert tokens._renewal is not None
    await tokens._renewal
    assert await tokens.bearer() == b"Bearer token-2"
    assert len(issuer.requests) == 2


async def test_a_renewal_that_fails_is_not_felt_until_the_old_one_ends(issuer: Issuer, tokens: Tokens) -> None:
    await tokens.bearer()
    issuer.next = [Said(500, b"oops")] * 5
    tokens._renew_at = tokens._rests_until = 0
    await tokens.bearer()
    assert tokens._renewal is not None
    await tokens._renewal
    assert await tokens.bearer() == b"Bearer token-1"
    tokens._ends_at = 0
    with pytest.raises(ConnectFailed, match=r"^no access token from 127\.0\.0\.1: it answered 500$"):
        await tokens.bearer()
    assert len(issuer.requests) == 2  # it rests before the next
    tokens._rests_until = 0
    issuer.next = []
    assert await tokens.bearer() == b"Bearer token-3"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            Said(401, {"error": "invalid_client", "error_description": "AADSTS7000215: wrong"}),
            "401: invalid_client AADSTS",
        ),
        (Said(200, {"access_token": "a\r\nb", "expires_in": 5}), "answered 200"),
        (Said(200, {"access_token": "", "expires_in": 5}), "answered 200"),
        (Said(200, {"access_token": "a"}), "answered 200"),
        (Said(200, b"[]"), "answered 200"),
        (Said(200, b"x" * 70_000), "larger than"),
        (Said(302, b"", location="http://127.0.0.1:1/"), "answered 302"),
    ],
)
async def test_what_is_no_token_is_told(issuer: Issuer, tokens: Tokens, said: Said, words: str) -> None:
    issuer.next = [said]
    with pytest.raises(ConnectFailed, match=words) as told:
        await tokens.bearer()
    assert "canary" not in str(told.value)


async def test_nobody_there_is_told() -> None:
    nobody = Tokens("http://127.0.0.1:1/token", dict)
    with pytest.raises(ConnectFailed, match=r"no access token from 127\.0\.0\.1: cannot connect"):
        await nobody.bearer()
    await nobody.close()


async def test_a_short_life_is_renewed_at_its_half(issuer: Issuer, tokens: Tokens) -> None:
    issuer.life_s = 60
    await tokens.bearer()
    assert tokens._ends_at - tokens._renew_at == pytest.approx(30)


async def test_a_token_that_is_refused_is_replaced_but_not_without_end(issuer: Issuer, tokens: Tokens) -> None:
    await tokens.bearer()
    tokens.forget()  # a moment after it was had: another would be refused as well
    assert await tokens.bearer() == b"Bearer token-1"
    tokens._rests_until = 0
    tokens.forget()
    assert await tokens.bearer() == b"Bearer token-2"
    assert len(issuer.requests) == 2


async def test_closing_ends_a_renewal(tokens: Tokens) -> None:
    waiting = asyncio.create_task(tokens.bearer())
    await asyncio.sleep(0)
    await tokens.close()
    with pytest.raises((asyncio.CancelledError, ConnectFailed)):
        await waiting


async def test_a_call_that_waits_while_all_is_closed_fails_and_is_not_cancelled(tokens: Tokens) -> None:
    """Who calls would be taken for somebody that was stopped."""
    waits = asyncio.create_task(tokens.bearer())
    await asyncio.sleep(0)
    await tokens.close()
    with pytest.raises(ConnectFailed):
        await waits


async def test_a_life_that_is_written_as_text_is_read(issuer: Issuer, tokens: Tokens) -> None:
    issuer.next = [lambda _: (200, {"content-type": "application/json"}, [b'{"access_token":"t","expires_in":"3599"}'])]
    assert await tokens.bearer() == b"Bearer t"
    assert 3500 < tokens._ends_at - asyncio.get_running_loop().time() < 3600
