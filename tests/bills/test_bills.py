"""Bills of upstreams beside the books: got from a cost report or from CSV, compared a day and model at a time."""

import asyncio
import csv
import io
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.bills.drift import Day, Line, days_of
from farebox.bills.reports import MOST_NANOS, OTHER, WEB_SEARCH, BillTrouble, read_csv
from farebox.bills.watch import BillWatch
from farebox.clock import DAY_US, day_of, day_start_us
from farebox.errors import InvalidRequest, NotFound
from tests.gateway.play import USD
from tests.stage import MODEL, OpenStage, Stage
from tests.web.operators import enter_admin, written

BILLS = '[[bills]]\nname = "ours"\nupstreams = ["sim"]\nadmin_key = "sk-ant-admin01-x"\nbase_url = "http://127.0.0.1:{port}"\n'
CSV_ONLY = '[[bills]]\nname = "ours"\nupstreams = ["sim", "gone"]\npercent = 1\nleast_usd = 0.5\n'


class Reports:
    """The admin API as its pages describe it: buckets of a day, in pages, for whoever shows the right key."""

    def __init__(self) -> None:
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.asked: list[dict[str, list[str]]] = []
        self.per_page = 31
        self.answer: tuple[int, bytes] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        target = urlsplit(head.split(" ")[1])
        status, body = self.answer or self._report(parse_qs(target.query))
        if self.answer is None and (
            target.path != "/v1/organizations/cost_report" or "x-api-key: sk-ant-admin01-x" not in head
        ):
            status, body = (
                401,
                b'{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}',
            )
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (status, len(body)) + body)
        writer.close()

    def _report(self, query: dict[str, list[str]]) -> tuple[int, bytes]:
        self.asked.append(query)
        first, after = query["starting_at"][0][:10], query["ending_at"][0][:10]
        days = sorted(day for day in self.results if first <= day < after)
        begin = int(query.get("page", ["0"])[0])
        page = [
            {"starting_at": f"{day}T00:00:00Z", "results": self.results[day]} for day in days[begin:][: self.per_page]
        ]
        more = begin + self.per_page < len(days)
        after_this = str(begin + self.per_page) if more else None
        return 200, json.dumps({"data": page, "has_more": more, "next_page": after_this}).encode()


@asynccontextmanager
async def reports() -> AsyncIterator[tuple[Reports, int]]:
    """Serve cost reports."""
    said = Reports()
    server = await asyncio.start_server(said.serve, "127.0.0.1", 0)
    async with server:
        yield said, server.sockets[0].getsockname()[1]


async def put_call(stage: Stage, at_us: int, list_nanos: int, **more: Any) -> None:
    fields = {"model": MODEL, "upstream": "sim", "web_searches": 0, "kind": "exact", **more}
    insert = (
        "INSERT INTO usage (request_id, at, account_id, key_id, kind, model, asked_model, price_version, input_tokens, "
        "output_tokens, web_searches, cost_nanos, list_nanos, charged_nanos, shortfall_nanos, waived_nanos, status, "
        "outcome, upstream) VALUES (?, ?, ?, 1, ?, ?, ?, 1, 1, 1, ?, 0, ?, 0, 0, 0, 200, 'finished', ?)"
    )
    values = (fields["kind"], fields["model"], fields["model"], fields["web_searches"], list_nanos, fields["upstream"])
    await stage.gateway.store.write([(insert, (os.urandom(16), at_us, stage.alice.account_id, *values))])


def token_row(cents: str, model: str | None = MODEL, **more: Any) -> dict[str, Any]:
    return {"amount": cents, "currency": "USD", "model": model, "cost_type": "tokens", "workspace_id": None, **more}


async def test_each_day_and_model_is_set_beside_what_was_metered(open_stage: OpenStage) -> None:
    async with reports() as (said, port), open_stage(BILLS.format(port=port)) as stage:
        now = stage.gateway.clock() - DAY_US // 4  # a report is complete some hours later
        days = [day_of(now - age * DAY_US) for age in (4, 3, 2, 1)]
        middle = {day: day_start_us(day) + DAY_US // 2 for day in days}
        await put_call(stage, middle[days[1]], 3 * USD)
        await put_call(stage, middle[days[1]], 2 * USD, kind="waived")
        await put_call(stage, middle[days[1]], 7 * USD, upstream="another")
        await put_call(stage, middle[days[2]], 4 * USD, web_searches=100)  # of which $1.00 are searches
        said.results = {
            days[1]: [token_row("200.5"), token_row("299.5", f"{MODEL}-20250929")],
            days[2]: [token_row("300"), token_row("100.00", None, cost_type="web_search")],
            days[3]: [token_row("0.0000001"), token_row("12", None, cost_type="code_execution")],
        }
        said.per_page = 2
        found = await stage.parts.bills.fetch("ours")
        assert [day.day for day in found] == days
        assert [day.lines for day in found] == [
            (),
            (Line(days[1], MODEL, 5 * USD, 5 * USD),),
            (Line(days[2], WEB_SEARCH, USD, USD), Line(days[2], MODEL, 3 * USD, 3 * USD)),
            (Line(days[3], OTHER, 0, 12 * USD // 100), Line(days[3], MODEL, 0, 1)),
        ]
        assert not any(stage.parts.bills.drifts(day) for day in found)
        assert await days_of(stage.gateway.store, "ours") == found[::-1]
        assert said.asked[0]["group_by[]"] == ["description", "workspace_id"]
        assert "sk-ant-admin" not in json.dumps(stage.events)


async def test_a_difference_is_told_once_and_again_only_when_it_is_new(open_stage: OpenStage) -> None:
    async with reports() as (said, port), open_stage(BILLS.format(port=port)) as stage:
        watch, now = stage.parts.bills, stage.gateway.clock()
        day = day_of(now - DAY_US // 4 - 2 * DAY_US)
        await put_call(stage, now - DAY_US // 4 - 2 * DAY_US, 100 * USD)

        async def told(cents: str) -> list[dict[str, Any]]:
            stage.events.clear()
            said.results = {day: [token_row(cents)]}
            await watch.fetch("ours")
            await watch.notice(stage.gateway.clock())
            return [event for event in stage.events if event["event"] == "bill_drifts"]

        assert not await told("10150")  # 1.5 %
        assert not await told("9900")
        (event,) = await told("11000")
        assert (event["day"], event["billed_nanos"], event["metered_nanos"]) == (day, 110 * USD, 100 * USD)
        assert not await told("12000")
        assert not await told("10000")
        assert len(await told("0")) == 1


async def test_a_small_sum_may_be_off_by_much(open_stage: OpenStage) -> None:
    async with open_stage(CSV_ONLY) as stage:
        (day,) = await stage.parts.bills.take("ours", {("2026-11-01", MODEL): USD // 2})
        assert (day.share, stage.parts.bills.drifts(day)) == (100, False)
        (day,) = await stage.parts.bills.take("ours", {("2026-11-01", MODEL): USD // 2 + 1})
        assert stage.parts.bills.drifts(day)


async def test_only_the_workspace_that_was_asked_for_counts(open_stage: OpenStage) -> None:
    async with reports() as (said, port), open_stage(BILLS.format(port=port) + 'workspace = "w1"\n') as stage:
        day = day_of(stage.gateway.clock() - DAY_US // 4 - DAY_US)
        said.results = {day: [token_row("100", workspace_id="w1"), token_row("900", workspace_id="w2"), token_row("7")]}
        assert (await stage.parts.bills.fetch("ours"))[-1].billed_nanos == USD


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, b"{}"), "has an unknown shape"),
        ((200, b"<html>"), "has an unknown shape"),
        ((200, b'{"data":[{"starting_at":"X","results":[{"amount":12}]}]}'), "has an unknown shape"),
        ((200, b'{"data":[{"starting_at":"X","results":[{"amount":"NaN"}]}]}'), "has an amount of 'NaN'"),
        ((200, b'{"data":[{"starting_at":"X","results":[{"amount":"1e99"}]}]}'), "has an amount of"),
        ((200, b'{"data":[{"starting_at":"X","results":[{"amount":"1","currency":"EUR"}]}]}'), "'1' EUR"),
        ((403, b'{"error":{"message":"admin only"}}'), "was answered 403: admin only"),
        ((500, b"oops"), "was answered 500"),
        ((200, b'{"data":[],"has_more":true,"next_page":"1"}'), "more than 50 pages"),
    ],
    ids=["empty", "html", "number", "nan", "huge", "euros", "refused", "broken", "endless"],
)
async def test_a_report_that_cannot_be_read_changes_nothing_and_is_told(
    open_stage: OpenStage, answer: tuple[int, bytes], words: str
) -> None:
    async with reports() as (said, port), open_stage(BILLS.format(port=port)) as stage:
        said.answer = answer
        with pytest.raises(BillTrouble, match=words):
            await stage.parts.bills.fetch("ours")
        await stage.parts.bills.look(stage.gateway.clock() + 2 * 3_600_000_000)
        assert [event["event"] for event in stage.events if event["event"].startswith("bill")] == ["bill_not_fetched"]
        assert await days_of(stage.gateway.store) == []
        assert words.split("'", maxsplit=1)[0] in stage.parts.bills.troubles["ours"]


async def test_it_is_got_once_a_day_by_itself(open_stage: OpenStage) -> None:
    async with reports() as (said, port), open_stage(BILLS.format(port=port)) as stage:
        watch, now = stage.parts.bills, stage.gateway.clock()
        said.results = {day_of(now - DAY_US // 4 - DAY_US): [token_row("1")]}
        for _ in range(3):
            await watch.look(now)
        asked = len(said.asked)
        assert asked == 1
        await watch.look(now + DAY_US)
        assert len(said.asked) == asked + 1


async def test_an_unknown_bill_is_refused_by_name(open_stage: OpenStage) -> None:
    async with open_stage(CSV_ONLY) as stage:
        with pytest.raises(NotFound, match="there is no bill 'theirs'; known: ours"):
            await stage.parts.bills.take("theirs", {})
        with pytest.raises(BillTrouble, match="has no admin_key: import it as CSV"):
            await stage.parts.bills.fetch("ours")


# CSV

WRONG = {
    "no columns": ("", "cost_usd, day, model is missing"),
    "a column": ("day,model\n", "cost_usd is missing"),
    "a day": ("day,model,cost_usd\n2026-02-30,m,1\n", "line 2: day"),
    "another day": ("day,model,cost_usd\n2026-11-01,m,1\n20261101,m,1\n", "line 3: day"),
    "no model": ("day,model,cost_usd\n2026-11-01,,1\n", "line 2: model"),
    "a long model": (f"day,model,cost_usd\n2026-11-01,{'m' * 101},1\n", "line 2: model"),
    "a word": ("day,model,cost_usd\n2026-11-01,m,much\n", "line 2: cost_usd"),
    "nan": ("day,model,cost_usd\n2026-11-01,m,NaN\n", "line 2: cost_usd"),
    "too much": ("day,model,cost_usd\n2026-11-01,m,1e30\n", "line 2: cost_usd"),
    "far too much": ("day,model,cost_usd\n2026-11-01,m,1e999999\n", "line 2: cost_usd"),
    "too much together": ("day,model,cost_usd\n" + "2026-11-01,m,9e8\n" * 2, "line 3: what m costs on 2026-11-01"),
    "a comma": ('day,model,cost_usd\n2026-11-01,m,"12,34"\n', "line 2: cost_usd"),
    "an underscore": ("day,model,cost_usd\n2026-11-01,m,1_000\n", "line 2: cost_usd"),
    "other money": (
        "day,model,cost_usd,currency\n2026-11-01,m,1,usd\n2026-11-02,m,1,EUR\n",
        "line 3: cost_usd is in US",
    ),
    "many models": (
        "day,model,cost_usd\n" + "".join(f"2026-11-01,m{n},1\n" for n in range(501)),
        "line 502: a file has",
    ),
    "many days": (
        "day,model,cost_usd\n" + "".join(f"{year}-01-01,m,1\n" for year in range(1500, 1901)),
        "line 402: a file",
    ),
    "short": ("day,model,cost_usd\n2026-11-01\n", "line 2: model"),
    "a zero": ("day,model,cost_usd\n2026-11-01,m\0,1\n", "line"),
}


@pytest.mark.parametrize("name", WRONG)
def test_csv_that_cannot_be_read_is_refused_by_line(name: str) -> None:
    text, words = WRONG[name]
    with pytest.raises(InvalidRequest, match=re.escape(words)):
        read_csv(text.encode())


def test_what_is_no_text_is_no_csv() -> None:
    with pytest.raises(InvalidRequest, match="no CSV in UTF-8"):
        read_csv(b"\xff\xfe")


def test_csv_of_a_spreadsheet_is_read() -> None:
    text = "\ufeffmodel,region,cost_usd,day\r\nm,eu,$12.34,2026-11-01\r\nm,us,-0.34,2026-11-01\r\nn,us,0,2026-11-02\r\n"
    assert read_csv(text.encode()) == {("2026-11-01", "m"): 12 * USD, ("2026-11-02", "n"): 0}


@given(st.dictionaries(st.integers(1, 28), st.integers(-(10**14), 10**14), max_size=8))
def test_sums_come_through_csv_to_the_nano_dollar(costs: dict[int, int]) -> None:
    page = io.StringIO()
    writer = csv.writer(page)
    writer.writerow(("day", "model", "cost_usd"))
    for day, nanos in costs.items():
        sign, whole = ("-" if nanos < 0 else ""), abs(nanos)
        writer.writerow((f"2026-11-{day:02d}", "m", f"{sign}{whole // USD}.{whole % USD:09d}"))
    assert read_csv(page.getvalue().encode()) == {(f"2026-11-{day:02d}", "m"): nanos for day, nanos in costs.items()}


@given(st.integers(0, MOST_NANOS), st.integers(0, MOST_NANOS))
def test_a_share_is_of_the_larger_of_the_two(ours: int, theirs: int) -> None:
    day = Day("b", "2026-11-01", 0, (Line("2026-11-01", "m", ours, theirs),))
    assert -100 <= day.share <= 100
    assert (day.share > 0) is (theirs > ours)
    assert not day.drifts(100, 0)


# the operator's page and command


async def test_an_operator_sees_days_imports_csv_and_gets_a_bill_again(open_stage: OpenStage) -> None:
    async with reports() as (said, port), open_stage(BILLS.format(port=port)) as stage:
        operator = await enter_admin(stage)
        page = await operator.get("/admin/bills")
        assert not page.faults()
        assert "No day has been compared yet" in page.words
        pasted = f"day,model,cost_usd\n2026-11-01,{MODEL},12.5\n"
        page = await operator.submit(page, "/admin/bills/ours/import", csv=pasted, reason="November")
        assert page.status == 200
        (row,) = page.rows("Days")
        assert row[:4] == ["2026-11-01", "ours", "$12.50", "$0.00"]
        assert not page.faults()
        (line,) = await written(stage, "bill.import")
        assert (line["target"], line["after"], line["reason"]) == (
            "bill:ours",
            {"first_day": "2026-11-01", "days": 1, "lines": 1},
            "November",
        )
        wrong = await operator.submit(page, "/admin/bills/ours/import", csv="day,model,cost_usd\nx,y,z\n")
        assert wrong.status == 422
        assert "Line 2: day is as in 2026-11-22" in wrong.words
        said.results = {day_of(stage.gateway.clock() - DAY_US // 4 - DAY_US): [token_row("250")]}
        page = await operator.submit(page, "/admin/bills/ours/fetch")
        assert "$2.50" in page.words
        said.answer = (500, b"")
        page = await operator.submit(page, "/admin/bills/ours/fetch")
        assert (page.status, "was answered 500" in page.words) == (422, True)
        assert "sk-ant-admin" not in page.text
        assert (await operator.post("/admin/bills/theirs/fetch")).status == 404


async def test_what_a_command_imports_the_server_tells_of_once(open_stage: OpenStage) -> None:
    async with open_stage(CSV_ONLY) as stage:
        source = stage.gateway.config.source
        assert source is not None
        file = source.with_name("november.csv")
        watch, clock = stage.parts.bills, stage.gateway.clock

        async def told(cost: str) -> list[str]:
            file.write_text(f'day,model,"cost_usd"\n2026-11-01,{MODEL},{cost}\n')
            stage.events.clear()
            await farebox(source, "import", "ours", str(file))
            for _ in range(2):
                await watch.notice(clock())
            return [event["day"] for event in stage.events if event["event"] == "bill_drifts"]

        assert await told("3") == ["2026-11-01"]
        assert await told("4") == []
        assert await told("-0.10") == []
        assert await told("5") == ["2026-11-01"]
        stage.events.clear()
        after = BillWatch(list(watch.settings.values()), watch._bills, watch._store, watch._prices, clock, watch._alert)
        await after.notice(clock())
        assert not [event for event in stage.events if event["event"] == "bill_drifts"]
        with pytest.raises(InvalidRequest, match="is yet to come"):
            await watch.take("ours", {("9999-12-30", MODEL): USD})


async def test_a_page_shows_of_many_models_those_that_differ_most(open_stage: OpenStage) -> None:
    async with open_stage(CSV_ONLY) as stage:
        await stage.parts.bills.take("ours", {("2026-11-01", f"m{n:03}"): n * USD for n in range(1, 500)})
        operator = await enter_admin(stage)
        page = await operator.get("/admin/bills")
        assert ("m499: billed" in page.words, "m450: billed" in page.words) == (True, True)
        assert ("m449: billed" in page.words, "others that differ less" in page.words) == (False, True)


async def farebox(config: Path, *words: str) -> str:
    """Run a command about bills beside the running gateway; answers what it prints."""
    args = (str(Path(sys.executable).with_name("farebox")), "bills", *words, "--config", str(config))
    process = await asyncio.create_subprocess_exec(*args, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    return out.decode()


async def test_a_command_imports_lists_and_speaks_json(open_stage: OpenStage) -> None:
    async with open_stage(CSV_ONLY) as stage:
        source = stage.gateway.config.source
        assert source is not None
        file = source.with_name("november.csv")
        file.write_text(f"day,model,cost_usd\n2026-11-01,{MODEL},3\n2026-11-02,{MODEL},0.25\n")
        told = await farebox(source, "import", "ours", str(file))
        assert "2026-11-01  ours" in told
        assert told.count("DRIFTS") == 1
        lines = [json.loads(line) for line in (await farebox(source, "list", "--json")).splitlines()]
        assert [(line["day"], line["billed"], line["drifts"]) for line in lines] == [
            ("2026-11-02", "0.25", False),
            ("2026-11-01", "3.00", True),
        ]
