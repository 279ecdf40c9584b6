"""What must be true of the books after all that was done to the servers. The truth is known outside of them: the
simulator knows what it generated, the clients what they received in full."""

from collections import Counter
from typing import Any, Final

from farebox.books.audit import audit
from farebox.store.protocol import Store
from farebox.upstreams.simulator import Simulator
from tests.kill.client import Seen

NANOS: Final = {
    "claude-sonnet-4-6": (1_500, 1_875, 3_000, 150, 7_500),
    "claude-haiku-4-5": (400, 500, 800, 40, 2_000),
}
"""Nano-dollars a token, from the seed contract: input, writes for 5 minutes and an hour, reads, output."""
_ROW: Final = {
    "message_id": "message_id", "kind": "kind", "outcome": "outcome", "model": "model", "i": "input_tokens",
    "w5": "cache_write_5m_tokens", "w1": "cache_write_1h_tokens", "r": "cache_read_tokens", "o": "output_tokens",
    "cost": "cost_nanos", "charged": "charged_nanos", "short": "shortfall_nanos", "waived": "waived_nanos",
}  # fmt: skip
Booked = dict[str, Any]


async def check_books(
    store: Store, simulator: Simulator, answers: list[Seen], deposited: set[str], seen: Counter[str]
) -> None:
    """Join what clients saw, what the upstream generated and what the books say. Counts in `seen` what was found."""
    rows = await store.fetch(f"SELECT {', '.join(_ROW.values())} FROM usage")
    booked = [dict(zip(_ROW, row, strict=True)) for row in rows]
    generated = {request.message_id: request for request in simulator.requests if request.message_id}
    _check_charges(booked, generated, seen)
    _check_answers(booked, answers, generated, seen)
    assert await _count(store, "SELECT count(*) FROM hold WHERE amount_nanos > 0 OR expired_at IS NULL") == 0
    assert await _count(store, "SELECT count(*) FROM account WHERE posted_nanos < 0 OR held_nanos <> 0") == 0
    seen["tombstones"] = await _count(store, "SELECT count(*) FROM hold")
    there = {row[0] for row in await store.fetch("SELECT id FROM transfer")}
    assert there == deposited, there ^ deposited
    broken = [check for check in await audit(store) if not check.ok]
    assert not broken, broken
    assert not simulator.crashes, simulator.crashes


def _check_charges(booked: list[Booked], generated: dict[str, Any], seen: Counter[str]) -> None:
    """See that nothing was charged but what the upstream did, at the published prices (promise 2)."""
    charged: set[str] = set()
    for row in booked:
        seen[f"{row['kind']}, {row['outcome']}"] += 1
        if row["cost"] == 0:
            continue
        request = generated.get(row["message_id"])
        assert request is not None, f"charged for an answer that nobody gave: {row}"
        assert row["message_id"] not in charged, f"booked twice: {row}"
        charged.add(row["message_id"])
        usage = request.usage
        said = _said(usage)
        assert (row["w5"], row["w1"], row["r"]) == said[1:4], (row, usage)
        # the estimate counts bytes of text, the simulator characters, of which a few are not ASCII
        assert row["o"] <= usage["output_tokens"] * 11 // 10 + 1, (row, usage)
        assert row["i"] <= said[0], (row, usage)
        if row["kind"] == "exact":
            assert _tokens(row) == said, (row, usage)
        assert row["cost"] == _price(row), row
        assert row["charged"] + row["short"] + row["waived"] == row["cost"], row
        assert row["charged"] == 0 or row["kind"] in {"exact", "estimated", "late"}, row
        seen["shortfalls"] += row["short"] > 0


def _check_answers(booked: list[Booked], answers: list[Seen], generated: dict[str, Any], seen: Counter[str]) -> None:
    """See that each answer a client had to its end was charged, once, for all the upstream reported (promise 1)."""
    by_id: dict[str, list[Booked]] = {}
    for row in booked:
        by_id.setdefault(row["message_id"], []).append(row)
    for answer in answers:
        seen[f"answers with {answer.status}"] += 1
        if not answer.finished:
            continue
        seen["answers had in full"] += 1
        rows = by_id.get(answer.message_id or "", [])
        assert len(rows) == 1, f"{answer} is booked {len(rows)} times"
        row = rows[0]
        assert row["kind"] in {"exact", "late"}, (answer, row)
        assert _tokens(row) == _said(generated[row["message_id"]].usage), (answer, row)
        refused = row["cost"] == 0 and row["o"] == 0  # a refusal without output, which is free
        assert refused or row["cost"] == _price(row) > 0, row
        assert row["charged"] + row["short"] == row["cost"], row


def _said(usage: dict[str, Any]) -> tuple[int, ...]:
    """Give what the upstream reported, in the order of the prices."""
    split = usage.get("cache_creation") or {}
    return (
        usage["input_tokens"],
        split.get("ephemeral_5m_input_tokens", 0),
        split.get("ephemeral_1h_input_tokens", 0),
        usage["cache_read_input_tokens"],
        usage["output_tokens"],
    )


def _tokens(row: Booked) -> tuple[int, ...]:
    return (row["i"], row["w5"], row["w1"], row["r"], row["o"])


def _price(row: Booked) -> int:
    """Price by the seed contract: whole nano-dollars a token, so that there is nothing to round."""
    rates = next(rates for name, rates in NANOS.items() if row["model"].startswith(name))
    return sum(tokens * rate for tokens, rate in zip(_tokens(row), rates, strict=True))


async def _count(store: Store, sql: str) -> int:
    return int((await store.fetch(sql))[0][0])
