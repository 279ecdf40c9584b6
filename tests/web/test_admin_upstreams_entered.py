"""Upstreams that operators enter: in force at once in every process, their keys sealed and never shown again."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from farebox.accounts.audit_log import record
from farebox.errors import InvalidRequest
from farebox.store.protocol import Statement
from farebox.store.urls import is_postgres
from farebox.upstreams.entries import change_entry, find_entry, remove_entry
from farebox.upstreams.simulator import Simulator
from tests.cluster import Cluster
from tests.databases import Databases, sqlite_path
from tests.gateway.play import eventually, listen, script, usage_rows
from tests.stage import OpenStage, Stage, open_stage
from tests.web.browse import Browser, Page, enter
from tests.web.operators import books_hold, enter_admin, forget_proof, written

HERE: Final = "/admin/upstreams"
KEY: Final = "sk-upstream-9f8e7d6c5b4a-0x7q2"


async def add(operator: Browser, name: str, base_url: str, key: str = KEY, **fields: str) -> Page:
    """Enter an upstream of kind anthropic by the form."""
    form = await operator.get(f"{HERE}/new/of/anthropic")
    values = {"name": name, "base_url": base_url, "secret_api_key": key, "reason": "a new one", **fields}
    return await operator.submit(form, f"{HERE}/new/of/anthropic", **values)


async def edit(operator: Browser, name: str, **fields: str) -> Page:
    form = await operator.get(f"{HERE}/{name}/edit")
    return await operator.submit(form, f"{HERE}/{name}/edit", **{"reason": "a change", **fields})


@asynccontextmanager
async def opened_books(databases: Databases, tmp_path: Path) -> AsyncIterator[str]:
    """Give the URL of a fresh database of PostgreSQL."""
    with databases.fresh("postgresql", tmp_path) as url:
        yield url


def names(stage: Stage) -> list[str]:
    return [one.name for one in stage.gateway.gatehouse.upstreams()]


async def simulated(key: str = KEY) -> tuple[Simulator, str]:
    """Start a simulator that takes one key; gives it, and its base URL."""
    simulator = Simulator(speed=0, api_key=key)
    port = await simulator.listen()
    return simulator, f"http://127.0.0.1:{port}"


async def test_one_that_is_entered_serves_at_once_and_its_key_is_nowhere(
    open_stage: OpenStage, database_url: str, request: pytest.FixtureRequest
) -> None:
    simulator, url = await simulated()
    try:
        async with open_stage(upstreams="\n") as stage:
            operator = await enter_admin(stage)
            page = await operator.get(HERE)
            assert "Add your first upstream" in page.words
            assert not page.faults()
            assert "add the first one" in (await operator.get("/admin")).words
            status, body = await stage.ask(stage.alice)
            assert (status, json.loads(body)["error"]["type"]) == (502, "upstream_error")
            assert "no upstream is set up here yet" in body.decode()
            page = await add(operator, "mine", url, models="claude-sonnet-4-6", weight="7")
            assert page.path == HERE
            assert not page.faults()
            assert "mine up" in page.words
            assert (await stage.ask(stage.alice))[0] == 200
            seen = [page, await operator.get(f"{HERE}/mine/edit"), await operator.get("/admin/audit")]
            seen += [await operator.get("/admin"), await operator.submit(page, f"{HERE}/mine/test")]
            assert "It counted the tokens of a word" in seen[-1].words
            assert not [one.path for one in seen if KEY in one.text or KEY[-6:] in one.text]
            assert "Left empty it stays" in seen[1].words
            assert not seen[1].faults()
            (line,) = await written(stage, "upstream.add")
            assert (line["target"], line["reason"], line["before"]) == ("upstream:mine", "a new one", None)
            assert (line["after"]["api_key"], line["after"]["weight"]) == ("entered", 7)
            assert KEY not in repr(stage.events)
            assert KEY not in repr(await stage.rows("SELECT * FROM upstream"))
            await books_hold(stage)
        if not is_postgres(database_url):
            place = sqlite_path(database_url)
            files = [file.read_bytes() for file in place.parent.glob(f"{place.name}*") if file.is_file()]
            assert files
            assert not any(KEY.encode() in data for data in files)
        else:
            cluster: Cluster = request.getfixturevalue("cluster")
            data = cluster.directory / "data"
            files = [file.read_bytes() for file in data.rglob("*") if file.is_file()]
            assert any(b"claude-sonnet-4-6" in one for one in files)
            assert not any(KEY.encode() in one for one in files)
    finally:
        await simulator.close()


async def test_it_serves_again_after_a_start_and_what_cannot_be_opened_is_told_and_left_out(
    tmp_path: Path, database_url: str
) -> None:
    simulator, url = await simulated()
    try:
        async with open_stage(tmp_path, upstreams="\n", database_url=database_url) as stage:
            await add(await enter_admin(stage), "mine", url)
        async with open_stage(tmp_path, upstreams="\n", database_url=database_url) as stage:
            operator = await enter_admin(stage)
            assert names(stage) == ["mine"]
            spoil = "UPDATE upstream SET secrets = ?, changed_at = changed_at + 1"
            await stage.gateway.store.write([(spoil, (b"\0" * 40,))])
        async with open_stage(tmp_path, upstreams="\n", database_url=database_url) as stage:
            operator = await enter_admin(stage)
            page = await operator.get(HERE)
            assert "mine broken" in page.words
            assert "mine cannot be used" in (await operator.get("/admin")).words
            assert "was sealed under another secret" in page.words
            assert not page.faults()
            assert [one["upstream"] for one in stage.events if one["event"] == "upstream_unusable"] == ["mine"]
            page = await edit(operator, "mine", weight="2")
            assert page.status == 422, "the key that is there cannot be opened, so it has to be entered again"
            assert "was sealed under another secret" in page.words
            page = await edit(operator, "mine", secret_api_key=KEY)
            assert page.path == HERE
            assert "mine up" in page.words
            garble = "UPDATE upstream SET settings = 'no JSON', set_at = '', changed_at = 1"
            await stage.gateway.store.write([(garble, ())])
            stage.parts.roster.is_stale = True

            async def broken() -> bool:
                return "mine broken" in (await operator.get(HERE)).words

            await eventually(broken)
            page = await operator.get(f"{HERE}/mine/edit")
            assert "cannot be read" in page.words
            page = await operator.submit(page, f"{HERE}/mine/remove", reason="it is broken", sure="yes")
            assert page.path == HERE
            assert names(stage) == []
    finally:
        await simulator.close()


async def test_a_key_is_replaced_and_other_settings_leave_it_as_it_is(stage: Stage) -> None:
    simulator, url = await simulated("the-second-key")
    try:
        operator = await enter_admin(stage)
        await operator.submit(await operator.get(HERE), f"{HERE}/sim/drain")
        await add(operator, "mine", url, "the-first-key")
        assert (await stage.ask(stage.alice))[0] == 502
        page = await edit(operator, "mine", secret_api_key="the-second-key")
        assert page.path == HERE
        assert (await stage.ask(stage.alice))[0] == 200
        for weight in ("3", "0"):
            await edit(operator, "mine", weight=weight, stall_s="2.5", models="claude-sonnet-4-6 = theirs")
        page = await operator.get(f"{HERE}/mine/edit")
        assert "claude-sonnet-4-6 = theirs" in page.text
        await edit(operator, "mine", models="")
        assert (await stage.ask(stage.alice))[0] == 200
        lines = await written(stage, "upstream.edit")
        assert len(lines) == 4
        assert lines[0]["after"] == lines[0]["before"] | {"api_key": "a new one"}
        assert (lines[1]["before"].get("weight"), lines[1]["after"]["weight"]) == (None, 3)
        assert lines[1]["after"]["models"] == {"claude-sonnet-4-6": "theirs"}
        assert "the-second-key" not in repr(lines)
        same = len(await stage.rows("SELECT 1 FROM audit_log"))
        await edit(operator, "mine")
        assert len(await stage.rows("SELECT 1 FROM audit_log")) == same, "nothing was different"
    finally:
        await simulator.close()


async def test_calls_under_way_end_by_themselves_when_it_is_changed_and_removed(stage: Stage) -> None:
    simulator, url = await simulated()
    try:
        operator = await enter_admin(stage)
        await operator.submit(await operator.get(HERE), f"{HERE}/sim/drain")
        await add(operator, "mine", url)
        first = await listen(stage, stage.alice, "[[sim tokens=60 rate=40 ttft=0]]")
        await edit(operator, "mine", weight="5")
        second = await listen(stage, stage.alice, "[[sim tokens=60 rate=40 ttft=0]]")
        form = await operator.get(f"{HERE}/mine/edit")
        assert (await operator.submit(form, f"{HERE}/mine/remove", reason="over")).status == 422, "not ticked"
        page = await operator.submit(form, f"{HERE}/mine/remove", reason="over", sure="yes")
        assert page.path == HERE
        assert names(stage) == ["sim"]
        await stage.parts.roster.tend()
        for heard in (first, second):
            assert (await heard.end(20)).names[-1] == "message_stop"
        assert [row["outcome"] for row in await usage_rows(stage, stage.alice)] == ["finished"] * 2
        assert (await stage.ask(stage.alice))[0] == 502
        assert not await stage.rows("SELECT 1 FROM upstream")
        (line,) = await written(stage, "upstream.remove")
        assert (line["reason"], line["after"]) == ("over", None)
    finally:
        await simulator.close()


async def test_one_stays_while_something_is_there_and_nowhere_else(stage: Stage) -> None:
    simulator, url = await simulated()
    try:
        operator = await enter_admin(stage)
        await add(operator, "mine", url)
        columns = (
            "INSERT INTO batch (id, account_id, key_id, way, state, price_version, percent, upstream, run_id, "
            "created_at, expires_at, items, held_nanos) "
            "VALUES ('msgbatch_1', ?, 1, 'native', 'in_progress', 1, 100, 'mine', 1, 1, 1, 1, 0)"
        )
        await stage.gateway.store.write([(columns, (stage.alice.account_id,))])
        form = await operator.get(f"{HERE}/mine/edit")
        page = await operator.submit(form, f"{HERE}/mine/remove", reason="over", sure="yes")
        assert page.status == 422
        assert "1 message batches that are not ended" in page.words
        assert "ended here" not in page.words
        ended = "UPDATE batch SET state = 'ended', created_at = ? WHERE id = 'msgbatch_1'"
        await stage.gateway.store.write([(ended, (stage.gateway.clock(),))])
        assert "1 message batch of the last 29 days ended here" in (await operator.get(f"{HERE}/mine/edit")).words
        assert names(stage) == ["sim", "mine"]
    finally:
        await simulator.close()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": ""}, "Name must be 1 to 64"),
        ({"name": "sim"}, "is that of an upstream in the configuration file"),
        ({"name": "a/b"}, "Name must be 1 to 64"),
        ({"base_url": "ftp://x"}, "Base URL is"),
        ({"base_url": "http://u:p@host"}, "holds a password"),
        ({"base_url": "https://x.example/v1"}, "leave out the /v1"),
        ({"base_url": "http://[::1"}, "Base URL is"),
        ({"base_url": "http://x:notaport"}, "Base URL is"),
        ({"base_url": "", "secret_api_key": ""}, "API key is missing"),
        ({"secret_api_key": "two words"}, "API key is no key"),
        ({"secret_api_key": "Schlüssel"}, "API key is no key"),
        ({"weight": "1001"}, "it must be a whole number from 0 to 1000"),
        ({"weight": "many"}, "it must be a whole number from 0 to 1000"),
        ({"stall_s": "0"}, "it must be a number above 0"),
        ({"connections": "-1"}, "it must be a whole number of at least 1"),
        ({"models": "claude-sonet-4-6"}, "did you mean claude-sonnet-4-6?"),
        ({"models": "\n".join(f"m{n}" for n in range(300))}, "200 can be named"),
        ({"reason": ""}, "say why"),
    ],
)
async def test_what_is_no_upstream_is_refused_in_words(stage: Stage, fields: dict[str, str], words: str) -> None:
    operator = await enter_admin(stage)
    page = await add(operator, **{"name": "mine", "base_url": "http://127.0.0.1:9", "key": KEY} | fields_of(fields))
    assert page.status == 422
    assert words in page.words
    assert KEY not in page.text
    assert not page.faults()
    assert not await stage.rows("SELECT 1 FROM upstream")
    assert names(stage) == ["sim"]


def fields_of(fields: dict[str, str]) -> dict[str, str]:
    return {"key" if name == "secret_api_key" else name: value for name, value in fields.items()}


async def test_two_who_change_the_same_one_do_not_undo_each_other(stage: Stage) -> None:
    operator = await enter_admin(stage)
    await add(operator, "mine", "http://127.0.0.1:9")
    assert (await add(operator, "mine", "http://127.0.0.1:9")).status == 422
    early = await operator.get(f"{HERE}/mine/edit")
    await edit(operator, "mine", weight="2")
    page = await operator.submit(early, f"{HERE}/mine/edit", weight="3", reason="late")
    assert page.status == 422
    assert "changed this upstream meanwhile" in page.words
    ((settings,),) = await stage.rows("SELECT settings FROM upstream")
    assert json.loads(settings)["weight"] == 2


async def test_plain_http_over_more_than_a_private_network_is_warned_of(stage: Stage) -> None:
    operator = await enter_admin(stage)
    for name, url, warned in (
        ("local", "http://127.0.0.1:9", False),
        ("private", "http://10.1.2.3", False),
        ("beside", "http://ollama:11434", False),
        ("public", "http://llm.example.com", True),
    ):
        page = await add(operator, name, url)
        assert ("is plain http" in page.words) == warned, name


async def test_only_operators_who_have_proved_who_they_are_see_the_form(stage: Stage) -> None:
    operator, mallory = await enter_admin(stage), await enter(stage, stage.bob.email)
    await add(operator, "mine", "http://127.0.0.1:9")
    for path in (f"{HERE}/new/of/anthropic", f"{HERE}/mine/edit"):
        assert (await mallory.get(path)).status == 404
        assert (await operator.get(f"{HERE}/nothing/edit")).status == 404
    form = await operator.get(f"{HERE}/mine/edit")
    await forget_proof(stage)
    for path in (f"{HERE}/new/of/anthropic", f"{HERE}/mine/edit"):
        assert (await operator.get(path)).path.startswith("/confirm?")
    page = await operator.submit(form, f"{HERE}/mine/edit", secret_api_key="sk-canary-of-a-key", reason="too late")
    assert page.path.startswith("/confirm")
    assert "sk-canary-of-a-key" not in page.text
    page = await operator.post(f"{HERE}/mine/remove", {"reason": "too late", "sure": "yes"})
    assert len(await stage.rows("SELECT 1 FROM upstream")) == 1


@pytest.mark.usefixtures("cluster")
async def test_all_processes_follow(tmp_path: Path, databases: Databases) -> None:
    """Two gateways on one database of PostgreSQL: what is entered at one, both go by."""
    simulator, url = await simulated()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    try:
        async with (
            opened_books(databases, tmp_path) as database_url,
            open_stage(tmp_path / "a", upstreams="\n", database_url=database_url) as one,
            open_stage(tmp_path / "b", upstreams="\n", database_url=database_url) as two,
        ):
            operator = await enter_admin(one)

            async def answers(status: int) -> None:
                async def does() -> bool:
                    return (await two.ask(one.alice))[0] == status

                await eventually(does)

            await answers(502)
            await add(operator, "mine", url)
            assert (await one.ask(one.alice))[0] == 200
            await answers(200)
            await edit(operator, "mine", secret_api_key="wrong")
            await answers(502)
            await edit(operator, "mine", secret_api_key=KEY)
            await answers(200)
            form = await operator.get(f"{HERE}/mine/edit")
            await operator.submit(form, f"{HERE}/mine/remove", reason="over", sure="yes")
            await answers(502)
    finally:
        await simulator.close()


async def test_what_is_known_of_an_upstream_goes_on_unless_it_is_another_server_or_account(stage: Stage) -> None:
    simulator, url = await simulated()
    try:
        operator = await enter_admin(stage)
        await operator.submit(await operator.get(HERE), f"{HERE}/sim/drain")
        await add(operator, "mine", url, models="claude-sonnet-4-6")

        def calls() -> int:
            return next(one.calls for one in stage.gateway.gatehouse.upstreams() if one.name == "mine")

        assert (await stage.ask(stage.alice))[0] == 200
        mine = stage.parts.pool.upstreams[-1]
        now = asyncio.get_running_loop().time()
        mine.rate.learn("claude-sonnet-4-6", [(b"anthropic-ratelimit-requests-remaining", b"12")], now)
        await operator.submit(await operator.get(HERE), f"{HERE}/mine/drain")
        page = await edit(operator, "mine", weight="3", priority="2", concurrency="7", stall_s="9")
        assert calls() == 1
        for words in ("drained", "weight 3, priority 2", "of 7", "claude-sonnet-4-6: 12 requests"):
            assert words in page.words
        page = await operator.submit(page, f"{HERE}/mine/enable")
        for fresh, told in (("limited", "mine limited"), ("half-open", "mine half-open"), ("resting", "mine rests")):
            mine = stage.parts.pool.upstreams[-1]
            now = asyncio.get_running_loop().time()
            if fresh == "limited":
                mine.rate.rest("claude-sonnet-4-6", now + 60)
            mine.rests, mine.rests_until = (0, 0.0) if fresh == "limited" else (1, now + 60 * (fresh == "resting"))
            page = await operator.get(HERE)
            assert told in page.words
            assert not page.faults()
        await edit(operator, "mine", weight="4")
        assert "mine rests" in (await operator.get(HERE)).words
        page = await edit(operator, "mine", secret_api_key=KEY)
        assert "mine up" in page.words, "it may be another account"
        assert calls() == 0
        assert (await stage.ask(stage.alice))[0] == 200
    finally:
        await simulator.close()


async def test_changes_in_the_middle_of_traffic_fail_no_call(stage: Stage) -> None:
    simulator, url = await simulated()
    try:
        operator = await enter_admin(stage)
        await operator.submit(await operator.get(HERE), f"{HERE}/sim/drain")
        await add(operator, "mine", url)
        statuses: list[int] = []
        changing = True

        async def call(number: int) -> None:
            while changing:
                statuses.append((await stage.ask(stage.alice, f"[[sim tokens=5 rate=500 ttft=10]] {number}"))[0])

        callers = [asyncio.create_task(call(number)) for number in range(8)]
        for number in range(12):
            fields = {"secret_api_key": KEY} if number % 3 == 0 else {"weight": str(number + 1)}
            assert (await edit(operator, "mine", **fields)).path == HERE
        changing = False
        await asyncio.gather(*callers)
        assert set(statuses) == {200}
        assert len(statuses) > 24
        assert {row["outcome"] for row in await usage_rows(stage, stage.alice)} == {"finished"}
        await books_hold(stage)
    finally:
        await simulator.close()


async def test_an_upstream_that_repeats_its_key_does_not_show_it(stage: Stage) -> None:
    said = json.dumps({"error": f"Incorrect API key provided: {KEY}."}).encode()
    answer = b"HTTP/1.1 401 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(said), said)
    async with script([answer], [answer]) as written_out:
        operator = await enter_admin(stage)
        page = await add(operator, "mine", f"http://127.0.0.1:{written_out.port}")
        page = await operator.submit(page, f"{HERE}/mine/test")
        assert "401: " in page.words
        assert "Incorrect API key provided: …" in page.words
        assert KEY not in page.text


async def test_an_optional_key_can_be_forgotten_and_a_needed_one_cannot(stage: Stage) -> None:
    operator = await enter_admin(stage)
    await add(operator, "mine", "http://127.0.0.1:9")
    page = await edit(operator, "mine", base_url="", forget_api_key="yes")
    assert page.status == 422
    assert "API key is missing" in page.words
    page = await edit(operator, "mine", forget_api_key="yes")
    assert page.path == HERE
    ((secrets, set_at),) = await stage.rows("SELECT secrets, set_at FROM upstream")
    assert (secrets, set_at) == (None, "{}")
    line = (await written(stage, "upstream.edit"))[-1]
    assert (line["before"]["api_key"], line["after"]["api_key"]) == ("the one before", "none")
    form = await operator.get(f"{HERE}/mine/edit")
    assert "Forget this one" not in form.words
    assert not form.faults()
    assert (await edit(operator, "mine", secret_api_key=KEY)).path == HERE
    page = await edit(operator, "mine", secret_api_key=KEY + "2", forget_api_key="yes")  # typed, so it is wanted
    assert page.path == HERE
    assert "Set " in (await operator.get(f"{HERE}/mine/edit")).words


async def test_one_that_has_changed_meanwhile_is_not_removed(stage: Stage) -> None:
    """Neither from a page that is old, nor in the very moment; and no line of the log says so."""
    operator = await enter_admin(stage)
    await add(operator, "mine", "http://127.0.0.1:9")
    early = await operator.get(f"{HERE}/mine/edit")
    read = await find_entry(stage.gateway.store, "mine")
    await edit(operator, "mine", weight="2")
    page = await operator.submit(early, f"{HERE}/mine/remove", reason="old", sure="yes")
    assert page.status == 422
    assert "changed this upstream meanwhile" in page.words

    def line(action: str, target: str, *facts: Any) -> Statement:
        return record("somebody", "", action, target, facts[0], facts[1], "late", facts[2])

    store, settings = stage.gateway.store, read.shown
    with pytest.raises(InvalidRequest, match="in this very moment"):
        await remove_entry(store, read, line)
    with pytest.raises(InvalidRequest, match="in this very moment"):
        await change_entry(store, None, read, replace(settings, weight=5), 1, line)
    assert not await written(stage, "upstream.remove")
    assert [one["reason"] for one in await written(stage, "upstream.edit")] == ["a change"]
    assert [one.settings for one in [await find_entry(store, "mine")]] != [read.settings]


@pytest.mark.parametrize("path", ["/sim/test", "/sim/drain", "/sim/enable", "/mine/remove"])
async def test_the_address_of_a_button_leads_to_its_page_when_it_is_opened(stage: Stage, path: str) -> None:
    operator = await enter_admin(stage)
    await add(operator, "mine", "http://127.0.0.1:9")
    page = await operator.get(f"{HERE}{path}")
    assert (page.status, page.path) == (200, f"{HERE}/mine/edit" if path.endswith("remove") else HERE)
    assert not await stage.rows("SELECT 1 FROM upstream_switch")
    assert len(await stage.rows("SELECT 1 FROM upstream")) == 1
