"""What the rows of `apply_batch` mean: each command's verdict, as the ledger's answer."""

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
    SpendLimit,
    Transfer,
    Verdict,
)
from farebox.billing.ratelimit import level
from farebox.errors import BrokenInvariant


def read_answer(command: Command, record: Any, *, again: bool) -> Answer | Exception:
    """Give the answer to a command, from its row: place, verdict, and the figures that go with it.

    `again` when the batch had been sent before and its answer was lost.
    """
    if isinstance(command, Admit):
        return _admission(record, again=again)
    _, verdict, a, b, c = record[:5]
    if isinstance(command, Settle):
        if verdict == "unknown":
            return BrokenInvariant(f"request {command.request_id.hex()} was never admitted: nothing to settle")
        return Settled(a, b, now=verdict == "settled", recovered=verdict == "recovered")
    if isinstance(command, Resize):
        if verdict == "gone":
            return Resized(0, gone=True)
        return Resized(a, spend_limit=SpendLimit(b, c, record[-1]) if b is not None else None)
    if isinstance(command, Expire):
        return Expired(a or 0, now=verdict == "expired")
    return _posted(command, verdict, a, b)


def _admission(record: Any, *, again: bool) -> Admission:
    _, word, held, free, wait_ns, requests_ns, tokens_ns, requests, tokens, concurrent, now_ns, budget = record
    verdict = Verdict(word)
    if verdict is Verdict.DUPLICATE:
        if not again or held is None:
            return Admission(verdict)
        verdict = Verdict.ADMITTED  # by the batch whose answer was lost
    if requests is None:
        return Admission(verdict)
    spend_limit = None
    if budget is not None:
        resets, _, limit = budget.partition(" ")
        spend_limit, wait_ns = SpendLimit(int(limit), wait_ns, resets), 0
    return Admission(
        verdict,
        held,
        free,
        wait_ns,
        level(requests_ns, now_ns, requests),
        level(tokens_ns, now_ns, tokens),
        concurrent,
        spend_limit,
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
