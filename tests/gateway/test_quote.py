"""A quote says what the call then does: what it holds, what it is refused for, what fits; and leaves no trace."""

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import pytest

from farebox.accounts.key_rules import Rules
from farebox.accounts.keys import create_key
from farebox.billing.ledger import Admission, Admit, Verdict
from tests.gateway.play import envelope, message
from tests.gateway.test_refusals import FIELDS, OFF, WRONG
from tests.stage import MODEL, OpenStage, Person, Stage

USD: Final = 10**9
TRACES: Final = "SELECT count(*) FROM usage UNION ALL SELECT count(*) FROM hold"
BODIES: Final = (
    message(),
    message(stream=True, max_tokens=100_000),
    message(stream=True, max_tokens=10),
    {"model": "claude-opus-4-6", "messages": [{"role": "user", "content": "x" * 20_000}]},
    message(system=[{"type": "text", "text": "y" * 5000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]),
    message(tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]),
    message(model="claude-opus-5-5", speed="fast", inference_geo="us"),
)
IDS: Final = ("plain", "stream", "short stream", "without max_tokens", "cached", "searching", "fast")


async def quote(
    stage: Stage, person: Person, body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    answer = await stage.post(person, body, path="/api/proxy/v1/messages/quote", headers=headers)
    return answer.status, json.loads(await answer.read(2**22))


def nanos(text: str) -> int:
    return int(Decimal(text) * USD)


class Admissions:
    """Listens at the ledger."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[Admit, Admission]] = []
        ledger = stage.gateway.ledger
        hold = ledger.hold

        async def listening(command: Admit, patience_s: float) -> Admission:
            admission = await hold(command, patience_s)
            self.seen.append((command, admission))
            return admission

        monkeypatch.setattr(ledger, "hold", listening)


@pytest.mark.parametrize("body", BODIES, ids=IDS)
async def test_a_quote_is_what_the_call_holds(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]
) -> None:
    status, told = await quote(stage, stage.alice, body)
    assert status == 200, told
    assert await stage.balance(stage.alice) == (100 * USD, 0)
    assert [count for (count,) in await stage.rows(TRACES)] == [0, 0]
    assert len(stage.simulator.requests) == 0
    assert (told["admitted"], told["refusal"], told["missing"], told["free"]) == ("yes", None, "0.00", "100.00")
    ledger = Admissions(stage, monkeypatch)
    await (await stage.post(stage.alice, body)).read(2**24)
    ((asked, admission),) = ledger.seen
    assert (asked.amount_nanos, asked.least_nanos) == (nanos(told["hold"]), nanos(told["least_hold"]))
    assert admission.held_nanos == nanos(told["hold"])
    assert told["price_version"] == asked.price_version
    ((charged, input_),) = await stage.rows("SELECT charged_nanos, input_tokens FROM usage")
    assert charged <= nanos(told["highest_cost"])
    assert input_ <= told["input_tokens"]["at_most"]
    assert 0 < nanos(told["expected_cost"]) <= nanos(told["highest_cost"])
    assert 0 < told["input_tokens"]["expected"] <= told["input_tokens"]["at_most"]


@pytest.mark.parametrize("body", BODIES[:4], ids=IDS[:4])
async def test_at_every_balance_the_call_does_what_its_quote_said(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]
) -> None:
    """From nothing to enough: admitted, counted first, or refused, then in the very words of the quote."""
    _, whole = await quote(stage, stage.alice, body)
    least, hold, most = (nanos(whole[name]) for name in ("least_hold", "hold", "highest_cost"))
    seen = set()
    ledger = Admissions(stage, monkeypatch)
    for number, balance in enumerate((0, 1, least // 2, least - 1, least, (least + hold) // 2, hold, most)):
        carl = await stage.person(f"carl{number}@example.com", balance / USD)
        free = (await stage.balance(carl))[0]
        status, told = await quote(stage, carl, body)
        assert (status, nanos(told["free"])) == (200, free)
        assert nanos(told["missing"]) == max(0, least - free)
        ledger.seen.clear()
        answer = await stage.post(carl, body)
        data = await answer.read(2**24)
        (asked, first), *second = ledger.seen
        assert asked.least_nanos == least
        seen.add(told["admitted"])
        if told["admitted"] == "yes":
            assert (first.verdict, first.held_nanos) == (Verdict.ADMITTED, nanos(told["hold"]))
            continue
        assert first.verdict is Verdict.INSUFFICIENT
        if told["admitted"] == "no" and answer.status == 402 and not second:
            assert told["refusal"] == {
                "status": 402,
                "type": "insufficient_balance",
                "message": envelope(data)[1],
            }
        assert answer.status in ({200, 402} if told["admitted"] == "if_counted" else {402})
    assert {"yes", "no"} <= seen


async def test_the_affordable_max_tokens_is_let_in_and_one_more_is_not(stage: Stage) -> None:
    carl = await stage.person("carl@example.com", 0.05)
    body = message(max_tokens=100_000)
    _, told = await quote(stage, carl, body)
    fits = told["affordable_max_tokens"]
    assert 0 < fits < 100_000
    assert f"lower max_tokens to at most {fits}" in told["refusal"]["message"]
    assert "$" in told["refusal"]["message"]
    assert told["refusal"]["message"].count("/dashboard/topup") == 1
    for more, admitted in ((0, "yes"), (20, "if_counted")):
        _, again = await quote(stage, carl, message(max_tokens=fits + more))
        assert again["admitted"] == admitted


async def test_who_had_left_out_max_tokens_may_write_what_they_are_told_is_affordable(stage: Stage) -> None:
    carl = await stage.person("carl@example.com", 0.0301)
    for length in range(40):
        body = {"model": "claude-opus-4-6", "messages": [{"role": "user", "content": "x" * length}]}
        _, told = await quote(stage, carl, body)
        assert told["admitted"] != "yes"
        _, again = await quote(stage, carl, {**body, "max_tokens": told["affordable_max_tokens"]})
        assert again["admitted"] == "yes", (length, told, again)


@pytest.mark.parametrize(("switch", "named", "fields", "headers"), OFF)
async def test_a_feature_that_is_refused_is_refused_in_the_same_words(
    stage: Stage, switch: str, named: str, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    answer = await stage.post(stage.alice, message(**fields), headers=headers)
    words = envelope(await answer.read(2**20))
    status, told = await quote(stage, stage.alice, message(**fields), headers)
    assert (status, (told["error"]["type"], told["error"]["message"])) == (answer.status, words), switch
    assert named in words[1]


@pytest.mark.parametrize(
    "body", [*(body for body, _ in WRONG), *(json.dumps(message(**one)).encode() for one, _ in FIELDS)]
)
async def test_what_is_wrong_is_refused_in_the_same_words(stage: Stage, body: bytes) -> None:
    answer = await stage.post(stage.alice, body)
    words = envelope(await answer.read(2**20))
    status, told = await quote(stage, stage.alice, body)
    assert (status, (told["error"]["type"], told["error"]["message"])) == (answer.status, words)


async def test_a_key_is_quoted_what_it_may(stage: Stage) -> None:
    """A key's own models and spend limit count for its quotes as for its calls."""
    store, clock = stage.gateway.store, stage.gateway.clock
    rules = Rules(models=(MODEL,), limit_nanos=USD // 100, resets="monthly")
    _, text = await create_key(store, stage.alice.account_id, "small", "sk-cc-", clock(), rules)
    small = Person(stage.alice.account_id, stage.alice.email, text)
    for body in (message(model="claude-opus-4-6"), message(max_tokens=50_000)):
        answer = await stage.post(small, body)
        words = envelope(await answer.read(2**20))
        status, told = await quote(stage, small, body)
        if status == 200:
            assert told["refusal"]["type"] == words[0]
            assert without_figures(told["refusal"]["message"]) == without_figures(words[1])
            assert told["spend_limit_left"] == "0.01"
            assert nanos(told["missing"]) == nanos(told["least_hold"]) - USD // 100
        else:
            assert (told["error"]["type"], told["error"]["message"]) == words
        assert answer.status == (402 if status == 200 else status)
    _, told = await quote(stage, small, message(max_tokens=100))
    assert told["admitted"] == "yes"


def without_figures(words: str) -> str:
    """The call has its input counted before it is refused, so what is missing is a little less."""
    return re.sub(r"\$\d+\.\d+ (held|short)|at most \d+", "", words)


async def test_a_stopped_session_is_not_quoted(stage: Stage) -> None:
    headers = {"x-claude-code-session-id": "3f0c2a9e"}
    server: Any = stage.gateway._server
    routes = next(one.__self__ for one in vars(server).values() if hasattr(getattr(one, "__self__", None), "_exact"))
    quotes = routes._exact["/v1/messages/quote"]["POST"].__self__
    await quotes._stopped.stop(stage.alice.account_id, "3f0c2a9e", stage.gateway.clock())
    status, told = await quote(stage, stage.alice, message(), headers)
    assert (status, told["error"]["type"]) == (403, "permission_error")
    assert (await quote(stage, stage.alice, message()))[0] == 200


async def test_expectations_come_from_calls_like_it(stage: Stage) -> None:
    """The median of what the account's own calls to that model came to; before there is one, all of max_tokens."""
    _, told = await quote(stage, stage.alice, message())
    assert told["output_tokens"] == {"expected": 2000, "at_most": 2000}
    assert "no finished call like it" in told["expected_from"]
    for tokens in (30, 40, 700):
        assert (await stage.ask(stage.alice, f"[[sim tokens={tokens}]]", max_tokens=1000))[0] == 200
    assert (await stage.ask(stage.alice, "[[sim tokens=5]]", model="claude-opus-4-6"))[0] == 200
    _, told = await quote(stage, stage.alice, message())
    seen = await stage.rows("SELECT output_tokens FROM usage WHERE model = ? ORDER BY output_tokens", MODEL)
    assert told["output_tokens"]["expected"] == seen[1][0]
    assert "the median of 3 finished calls" in told["expected_from"]
    _, told = await quote(stage, stage.alice, message(max_tokens=10))
    assert told["output_tokens"]["expected"] == 10
    _, told = await quote(stage, stage.bob, message())
    assert told["output_tokens"]["expected"] == 2000, "nobody learns from another's calls"


async def test_large_quotes_count_for_several(open_stage: OpenStage) -> None:
    async with open_stage(limits="questions_per_minute = 10") as stage:
        large = message("x" * (2 << 20))
        assert (await quote(stage, stage.alice, large))[0] == 200
        assert (await quote(stage, stage.alice, large))[0] == 200
        status, told = await quote(stage, stage.alice, message())
        assert (status, told["error"]["type"]) == (429, "rate_limit_error")
        answer = await stage.post(stage.alice, b" " * (33 << 20), path="/api/proxy/v1/messages/quote")
        assert answer.status == 413
