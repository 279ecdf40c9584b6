"""Checks of what is said about payments: keys, depths, names, and what must never be said of real coins."""

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from farebox.config.locate import Path
from farebox.config.reader import Reader, show
from farebox.http.client import read_origin
from farebox.http.errands import read_target
from farebox.payments.keys import fault_in_key
from farebox.payments.rates.rates import QUORUM
from farebox.payments.settings import FINAL, BitcoinSettings, BtcpaySettings, Depth, EvmSettings, PaymentSettings
from farebox.payments.test_wallets import TEST_CHAIN_IDS

_RESERVED: Final = frozenset({"bitcoin", "btcpay", "simulated"})
_MOST_SPREAD: Final = 20


def check_payments(
    reader: Reader,
    payments: PaymentSettings | None,
    bitcoin: BitcoinSettings | None,
    chains: Sequence[tuple[Path, EvmSettings]],
    btcpay: BtcpaySettings | None,
    btcpay_said: Mapping[str, object],
) -> None:
    """Tell the reader what is wrong. A table is None when it was wrong in itself.

    `btcpay_said` is that table as it was written: its secrets are known to be there though they may not be read.
    """
    if bitcoin is not None and bitcoin.key:
        _check_bitcoin(reader, bitcoin)
    for position, (path, chain) in enumerate(chains):
        _check_chain(reader, path, chain, {other.name for _, other in chains[:position]})
        if chain.chain_id in {other.chain_id for _, other in chains[:position]}:
            reader.problem((*path, "chain_id"), f"is {chain.chain_id} a second time: its payments would count twice")
    if btcpay is not None and btcpay.url:
        _check_btcpay(reader, btcpay, btcpay_said)
    if payments is not None:
        _check_amounts(reader, payments)
        real = bitcoin is not None and bool(bitcoin.key)
        if payments.simulated and (real or chains or (btcpay is not None and btcpay.url)):
            words = "is true beside a way to pay for real: it would give money away; leave one of them out"
            reader.problem(("payments", "simulated"), words)
        if payments.test_wallet:
            _check_test_wallet(reader, bitcoin, chains)


def _check_bitcoin(reader: Reader, bitcoin: BitcoinSettings) -> None:
    if fault := fault_in_key(bitcoin.key.reveal(), "bitcoin", bitcoin.network):
        reader.problem(("bitcoin", "key"), fault)
    if urlsplit(bitcoin.rpc).scheme not in {"http", "https"} or "@" in bitcoin.rpc:
        reader.problem(
            ("bitcoin", "rpc"),
            f'{_quoted(bitcoin.rpc)}must be a URL such as "http://127.0.0.1:8332", without user and password',
        )
    _check_depths(reader, ("bitcoin", "confirmations"), bitcoin.confirmations)
    if any(depth.blocks == FINAL for depth in bitcoin.confirmations):
        reader.problem(("bitcoin", "confirmations"), "has blocks = 0, which Bitcoin has no meaning for; say 1 or more")


def _check_chain(reader: Reader, path: Path, chain: EvmSettings, before: set[str]) -> None:
    if chain.name in before:
        reader.problem((*path, "name"), f"is {show(chain.name)} a second time; names are unique")
    if chain.name in _RESERVED:
        reader.problem((*path, "name"), f"is {show(chain.name)}, which is the name of another way to pay")
    if chain.key and (fault := fault_in_key(chain.key.reveal(), "evm", "")):
        reader.problem((*path, "key"), fault)
    if chain.rpc and urlsplit(chain.rpc.reveal()).scheme not in {"http", "https"}:
        reader.problem((*path, "rpc"), 'must be a URL such as "http://127.0.0.1:8545"')
    if not chain.ether and not chain.tokens:
        reader.problem((*path, "tokens"), "is empty, and ether is false: there is nothing to pay with")
    codes = [token.code for token in chain.tokens] + [chain.coin] * chain.ether
    if len(codes) > len(set(codes)):
        reader.problem((*path, "tokens"), "names a coin twice on one chain")
    _check_depths(reader, (*path, "confirmations"), chain.confirmations)


def _check_btcpay(reader: Reader, btcpay: BtcpaySettings, said: Mapping[str, object]) -> None:
    try:
        read_origin(btcpay.url)
    except ValueError:
        reader.problem(("btcpay", "url"), f'{_quoted(btcpay.url)}must be a URL such as "https://btcpay.example"')
    for name in ("store", "api_key", "webhook_secret"):
        if not said.get(name):
            reader.problem(("btcpay", name), "is missing; BTCPay Server shows it in the settings of the store")


def _check_amounts(reader: Reader, payments: PaymentSettings) -> None:
    if not (payments.spread_percent.is_finite() and 0 <= payments.spread_percent <= _MOST_SPREAD):
        reader.problem(
            ("payments", "spread_percent"), f"is {payments.spread_percent}; it must be from 0 to {_MOST_SPREAD}"
        )
    if payments.least_usd > payments.most_usd:
        reader.problem(("payments", "least_usd"), f"is {payments.least_usd}, more than most_usd, {payments.most_usd}")
    if len(set(payments.rates)) < len(payments.rates):
        reader.problem(("payments", "rates"), "names a source twice")
    if len(set(payments.rates) - {"binance"}) < QUORUM:
        reader.problem(
            ("payments", "rates"),
            f"needs {QUORUM} sources at least, binance not counted: one alone is believed by nobody, "
            "and what Binance says in USDT is worth what the others say",
        )
    if payments.rates_url and not _is_plain(payments.rates_url):
        reader.problem(
            ("payments", "rates_url"), 'must be a URL such as "http://127.0.0.1:9000", without password or query'
        )


def _is_plain(url: str) -> bool:
    """Whether a path can be added to a URL, and be asked for."""
    try:
        read_target(url)
    except ValueError:
        return False
    return "?" not in url


def _quoted(url: str) -> str:
    """Begin a sentence with a URL, unless a password may be in it."""
    return "" if "@" in url else f"is {show(url)}; it "


def _check_depths(reader: Reader, path: Path, depths: tuple[Depth, ...]) -> None:
    limits = [depth.below_usd for depth in depths[:-1]]
    rising = [limit for limit in limits if limit is not None]
    if not depths or None in limits or depths[-1].below_usd is not None or rising != sorted(set(rising)):
        reader.problem(
            path,
            "must rise by below_usd, and end with one that has none: [{ below_usd = 100, blocks = 1 }, { blocks = 4 }]",
        )


def _check_test_wallet(
    reader: Reader, bitcoin: BitcoinSettings | None, chains: Sequence[tuple[Path, EvmSettings]]
) -> None:
    real = [chain.name for _, chain in chains if chain.chain_id not in TEST_CHAIN_IDS]
    if bitcoin is not None and bitcoin.key and bitcoin.network != "regtest":
        real.append("bitcoin")
    if real:
        reader.problem(("payments", "test_wallet"), f"is for test chains on this machine; {', '.join(real)} is none")
