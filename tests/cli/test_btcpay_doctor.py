"""`farebox doctor` with a BTCPay Server: what would keep top-ups from working is told before anybody pays."""

import asyncio
from pathlib import Path

from tests.cli.conftest import Farebox
from tests.payments.fake_btcpay import KEY, SECRET, STORE, serving_btcpay

HOOK = "https://farebox.example/webhooks/btcpay"


def configure(url: str) -> None:
    Path("key").write_text(KEY)
    Path("webhook").write_text(SECRET)
    Path("farebox.toml").write_text(
        f'[server]\npublic_url = "https://farebox.example"\n[btcpay]\nurl = "{url}"\nstore = "{STORE}"\n'
        'api_key = "file:key"\nwebhook_secret = "file:webhook"\n'
    )


def told(farebox: Farebox, *more: str) -> list[str]:
    return [line for line in farebox("doctor", *more).out.splitlines() if line[6:].startswith("btcpay ")]


async def test_the_doctor_asks_a_btcpay_server(farebox: Farebox) -> None:
    async with serving_btcpay() as fake:
        configure(fake.url)
        (line,) = await asyncio.to_thread(told, farebox)
        assert line.startswith("ok    btcpay")
        fake.rights = {"btcpay.store.canviewinvoices", "btcpay.store.webhooks.canmodifywebhooks"}
        lines = await asyncio.to_thread(told, farebox)
        assert lines == [
            f"FAIL  btcpay         the API key lacks btcpay.store.cancreateinvoice for store {STORE}",
            f"FAIL  btcpay         no webhook of the store leads to {HOOK}: top-ups are seen up to a minute later",
        ]
        fake.asked.clear()
        assert await asyncio.to_thread(told, farebox, "--offline") == []
        assert fake.asked == []
        fake.is_down = True
        (line,) = await asyncio.to_thread(told, farebox)
        assert "cannot be asked" in line


async def test_addresses_of_a_btcpay_server_are_its_own(farebox: Farebox) -> None:
    configure("http://127.0.0.1:9")
    assert "BTCPay Server has its own wallet" in farebox("payments", "check").err
