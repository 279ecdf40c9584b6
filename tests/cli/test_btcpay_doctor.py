"""`farebox doctor` with a BTCPay Server: what would keep top-ups from working is told before anybody pays."""

import asyncio
from pathlib import Path

import pytest

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


def test_addresses_of_a_btcpay_server_are_its_own(farebox: Farebox) -> None:
    configure("http://127.0.0.1:9")
    assert "BTCPay Server has its own wallet" in farebox("payments", "check").err


def test_commands_that_ask_nobody_need_no_secrets(farebox: Farebox) -> None:
    """The files of the secrets may belong to the server alone; that they are named is seen all the same."""
    configure("http://127.0.0.1:9")
    Path("key").unlink()
    Path("webhook").unlink()
    assert "no database" in farebox("account", "list").err
    assert "btcpay.api_key" in farebox("payments", "status").err


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ('url = "https://u:p@x.example"\nstore = "a"\napi_key = "k"\nwebhook_secret = "s"', "btcpay.url"),
        ('url = "x.example"\nstore = "a"\napi_key = "k"\nwebhook_secret = "s"', "btcpay.url"),
        ('url = "https://x.example"\napi_key = "k"\nwebhook_secret = "s"', "btcpay.store is missing"),
        ('url = "https://x.example"\nstore = "a"\nwebhook_secret = "s"', "btcpay.api_key is missing"),
        (
            'url = "https://x.example"\nstore = "a"\napi_key = "k"\nwebhook_secret = ""',
            "btcpay.webhook_secret is missing",
        ),
    ],
)
def test_what_is_wrong_with_the_settings_is_told_by_its_line(farebox: Farebox, written: str, problem: str) -> None:
    Path("farebox.toml").write_text(f"[btcpay]\n{written}\n")
    assert problem in farebox("config", "check").err + farebox("account", "list").err
