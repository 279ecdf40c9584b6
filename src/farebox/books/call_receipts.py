"""Receipts of calls: what one came to, as a statement that its customer can hand on. Nothing of what was said."""

from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

import msgspec

from farebox.billing.ledger import customer_account
from farebox.billing.pricing import PPM
from farebox.books.log import LoggedCall, PricedLine, bill_of
from farebox.clock import iso
from farebox.money import NANOS_PER_USD, decimal_usd
from farebox.store.protocol import Store

TYPE: Final = "receipt"
_PICO: Final = 1_000_000
_NANO: Final = Decimal("0.000000001")
_AMOUNTS: Final = ("cost", "charged", "waived", "shortfall")


class Issuer(msgspec.Struct, frozen=True):
    """Who gives receipts: the site's name and its address."""

    name: str
    url: str


async def write_receipt(store: Store, account_id: int, call: LoggedCall, issuer: Issuer, now_us: int) -> dict[str, Any]:
    """Write the receipt of one of an account's calls, to be signed."""
    hints = await store.fetch("SELECT hint FROM api_key WHERE id = ?", (call.key_id,))
    return {
        "type": TYPE,
        "version": 1,
        "issuer": msgspec.structs.asdict(issuer),
        "issued_at": iso(now_us),
        "account_id": account_id,
        "key": hints[0][0] if hints else None,
        **await figures_of(store, account_id, call),
    }


async def figures_of(store: Store, account_id: int, call: LoggedCall) -> dict[str, Any]:
    """Give the figures of one of an account's calls: amounts as exact decimal strings in US dollars."""
    bill = await bill_of(store, call)
    return {
        "request_id": call.id,
        "message_id": call.message_id,
        "at": iso(call.at),
        "model": call.model,
        "asked_model": call.asked_model,
        "outcome": call.outcome,
        "kind": call.kind,
        "http_status": call.status,
        "stop_reason": call.stop_reason,
        "usage": {
            "input_tokens": call.input_tokens,
            "cache_write_5m_tokens": call.cache_write_5m_tokens,
            "cache_write_1h_tokens": call.cache_write_1h_tokens,
            "cache_read_tokens": call.cache_read_tokens,
            "output_tokens": call.output_tokens,
            "web_searches": call.web_searches,
        },
        "currency": "USD",
        "price_version": call.price_version,
        "lines": [show_line(line) for line in bill.lines],
        "notes": bill.notes,
        "cost": decimal_usd(call.cost_nanos),
        "waived": decimal_usd(call.waived_nanos),
        "shortfall": decimal_usd(call.shortfall_nanos),
        "charged": decimal_usd(call.charged_nanos),
        "refunded": decimal_usd(await _refunded(store, account_id, call)),
        "list_cost": decimal_usd(call.list_nanos),
    }


async def _refunded(store: Store, account_id: int, call: LoggedCall) -> int:
    """Give what of a call's charge was given back, since it could not be delivered (Ledger.give_back)."""
    rows = await store.fetch(
        "SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE id = ? AND credit_account = ?",
        (f"refund:{call.request_id.hex()}", customer_account(account_id)),
    )
    return int(rows[0][0])


def show_line(line: PricedLine) -> dict[str, Any]:
    """Show a line of a call's cost: lines are exact, only their sum is rounded."""
    return {
        "what": line.what,
        "model": line.model,
        "count": line.count,
        "price": decimal_usd(line.sell_price),
        "per": 1 if line.each else PPM,
        "cost": _exact(line.sell_pico),
        "list_price": decimal_usd(line.list_price),
        "list_cost": _exact(line.list_pico),
    }


def _exact(pico: int) -> str:
    """Write what a line comes to, which may take more decimals than a nano-dollar: only their sum is rounded."""
    dollars, rest = divmod(pico, NANOS_PER_USD * _PICO)
    decimals = f"{rest:015d}".rstrip("0").ljust(2, "0")
    return f"{dollars}.{decimals}"


def faults(receipt: dict[str, Any]) -> list[str]:
    """Add a receipt up again, as anybody can; names what does not come out."""
    try:
        cost, charged, waived, shortfall = (Decimal(receipt[name]) for name in _AMOUNTS)
        lines = [
            (line["count"] * Decimal(line["price"]) / line["per"], Decimal(line["cost"])) for line in receipt["lines"]
        ]
        together = sum((told for _, told in lines), Decimal(0)).quantize(_NANO, ROUND_CEILING)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return ["it lacks figures that a receipt has"]
    found = [] if cost == charged + waived + shortfall else ["charged, waived and shortfall do not make up the cost"]
    found += ["a line is not its number times its price"] if any(right != told for right, told in lines) else []
    if cost and not receipt.get("notes") and together != cost:
        found.append(f"its lines make {together}, not {cost}")
    return found
