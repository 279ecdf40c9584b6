"""From the page to the chain and back: a browser pays from the test wallet, sees the money come, and spends it."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import anthropic
import pytest
from playwright.async_api import Browser, expect

from tests.chains.demo import open_wallet, settings
from tests.chains.evm import EvmChain
from tests.chains.nodes import Anvil, Bitcoind
from tests.databases import on_sqlite
from tests.payments.fake_rates import serving_rates
from tests.stage import MODEL, Stage, open_stage
from tests.web.browse import enter
from tests.web.operators import books_hold
from tests.web.test_browser import chromium, lend, open_window

pytestmark = on_sqlite  # a page looks the same whatever is behind it

__all__ = ["chromium"]


@pytest.fixture
async def paying(tmp_path: Path, bitcoind: Bitcoind, anvil: Anvil, database_url: str) -> AsyncIterator[Stage]:
    """A gateway that takes payments on both test chains."""
    open_wallet(bitcoind)
    chain = await EvmChain(anvil.url).open()
    contract = (await chain.token()).address
    await chain.close()
    async with serving_rates() as rates:
        extra = settings(bitcoind, anvil, rates.url, contract)
        async with open_stage(tmp_path, extra, database_url=database_url, alice_usd=0) as stage:
            yield stage


@pytest.mark.parametrize(("coin", "network"), [("BTC", "Bitcoin regtest"), ("USDT", "Anvil"), ("ETH", "Anvil")])
async def test_a_payment_from_the_test_wallet_is_seen_credited_and_spent(
    chromium: Browser, paying: Stage, bitcoind: Bitcoind, anvil: Anvil, coin: str, network: str
) -> None:
    visitor = await enter(paying, paying.alice.email)
    context, window = await open_window(chromium, paying)
    await lend(context, paying, visitor.cookies)
    page = window.page
    choice = page.get_by_role("radio", name=re.compile(rf"{coin}.*{network}", re.DOTALL))
    await page.goto("/dashboard/topup")
    while not await choice.count() or await choice.is_disabled():  # until its watcher has looked for the first time
        await page.reload()
    await page.get_by_label("Amount in US dollars").fill("20")
    await choice.check()
    await page.get_by_role("button", name="Continue").click()
    await expect(page.get_by_text("Waiting for your payment")).to_be_visible()
    await expect(page.get_by_text(re.compile(r"1\d:\d\d left"))).to_be_visible()
    await page.get_by_role("button", name="Pay from the test wallet").click()
    node = bitcoind if coin == "BTC" else anvil
    credited = page.locator("#topup").get_by_text(re.compile("added to your balance"))
    for _ in range(40):
        node.mine(1)
        try:
            await expect(credited).to_be_visible(timeout=3_000)
            break
        except AssertionError:
            continue
    await expect(credited).to_be_visible()
    ((posted, _),) = [await paying.balance(paying.alice)]
    assert 20 * 10**9 <= posted < 20.1 * 10**9
    async with anthropic.AsyncAnthropic(base_url=paying.base_url, api_key=paying.alice.key) as client:
        said = await client.messages.create(
            model=MODEL, max_tokens=50, messages=[{"role": "user", "content": "How are you?"}]
        )
    assert said.usage.output_tokens > 0
    assert (await paying.balance(paying.alice))[0] < posted
    assert window.complaints == []
    await books_hold(paying)
    await context.close()
