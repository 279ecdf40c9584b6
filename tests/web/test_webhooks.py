"""Webhooks: signed so that anybody can check it, sent until taken, never to where only we can reach, and private."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from farebox.accounts.accounts import find_account
from farebox.clock import DAY_US, US_PER_S
from farebox.events.courier import PAUSES_S, TRIES
from farebox.events.news import tell_of_credit
from farebox.events.webhooks import DATA, EVENTS, KEPT_US, MOST, OVERLAP_US, TESTS_WAITING, WAITING
from farebox.http.errands import Errands, is_public, read_target
from farebox.http.exchange import Exchange
from farebox.http.failures import ConnectFailed
from farebox.http.server import HttpServer
from tests.stage import OpenStage, Stage
from tests.web.browse import Browser, Page, enter, mails_to
from tests.web.test_manual import book

START: Final = "/dashboard/settings/webhooks"
PRIVATE: Final = "[webhooks]\nallow_private = true"


class Receiver:
    """A customer's server: takes down what comes, and answers as it is told to, the last word for all that follows."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers = [204]
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks?from=farebox"

    async def serve(self, exchange: Exchange) -> None:
        body = await exchange.read_body(1 << 20)
        self.got.append(({name.decode(): value.decode() for name, value in exchange.headers}, body))
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        where = [(b"location", b"http://127.0.0.1:1/elsewhere")] if status == 302 else []
        exchange.respond(status, where, b"" if status == 204 else b"x" * 100_000)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = HttpServer(receiver.serve, on_bad_request=lambda exchange, _: exchange.respond(400, [], b""))
    receiver.port = await server.listen("127.0.0.1", 0)
    try:
        yield receiver
    finally:
        await server.close(1)
        await server.shut()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as opened:
        yield opened


@pytest.fixture
async def stage(open_stage: OpenStage) -> AsyncIterator[Stage]:
    async with open_stage(PRIVATE) as opened:
        yield opened


class Clock:
    """Runs the courier of a stage at moments of the test's choosing; its own job stands still meanwhile."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.now = stage.gateway.clock()

    async def run(self, later_s: float = 0) -> None:
        self.now = max(self.now, self.stage.gateway.clock()) + round(later_s * US_PER_S)
        herald = self.stage.parts.herald
        await herald.courier.send(self.now)
        await herald.courier.drained()


async def at_rest(stage: Stage) -> Clock:
    """Stop the stage's own jobs, so that nothing is sent but when the test says so."""
    await stage.gateway.jobs.stop()
    return Clock(stage)


def secret_in(page: Page) -> bytes:
    (field,) = page.find("input", id="secret")
    text = field.get("value", "")
    assert text.startswith("whsec_")
    return base64.b64decode(text.removeprefix("whsec_"))


async def add(browser: Browser, url: str, *events: str) -> tuple[str, bytes]:
    """Add a webhook in the dashboard. Answers its path and secret."""
    form = {"url": url, **dict.fromkeys(events or EVENTS, "on")}
    page = await browser.post(f"{START}/new", form)
    assert page.status == 200, page.words
    (edit,) = (one.get("action", "") for one in page.find("form") if one.get("action", "").endswith("/edit"))
    return edit.removesuffix("/edit"), secret_in(page)


def is_signed(headers: dict[str, str], body: bytes, key: bytes) -> bool:
    """Check a signature as standardwebhooks.com says, without any code of ours."""
    signed = b".".join((headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body))
    right = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return f"v1,{right}" in headers["webhook-signature"].split(" ")


async def state(stage: Stage) -> list[tuple[Any, ...]]:
    return await stage.rows("SELECT tries, done_at IS NOT NULL, status, error FROM delivery ORDER BY at, id")


async def test_a_test_event_arrives_signed_and_the_page_says_so(stage: Stage, receiver: Receiver) -> None:
    clock = await at_rest(stage)
    browser = await enter(stage, stage.alice.email)
    path, key = await add(browser, receiver.url)
    assert "Nothing has been sent" in (await browser.get(path)).words
    waiting = await browser.submit(await browser.get(path), f"{path}/test")
    assert "waiting" in waiting.words
    clock.now = stage.gateway.clock()
    await clock.run()
    ((headers, body),) = receiver.got
    assert is_signed(headers, body, key)
    assert not is_signed(headers, body + b" ", key)
    assert headers["content-type"] == "application/json"
    assert abs(int(headers["webhook-timestamp"]) - clock.now // US_PER_S) <= 1
    assert json.loads(body)["type"] == "webhook.test"
    page = await browser.get(path)
    assert page.rows("Deliveries")[0][1:3] == ["delivered answered 204", "1"]
    await clock.run(3600)
    assert len(receiver.got) == 1


async def test_each_happening_is_told_to_those_who_asked_for_it(stage: Stage, receiver: Receiver) -> None:
    clock = await at_rest(stage)
    browser = await enter(stage, stage.alice.email)
    await add(browser, receiver.url, "key.created", "key.revoked", "balance.credited")
    await add(browser, receiver.url, "spend.daily")
    await browser.post("/dashboard/keys", {"name": "laptop"})
    ((key_id,),) = await stage.rows("SELECT id FROM api_key WHERE name = 'laptop'")
    await browser.post(f"/dashboard/keys/{key_id}/revoke")
    await browser.post(f"/dashboard/keys/{key_id}/revoke")
    account = await find_account(stage.gateway.store, stage.alice.email)
    for _ in range(2):
        await stage.gateway.store.write(tell_of_credit(account, 5_000_000_000, "topup:1", stage.gateway.clock()))
    clock.now = stage.gateway.clock()
    for _ in range(5):
        await clock.run()
    told = [json.loads(body) for _, body in receiver.got]
    assert [one["type"] for one in told] == ["key.created", "key.revoked", "balance.credited"]
    assert told[0]["data"]["name"] == "laptop"
    assert told[2]["data"] == {"amount_usd": "5.00", "balance_usd": "100.00", "transfer_id": "topup:1"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", one["timestamp"]) for one in told)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 3


async def test_what_is_not_taken_is_sent_again_later_and_later_under_the_same_id(
    stage: Stage, receiver: Receiver
) -> None:
    clock = await at_rest(stage)
    browser = await enter(stage, stage.alice.email)
    path, key = await add(browser, receiver.url)
    await browser.post(f"{path}/test")
    clock.now = stage.gateway.clock()
    receiver.answers = [500, 302, 200]
    await clock.run()
    await clock.run(PAUSES_S[0] - 1)
    assert len(receiver.got) == 1
    page = await browser.get(path)
    assert page.rows("Deliveries")[0][1].startswith("failing answered 500 next try")
    await clock.run(2)
    assert len(receiver.got) == 2
    assert "redirects are not followed" in (await browser.get(path)).words
    await clock.run(PAUSES_S[1])
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len({headers["webhook-timestamp"] for headers, _ in receiver.got}) == 3
    assert all(is_signed(headers, body, key) for headers, body in receiver.got)
    assert await state(stage) == [(3, True, 200, None)]


async def test_after_three_days_of_nothing_it_is_given_up_switched_off_and_mailed(
    stage: Stage, receiver: Receiver
) -> None:
    clock = await at_rest(stage)
    browser = await enter(stage, stage.alice.email)
    path, _ = await add(browser, receiver.url)
    await browser.post(f"{path}/test")
    clock.now = stage.gateway.clock()
    receiver.answers = [503]
    await clock.run()
    for pause_s in PAUSES_S:
        await clock.run(pause_s)
    assert len(receiver.got) == TRIES
    assert 3 * DAY_US < sum(PAUSES_S) * US_PER_S < 4 * DAY_US
    assert await state(stage) == [(TRIES, True, 503, "answered 503")]
    page = await browser.get(path)
    assert "disabled" in page.words
    assert (await mails_to(stage, stage.alice.email))[-1][0] == "A webhook of yours at Farebox is off"
    await browser.post("/dashboard/keys", {"name": "unheard"})
    refused = await browser.post(f"{path}/test")
    assert (refused.status, len(await state(stage))) == (422, 1)
    receiver.answers = [200]
    await browser.post(f"{path}/enable")
    ((delivery,),) = await stage.rows("SELECT id FROM delivery")
    await browser.post(f"{path}/deliveries/{delivery}/again")
    await clock.run()
    assert await state(stage) == [(TRIES + 1, True, 200, None)]
    await clock.run(KEPT_US // US_PER_S + 1)
    assert await state(stage) == []


async def test_a_server_that_says_it_is_gone_is_told_nothing_more(stage: Stage, receiver: Receiver) -> None:
    clock = await at_rest(stage)
    browser = await enter(stage, stage.alice.email)
    path, _ = await add(browser, receiver.url)
    for _ in range(3):
        await browser.post(f"{path}/test")
    clock.now = stage.gateway.clock()
    receiver.answers = [410]
    for _ in range(4):
        await clock.run()
    assert len(receiver.got) == 1
    assert [done for _, done, _, _ in await state(stage)] == [True] * 3


async def test_a_slow_or_dead_server_holds_up_nobody_elses(stage: Stage, receiver: Receiver) -> None:
    clock = await at_rest(stage)
    alice, bob = await enter(stage, stage.alice.email), await enter(stage, stage.bob.email)
    async with receiving() as gone:
        dead = gone.url
    path, _ = await add(alice, dead)
    hers, _ = await add(bob, receiver.url)
    for _ in range(3):
        await alice.post(f"{path}/test")
    await bob.post(f"{hers}/test")
    clock.now = stage.gateway.clock()
    await clock.run()
    assert len(receiver.got) == 1
    told = (await alice.get(path)).words
    assert "cannot connect to 127.0.0.1" in told


async def test_a_rolled_secret_signs_beside_the_one_before_for_a_day(stage: Stage, receiver: Receiver) -> None:
    clock = await at_rest(stage)
    browser = await enter(stage, stage.alice.email)
    path, old = await add(browser, receiver.url)
    new = secret_in(await browser.submit(await browser.get(path), f"{path}/roll"))
    assert not list((await browser.get(path)).find("input", id="secret"))
    for later_s, by_old in ((0, True), (OVERLAP_US // US_PER_S + 60, False)):
        await browser.post(f"{path}/test")
        clock.now = stage.gateway.clock()
        await clock.run(later_s)
        headers, body = receiver.got[-1]
        assert is_signed(headers, body, new)
        assert is_signed(headers, body, old) is by_old


async def test_secrets_are_sealed_and_logged_nowhere(stage: Stage, receiver: Receiver) -> None:
    clock = await at_rest(stage)
    browser = await enter(stage, stage.alice.email)
    path, key = await add(browser, receiver.url)
    await browser.post(f"{path}/test")
    await clock.run(1)
    text = base64.b64encode(key).decode()
    ((sealed,),) = await stage.rows("SELECT secret FROM webhook")
    assert key not in bytes(sealed)
    assert text.encode() not in bytes(sealed)
    assert text not in repr(stage.events)
    assert text not in repr(await stage.rows("SELECT * FROM delivery"))


async def test_nobody_reaches_the_webhooks_of_another(stage: Stage, receiver: Receiver) -> None:
    clock = await at_rest(stage)
    alice, bob = await enter(stage, stage.alice.email), await enter(stage, stage.bob.email)
    path, _ = await add(alice, receiver.url)
    await alice.post(f"{path}/test")
    await clock.run(1)
    ((delivery,),) = await stage.rows("SELECT id FROM delivery")
    before = await stage.rows("SELECT * FROM webhook"), await stage.rows("SELECT * FROM delivery")
    assert (await bob.get(path)).status == 404
    for act in ("edit", "roll", "delete", "test", "disable", "enable", f"deliveries/{delivery}/again"):
        page = await bob.post(f"{path}/{act}", {"url": receiver.url, "key.created": "on"})
        assert page.status == 404, act
    assert before == (await stage.rows("SELECT * FROM webhook"), await stage.rows("SELECT * FROM delivery"))
    theirs, _ = await add(bob, receiver.url)
    assert (await bob.post(f"{theirs}/deliveries/{delivery}/again")).status == 404
    await alice.post(f"{path}/delete")
    assert (await alice.get(path)).status == 404
    assert await stage.rows("SELECT 1 FROM delivery") == []


async def test_an_old_sign_in_is_asked_for_the_password_before_secrets_and_urls(
    stage: Stage, receiver: Receiver
) -> None:
    browser = await enter(stage, stage.alice.email)
    path, _ = await add(browser, receiver.url)
    await stage.gateway.store.write([("UPDATE session SET sure_at = sure_at - ?", (DAY_US,))])
    for act in ("new", f"{path.rpartition('/')[2]}/roll", f"{path.rpartition('/')[2]}/edit"):
        page = await browser.post(f"{START}/{act}", {"url": "http://127.0.0.1:9/", "key.created": "on"}, follow=False)
        assert page.status in {303, 307}, act
        assert page.header("location").startswith("/confirm"), act
    assert await stage.rows("SELECT url FROM webhook") == [(receiver.url,)]


async def test_a_form_that_is_wrong_says_how(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    new = await browser.get(f"{START}/new")
    for url in ("", "example.com", "ftp://example.com/", "http://me:pass@example.com/", "http://h/#part", "x" * 3000):
        page = await browser.submit(new, f"{START}/new", url=url)
        assert (page.status, "https://example.com/farebox" in page.words) == (422, True), url
    page = await browser.post(f"{START}/new", {"url": "https://example.com/"})
    assert (page.status, "at least one event" in page.words) == (422, True)
    for number in range(MOST):
        await add(browser, f"http://127.0.0.1:9/{number}")
    page = await browser.post(f"{START}/new", {"url": "http://127.0.0.1:9/", "key.created": "on"})
    assert (page.status, f"at most {MOST} webhooks" in page.words) == (422, True)
    assert len((await browser.get(START)).rows("Webhooks")) == MOST


async def test_no_more_waits_than_can_be_sent(stage: Stage) -> None:
    clock = await at_rest(stage)
    browser = await enter(stage, stage.alice.email)
    path, _ = await add(browser, "http://127.0.0.1:9/")
    for _ in range(TESTS_WAITING):
        assert (await browser.post(f"{path}/test")).status == 200
    page = await browser.post(f"{path}/test")
    assert (page.status, "are waiting" in page.words) == (422, True)
    account = await find_account(stage.gateway.store, stage.alice.email)
    for number in range(WAITING):
        await stage.gateway.store.write(tell_of_credit(account, 1, f"topup:{number}", clock.now))
    assert len(await state(stage)) == WAITING


async def test_private_addresses_are_refused_by_name_and_by_number(open_stage: OpenStage, receiver: Receiver) -> None:
    """As it is unless the operator says otherwise: https alone, and nothing that only this network reaches."""
    async with open_stage() as stage:
        clock = await at_rest(stage)
        browser = await enter(stage, stage.alice.email)
        page = await browser.post(f"{START}/new", {"url": receiver.url, "key.created": "on"})
        assert (page.status, "begins with https://" in page.words) == (422, True)
        path, _ = await add(browser, f"https://localhost:{receiver.port}/")
        await browser.post(f"{path}/test")
        clock.now = stage.gateway.clock()
        await clock.run()
        assert "localhost has no public address" in (await browser.get(path)).words
    assert receiver.got == []


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "127.0.0.1",
        "127.9.9.9",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fd00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:1::",
        "::7f00:1",
        "nonsense",
    ],
)
def test_what_is_not_of_the_internet_at_large_is_no_public_address(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808"])
def test_what_is_of_the_internet_at_large_is_public(address: str) -> None:
    assert is_public(address)


async def test_the_address_that_was_looked_at_is_the_one_that_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    """A name that leads elsewhere at its second look-up changes nothing: there is none."""
    asked: list[str] = []

    def lookup(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    errands = Errands(allow_private=True)
    url = f"http://rebinding.example:{receiver.port}/path?q=1"
    reply = await errands.run("POST", url, {}, b"{}", within_s=5, most_bytes=0)
    assert reply.status == 204
    assert asked[0] == "rebinding.example"
    assert set(asked[1:]) <= {"127.0.0.1"}
    ((headers, _),) = receiver.got
    assert headers["host"] == f"rebinding.example:{receiver.port}"


async def test_names_that_nobody_answers_for_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names a server chooses how long its look-up takes: the threads of passwords and books stay free."""
    begun, answered = threading.Semaphore(0), threading.Event()

    def lookup(*_: Any, **__: Any) -> list[Any]:
        begun.release()
        answered.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    errands = Errands(allow_private=True)
    many = (os.cpu_count() or 1) + 8  # more than the process has threads for everything else
    asks = [
        asyncio.create_task(errands.run("POST", "http://slow.example/", {}, within_s=20, most_bytes=0))
        for _ in range(many)
    ]
    try:
        async with asyncio.timeout(10):
            while not begun.acquire(blocking=False):  # noqa: ASYNC110  set in another thread
                await asyncio.sleep(0)
            assert await asyncio.to_thread(lambda: "free")
    finally:
        answered.set()
        assert {type(one) for one in await asyncio.gather(*asks, return_exceptions=True)} == {ConnectFailed}


def test_a_target_keeps_its_path_and_query_as_they_are() -> None:
    origin, target = read_target("https://example.com/a/b/?x=%20&y=/")
    assert (origin.host, origin.port, origin.path, target) == ("example.com", 443, "", "/a/b/?x=%20&y=/")
    assert read_target("http://[::1]:8080")[1] == "/"


# the manual


def samples() -> dict[str, str]:
    """Give the samples that check signatures, by language, as a reader finds them."""
    parts = book().pages["webhooks"].text.parts
    codes = [code for part in parts for box in part.boxes for code in box.codes]
    return {code.title.rpartition(" ")[2]: code.text for code in codes if code.title.startswith("Check it in ")}


@pytest.mark.parametrize("language", ["Python", "TypeScript"])
async def test_the_manuals_sample_tells_our_messages_from_others(
    stage: Stage, receiver: Receiver, tmp_path: Path, language: str
) -> None:
    clock = await at_rest(stage)
    browser = await enter(stage, stage.alice.email)
    path, key = await add(browser, receiver.url)
    await browser.post(f"{path}/roll")
    await browser.post(f"{path}/test")
    await clock.run(1)
    ((headers, body),) = receiver.got
    secret = "whsec_" + base64.b64encode(key).decode()
    late = str(int(headers["webhook-timestamp"]) - 301)
    right, words = headers["webhook-signature"], body.decode()
    cases = [
        (secret, headers, words),
        (secret, {**headers, "webhook-signature": f"v2,AAAA v1,AAAA {right}"}, words),
        (secret[:-4] + "AAA=", headers, words),
        (secret, headers, words + " "),
        (secret, {**headers, "webhook-id": "msg_other"}, words),
        (secret, {**headers, "webhook-timestamp": late}, words),
        (secret, {**headers, "webhook-signature": ""}, words),
        (secret, {**headers, "webhook-signature": right.replace("v1,", "v2,")}, words),
    ]
    assert await taken(language, cases, tmp_path) == [True, True] + [False] * 6


async def taken(language: str, cases: list[Any], home: Path) -> list[bool]:
    """Tell which messages a sample takes, as it stands."""
    if language == "Python":
        script = (
            "import json, sys\n\nfor secret, headers, body in json.load(sys.stdin):\n    try:\n"
            "        check(secret, headers, body.encode())\n        print('true')\n"
            "    except ValueError:\n        print('false')\n"
        )
        command = [sys.executable, "-c", f"{samples()[language]}\n\n{script}"]
    else:
        script = (
            'import { readFileSync } from "node:fs";\n'
            "for (const [secret, headers, body] of JSON.parse(readFileSync(0)))\n"
            '  try { check(secret, headers, body); console.log("true"); } catch { console.log("false"); }\n'
        )
        (home / "sample.mjs").write_text(f"{samples()[language]}\n{script}")
        command = ["node", str(home / "sample.mjs")]
    process = await asyncio.create_subprocess_exec(*command, stdin=-1, stdout=-1, stderr=-1)
    out, error = await process.communicate(json.dumps(cases).encode())
    assert process.returncode == 0, error.decode()
    return [word == "true" for word in out.decode().split()]


async def test_the_manual_names_every_event_with_its_data(stage: Stage) -> None:
    page = await (await enter(stage, stage.bob.email)).get("/docs/webhooks")
    assert all(
        f"<code>{name}</code>" in page.text for name in (*EVENTS, *(one for data in DATA.values() for one in data))
    )
    assert EVENTS.keys() == DATA.keys()
