"""Receipts, monthly statements and the Beancount file: they say what the books say."""

from decimal import Decimal
from pathlib import Path

from beancount import loader
from beancount.core import data

from farebox.books.days import close_days
from farebox.books.receipts import month_of, months_with_entries
from farebox.clock import DAY_US, day_of, day_start_us
from farebox.money import NANOS_PER_USD
from tests.stage import OpenStage
from tests.web.browse import account_of, enter, fund
from tests.web.test_dashboard import past_call

EMAIL = "alice@example.com"


async def test_months_add_up_over_closed_days_and_open_ones(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        store, now = stage.gateway.store, stage.gateway.clock()
        account_id = await account_of(stage, EMAIL)
        before = (await stage.rows("SELECT posted_nanos FROM account WHERE id = ?", account_id))[0][0]
        this_month = day_start_us(day_of(now)[:8] + "01")
        last_month = day_start_us(day_of(this_month - DAY_US)[:8] + "01")
        for at, charged in ((last_month, 1), (this_month - 1, 20), (this_month, 300), (now - 1000, 4000)):
            await past_call(stage, account_id, at, charged_nanos=charged, cost_nanos=charged)
        for closed in (False, True):
            if closed:
                await close_days(store, now)
            earlier, present = day_of(last_month)[:7], day_of(this_month)[:7]
            assert await months_with_entries(store, account_id, now) == [present, earlier]
            old, new = await month_of(store, account_id, earlier), await month_of(store, account_id, present)
            assert (old.opening_nanos, old.charged_nanos, old.closing_nanos) == (0, 21, -21)
            assert (new.opening_nanos, new.charged_nanos) == (-21, 4300)
            assert new.closing_nanos == before - 4321
            assert [line.requests for line in new.lines] == [2]


async def test_the_pages_show_own_receipts_alone(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        alice = await enter(stage, EMAIL)
        await fund(stage, EMAIL, 7.25)
        await fund(stage, "bob@example.com", 3)
        page = await alice.get("/dashboard/receipts")
        assert page.faults() == []
        assert "$7.25" in page.words
        paths = [link for link in page.links() if link.startswith("/dashboard/receipts/") and "/month/" not in link]
        assert len(paths) == len(await stage.rows("SELECT 1 FROM transfer WHERE credit_account = ?", "customer:1"))
        receipt = await alice.get(paths[0])
        assert receipt.faults() == []
        assert "$7.25" in receipt.words
        assert EMAIL in receipt.words
        bob = await enter(stage, "bob@example.com")
        assert (await bob.get(paths[0])).status == 404
        month = await alice.get(next(link for link in page.links() if "/month/" in link))
        assert month.faults() == []
        assert (await alice.get("/dashboard/receipts/month/2026-13")).status == 404


async def test_the_beancount_file_is_one_and_balances(open_stage: OpenStage, tmp_path: Path) -> None:
    """Beancount itself reads it and finds nothing wrong; its own sum is the balance in the books."""
    async with open_stage() as stage:
        alice = await enter(stage, EMAIL)
        await fund(stage, EMAIL, 7.123456789)
        for _ in range(3):
            assert (await stage.ask(stage.alice))[0] == 200
        page = await alice.get("/dashboard/transactions.beancount")
        assert page.status == 200
        file = tmp_path / "farebox.beancount"
        file.write_text(page.text)
        entries, errors, _ = loader.load_file(str(file))
        assert errors == []
        moved = Decimal(0)
        for entry in entries:
            for posting in entry.postings if isinstance(entry, data.Transaction) else ():
                if posting.account.startswith("Assets:Prepaid"):
                    assert posting.units is not None
                    moved += posting.units.number or 0
        posted = (await stage.rows("SELECT posted_nanos FROM account WHERE email = ?", EMAIL))[0][0]
        assert int(moved * NANOS_PER_USD) == posted
        assert any(isinstance(entry, data.Balance) for entry in entries)
