"""Limits: requests and tokens a minute by plan, calls at once, and what the headers say of them."""

import asyncio
import gc
from datetime import datetime
from typing import Any

import pytest

from farebox.accounts.keys import create_key
from farebox.gateway.call import Call
from farebox.http.client import Answer
from tests.gateway.play import books, envelope, eventually, listen, message
from tests.stage import OpenStage, Person, Stage


def number(answer: Answer, name: str) -> int:
    return int(answer.header(f"anthropic-ratelimit-{name}".encode()) or b"-1")


async def call(stage: Stage, person: Person, text: str = "Hi", **fields: Any) -> tuple[Answer, bytes]:
    answer = await stage.post(person, message(text, **fields))
    return answer, await answer.read(2**24)


async def test_a_free_plan_has_ten_requests_a_minute_and_says_when_the_next_one_fits(stage: Stage) -> None:
    carl = await stage.person("carl@example.com", 5, plan="free")
    for left in range(9, -1, -1):
        answer, _ = await call(stage, carl)
        assert answer.status == 200
        assert number(answer, "requests-limit") == 10
        assert number(answer, "requests-remaining") == left
    answer, body = await call(stage, carl)
    kind, words = envelope(body)
    assert (answer.status, kind) == (429, "rate_limit_error")
    assert "10 requests a minute" in words
    assert answer.header(b"x-should-retry") == b"true"
    assert int(answer.header(b"retry-after") or b"0") in {5, 6}
    assert number(answer, "requests-remaining") == 0
    assert len(stage.simulator.requests) == 10
    await books(stage, carl, had=5 * 10**9, calls=10)


async def test_retry_after_is_exact(stage: Stage) -> None:
    """At 300 a minute a request comes back every 200 ms: told as one second, which is then enough."""
    store = stage.gateway.store
    full = stage.gateway.clock() * 1000 + 60_000_000_000
    await store.write([("UPDATE account SET requests_full_ns = ? WHERE id = ?", (full, stage.alice.account_id))])
    answer, _ = await call(stage, stage.alice)
    assert (answer.status, answer.header(b"retry-after")) == (429, b"1")
    await asyncio.sleep(1)
    assert (await call(stage, stage.alice))[0].status == 200


async def test_a_refused_call_takes_nothing_from_the_buckets(stage: Stage) -> None:
    for fields in ({"max_tokens": -1}, {"model": "nobody"}):
        answer, _ = await call(stage, stage.alice, **fields)
        assert answer.status == 400
    answer, _ = await call(stage, stage.alice)
    assert number(answer, "requests-remaining") == 299


async def test_tokens_are_counted_as_the_upstream_did_and_cache_reads_are_not(stage: Stage) -> None:
    knobs = "usage_input=10000 usage_output=2000 cache_read=30000 cache_write_5m=500"
    await call(stage, stage.alice, f"[[sim {knobs}]]")
    answer, _ = await call(stage, stage.alice)
    gone = 1_000_000 - number(answer, "tokens-remaining")
    assert number(answer, "tokens-limit") == 1_000_000
    assert 12_000 <= gone <= 12_600


async def test_output_counts_as_it_is_produced(stage: Stage) -> None:
    """A long stream takes from the bucket while it runs, not only when it ends."""
    carl = await stage.person("carl@example.com", 50, plan="free")
    heard = await listen(stage, carl, "[[sim tokens=12000 rate=12000 ttft=0]]", max_tokens=64_000)
    await heard.until(lambda: heard.visible_bytes > 30_000)
    answer, _ = await call(stage, carl)
    assert 40_000 - number(answer, "tokens-remaining") > 4_000
    await heard.end()
    await books(stage, carl, had=50 * 10**9, calls=2)


async def test_a_request_larger_than_the_whole_bucket_passes_when_the_bucket_is_full_and_only_then(
    stage: Stage,
) -> None:
    carl = await stage.person("carl@example.com", 50, plan="free")
    answer, _ = await call(stage, carl, "x" * 200_000, max_tokens=10)
    assert answer.status == 200
    assert number(answer, "tokens-remaining") == 0
    answer, body = await call(stage, carl)
    assert (answer.status, envelope(body)[0]) == (429, "rate_limit_error")
    assert "40000 tokens a minute" in envelope(body)[1].replace(",", "")
    assert int(answer.header(b"retry-after") or b"0") > 10


async def test_a_plan_bounds_the_calls_at_once_and_the_place_is_free_again_after_each(stage: Stage) -> None:
    carl = await stage.person("carl@example.com", 5, plan="free")
    running = [asyncio.create_task(call(stage, carl, f"[[sim delay=400]] {n}")) for n in range(4)]
    await asyncio.sleep(0.2)
    answer, body = await call(stage, carl)
    assert (answer.status, envelope(body)[0]) == (429, "rate_limit_error")
    assert "4 calls at once" in envelope(body)[1]
    assert (answer.header(b"retry-after"), answer.header(b"x-should-retry")) == (b"1", b"true")
    assert {answer.status for answer, _ in await asyncio.gather(*running)} == {200}
    assert (await call(stage, carl))[0].status == 200
    await books(stage, carl, had=5 * 10**9, calls=5)


async def test_reset_says_when_the_bucket_will_be_full_again(stage: Stage) -> None:
    answer, _ = await call(stage, stage.alice)
    now = stage.gateway.clock() / 1_000_000
    for bucket in (b"requests", b"tokens"):
        text = answer.header(b"anthropic-ratelimit-%b-reset" % bucket) or b""
        at = datetime.fromisoformat(text.decode()).timestamp()
        assert now - 1 <= at <= now + 3


async def test_limits_are_the_accounts_not_the_keys(stage: Stage) -> None:
    store = stage.gateway.store
    carl = await stage.person("carl@example.com", 5, plan="free")
    _, second = await create_key(store, carl.account_id, "second", "sk-cc-", stage.gateway.clock())
    for n in range(10):
        person = carl if n % 2 else Person(carl.account_id, carl.email, second)
        assert (await call(stage, person))[0].status == 200
    assert (await call(stage, carl))[0].status == 429
    assert (await call(stage, Person(carl.account_id, carl.email, second)))[0].status == 429
    assert (await call(stage, stage.alice))[0].status == 200


async def test_the_limits_of_a_plan_are_those_of_the_configuration(open_stage: OpenStage) -> None:
    plan = '[[plans]]\nname = "pro"\nrequests_per_minute = 2\ntokens_per_minute = 1000\nconcurrent = 1\ntop_up = 0\n'
    async with open_stage(plan) as stage:
        answer, _ = await call(stage, stage.alice)
        assert (number(answer, "requests-limit"), number(answer, "tokens-limit")) == (2, 1000)
        await call(stage, stage.alice)
        answer, _ = await call(stage, stage.alice)
        assert (answer.status, int(answer.header(b"retry-after") or b"0") in {29, 30}) == (429, True)


async def test_a_retry_after_beyond_a_minute_is_marked_as_not_worth_an_automatic_retry(stage: Stage) -> None:
    store = stage.gateway.store
    full = stage.gateway.clock() * 1000 + 5 * 60_000_000_000
    await store.write([("UPDATE account SET tokens_full_ns = ? WHERE id = ?", (full, stage.alice.account_id))])
    answer, _ = await call(stage, stage.alice)
    assert answer.status == 429
    assert int(answer.header(b"retry-after") or b"0") > 200
    assert answer.header(b"x-should-retry") == b"false"


async def test_counts_made_for_a_customer_whose_balance_is_short_are_limited_like_its_own(
    open_stage: OpenStage,
) -> None:
    async with open_stage(limits="count_tokens_per_minute = 3") as stage:
        poor = await stage.person("poor@example.com", 0.0001)
        assert {(await stage.ask(poor, max_tokens=60_000))[0] for _ in range(9)} == {402}
        assert len(stage.simulator.requests) == 3
        assert (await stage.post(poor, message(), path="/v1/messages/count_tokens")).status == 429


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("length", ["content-length: 3000000", "transfer-encoding: chunked"])
async def test_bodies_that_never_end_take_no_more_memory_than_there_is_room_for(
    open_stage: OpenStage, path: str, length: str
) -> None:
    """A customer without a cent could else fill the memory with a hundred connections."""
    limits = "body_bytes = 4_000_000\nbodies_bytes = 20_000_000"
    async with open_stage(limits=limits) as stage:
        people = [stage.bob, stage.alice, *[await stage.person(f"{n}@example.com", 1) for n in range(5)]]
        opened, told = [], []
        for person in people:
            for _ in range(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
                head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {person.key}\r\n{length}\r\n\r\n"
                writer.write(head.encode())
                opened.append((reader, writer))
        await asyncio.sleep(0.3)
        for reader, writer in opened:
            try:
                async with asyncio.timeout(0.05):
                    told.append((await reader.readline()).split()[1])
            except TimeoutError:
                told.append(b"waits")
            writer.close()
        most = 5 if "chunked" in length else 6
        assert told.count(b"waits") == most
        assert told[:2] == [b"waits", b"429"]
        assert set(told) == {b"waits", b"429", b"529"}

        async def there_is_room_again() -> bool:
            return (await stage.ask(stage.alice))[0] == 200

        await eventually(there_is_room_again)


async def test_a_prompt_takes_no_memory_once_its_answer_streams(open_stage: OpenStage) -> None:
    """Streams last for minutes, and prompts are most of what a call would keep."""
    said = "[[sim tokens=5000 rate=50 ttft=0]] " + "words " * 33_000
    async with open_stage(limits="body_bytes = 300_000\nbodies_bytes = 1_000_000\ndrain_s = 0") as stage:
        heard = []
        for _ in range(3):  # an account's share of the room is 300 KB
            heard.append(await listen(stage, stage.alice, said))
            assert heard[-1].answer.status == 200, heard[-1].data
            await heard[-1].has(b"content_block_delta")
        held = [one for one in gc.get_objects() if isinstance(one, Call) and one.task is not None]
        assert len(held) == 3
        assert not any(call.body or call.asked.messages or call.asked.fields or call.room for call in held)
        for one in heard:
            one.hang_up()
