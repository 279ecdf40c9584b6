"""The rule of spend limits: what is used is what is held and charged in the period, and no call is let in beyond it."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.billing.budgets import RESETS, Resets, period_end_us, period_start_us
from farebox.billing.ledger import Account, Admit, Budget, Hold, Resize, Settle, Verdict
from farebox.billing.plans import Plan
from farebox.clock import DAY_US, US_PER_S

PLAN = Plan("any", 10**9, 10**9, 10**6)
START_US = 1_795_348_800_000_000
nanos = st.integers(0, 1_500)
steps = st.lists(
    st.tuples(
        st.sampled_from(("admit", "resize", "settle", "expire")),
        st.integers(0, 20),
        nanos,
        st.sampled_from((0, 1, DAY_US // 3, DAY_US, 9 * DAY_US)),
    ),
    max_size=60,
)


class Story:
    """An account with one key, and the plain sums that its budget is compared with."""

    def __init__(self, resets: Resets) -> None:
        self.account = Account(1, "active", "any", 100_000, 0, 0, 0, 0, 0)
        self.budget = Budget(1_000, resets, START_US, 0)
        self.now_us = START_US
        self.holds: list[Hold] = []
        self.charges: list[tuple[int, int]] = []

    @property
    def counted(self) -> int:
        """What is held and charged since the present period began."""
        held = sum(hold.amount_nanos for hold in self.holds if hold.created_us >= self.budget.since_us)
        return held + sum(charged for at, charged in self.charges if at >= self.budget.since_us)

    def take(self, step: tuple[str, int, int, int]) -> None:
        what, which, amount, later_us = step
        self.now_us += later_us
        now = self.budget.at(self.now_us)
        if what == "admit":
            self.admit(now, amount, which)
        elif self.holds:
            self.budget = now
            hold = self.holds[which % len(self.holds)]
            getattr(self, what)(hold, amount)

    def admit(self, budget: Budget, amount: int, least: int) -> None:
        left = budget.left_nanos
        answer = self.account.admit(Admit(b"", 1, 1, "", amount, least, 0, 1), PLAN, self.now_us * 1000, budget)
        if answer.verdict is Verdict.KEY_LIMITED:
            assert left <= 0 or least > left
            assert budget.left_nanos == left
            return
        assert 0 <= answer.held_nanos <= max(0, left)
        self.budget = budget
        self.holds.append(Hold(b"", 1, 1, "", answer.held_nanos, 0, 1, self.now_us))

    def resize(self, hold: Hold, amount: int) -> None:
        before, left = hold.amount_nanos, self.budget.left_nanos
        resized = self.account.resize(hold, Resize(b"", 1, amount, 0), PLAN, self.now_us * 1000, self.budget)
        assert resized.amount_nanos <= max(amount, before)
        assert resized.amount_nanos <= before + max(0, left)
        assert (resized.spend_limit is None) == (resized.amount_nanos == amount)

    def settle(self, hold: Hold, cost: int) -> None:
        settle = Settle(request_id=b"", account_id=1, kind="", model="", outcome="", status=0, cost_nanos=cost)
        settled = self.account.settle(hold, settle, PLAN, self.now_us * 1000, self.budget)
        self.holds.remove(hold)
        self.charges.append((self.now_us, settled.charged_nanos))

    def expire(self, hold: Hold, _: int) -> None:
        if not hold.expired:
            self.account.expire(hold, self.budget)


@given(st.sampled_from(RESETS), steps)
def test_what_is_used_is_what_is_held_and_charged_in_the_period(
    resets: Resets, taken: list[tuple[str, int, int, int]]
) -> None:
    story = Story(resets)
    for step in taken:
        story.take(step)
        assert story.budget.used_nanos == story.counted


@given(st.sampled_from(RESETS), st.integers(0, 4 * 10**15))
def test_a_moment_lies_in_its_period_and_the_next_begins_as_it_ends(resets: Resets, at_us: int) -> None:
    begin, end = period_start_us(resets, at_us), period_end_us(resets, at_us)
    assert begin <= at_us
    assert begin % DAY_US == 0
    if end is not None:
        assert at_us < end
        assert period_start_us(resets, end) == end
        assert period_start_us(resets, end - 1) == begin


def us(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * US_PER_S


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland", "America/Los_Angeles"])
@pytest.mark.parametrize(
    ("resets", "now", "begin", "end"),
    [
        ("daily", "2026-02-15T12:34:56", "2026-02-15", "2026-02-16"),
        ("daily", "2026-12-31T23:59:59", "2026-12-31", "2027-01-01"),
        ("weekly", "2026-02-15T12:34:56", "2026-02-09", "2026-02-16"),
        ("weekly", "2026-02-16T00:00:00", "2026-02-16", "2026-02-23"),
        ("monthly", "2026-02-15T12:34:56", "2026-02-01", "2026-03-01"),
        ("monthly", "2024-02-29T12:34:56", "2024-02-01", "2024-03-01"),
        ("monthly", "2026-12-31T12:34:56", "2026-12-01", "2027-01-01"),
    ],
)
def test_days_mondays_and_months_begin_at_midnight_utc_wherever_the_server_is(
    monkeypatch: pytest.MonkeyPatch, zone: str, resets: Resets, now: str, begin: str, end: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert (period_start_us(resets, us(now)), period_end_us(resets, us(now))) == (us(begin), us(end))
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_budget_that_is_never_new_has_no_end() -> None:
    assert (period_start_us("never", START_US), period_end_us("never", START_US)) == (0, None)


def test_a_hold_of_an_earlier_period_that_grows_by_the_least_belongs_to_the_present_one() -> None:
    budget = Budget(1_000, "daily", START_US, 0)
    hold = Hold(b"", 1, 1, "", 5, 0, 1, START_US - 1)
    budget.move(hold, 0)
    assert (budget.used_nanos, hold.created_us) == (0, START_US - 1)
    budget.move(hold, 1)
    assert (budget.used_nanos, hold.created_us) == (6, START_US)


def test_a_hold_that_expires_says_what_it_gave_back() -> None:
    account = Account(1, "active", "any", 100, 40, 1, 0, 0, 0)
    assert account.expire(Hold(b"", 1, 1, "", 40, 0, 1, START_US)) == 40
    assert account.free_nanos == 100
