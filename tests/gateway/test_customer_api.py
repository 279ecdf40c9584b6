"""What a customer's program asks about its account: exact, complete, and about nobody else's."""

import asyncio
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from farebox.accounts.key_rules import Rules
from farebox.accounts.keys import create_key
from farebox.accounts.sealing import Seals
from farebox.accounts.signing import Signing, check, read_public_keys
from farebox.books.call_receipts import faults
from farebox.books.ledger import credit
from farebox.clock import DAY_US, HOUR_US, day_of, day_start_us
from farebox.errors import FareboxError
from farebox.secret import Secret
from tests.clients.run import Ended
from tests.gateway.play import envelope, eventually, listen, message
from tests.stage import MODEL, OpenStage, Person, Stage

USD: Final = 10**9
SESSION: Final = "3f0c2a9e-5d1b-4a77-9d0e-6b1f2c3d4e5f"
PATHS: Final = ("/v1/balance", "/v1/usage", "/v1/key", "/v1/statusline")


async def get(
    stage: Stage, person: Person | None, path: str, prefix: str = "/api/proxy", **headers: str
) -> tuple[int, bytes]:
    sent = {**({"x-api-key": person.key} if person else {}), **headers}
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in sent.items()]
    answer = await stage.client.request("GET", prefix + path, fields, b"", first_byte_s=30)
    return answer.status, await answer.read(2**22)


async def ask(stage: Stage, person: Person, path: str, **headers: str) -> Any:
    status, body = await get(stage, person, path, **headers)
    assert status == 200, body
    return json.loads(body)


async def call_of(stage: Stage, person: Person, **fields: Any) -> str:
    """Make a call; answers its id."""
    answer = await stage.post(person, message(**fields))
    await answer.read(2**22)
    assert answer.status == 200
    return (answer.header(b"request-id") or b"").decode()


def nanos(text: str) -> int:
    return int(Decimal(text) * USD)


async def test_the_balance_is_exact_and_shows_what_is_held_apart(stage: Stage) -> None:
    before = await ask(stage, stage.alice, "/v1/balance")
    assert (before["posted"], before["held"], before["free"], before["days_left"]) == ("100.00", "0.00", "100.00", None)
    await call_of(stage, stage.alice)
    stream = await listen(stage, stage.alice, "[[sim tokens=5000 rate=200 ttft=0]]")
    await stream.has(b"content_block_delta")
    during = await ask(stage, stage.alice, "/v1/balance")
    posted, held = await stage.balance(stage.alice)
    assert held > 0
    assert [nanos(during[name]) for name in ("posted", "held", "free")] == [posted, held, posted - held]
    ((charged,),) = await stage.rows("SELECT sum(charged_nanos) FROM usage")
    assert nanos(during["spent_today"]) == nanos(during["spent_7_days"]) == charged > 0
    assert during["days_left"] == (posted - held) * 7 // charged
    stream.hang_up()


async def test_figures_go_back_over_closed_days(stage: Stage) -> None:
    """What is of today, of the week and older counts where it belongs, before its day is closed and after."""
    await call_of(stage, stage.alice)
    now_us = stage.gateway.clock()
    for age, cost in ((1, 3), (6, 5), (7, 7), (8, 11)):
        await put_call(stage, stage.alice, now_us - age * DAY_US, cost * USD)
    ((today,),) = await stage.rows("SELECT charged_nanos FROM usage WHERE upstream IS NOT NULL")
    first = day_of(now_us - 8 * DAY_US)
    open_days = await ask(stage, stage.alice, f"/v1/usage?from={first}")
    for _ in range(2):
        balance = await ask(stage, stage.alice, "/v1/balance")
        assert nanos(balance["spent_today"]) == today
        assert nanos(balance["spent_7_days"]) == today + 8 * USD
        assert await ask(stage, stage.alice, f"/v1/usage?from={first}") == open_days
        await eventually(lambda: close_days(stage, first))
    usage = await ask(stage, stage.alice, f"/v1/usage?from={first}&by=day")
    assert [row["day"] for row in usage["data"]] == [day_of(now_us - age * DAY_US) for age in (8, 7, 6, 1, 0)]
    assert [nanos(row["charged"]) for row in usage["data"]] == [11 * USD, 7 * USD, 5 * USD, 3 * USD, today]
    assert nanos(usage["total"]["charged"]) == 26 * USD + today
    short = await ask(stage, stage.alice, f"/v1/usage?from={first}&to={day_of(now_us - 7 * DAY_US)}")
    assert nanos(short["total"]["charged"]) == 18 * USD


async def close_days(stage: Stage, first: str) -> bool:
    """Close the past days from the first on, as soon as that may be; tells whether all that ended an hour ago are."""
    assert stage.gateway.books is not None
    await stage.gateway.books.close_days()
    ended = (stage.gateway.clock() - HOUR_US - day_start_us(first)) // DAY_US
    return len(await stage.rows("SELECT day FROM day_close")) >= ended


async def put_call(stage: Stage, person: Person, at_us: int, cost: int) -> None:
    insert = (
        "INSERT INTO usage (request_id, at, account_id, key_id, kind, model, asked_model, price_version, input_tokens, "
        "output_tokens, cost_nanos, list_nanos, charged_nanos, shortfall_nanos, waived_nanos, status, outcome) "
        "VALUES (?, ?, ?, 1, 'exact', ?, ?, 1, 10, 20, ?, ?, ?, 0, 0, 200, 'finished')"
    )
    values = (os.urandom(16), at_us, person.account_id, MODEL, MODEL, cost, cost, cost)
    await stage.gateway.store.write([(insert, values)])


@pytest.mark.parametrize("by", ["model", "key", "outcome", "day"])
async def test_usage_comes_in_pages_that_add_up(stage: Stage, by: str) -> None:
    """However small the pages: together they are the whole, in order, and each row once."""
    now_us = stage.gateway.clock()
    second = await another_key(stage, stage.alice, Rules())
    for person, age in ((stage.alice, 3), (second, 2)):
        await put_call(stage, person, now_us - age * DAY_US, age * USD)
    for person, model in ((stage.alice, MODEL), (second, "claude-opus-4-6"), (second, MODEL)):
        await call_of(stage, person, model=model)
    whole = await ask(stage, stage.alice, f"/v1/usage?by={by}")
    for size in (1, 2, 3):
        rows: list[Any] = []
        page = ""
        while True:
            part = await ask(stage, stage.alice, f"/v1/usage?by={by}&limit={size}{page}")
            assert part["total"] == whole["total"]
            assert len(part["data"]) <= size
            rows += part["data"]
            assert part["has_more"] is (part["next_page"] is not None)
            if part["next_page"] is None:
                break
            page = f"&page={part['next_page']}"
        assert rows == whole["data"]
    ((calls, charged),) = await stage.rows("SELECT count(*), sum(charged_nanos) FROM usage")
    assert sum(row["requests"] for row in whole["data"]) == whole["total"]["requests"] == calls
    assert sum(nanos(row["charged"]) for row in whole["data"]) == nanos(whole["total"]["charged"]) == charged
    assert not whole["has_more"]


async def another_key(stage: Stage, person: Person, rules: Rules) -> Person:
    store, clock = stage.gateway.store, stage.gateway.clock
    _, text = await create_key(store, person.account_id, "second", "sk-cc-", clock(), rules)
    return Person(person.account_id, person.email, text)


WRONG: Final = (
    ("/v1/usage?from=yesterday", "from is a day"),
    ("/v1/usage?from=2026-02-30", "from is a day"),
    ("/v1/usage?from=0001-01-01&to=0001-01-02", "to is a day"),
    ("/v1/usage?from=2026-11-02&to=2026-11-01", "span 1 to 366 days"),
    ("/v1/usage?from=2024-11-01&to=2026-11-01", "span 1 to 366 days"),
    ("/v1/usage?by=hour", "by must be one of model, key, outcome, day"),
    ("/v1/usage?limit=0", "limit must be 1…1000"),
    ("/v1/usage?limit=%D9%A3", "limit must be 1…1000"),
    ("/v1/usage?page=x", "page is what next_page"),
    ("/v1/usage?page=", "page is what next_page"),
    ("/v1/usage?page=2026-13-01.x", "page is a day"),
    ("/v1/statusline?session=%00", "session: at most 200"),
    ("/v1/statusline?session=%C3%A4", "session: at most 200"),
)


@pytest.mark.parametrize(("path", "words"), WRONG)
async def test_what_cannot_be_read_is_refused_by_name(stage: Stage, path: str, words: str) -> None:
    status, body = await get(stage, stage.alice, path)
    kind, told = envelope(body)
    assert (status, kind) == (400, "invalid_request_error")
    assert words in told


async def test_a_key_describes_itself(stage: Stage) -> None:
    rules = Rules(models=(MODEL,), requests_per_minute=7, limit_nanos=2 * USD, resets="daily")
    second = await another_key(stage, stage.alice, rules)
    await call_of(stage, second)
    key = await ask(stage, second, "/v1/key")
    assert (key["name"], key["models"], key["requests_per_minute"]) == ("second", [MODEL], 7)
    assert key["hint"].endswith(second.key[-4:])
    assert second.key not in json.dumps(key)
    ((charged,),) = await stage.rows("SELECT charged_nanos FROM usage")
    budget = key["budget"]
    assert (budget["limit"], budget["resets"]) == ("2.00", "daily")
    assert (nanos(budget["used"]), nanos(budget["left"])) == (charged, 2 * USD - charged)
    assert budget["resets_at"] == f"{day_of(stage.gateway.clock() + DAY_US)}T00:00:00.000000Z"
    assert (await ask(stage, second, "/v1/balance"))["key_budget"] == budget
    plan = stage.gateway.config.plans.get("pro")
    assert key["account"] == {
        "id": stage.alice.account_id,
        "plan": "pro",
        "requests_per_minute": plan.requests_per_minute,
        "tokens_per_minute": plan.tokens_per_minute,
        "concurrent": plan.concurrent,
    }
    change = "UPDATE account SET tokens_per_minute = 5, concurrent = 2 WHERE id = ?"
    await stage.gateway.store.write([(change, (stage.alice.account_id,))])
    account = (await ask(stage, stage.alice, "/v1/key"))["account"]
    assert (account["requests_per_minute"], account["tokens_per_minute"], account["concurrent"]) == (300, 5, 2)


async def test_one_call_is_told_with_every_line_of_its_cost(stage: Stage) -> None:
    request_id = await call_of(stage, stage.alice)
    call = await ask(stage, stage.alice, f"/v1/requests/{request_id}")
    ((charged, input_, output),) = await stage.rows("SELECT charged_nanos, input_tokens, output_tokens FROM usage")
    assert (call["request_id"], call["outcome"], call["kind"]) == (request_id, "finished", "exact")
    assert nanos(call["charged"]) == nanos(call["cost"]) == charged
    assert (call["usage"]["input_tokens"], call["usage"]["output_tokens"]) == (input_, output)
    assert faults(call) == []
    assert [line["what"] for line in call["lines"]] == ["Input", "Output"]
    assert call["key_id"] == (await ask(stage, stage.alice, "/v1/key"))["id"]


async def test_a_call_that_runs_has_not_ended(stage: Stage) -> None:
    stream = await listen(stage, stage.alice, "[[sim tokens=5000 rate=200 ttft=0]]")
    await stream.has(b"content_block_delta")
    ((request_id,),) = await stage.rows("SELECT request_id FROM hold")
    status, body = await get(stage, stage.alice, f"/v1/requests/req_{request_id.hex()}")
    assert (status, "has not ended yet" in envelope(body)[1]) == (404, True)
    status, body = await get(stage, stage.bob, f"/v1/requests/req_{request_id.hex()}")
    assert (status, "has no call" in envelope(body)[1]) == (404, True)
    stream.hang_up()


async def test_nobody_reads_what_is_anothers(stage: Stage) -> None:
    """Bob and a stranger ask for alice's call in every way: what they are told is as if it had never been."""
    request_id = await call_of(stage, stage.alice)
    none = "req_" + "0" * 32
    for path in ("/v1/requests/{}", "/v1/requests/{}/receipt"):
        status, body = await get(stage, stage.bob, path.format(request_id))
        missing = await get(stage, stage.bob, path.format(none))
        assert status == missing[0] == 404
        assert envelope(body)[1].replace(request_id, "") == envelope(missing[1])[1].replace(none, "")
        assert (await get(stage, None, path.format(request_id)))[0] == 401
    for path in PATHS:
        assert (await get(stage, None, path))[0] == 401
    assert (await ask(stage, stage.bob, "/v1/usage"))["data"] == []
    assert (await ask(stage, stage.bob, "/v1/balance"))["posted"] == "0.00"
    carol = await stage.person("carol@example.com", 5)
    await stage.gateway.store.write([("UPDATE account SET status = 'suspended' WHERE id = ?", (carol.account_id,))])
    for path in PATHS:
        assert (await get(stage, carol, path))[0] == 403


@pytest.mark.parametrize("prefix", ["/api/proxy", "/api/proxy/v1", "", "/v1"])
async def test_every_form_of_the_base_url_does(stage: Stage, prefix: str) -> None:
    request_id = await call_of(stage, stage.alice)
    for path in (*PATHS, f"/v1/requests/{request_id}", f"/v1/requests/{request_id}/receipt"):
        assert (await get(stage, stage.alice, path, prefix))[0] == 200
    status, body = await get(stage, stage.alice, "/v1/requests/", prefix)
    assert (status, envelope(body)[0]) == (404, "not_found_error")


async def test_questions_have_a_limit_of_their_own_and_cost_nothing(open_stage: OpenStage) -> None:
    async with open_stage(limits="questions_per_minute = 5") as stage:
        second = await another_key(stage, stage.alice, Rules())
        assert [(await get(stage, stage.alice, "/v1/balance"))[0] for _ in range(5)] == [200] * 5
        answer = await stage.client.request(
            "GET", "/v1/key", [(b"x-api-key", stage.alice.key.encode())], b"", first_byte_s=30
        )
        kind, words = envelope(await answer.read(2**16))
        assert (answer.status, kind) == (429, "rate_limit_error")
        assert "5 questions a minute" in words
        assert int(answer.header(b"retry-after") or 0) in range(1, 13)
        assert (await get(stage, second, "/v1/key"))[0] == 200, "each key by itself"
        assert (await stage.ask(stage.alice))[0] == 200, "and calls are no questions"
        rows = await stage.rows("SELECT count(*) FROM usage UNION ALL SELECT count(*) FROM hold")
        assert [count for (count,) in rows] == [1, 0]


# receipts


async def test_a_receipt_is_signed_and_any_change_shows(stage: Stage) -> None:
    request_id = await call_of(stage, stage.alice)
    signed = await ask(stage, stage.alice, f"/v1/requests/{request_id}/receipt")
    keys = json.loads((await get(stage, None, "/.well-known/farebox-receipt-keys.json", ""))[1])
    assert keys == await read_public_keys(stage.gateway.store)
    assert check(signed, "receipt", keys) == signed["receipt"]
    assert faults(signed["receipt"]) == []
    call = await ask(stage, stage.alice, f"/v1/requests/{request_id}")
    assert signed["receipt"].items() >= {name: call[name] for name in ("charged", "lines", "usage", "at")}.items()
    assert "Hello" not in json.dumps(signed)
    changes: tuple[dict[str, Any], ...] = ({"charged": "0.00"}, {"account_id": 2}, {"more": 1}, {"usage": {}})
    for change in changes:
        with pytest.raises(FareboxError, match="changed after it was signed"):
            check({**signed, "receipt": {**signed["receipt"], **change}}, "receipt", keys)


async def test_what_was_given_back_is_on_the_receipt(stage: Stage) -> None:
    request_id = await call_of(stage, stage.alice)
    refund = credit(f"refund:{request_id[4:]}", stage.alice.account_id, 5, code="refund", actor="gateway", memo="")
    await stage.gateway.ledger.post(refund)
    signed = await ask(stage, stage.alice, f"/v1/requests/{request_id}/receipt")
    assert signed["receipt"]["refunded"] == "0.000000005"


async def test_receipts_stay_genuine_over_restarts_and_a_lost_secret(open_stage: OpenStage) -> None:
    """The key is kept; where it cannot be opened any more a new one signs, and the old receipts still hold."""
    async with open_stage() as stage:
        alice = stage.alice
        request_id = await call_of(stage, alice)
        first = await ask(stage, alice, f"/v1/requests/{request_id}/receipt")
        store, now_us = stage.gateway.store, stage.gateway.clock()
        sealed = await Signing.open(store, await Seals.open(store, Secret("s" * 32), now_us), now_us)
        assert sealed.public_keys == await read_public_keys(store), "the key that is there does for it, too"
    async with open_stage() as stage:
        second = await ask(stage, alice, f"/v1/requests/{request_id}/receipt")
        assert second["signature"]["key_id"] == first["signature"]["key_id"]
        store, now_us = stage.gateway.store, stage.gateway.clock()
        await store.write([("UPDATE secret SET value = ? WHERE name = 'seal'", (os.urandom(32),))])
    async with open_stage() as stage:
        third = await ask(stage, alice, f"/v1/requests/{request_id}/receipt")
        assert third["signature"]["key_id"] != first["signature"]["key_id"]
        keys = await read_public_keys(stage.gateway.store)
        assert len(keys["keys"]) == 2
        for signed in (first, second, third):
            check(signed, "receipt", keys)


async def test_processes_that_start_together_sign_with_one_key(stage: Stage) -> None:
    store, now_us = stage.gateway.store, stage.gateway.clock()
    await store.write([("DELETE FROM secret WHERE name LIKE 'receipt:%'", ())])
    seals = await Seals.open(store, Secret(""), now_us)
    opened = await asyncio.gather(*(Signing.open(store, seals, now_us) for _ in range(8)))
    keys = await read_public_keys(store)
    assert len(keys["keys"]) == 1
    for signing in opened:
        assert check(signing.sign({"type": "receipt"}), "receipt", keys) == {"type": "receipt"}


# the status line


async def test_the_status_line_is_short_and_tells_a_sessions_cost(stage: Stage) -> None:
    headers = {"x-claude-code-session-id": SESSION}
    answer = await stage.post(stage.alice, message(), headers=headers)
    await answer.read(2**20)
    await call_of(stage, stage.alice)
    ((first,), (both,)) = await stage.rows(
        "SELECT sum(charged_nanos) FROM usage WHERE session = ? UNION ALL SELECT sum(charged_nanos) FROM usage", SESSION
    )
    assert 0 < first < both
    status, text = await get(stage, stage.alice, "/v1/statusline")
    assert (status, text.decode()) == (200, "$99.99 left · $0.01 today\n")
    _, text = await get(stage, stage.alice, f"/v1/statusline?session={SESSION}")
    assert text.decode() == "$99.99 left · $0.01 today · $0.01 session\n"
    for told in (
        await ask(stage, stage.alice, f"/v1/statusline?session={SESSION}", accept="application/json"),
        await ask(stage, stage.alice, "/v1/statusline", accept="application/json", x_claude_code_session_id=SESSION),
    ):
        assert (nanos(told["spent_today"]), nanos(told["spent_session"])) == (both, first)
    other = await ask(stage, stage.bob, f"/v1/statusline?session={SESSION}", accept="application/json")
    assert other["spent_session"] == "0.00", "a session is its account's own"


async def script(
    stage: Stage, home: Path, key: str, told: str = f'{{"session_id":"{SESSION}"}}', url: str = ""
) -> Ended:
    """Run the script as Claude Code does, with the address of this stage."""
    path = home / "statusline.sh"
    if not path.exists():
        path.write_bytes((await get(stage, None, "/statusline.sh", ""))[1])
    process = await asyncio.create_subprocess_exec(
        "sh",
        path,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "FAREBOX_KEY": key, "FAREBOX_URL": url or stage.base_url},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(told.encode()), 10)
    return Ended(process.returncode or 0, out.decode(), err.decode())


async def test_the_script_shows_the_line_keeps_it_for_a_while_and_never_fails(stage: Stage, tmp_path: Path) -> None:
    answer = await stage.post(stage.alice, message(), headers={"x-claude-code-session-id": SESSION})
    await answer.read(2**20)
    first = await script(stage, tmp_path, stage.alice.key)
    assert first == Ended(0, "$99.99 left · $0.01 today · $0.01 session\n", "")
    asked = stage.gateway.metrics.responses[200]
    again = await script(stage, tmp_path, stage.alice.key)
    assert again == first
    assert stage.gateway.metrics.responses[200] == asked, "the second time nothing was asked"
    (kept,) = (tmp_path / ".cache" / "farebox").iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    assert stage.alice.key not in kept.read_text() + kept.name
    lines = kept.read_text().splitlines()
    kept.write_text(f"1\n{lines[1]}\n")
    renewed = await script(stage, tmp_path, stage.alice.key)
    assert renewed == first
    assert stage.gateway.metrics.responses[200] > asked, "an old line is renewed"


async def test_the_script_shows_the_last_line_when_nobody_answers(stage: Stage, tmp_path: Path) -> None:
    gone = "http://127.0.0.1:9/api/proxy"
    assert await script(stage, tmp_path, stage.alice.key, url=gone) == Ended(0, "farebox: no answer\n", "")
    (kept,) = (tmp_path / ".cache" / "farebox").iterdir()
    kept.write_text("1\n$5.00 left\n")
    os.utime(kept, (1, 1))
    assert await script(stage, tmp_path, stage.alice.key, url=gone) == Ended(0, "$5.00 left\n", "")
    os.utime(kept, (1, 1))
    await script(stage, tmp_path, stage.alice.key, '{"session_id":"another"}', gone)
    assert kept not in (tmp_path / ".cache" / "farebox").iterdir(), "what is old is cleared away"
    assert len(list((tmp_path / ".cache" / "farebox").iterdir())) == 1


async def test_the_script_does_without_a_place_to_write(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("no directory")
    told = await script(stage, tmp_path, stage.alice.key, "{}")
    assert told == Ended(0, "$100.00 left · $0.00 today\n", "")


@pytest.mark.parametrize(
    ("key", "told", "out"),
    [
        ("", "{}", "farebox: set FAREBOX_KEY\n"),
        ('x"\nurl = "file:///etc/passwd', "{}", "farebox: FAREBOX_KEY is no key\n"),
        ("sk-cc-unknown", "{}", "farebox: no answer\n"),
        ("KEY", "", "$100.00 left · $0.00 today\n"),
        ("KEY", '{"session_id":"$(touch pwned)"}', "$100.00 left · $0.00 today\n"),
        ("KEY", '{\n  "a": 1,\n  "session_id" : "abc"\n}', "$100.00 left · $0.00 today · $0.00 session\n"),
    ],
)
async def test_the_script_takes_what_comes(stage: Stage, tmp_path: Path, key: str, told: str, out: str) -> None:
    ended = await script(stage, tmp_path, stage.alice.key if key == "KEY" else key, told)
    assert ended == Ended(0, out, "")
    assert "pwned" not in os.listdir(tmp_path)  # noqa: PTH208
