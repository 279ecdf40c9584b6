"""What the rows of `apply_batch` mean: each command's verdict, as the ledger's answer."""

from collections.abc import Sequence
from typing import Any

from farebox.billing.ledger import (
    Admission,
    Admit,
    Answer,
    Command,
    Expire,
    Expired,
    Posted,
    Resize,
    Resized,
    Settle,
    Settled,
    Transfer,
    Verdict,
)
from farebox.billing.plans import Plan
from farebox.billing.ratelimit import level
from farebox.errors import BrokenInvariant


def read_answer(command: Command, record: Any, plans: Sequence[Plan], *, again: bool) -> Answer | Exception:
    """Give the answer to a command, from its row: place, verdict, and the figures that go with it.

    `again` when the batch had been sent before and its answer was lost.
    """
    if isinstance(command, Admit):
        return _admission(record, plans, again=again)
    _, verdict, a, b = record[:4]
    if isinstance(command, Settle):
        if verdict == "unknown":
            return BrokenInvariant(f"request {command.request_id.hex()} was never admitted: nothing to settle")
        return Settled(a, b, now=verdict == "settled", recovered=verdict == "recovered")
    if isinstance(command, Resize):
        return Resized(0, gone=True) if verdict == "gone" else Resized(a)
    if isinstance(command, Expire):
        return Expired(a or 0, now=verdict == "expired")
    return _posted(command, verdict, a, b)


def _admission(record: Any, plans: Sequence[Plan], *, again: bool) -> Admission:
    _, word, held, free, wait_ns, requests_full_ns, tokens_full_ns, plan_place, now_ns = record
    verdict = Verdict(word)
    if verdict is Verdict.DUPLICATE:
        if not again or held is None:
            return Admission(verdict)
        verdict = Verdict.ADMITTED  # by the batch whose answer was lost
    if plan_place is None:
        return Admission(verdict)
    plan = plans[plan_place - 1]
    return Admission(
        verdict,
        held,
        free,
        wait_ns,
        level(requests_full_ns, now_ns, plan.requests_per_minute),
        level(tokens_full_ns, now_ns, plan.tokens_per_minute),
        plan.concurrent,
    )


def _posted(transfer: Transfer, verdict: str, account_id: int | None, free: int | None) -> Posted | Exception:
    if verdict == "posted":
        return Posted(now=True)
    if verdict == "posted_before":
        return Posted(now=False)
    if verdict == "no_account":
        return BrokenInvariant(f"transfer {transfer.id} names account {account_id}, which is not there")
    words = {
        "other_transfer": f"the id {transfer.id} belongs to another transfer already: choose another id",
        "too_much": f"account {account_id} would hold more than a 64-bit amount",
        "refused": f"the free balance of account {account_id} is {free} nano-dollars, "
        f"less than {transfer.amount_nanos}",
    }
    return Posted(now=False, refused=words[verdict])
