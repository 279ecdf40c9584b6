"""Callers without a key that counts: told apart as far as it helps them, and no further."""

import pytest

from farebox.accounts.accounts import set_status
from farebox.accounts.key_rules import Rules
from farebox.accounts.keys import create_key, find_key, revoke_key
from farebox.ids import key_is_well_formed, new_key
from tests.hostile.raw import ask, check_refusal, exchange, request
from tests.stage import Person, Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOT_OURS = "is not an API key of this gateway: they begin with sk-cc-"
ODD = {
    "no key": ((), "an API key is needed: send it as x-api-key or as authorization: Bearer sk-cc-"),
    "an empty key": (("x-api-key: ", "authorization: Bearer "), "an API key is needed"),
    "another scheme": (("authorization: Basic YWxpY2U6c2VjcmV0",), "an API key is needed"),
    "a key of the real API": (("x-api-key: sk-ant-api03-abcdefgh",), NOT_OURS),
    "a subscription's token": (("authorization: Bearer sk-ant-oat01-abcdefgh",), NOT_OURS),
    "one letter": (("x-api-key: x",), NOT_OURS),
    "sixty thousand letters": (("x-api-key: sk-cc-" + "a" * 60_000,), NOT_OURS),
    "bytes": (("x-api-key: sk-cc-\xe9\xff" + "a" * 47,), NOT_OURS),
    "an unknown key": ((f"x-api-key: {new_key('sk-cc-')}",), "is not known here"),
    "two unknown keys": (
        (f"x-api-key: {new_key('sk-cc-')}", f"authorization: Bearer {new_key('sk-cc-')}"),
        "is not known here",
    ),
}
PATHS = {"/messages": "POST", "/messages/count_tokens": "POST", "/models": "GET", "/models/claude-sonnet-4-6": "GET"}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("path", PATHS)
async def test_without_a_key_there_is_a_401_that_says_what_to_send(shared: Stage, name: str, path: str) -> None:
    lines, words = ODD[name]
    method = PATHS[path]
    body = ask() if method == "POST" else b""
    data = request(None, body, *lines, method=method, path=f"/api/proxy/v1{path}")
    check_refusal(await exchange(shared.gateway.port, data), 401, words)


async def test_a_typo_is_told_from_an_unknown_key(shared: Stage) -> None:
    key = shared.alice.key
    for at in (8, 25, len(key) - 1):
        typo = key[:at] + ("a" if key[at] != "a" else "b") + key[at + 1 :]
        assert not key_is_well_formed(typo, "sk-cc-")
        data = request(None, ask(), f"x-api-key: {typo}")
        check_refusal(await exchange(shared.gateway.port, data), 401, "so a typo or a missing character shows")


async def fresh_key(stage: Stage, person: Person, expires_at_us: int | None = None) -> str:
    rules = Rules(expires_at_us=expires_at_us)
    return (await create_key(stage.gateway.store, person.account_id, "k", "sk-cc-", 1, rules))[1]


async def test_a_revoked_key_is_told_so_at_once(shared: Stage) -> None:
    store = shared.gateway.store
    key = await fresh_key(shared, shared.alice)
    count = request(None, ask(), f"x-api-key: {key}", path="/v1/messages/count_tokens")
    assert (await exchange(shared.gateway.port, count)).status == 200
    await revoke_key(store, (await find_key(store, key)).id, 2)
    check_refusal(await exchange(shared.gateway.port, request(None, ask(), f"x-api-key: {key}")), 401, "revoked")


async def test_an_expired_key_is_told_so(shared: Stage) -> None:
    key = await fresh_key(shared, shared.alice, expires_at_us=10**15)
    check_refusal(await exchange(shared.gateway.port, request(None, ask(), f"x-api-key: {key}")), 401, "expired")


async def test_a_suspended_account_is_told_whom_to_write_to(shared: Stage) -> None:
    store = shared.gateway.store
    await set_status(store, shared.bob.account_id, "suspended")
    try:
        reply = await exchange(shared.gateway.port, request(shared.bob, ask()))
        check_refusal(reply, 403, "suspended")
    finally:
        await set_status(store, shared.bob.account_id, "active")


async def test_keys_of_two_accounts_are_refused_rather_than_guessed_between(shared: Stage) -> None:
    data = request(shared.alice, ask(), f"authorization: Bearer {shared.bob.key}")
    check_refusal(await exchange(shared.gateway.port, data), 401, "two accounts")
