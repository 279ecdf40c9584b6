"""Hold, resize, settle, post: each once, whatever is delivered again, and never below zero."""

import asyncio
from typing import Any

import pytest

from farebox.billing.ledger import Admission, Command, Posted, Resize, Settled, Transfer, Verdict, customer_account
from farebox.books.ledger import Ledger, credit, debit
from farebox.books.runs import resolve_orphans
from farebox.errors import BrokenInvariant, StoreUnavailable
from farebox.ids import new_request_id
from farebox.money import MAX_NANOS
from tests.books.shop import Shop


async def test_a_hold_resolves_once_and_settling_again_changes_nothing(shop: Shop) -> None:
    request_id, _ = await shop.admit(shop.alice, 600)
    first = await shop.ledger.settle(shop.settlement(request_id, shop.alice, 500))
    again = await shop.ledger.settle(shop.settlement(request_id, shop.alice, 999))
    assert first == Settled(500, 0, now=True)
    assert again == Settled(500, 0, now=False)
    assert await shop.balance(shop.alice) == (10**9 - 500, 0, 0)
    assert await shop.count("usage") == 1


async def test_a_thousand_settlements_of_one_hold_charge_once(shop: Shop) -> None:
    request_id, _ = await shop.admit(shop.alice, 600)
    settle = shop.settlement(request_id, shop.alice, 500)
    answers = await asyncio.gather(*(shop.ledger.settle(settle) for _ in range(1_000)))
    assert sum(answer.now for answer in answers) == 1
    assert {answer.charged_nanos for answer in answers} == {500}
    assert await shop.balance(shop.alice) == (10**9 - 500, 0, 0)


async def test_a_settlement_without_a_hold_is_a_broken_invariant(shop: Shop) -> None:
    with pytest.raises(BrokenInvariant, match="never admitted"):
        await shop.ledger.settle(shop.settlement(new_request_id(0), shop.alice, 5))
    assert await shop.count("usage") == 0


async def test_a_denied_call_leaves_no_trace(shop: Shop) -> None:
    _, answer = await shop.admit(shop.bob, 1)
    assert answer.verdict is Verdict.INSUFFICIENT
    assert await shop.count("hold") == 0
    assert await shop.balance(shop.bob) == (0, 0, 0)


async def test_a_batch_that_denies_one_still_admits_a_later_one_that_fits(shop: Shop) -> None:
    amounts = (400_000_000, 700_000_000, 600_000_000, 1)
    answers = await asyncio.gather(*(shop.admit(shop.alice, amount) for amount in amounts))
    verdicts = [answer.verdict for _, answer in answers]
    assert verdicts == [Verdict.ADMITTED, Verdict.INSUFFICIENT, Verdict.ADMITTED, Verdict.INSUFFICIENT]
    assert await shop.balance(shop.alice) == (10**9, 10**9, 2)


async def test_the_last_cent_raced_by_many_is_held_once(shop: Shop) -> None:
    carol = await shop.person("carol@example.com", 137)
    answers = await asyncio.gather(*(shop.admit(carol, 1) for _ in range(1_000)))
    assert sum(answer.verdict is Verdict.ADMITTED for _, answer in answers) == 137
    assert await shop.balance(carol) == (137, 137, 137)


async def test_money_released_in_a_batch_can_be_held_in_the_same_batch(shop: Shop) -> None:
    request_id, _ = await shop.admit(shop.alice, 10**9)
    admit = shop.admission(shop.alice, 10**9)
    admitted, settled = await shop.store.apply([admit, shop.settlement(request_id, shop.alice)])
    assert isinstance(admitted, Admission)
    assert isinstance(settled, Settled)
    assert admitted.verdict is Verdict.ADMITTED


async def test_a_cost_above_the_balance_is_charged_as_far_as_it_goes_and_the_rest_booked(shop: Shop) -> None:
    carol = await shop.person("carol@example.com", 1_000)
    request_id, _ = await shop.admit(carol, 300)
    settled = await shop.ledger.settle(shop.settlement(request_id, carol, 1_700))
    assert settled == Settled(1_000, 700, now=True)
    assert await shop.balance(carol) == (0, 0, 0)


async def test_a_charge_takes_nothing_that_another_call_holds(shop: Shop) -> None:
    carol = await shop.person("carol@example.com", 1_000)
    first, _ = await shop.admit(carol, 300)
    await shop.admit(carol, 600)
    settled = await shop.ledger.settle(shop.settlement(first, carol, 900))
    assert settled == Settled(400, 500, now=True)
    assert await shop.balance(carol) == (600, 600, 1)


async def test_a_waived_call_is_free_and_its_cost_is_booked(shop: Shop) -> None:
    request_id, _ = await shop.admit(shop.alice, 600)
    settle = shop.settlement(request_id, shop.alice, 500, kind="waived", waive=True)
    assert await shop.ledger.settle(settle) == Settled(0, 0, now=True)
    assert await shop.balance(shop.alice) == (10**9, 0, 0)
    assert await shop.store.fetch("SELECT waived_nanos FROM usage") == [(500,)]


async def test_a_hold_grows_as_far_as_the_balance_and_shrinks_at_will(shop: Shop) -> None:
    request_id, _ = await shop.admit(shop.alice, 600)
    for wanted, granted in ((10**10, 10**9), (10, 10), (0, 0)):
        answer = await shop.ledger.resize(Resize(request_id, shop.alice, wanted, 1))
        assert (answer.amount_nanos, answer.gone) == (granted, False)
        assert await shop.balance(shop.alice) == (10**9, granted, 1)


async def test_a_hold_that_has_ended_does_not_come_back_by_resizing(shop: Shop) -> None:
    request_id, _ = await shop.admit(shop.alice, 600)
    await shop.ledger.settle(shop.settlement(request_id, shop.alice, 0))
    answer = await shop.ledger.resize(Resize(request_id, shop.alice, 50, 1))
    assert (answer.amount_nanos, answer.gone) == (0, True)
    assert await shop.balance(shop.alice) == (10**9, 0, 0)


async def test_a_call_admitted_twice_is_held_once_even_after_its_end(shop: Shop) -> None:
    request_id, _ = await shop.admit(shop.alice, 600)
    assert (await shop.admit(shop.alice, 600, request_id=request_id))[1].verdict is Verdict.DUPLICATE
    await shop.ledger.settle(shop.settlement(request_id, shop.alice, 5))
    assert (await shop.admit(shop.alice, 600, request_id=request_id))[1].verdict is Verdict.DUPLICATE
    assert await shop.balance(shop.alice) == (10**9 - 5, 0, 0)


async def test_a_batch_delivered_again_changes_nothing(shop: Shop) -> None:
    open_call, _ = await shop.admit(shop.alice, 100)
    other_call, _ = await shop.admit(shop.alice, 100)
    batch: list[Command] = [
        shop.admission(shop.alice, 700),
        shop.settlement(open_call, shop.alice, 70),
        Resize(other_call, shop.alice, 5_000, 7),
        credit("again", shop.bob, 900, code="promotion", actor="test", memo=""),
    ]
    await shop.store.apply(batch)
    before = await everything(shop)
    for _ in range(3):
        await shop.store.apply(batch)
        assert await everything(shop) == before


async def test_one_poisoned_command_in_a_batch_does_not_harm_the_others(shop: Shop) -> None:
    good, _ = await shop.admit(shop.alice, 100)
    results = await asyncio.gather(
        shop.admit(shop.alice, 100),
        shop.ledger.settle(shop.settlement(new_request_id(1), shop.alice, 5)),
        shop.ledger.settle(shop.settlement(good, shop.alice, 5)),
        shop.ledger.settle(shop.settlement(good, shop.alice, 5, kind="no such kind")),
        shop.ledger.post(credit("t", 4_711, 5, code="credit", actor="test", memo="")),
        shop.ledger.post(credit("u", shop.bob, 5, code="credit", actor="test", memo="")),
        return_exceptions=True,
    )
    kinds = [type(result) for result in results]
    assert kinds == [tuple, BrokenInvariant, Settled, Settled, BrokenInvariant, Posted]
    assert await shop.balance(shop.alice) == (10**9 - 5, 100, 1)
    assert await shop.balance(shop.bob) == (5, 0, 0)


async def test_a_row_that_the_database_refuses_is_a_broken_invariant_and_its_hold_stays(shop: Shop) -> None:
    request_id, _ = await shop.admit(shop.alice, 100)
    with pytest.raises(BrokenInvariant, match=r"(?i)check"):
        await shop.ledger.settle(shop.settlement(request_id, shop.alice, 5, kind="no such kind"))
    assert await shop.balance(shop.alice) == (10**9, 100, 1)
    assert (await shop.ledger.settle(shop.settlement(request_id, shop.alice, 5))).now


async def test_a_transfer_is_posted_once(shop: Shop) -> None:
    deposit = credit("btc:tx:0", shop.bob, 900, code="deposit", actor="test", memo="")
    answers = await asyncio.gather(*(shop.ledger.post(deposit) for _ in range(100)))
    assert sum(answer.now for answer in answers) == 1
    assert await shop.balance(shop.bob) == (900, 0, 0)
    assert await shop.store.fetch("SELECT topped_up_nanos FROM account WHERE id = ?", (shop.bob,)) == [(900,)]


async def test_a_debit_takes_at_most_what_is_free(shop: Shop) -> None:
    await shop.admit(shop.alice, 10**9 - 10)
    refused = await shop.ledger.post(debit("d1", shop.alice, 11, actor="test", memo=""))
    assert refused.refused == f"the free balance of account {shop.alice} is 10 nano-dollars, less than 11"
    assert (await shop.ledger.post(debit("d1", shop.alice, 10, actor="test", memo=""))).now
    assert await shop.balance(shop.alice) == (10**9 - 10, 10**9 - 10, 1)


async def test_a_transfer_that_the_receiver_cannot_take_leaves_the_sender_alone(shop: Shop) -> None:
    """Past 64 bits the credit is refused; the debit before it must not have been booked."""
    await shop.ledger.post(credit("rich", shop.bob, MAX_NANOS, code="credit", actor="test", memo=""))
    gift = Transfer(
        id="gift",
        debit_account=customer_account(shop.alice),
        credit_account=customer_account(shop.bob),
        amount_nanos=1,
        code="gift",
        actor="test",
        memo="",
    )
    assert (await shop.ledger.post(gift)).refused is not None
    await shop.admit(shop.alice, 100)
    assert await shop.balance(shop.alice) == (10**9, 100, 1)
    assert await shop.count("transfer") == 2


async def test_calls_left_by_an_earlier_process_end_free_of_charge(shop: Shop) -> None:
    for _ in range(5):
        await shop.admit(shop.alice, 1_000)
    assert await resolve_orphans(shop.store, shop.ledger) == 5
    assert await shop.balance(shop.alice) == (10**9, 0, 0)
    rows = await shop.store.fetch("SELECT DISTINCT kind, outcome, charged_nanos FROM usage")
    assert rows == [("recovered", "gateway_died", 0)]


async def test_a_crowd_shares_its_commits(shop: Shop) -> None:
    await asyncio.gather(*(shop.admit(shop.alice, 1) for _ in range(1_000)))
    assert shop.ledger.batches <= 5


async def test_a_store_that_cannot_promise_answers_everybody(shop: Shop) -> None:
    class Broken:
        lanes = 1

        async def apply(self, _batch: Any, _lane: int) -> Any:
            raise StoreUnavailable("no disk")

    ledger = Ledger(Broken())  # type: ignore[arg-type]
    results = await asyncio.gather(
        *(ledger.admit(shop.admission(shop.alice, 1)) for _ in range(900)), return_exceptions=True
    )
    assert {type(result) for result in results} == {StoreUnavailable}


async def test_a_caller_who_leaves_does_not_take_others_answers_with_him(shop: Shop) -> None:
    tasks = [asyncio.create_task(shop.admit(shop.alice, 1)) for _ in range(10)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, tuple) for result in results) == 9
    await shop.ledger.drained()
    assert await shop.count("hold") == 9  # the tenth was ended: nobody was left to end it


async def everything(shop: Shop) -> list[Any]:
    accounts = "SELECT id, posted_nanos, held_nanos, open_holds, topped_up_nanos, tokens_full_ns FROM account"
    queries = (accounts, "SELECT * FROM hold", "SELECT * FROM usage", "SELECT * FROM transfer")
    return [await shop.store.fetch(f"{query} ORDER BY 1") for query in queries]


async def test_an_id_that_belongs_to_another_transfer_is_refused_not_taken_for_a_repeat(shop: Shop) -> None:
    first = credit("bank-1", shop.alice, 25, code="credit", actor="test", memo="")
    assert (await shop.ledger.post(first)).now
    for other in (
        credit("bank-1", shop.alice, 26, code="credit", actor="test", memo=""),
        credit("bank-1", shop.bob, 25, code="credit", actor="test", memo=""),
    ):
        posted = await shop.ledger.post(other)
        assert (posted.now, "another transfer" in (posted.refused or "")) == (False, True)
    assert (await shop.ledger.post(first)).refused is None
