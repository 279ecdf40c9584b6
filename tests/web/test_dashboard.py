"""The dashboard: every figure in it is the one in the books, however it is filtered, grouped, paged or downloaded."""

import csv
import io
import itertools
import json
import re
from decimal import Decimal
from typing import Any

import pytest

from farebox.books.days import close_days
from farebox.books.figures import Figures
from farebox.books.log import LOOKED_AT
from farebox.books.statement import page_of_statement
from farebox.books.sums import first_open
from farebox.clock import DAY_US, HOUR_US, US_PER_S
from farebox.ids import new_request_id
from farebox.money import NANOS_PER_USD
from tests.stage import MODEL, Person, Stage
from tests.web.browse import PASSWORD, Browser, account_of, browser_of, enter, fund, mailed_path, mails_to, make_key

OPUS = "claude-opus-4-6"
COLUMNS = (
    "request_id, at, account_id, key_id, kind, model, asked_model, price_version, input_tokens, output_tokens, "
    "cost_nanos, list_nanos, charged_nanos, shortfall_nanos, waived_nanos, status, outcome, duration_us"
)


async def past_call(stage: Stage, account_id: int, at_us: int, **fields: Any) -> str:
    """Write a call of long ago into the books, as the ledger did then. Answers its id."""
    values = {
        "request_id": new_request_id(at_us), "at": at_us, "account_id": account_id, "key_id": 1, "kind": "exact",
        "model": MODEL, "asked_model": MODEL, "price_version": 1, "input_tokens": 100, "output_tokens": 10,
        "cost_nanos": 225_000, "list_nanos": 450_000, "charged_nanos": 225_000, "shortfall_nanos": 0,
        "waived_nanos": 0, "status": 200, "outcome": "finished", "duration_us": 1_000_000, **fields,
    }  # fmt: skip
    marks = ", ".join("?" for _ in values)
    insert = f"INSERT INTO usage ({COLUMNS}) VALUES ({marks})"
    await stage.gateway.store.write([(insert, tuple(values[name] for name in COLUMNS.split(", ")))])
    return f"req_{values['request_id'].hex()}"


def dollars(nanos: int) -> str:
    text = f"{nanos / 1_000_000_000:.9f}".rstrip("0")
    return f"${text}0" if len(text.partition(".")[2]) < 2 and "." in text else f"${text}"


async def alice_with_calls(stage: Stage) -> tuple[Browser, Person]:
    """Alice calls two models with two keys, once unsuccessfully; bob calls too, and shall show nowhere."""
    browser = await enter(stage, stage.alice.email)
    person = await make_key(stage, browser, stage.alice.email, "laptop")
    for asked in (MODEL, MODEL, OPUS):
        assert (await stage.ask(person, model=asked))[0] == 200
    assert (await stage.ask(stage.alice))[0] == 200
    await fund(stage, stage.bob.email, 3)
    assert (await stage.ask(stage.bob, model="claude-haiku-4-5"))[0] == 200
    return browser, person


async def test_the_log_is_filtered_by_its_address(stage: Stage) -> None:
    browser, person = await alice_with_calls(stage)
    ((key_id,),) = await stage.rows("SELECT id FROM api_key WHERE name = ?", "laptop")
    for query, models in (
        ("", [MODEL, OPUS, MODEL, MODEL]),
        (f"?model={MODEL}", [MODEL] * 3),
        (f"?model={OPUS}", [OPUS]),
        ("?model=claude-haiku-4-5", []),
        (f"?key={key_id}", [OPUS, MODEL, MODEL]),
        (f"?key={key_id}&model={OPUS}&status=finished&since=1h", [OPUS]),
        ("?status=client_gone", []),
        ("?since=24h", [MODEL, OPUS, MODEL, MODEL]),
        ("?status=nonsense&since=never&key=x&model=", [MODEL, OPUS, MODEL, MODEL]),
    ):
        page = await browser.get(f"/dashboard/requests{query}")
        rows = page.rows("Requests") if models else []
        assert [row[1] for row in rows] == models, query
        assert page.status == 200
        if not models:
            assert "No such calls" in page.words
    form = (await browser.get(f"/dashboard/requests?model={OPUS}&since=7d")).form()[2]
    assert (form["model"], form["since"], form["status"]) == (OPUS, "7d", "")
    assert person.account_id == stage.alice.account_id


async def test_the_log_has_pages_without_gaps_or_repeats(stage: Stage) -> None:
    """Also where many calls have the same moment, and where calls come in between."""
    browser = await enter(stage, stage.alice.email)
    now = stage.gateway.clock()
    wanted = [await past_call(stage, stage.alice.account_id, now - (number // 40) * US_PER_S) for number in range(130)]
    seen: list[str] = []
    page = await browser.get("/dashboard/requests?status=finished")
    while True:
        links = [link for link in page.links() if re.fullmatch(r"/dashboard/requests/req_\w+", link)]
        assert len(links) <= 50
        seen += [link.rpartition("/")[2] for link in links]
        (older,) = [link.get("href", "") for link in page.find("a", rel="next")] or [""]
        if not older:
            break
        await past_call(stage, stage.alice.account_id, stage.gateway.clock())
        page = await browser.get(f"/dashboard/requests{older}")
    assert sorted(seen) == sorted(wanted)
    assert len(set(seen)) == 130


async def test_a_rare_call_is_found_however_far_back_and_no_page_reads_more_than_its_share(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    now = stage.gateway.clock()
    rare = await past_call(stage, stage.alice.account_id, now - DAY_US, model=OPUS)
    many = LOOKED_AT + 200
    columns = COLUMNS.replace("request_id, at", "")
    copy = f"INSERT INTO usage ({COLUMNS}) SELECT ?, ?{columns} FROM usage WHERE request_id = ?"
    source = await past_call(stage, stage.alice.account_id, now - 2 * DAY_US)
    rows = [(copy, (new_request_id(now), now - number, bytes.fromhex(source[4:]))) for number in range(many)]
    for begin in range(0, many, 2000):
        await stage.gateway.store.write(rows[begin : begin + 2000])
    page = await browser.get(f"/dashboard/requests?model={OPUS}")
    assert "None among the calls looked through so far" in page.words
    (older,) = page.find("a", rel="next")
    page = await browser.get(f"/dashboard/requests{older.get('href', '')}")
    assert f"/dashboard/requests/{rare}" in page.links()
    assert not list(page.find("a", rel="next"))


async def test_a_call_is_found_by_its_id_and_only_by_its_owner(stage: Stage) -> None:
    browser, _ = await alice_with_calls(stage)
    rows = await stage.rows("SELECT account_id, request_id FROM usage")
    for account_id, request_id in rows:
        page = await browser.get(f"/dashboard/requests?id=+req_{request_id.hex()}+")
        if account_id == stage.alice.account_id:
            assert page.path == f"/dashboard/requests/req_{request_id.hex()}"
        else:
            assert page.status == 404
            assert "There is no call" in page.words


async def test_the_lines_of_a_calls_price_add_up_to_what_was_charged(stage: Stage) -> None:
    """Tokens × price is the line, lines are the cost, at what was sold and at list, under the prices of then."""
    browser, _ = await alice_with_calls(stage)
    rows = await stage.rows(
        "SELECT request_id, cost_nanos, list_nanos, charged_nanos, price_version FROM usage WHERE account_id = ?",
        stage.alice.account_id,
    )
    for request_id, cost, list_nanos, charged, version in rows:
        page = await browser.get(f"/dashboard/requests/req_{request_id.hex()}")
        assert page.faults() == []
        lines = [row for row in page.rows("Cost") if row[1]]
        sums = []
        for price, amount in ((3, 4), (5, 6)):
            for line in lines:
                rate = Decimal(line[price].removeprefix("$").removesuffix(" / M"))
                worth = rate * Decimal(line[2].replace(",", "")) / 1_000_000
                assert Decimal(line[amount].removeprefix("$").replace(",", "")) == worth
            sums.append(sum(Decimal(line[amount].removeprefix("$")) for line in lines))
        assert [-(-total * NANOS_PER_USD // 1) for total in sums] == [cost, list_nanos]
        assert f"Charged {dollars(charged)}" in page.words
        assert f"Prices of version {version}" in page.words
        assert f"list price {dollars(list_nanos)}" in page.words


async def test_a_call_under_prices_that_are_gone_is_shown_by_those_it_was_priced_by(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    ((models,),) = await stage.rows("SELECT models FROM price_list WHERE version = 1")
    dear = json.loads(models)
    for model in dear:
        model["rates"]["sell"]["input"] *= 7
    insert = "INSERT INTO price_list (version, sha256, models, created_at) VALUES (2, 'x', ?, 0)"
    await stage.gateway.store.write([(insert, (json.dumps(dear),))])
    now = stage.gateway.clock()
    old, new = [await past_call(stage, stage.alice.account_id, now, price_version=version) for version in (1, 2)]
    prices = [(await browser.get(f"/dashboard/requests/{one}")).rows("Cost")[0][3] for one in (old, new)]
    assert prices == ["$1.50 / M", "$10.50 / M"]
    gone = await past_call(stage, stage.alice.account_id, now, asked_model="claude-gone", model="claude-gone")
    page = await browser.get(f"/dashboard/requests/{gone}")
    assert page.status == 200
    assert "has no price for claude-gone" in page.words


async def test_steps_factors_and_tools_are_lines_too(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    line = {"model": MODEL, "input": 1000, "cache_read": 5000, "output": 7}
    other = {"model": "claude-haiku-4-5", "input": 10, "cache_write_1h": 3, "unpriced": 2, "batch": True}
    detail = json.dumps({"lines": [line, other], "web_searches": 2, "unpriced_uses": 1})
    call = await past_call(stage, stage.alice.account_id, stage.gateway.clock())
    stored = await stage.rows("SELECT 1 FROM usage WHERE request_id = ?", bytes.fromhex(call[4:]))
    assert stored
    copy = (
        "INSERT INTO usage (request_id, detail, at, account_id, key_id, kind, model, asked_model, price_version, "
        "cost_nanos, list_nanos, charged_nanos, shortfall_nanos, waived_nanos, status, outcome) SELECT ?, ?, at, "
        "account_id, key_id, kind, model, asked_model, price_version, cost_nanos, list_nanos, charged_nanos, "
        "shortfall_nanos, waived_nanos, status, outcome FROM usage WHERE request_id = ?"
    )
    second = new_request_id(stage.gateway.clock())
    await stage.gateway.store.write([(copy, (second, detail, bytes.fromhex(call[4:])))])
    page = await browser.get(f"/dashboard/requests/req_{second.hex()}")
    lines = {(row[0], row[1]): row[2] for row in page.rows("Cost") if row[1]}
    assert lines[("Cache read", MODEL)] == "5,000"
    assert lines[("Cache write, 1 hour", "claude-haiku-4-5")] == "3"
    assert lines[("Other tokens", "claude-haiku-4-5")] == "2"
    assert lines[("Web searches", MODEL)] == "3"
    assert "in a batch: × 0.5" in page.words
    assert "uses of an unknown tool" in page.words


@pytest.mark.parametrize("name", ["requests", "usage", "transactions"])
async def test_files_say_what_the_page_says(stage: Stage, name: str) -> None:
    """CSV and JSON of the same filter hold the same rows, with exact amounts, and nobody else's."""
    browser, _ = await alice_with_calls(stage)
    query = {"requests": f"?model={MODEL}", "usage": "?by=key&range=24h", "transactions": ""}[name]
    as_csv = await browser.get(f"/dashboard/{name}.csv{query}")
    as_json = await browser.get(f"/dashboard/{name}.json{query}")
    assert as_csv.header("content-type").startswith("text/csv")
    assert re.search(rf'attachment; filename="{name}-[\d-]+\.csv"', as_csv.header("content-disposition"))
    rows = list(csv.DictReader(io.StringIO(as_csv.text)))
    found = json.loads(as_json.text)
    assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in found] == rows
    assert len(rows) == {"requests": 3, "usage": 2, "transactions": 5}[name]
    spent = await stage.rows(
        "SELECT sum(charged_nanos), sum(CASE WHEN model = ? THEN charged_nanos ELSE 0 END) FROM usage "
        "WHERE account_id = ?",
        *(MODEL, stage.alice.account_id),
    )
    if name == "transactions":
        assert rows[0]["balance_usd"] == f"{Decimal(100) - Decimal(spent[0][0]) / NANOS_PER_USD:f}"
        assert rows[-1]["amount_usd"] == "100.00"
    else:
        column = "charged_usd" if name == "requests" else "spend_usd"
        right = spent[0][1] if name == "requests" else spent[0][0]
        assert sum(Decimal(row[column]) for row in rows) == Decimal(right) / NANOS_PER_USD


async def test_no_cell_of_a_file_is_a_formula(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    person = await make_key(stage, browser, stage.alice.email, '=HYPERLINK("https://evil.example")')
    assert (await stage.ask(person))[0] == 200
    text = (await browser.get("/dashboard/requests.csv")).text
    assert "\"'=HYPERLINK" in text
    (row,) = json.loads((await browser.get("/dashboard/requests.json")).text)
    assert row["key"].startswith("=HYPERLINK")


async def test_empty_files_are_files(stage: Stage) -> None:
    browser = await enter(stage, stage.bob.email)
    assert json.loads((await browser.get("/dashboard/requests.json")).text) == []
    assert len((await browser.get("/dashboard/requests.csv")).text.splitlines()) == 1


async def test_figures_are_the_same_before_and_after_their_days_are_closed(stage: Stage) -> None:
    """Sums of closed days are made once, with the close, and what is younger is added: never twice, never not."""
    store, alice = stage.gateway.store, stage.alice.account_id
    now = stage.gateway.clock()
    today = now // DAY_US
    for number in range(60):
        model = (MODEL, OPUS)[number % 2]
        at = now - (number % 12) * DAY_US // 2
        await past_call(stage, alice, at, model=model, key_id=1 + number % 3)
        await past_call(stage, stage.bob.account_id, at, model=model)

    async def figures() -> list[Any]:
        read = await Figures.read(store, alice, now)
        statement = await page_of_statement(store, alice, None, 100)
        return [
            *[await read.by_day(today - 9, today, group) for group in ("model", "key", "outcome")],
            await read.by_day(today - 3, today - 1, "model"),
            await read.in_days(today - 9, today - 2),
            await read.by_hour(now // HOUR_US - 23, now // HOUR_US, "key"),
            await read.of_keys(),
            statement,
            *[await page_of_statement(store, alice, line.mark, 3) for line in statement.lines[::7]],
        ]

    before = await figures()
    assert (await first_open(store)).day == 0
    closed = await close_days(store, now)
    assert len(closed) >= 5
    assert (await first_open(store)).day == today - (0 if closed[-1] else 1) or (await first_open(store)).day > 0
    assert (await stage.rows("SELECT sum(requests) FROM usage_day"))[0][0] > 60
    assert await figures() == before
    assert await close_days(store, now) == []
    assert await figures() == before
    assert sum(point.requests for point in before[0]) == 60


async def test_usage_is_grouped_and_ranged_by_its_address(stage: Stage) -> None:
    browser, _ = await alice_with_calls(stage)
    for group, label, names in (
        ("model", "Usage by model", {MODEL, OPUS}),
        ("key", "Usage by key", {"laptop", "test"}),
        ("status", "Usage by status", {"finished"}),
    ):
        for span in ("24h", "7d", "30d", "90d"):
            page = await browser.get(f"/dashboard/usage?by={group}&range={span}&metric=requests")
            assert page.faults() == []
            rows = page.rows(label)
            assert {row[0] for row in rows} == names
            assert sum(int(row[-1]) for row in rows) == 4
            assert [int(row[-1]) for row in page.rows("Figures")] == [4]
            assert len(list(page.find("rect", class_="hit"))) == 1
    fragment = await browser.get("/dashboard/usage?by=key", {"x-fragment": "usage"})
    whole = await browser.get("/dashboard/usage?by=key")
    assert fragment.text.strip() in whole.text
    assert "<html" not in fragment.text


async def test_transactions_run_down_from_the_balance_to_nothing(stage: Stage) -> None:
    """Page by page each balance is the one before it less the amount; the newest is the one in the books."""
    browser = await enter(stage, stage.alice.email)
    for number in range(57):
        await fund(stage, stage.alice.email, 0.01 * (number + 1))
        if number % 3 == 0:
            assert (await stage.ask(stage.alice))[0] == 200
    lines: list[tuple[Decimal, Decimal]] = []
    path = "/dashboard/transactions"
    while path:
        page = await browser.get(path)
        assert page.faults() == []
        lines += [
            (Decimal(row[-2].replace("$", "")), Decimal(row[-1].replace("$", ""))) for row in page.rows("Transactions")
        ]
        (older,) = [link.get("href", "") for link in page.find("a", rel="next")] or [""]
        path = f"/dashboard/transactions{older}" if older else ""
    posted, _ = await stage.balance(stage.alice)
    assert len(lines) == 57 + 19 + 1
    assert lines[0][1] == Decimal(posted) / NANOS_PER_USD
    for (amount, balance), (_, before) in itertools.pairwise(lines):
        assert balance - amount == before
    assert lines[-1][0] == lines[-1][1] == 100


async def test_what_is_held_shows_apart_from_the_balance(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    hold = "UPDATE account SET held_nanos = 1500000000 WHERE id = ?"
    await stage.gateway.store.write([(hold, (stage.alice.account_id,))])
    words = (await browser.get("/dashboard")).words
    assert "Balance $98.50 and $1.50 held for calls in flight" in words
    await stage.gateway.store.write([("UPDATE account SET held_nanos = 0 WHERE id = ?", (stage.alice.account_id,))])


async def test_first_steps_turn_into_figures_with_the_first_call(stage: Stage) -> None:
    browser = await enter(stage, stage.bob.email)
    assert "First steps" in (await browser.get("/dashboard")).words
    await fund(stage, stage.bob.email, 1)
    assert (await stage.ask(stage.bob))[0] == 200
    words = (await browser.get("/dashboard")).words
    assert "First steps" not in words
    assert "Requests today 1" in words


async def test_the_password_is_changed_with_the_present_one(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    other = await enter(stage, stage.alice.email)
    settings = await browser.get("/dashboard/settings/sign-in")
    new = "nine brave herons sail home"
    for present, wanted, words in (
        ("wrong wrong wrong wrong", new, "that is not your present password"),
        (PASSWORD, "short", "15 to 128 characters"),
        (PASSWORD, "alicealicealice1", "too easily guessed"),
    ):
        page = await browser.submit(settings, "/dashboard/password", password=present, new_password=wanted)
        assert page.status == 422
        assert words in page.words
        assert present not in page.text
    page = await browser.submit(settings, "/dashboard/password", password=PASSWORD, new_password=new)
    assert "Your password has been changed" in page.words
    assert (await browser.get("/dashboard")).path == "/dashboard"
    assert (await other.get("/dashboard")).path.startswith("/login")
    assert (await browser_of(stage).sign_in(stage.alice.email, new)).path == "/dashboard"
    assert "Your password has been changed" in [subject for subject, _ in await mails_to(stage, stage.alice.email)]


async def test_the_present_password_cannot_be_guessed_in_the_settings_either(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    for number in range(7):
        page = await browser.post(
            "/dashboard/email", {"email": "x@example.com", "password": f"guess number {number} of many"}
        )
        assert page.status == 422
    assert "too many wrong tries" in page.words


async def test_the_address_is_changed_by_a_link_mailed_to_the_new_one(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    new = "alice@elsewhere.example"
    told = await browser.submit(
        await browser.get("/dashboard/settings"), "/dashboard/email", email="Alice@Elsewhere.example", password=PASSWORD
    )
    assert "a link is on its way" in told.words
    assert await account_of(stage, stage.alice.email) == stage.alice.account_id
    path = await mailed_path(stage, new)
    done = await browser_of(stage).submit(await browser_of(stage).get(path))
    assert "Your account goes by this address" in done.words
    assert await account_of(stage, new) == stage.alice.account_id
    assert "now goes by alice@elsewhere.example" in (await mails_to(stage, stage.alice.email))[-1][1]
    assert (await browser_of(stage).submit(await browser_of(stage).get(path))).status == 422
    assert (await browser_of(stage).sign_in(new)).path == "/dashboard"
    assert new in (await browser.get("/dashboard/settings")).words


async def test_an_address_that_is_taken_is_not_told_to_who_wants_it(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    pages = [
        await browser.post("/dashboard/email", {"email": email, "password": PASSWORD})
        for email in (stage.bob.email, "free@example.com")
    ]
    assert pages[0].words.replace(stage.bob.email, "…") == pages[1].words.replace("free@example.com", "…")
    assert [subject for subject, _ in await mails_to(stage, stage.bob.email)] == ["You have an account at Farebox"]
    path = await mailed_path(stage, "free@example.com")
    await stage.person("free@example.com")
    late = await browser.submit(await browser.get(path))
    assert late.status == 422
    assert "an account of its own by now" in late.words
    assert await account_of(stage, stage.alice.email) == stage.alice.account_id


async def test_an_account_is_closed_when_it_is_empty_and_not_before(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    page = await browser.get("/dashboard/close")
    assert "There is $100.00 in it" in page.words
    refused = await browser.post("/dashboard/close", {"password": PASSWORD})
    assert refused.status == 422
    assert (await stage.ask(stage.alice))[0] == 200
    bob = await enter(stage, stage.bob.email)
    wrong = await bob.submit(await bob.get("/dashboard/close"), password="not my present password")
    assert wrong.status == 422
    done = await bob.submit(await bob.get("/dashboard/close"), password=PASSWORD)
    assert "Your account is closed" in done.words
    assert (await bob.get("/dashboard")).path.startswith("/login")
    status, answer = await stage.ask(stage.bob)
    assert status == 401, answer
    assert (await mails_to(stage, stage.bob.email))[-1][0] == "Your account at Farebox is closed"
    assert not await stage.rows("SELECT 1 FROM session WHERE account_id = ?", stage.bob.account_id)
