"""What the operator may set about payments: values only, read by farebox.config."""

from decimal import Decimal
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from farebox.money import NANOS_PER_USD
from farebox.secret import Secret

FINAL: Final = 0
"""`blocks` of a Depth: until the chain itself says that the block is final."""

RateSource = Literal["kraken", "coinbase", "bitstamp", "binance", "coingecko"]
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,30}$", description='a name in lower case such as "polygon"')]
Contract = Annotated[
    str, Meta(pattern=r"^0x[0-9a-fA-F]{40}$", description="the address of the token's contract: 0x and 40 hex digits")
]


class Depth(Struct, frozen=True, forbid_unknown_fields=True):
    """How many confirmations payments worth less than `below_usd` need; without it, all others."""

    blocks: Annotated[int, Meta(ge=0, le=10_000)]
    """0: until the chain says that it is final (EVM chains only)."""
    below_usd: Annotated[int, Meta(ge=1)] | None = None


def blocks_for(depths: tuple[Depth, ...], worth_nanos: int | None) -> int:
    """Give the confirmations that a payment needs; of unknown worth, as many as the dearest."""
    for depth in depths:
        if depth.below_usd is None or (worth_nanos is not None and worth_nanos < depth.below_usd * NANOS_PER_USD):
            return depth.blocks
    return depths[-1].blocks


class PaymentSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """`[payments]`."""

    simulated: bool = False
    test_wallet: bool = False
    """Whether pages offer to pay from a wallet of a test chain. Refused on chains where coins are worth something."""
    rates: tuple[RateSource, ...] = ("kraken", "coinbase", "bitstamp")
    rates_url: str = ""
    """Where to ask instead of the sources' own servers: "http://127.0.0.1:9"; the source's name is added."""
    spread_percent: Decimal = Decimal(1)
    """Taken off the market's rate: 0 to 20."""
    quote_minutes: Annotated[int, Meta(ge=1, le=120)] = 20
    least_usd: Annotated[int, Meta(ge=1)] = 10
    most_usd: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    open_at_once: Annotated[int, Meta(ge=1, le=100)] = 3


class BitcoinSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """`[bitcoin]`: a node of Bitcoin Core, and the key whose addresses are paid to."""

    key: Secret = Secret("")
    """xpub, zpub or a descriptor such as wpkh([73c5da0a/84h/0h/0h]xpub…/0/*). Empty: Bitcoin is not offered."""
    rpc: str = "http://127.0.0.1:8332"
    rpc_user: str = ""
    rpc_password: Secret = Secret("")
    network: Literal["main", "test", "signet", "regtest"] = "main"
    wallet: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]+$", description="a name without spaces")] = "farebox"
    confirmations: tuple[Depth, ...] = (Depth(1, 100), Depth(2, 1000), Depth(4))


class TokenSettings(Struct, frozen=True, forbid_unknown_fields=True):
    contract: Contract
    decimals: Annotated[int, Meta(ge=0, le=36)]
    code: Annotated[str, Meta(pattern=r"^[A-Z0-9]{2,10}$", description='a ticker such as "USDT"')] = "USDT"
    name: str = "Tether"


class EvmSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[evm]]`: a chain that speaks Ethereum's JSON-RPC, and the key whose addresses are paid to."""

    name: Name
    """What it is called in the books: never changed."""
    chain_id: Annotated[int, Meta(ge=1)]
    rpc: Secret
    """URL of its JSON-RPC; a secret, since those of providers hold a key."""
    key: Secret
    title: str = ""
    """What customers read: "Ethereum", "Polygon"."""
    ether: bool = True
    """Whether its own coin is taken."""
    coin: Annotated[str, Meta(pattern=r"^[A-Z0-9]{2,10}$", description='a ticker such as "ETH"')] = "ETH"
    tokens: tuple[TokenSettings, ...] = ()
    block_s: Annotated[float, Meta(gt=0)] = 12.0
    """How often it makes a block."""
    least_usd: Annotated[int, Meta(ge=1)] | None = None
    confirmations: tuple[Depth, ...] = (Depth(12, 1000), Depth(FINAL))


class BtcpaySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """`[btcpay]`: a BTCPay Server that takes Bitcoin and Lightning."""

    url: str = ""
    """Empty: it is not offered."""
    store: str = ""
    api_key: Secret = Secret("")
    webhook_secret: Secret = Secret("")
    lightning: bool = True
