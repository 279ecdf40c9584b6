"""Payment URIs: what a wallet reads out of a QR code. Amounts are whole numbers of an asset's smallest unit. Pure."""

from typing import Final
from urllib.parse import quote

SATOSHIS: Final = 10**8
"""In one bitcoin."""


def bitcoin_uri(address: str, satoshis: int, label: str = "") -> str:
    """Write a payment in bitcoin (BIP21): the amount in whole coins, without an exponent. Zero: none is named."""
    whole, rest = divmod(satoshis, SATOSHIS)
    amount = f"{whole}.{rest:08d}".rstrip("0").rstrip(".")
    query = [f"amount={amount}"] if satoshis else []
    query += [f"label={quote(label, safe='')}"] if label else []
    return f"bitcoin:{address}" + (f"?{'&'.join(query)}" if query else "")


def ether_uri(address: str, *, chain_id: int, wei: int) -> str:
    """Write a payment in a chain's own coin (EIP-681)."""
    return f"ethereum:{address}@{chain_id}?value={wei}"


def token_uri(contract: str, address: str, *, chain_id: int, units: int) -> str:
    """Write a payment in a token (EIP-681).

    Many wallets misread these, some pay the contract itself: show the address alone first.
    """
    return f"ethereum:{contract}@{chain_id}/transfer?address={address}&uint256={units}"
