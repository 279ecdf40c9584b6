"""Another model in the place of one that no upstream serves: told, paid for as itself, declined by a header."""

import json
import socket
from typing import Any

import pytest

from farebox.accounts.key_rules import Rules
from farebox.accounts.keys import change_key, find_key
from farebox.books.audit import audit
from tests.gateway.play import USD, Heard, books, envelope, message, script, upstream
from tests.stage import MODEL, OpenStage, Stage

OTHER = "claude-haiku-4-5"
DEAR = "claude-opus-4-6"


def models(fallbacks: str) -> str:
    return f"""
[[models]]
id = "{MODEL}"
fallbacks = [{fallbacks}]
context = 200_000
max_output = 64_000
list = {{ input = 3, output = 15 }}
discount = 0.5
[[models]]
id = "{OTHER}"
context = 200_000
max_output = 32_000
list = {{ input = 1, output = 5 }}
discount = 0.5
[[models]]
id = "{DEAR}"
context = 200_000
max_output = 64_000
list = {{ input = 150, output = 750 }}
discount = 0.5
"""


def upstreams(closed: int) -> str:
    """One that is away, for the model that is asked for, and one for the others."""
    return f"""
[[upstreams]]
name = "away"
kind = "anthropic"
api_key = "x"
base_url = "http://127.0.0.1:{closed}"
models = ["{MODEL}"]
[[upstreams]]
name = "sim"
kind = "simulator"
models = ["{OTHER}", "{DEAR}"]
"""


@pytest.fixture
def closed() -> int:
    """A port that nobody listens at."""
    with socket.socket() as plug:
        plug.bind(("127.0.0.1", 0))
        return int(plug.getsockname()[1])


async def ask(stage: Stage, *headers: tuple[bytes, bytes], **fields: Any) -> tuple[Any, bytes]:
    body = json.dumps(message("[[sim tokens=50]]", **fields)).encode()
    key = (b"x-api-key", stage.alice.key.encode())
    sent = [key, (b"content-type", b"application/json"), (b"anthropic-version", b"2023-06-01"), *headers]
    answer = await stage.client.request("POST", "/api/proxy/v1/messages", sent, body, first_byte_s=10)
    if fields.get("stream") and answer.status == 200:
        return answer, bytes((await Heard(answer).end()).data)
    return answer, await answer.read(2**20)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_another_model_serves_is_told_and_is_what_is_paid_for(
    open_stage: OpenStage, closed: int, *, stream: bool
) -> None:
    async with open_stage(models(f'"{OTHER}"'), upstreams=upstreams(closed)) as stage:
        answer, body = await ask(stage, stream=stream, max_tokens=200)
        assert answer.status == 200, body
        assert answer.header(b"farebox-fallback") == f"{MODEL} -> {OTHER}".encode()
        assert answer.header(b"farebox-model") == OTHER.encode()
        row = await books(stage, stage.alice)
        assert (row["model"][: len(OTHER)], row["asked_model"], row["kind"], row["upstream"]) == (
            OTHER,
            MODEL,
            "exact",
            "sim",
        )
        assert row["charged_nanos"] == row["input_tokens"] * 500 + 50 * 2_500
        assert row["attempts"] > 1
        assert json.loads(stage.simulator.requests[-1].body) == message(
            "[[sim tokens=50]]", stream=stream, max_tokens=200, model=OTHER
        )
        assert all(check.ok for check in await audit(stage.gateway.store))


async def test_it_can_be_declined(open_stage: OpenStage, closed: int) -> None:
    async with open_stage(models(f'"{OTHER}"'), upstreams=upstreams(closed)) as stage:
        answer, body = await ask(stage, (b"farebox-fallback", b"off"))
        assert (answer.status, envelope(body)[0]) == (502, "upstream_error")
        assert not stage.simulator.requests
        row = await books(stage, stage.alice)
        assert (row["model"], row["charged_nanos"]) == (MODEL, 0)
        await ask(stage, (b"farebox-fallback", b"on"))
        assert all(name != b"farebox-fallback" for name, _ in stage.simulator.requests[-1].headers)


async def test_a_key_is_served_by_no_model_that_it_may_not_use(open_stage: OpenStage, closed: int) -> None:
    async with open_stage(models(f'"{OTHER}"'), upstreams=upstreams(closed)) as stage:
        key = await find_key(stage.gateway.store, stage.alice.key)
        await change_key(stage.gateway.store, key, "k", Rules(models=(MODEL,)), stage.gateway.clock())
        stage.gateway.gatehouse.forget_keys()
        assert (await ask(stage))[0].status == 502
        assert not stage.simulator.requests


async def test_a_dearer_model_serves_only_where_the_balance_has_what_it_needs(
    open_stage: OpenStage, closed: int
) -> None:
    async with open_stage(models(f'"{DEAR}", "{OTHER}"'), upstreams=upstreams(closed), alice_usd=0.05) as stage:
        answer, _ = await ask(stage, max_tokens=200)
        assert answer.header(b"farebox-fallback") == f"{MODEL} -> {OTHER}".encode()
        await books(stage, stage.alice, had=5 * USD // 100)


async def test_a_dearer_model_is_held_for_and_paid_as_itself(open_stage: OpenStage, closed: int) -> None:
    async with open_stage(models(f'"{DEAR}"'), upstreams=upstreams(closed)) as stage:
        rich, stage.alice = stage.alice, await stage.person("poor@example.com", 0.05)
        assert (await ask(stage, max_tokens=200))[0].status == 502
        await books(stage, stage.alice, had=5 * USD // 100)
        stage.alice = rich
        answer, _ = await ask(stage, max_tokens=200, stream=True)
        assert answer.header(b"farebox-model") == DEAR.encode()
        row = await books(stage, rich)
        assert row["charged_nanos"] == row["input_tokens"] * 75_000 + 50 * 375_000
        assert all(check.ok for check in await audit(stage.gateway.store))


async def test_what_the_other_model_cannot_be_asked_is_not_asked(open_stage: OpenStage, closed: int) -> None:
    """More output than it has, say."""
    async with open_stage(models(f'"{OTHER}"'), upstreams=upstreams(closed)) as stage:
        assert (await ask(stage, max_tokens=40_000))[0].status == 502
        assert not stage.simulator.requests


async def test_an_answer_that_has_begun_is_never_given_by_another_model(open_stage: OpenStage) -> None:
    names = '[[upstreams]]\nname = "sim"\nkind = "simulator"'
    async with open_stage(models(f'"{OTHER}"'), upstreams=names) as stage:
        body = message("[[sim tokens=50 cut_after=8 events_per_chunk=1]]", stream=True)
        heard = await Heard(await stage.post(stage.alice, body)).end()
        assert heard.answer.header(b"farebox-fallback") is None
        assert heard.names[-1] == "error"
        assert (await books(stage, stage.alice))["model"] == MODEL


@pytest.mark.parametrize("names", [f'"{MODEL}"', '"claude-nobody"'], ids=["itself", "unknown"])
async def test_a_model_falls_back_to_others_that_are_sold(open_stage: OpenStage, names: str) -> None:
    with pytest.raises(Exception, match="must be the ids of others of"):
        async with open_stage(models(names)):
            pass


@pytest.mark.parametrize("answered", ["qwen3-32b", f"{OTHER}-20260101", OTHER, ""])
async def test_what_served_in_another_ones_place_costs_its_own_price_whatever_it_calls_itself(
    open_stage: OpenStage, closed: int, answered: str
) -> None:
    """A name that nobody sells is charged as the model that was asked for: of a fallback that is the wrong one."""
    usage = {"input_tokens": 1000, "output_tokens": 100}
    body = json.dumps({"type": "message", "id": "m", "model": answered, "content": [], "usage": usage}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with script([head + body]) as theirs:
        away = upstreams(closed).partition('[[upstreams]]\nname = "sim"')[0]
        both = f"{away}{upstream('theirs', theirs.port, models=json.dumps([OTHER]))}"
        async with open_stage(models(f'"{OTHER}"'), upstreams=both) as stage:
            assert (await ask(stage))[0].status == 200
            row = await books(stage, stage.alice)
            assert row["charged_nanos"] == 1000 * 500 + 100 * 2500
            assert not [finding for finding in await audit(stage.gateway.store) if not finding.ok]
