"""The till: all that takes payments in, made from the settings."""

from collections.abc import Callable, Mapping

from msgspec import Struct

from farebox.billing.plans import Plans
from farebox.books.ledger import Ledger
from farebox.money import NANOS_PER_USD
from farebox.payments.addresses import Addresses
from farebox.payments.btcpay import NAME as BTCPAY
from farebox.payments.btcpay import BtcpayRail
from farebox.payments.btcpay_api import BtcpayApi
from farebox.payments.btcpay_view import BtcpayView
from farebox.payments.btcpay_watcher import BtcpayWatcher
from farebox.payments.chains.bitcoin import BitcoinWatcher
from farebox.payments.chains.evm_watcher import EvmWatcher
from farebox.payments.coins import CoinRail
from farebox.payments.deposits import Deposits
from farebox.payments.keys import ExtendedKey
from farebox.payments.office import Office
from farebox.payments.rails import Asset, Rail, Watcher
from farebox.payments.rates.rates import Rates
from farebox.payments.reconcile import ChainView, Reconciler
from farebox.payments.settings import BitcoinSettings, BtcpaySettings, EvmSettings, PaymentSettings
from farebox.payments.simulated import SimulatedRail, SimulatedWatcher
from farebox.payments.test_wallets import BitcoinTestWallet, EvmTestWallet, TestWallet
from farebox.payments.topups import Topups
from farebox.payments.uris import bitcoin_uri, ether_uri, token_uri
from farebox.payments.watching import Rounds
from farebox.store.protocol import Store


class TillSettings(Struct, frozen=True, kw_only=True):
    """Everything an operator says about payments."""

    payments: PaymentSettings
    bitcoin: BitcoinSettings = BitcoinSettings()
    evm: tuple[EvmSettings, ...] = ()
    btcpay: BtcpaySettings = BtcpaySettings()


class Till(Struct, frozen=True, kw_only=True):
    """What takes payments in."""

    settings: TillSettings
    addresses: Addresses
    rates: Rates
    deposits: Deposits
    topups: Topups
    office: Office
    reconciler: Reconciler
    rounds: tuple[Rounds, ...]
    """One for each watcher."""
    test_wallets: Mapping[str, TestWallet]
    """By rail: who pays at the push of a button, where the chain is one to try things on."""

    async def close(self) -> None:
        """End what is open to nodes and processors."""
        for one in self.rounds:
            await one.watcher.close()
        for wallet in self.test_wallets.values():
            await wallet.close()


def make_till(
    settings: TillSettings,
    store: Store,
    ledger: Ledger,
    plans: Plans,
    *,
    site: str,
    public_url: str,
    warn: Callable[..., object],
) -> Till:
    """Make rails and watchers of all that is configured. Keys are known to be sound: the configuration was checked."""
    addresses, rates = Addresses(store), Rates(store, settings.payments, warn=warn)
    rails: dict[str, Rail] = {}
    deposits = Deposits(store, ledger, plans, rails, site=site, public_url=public_url)
    watchers: list[Watcher] = []
    views: dict[str, ChainView] = {}
    if settings.payments.simulated:
        rails[SimulatedRail.name] = SimulatedRail()
        watchers.append(SimulatedWatcher(store, deposits))
    if settings.bitcoin.key:
        key = ExtendedKey(settings.bitcoin.key.reveal(), "bitcoin", settings.bitcoin.network)
        rails["bitcoin"] = _bitcoin_rail(settings, store, addresses, rates, key)
        watchers.append(bitcoin := BitcoinWatcher(store, deposits, settings.bitcoin, key, addresses))
        views["bitcoin"] = bitcoin
    for evm in settings.evm:
        rails[evm.name] = _evm_rail(settings, evm, store, addresses, rates)
        watchers.append(watcher := EvmWatcher(store, deposits, evm, addresses))
        views[evm.name] = watcher
    if settings.btcpay.url:
        api = BtcpayApi(settings.btcpay)
        rails[BTCPAY] = _btcpay_rail(settings, store, api, rates, warn)
        watchers.append(BtcpayWatcher(store, deposits, api))
        views[BTCPAY] = BtcpayView(store, api)
    topups = Topups(
        store,
        deposits,
        tuple(rails.values()),
        most_nanos=settings.payments.most_usd * NANOS_PER_USD,
        open_at_once=settings.payments.open_at_once,
    )
    reconciler = Reconciler(store, views, {name: rail.assets for name, rail in rails.items()})
    return Till(
        settings=settings,
        addresses=addresses,
        rates=rates,
        deposits=deposits,
        topups=topups,
        office=Office(store, deposits, addresses, rates, reconciler),
        reconciler=reconciler,
        rounds=tuple(Rounds(store, watcher, warn) for watcher in watchers),
        test_wallets=_test_wallets(settings),
    )


def _test_wallets(settings: TillSettings) -> dict[str, TestWallet]:
    wallets: dict[str, TestWallet] = {}
    if settings.payments.test_wallet and settings.bitcoin.key:
        wallets["bitcoin"] = BitcoinTestWallet(settings.bitcoin)
    if settings.payments.test_wallet:
        wallets |= {evm.name: EvmTestWallet(evm) for evm in settings.evm}
    return wallets


def _btcpay_rail(
    settings: TillSettings, store: Store, api: BtcpayApi, rates: Rates, warn: Callable[..., object]
) -> BtcpayRail:
    """Make the rail; Bitcoin that a node of one's own takes already is not offered twice."""
    chain, lightning = not settings.bitcoin.key, settings.btcpay.lightning
    return BtcpayRail(store, api, rates, settings.payments, chain=chain, lightning=lightning, warn=warn)


def _bitcoin_rail(
    settings: TillSettings, store: Store, addresses: Addresses, rates: Rates, key: ExtendedKey
) -> CoinRail:
    network = {"main": "Bitcoin", "test": "Bitcoin testnet"}.get(
        settings.bitcoin.network, f"Bitcoin {settings.bitcoin.network}"
    )

    def write_uri(asset: Asset, address: str, units: int) -> str:  # noqa: ARG001  there is one
        return bitcoin_uri(address, units)

    return CoinRail(
        "bitcoin",
        (Asset("BTC", "Bitcoin", network, 8),),
        store,
        addresses,
        rates,
        key,
        settings.payments,
        depths=settings.bitcoin.confirmations,
        least_usd=settings.payments.least_usd,
        write_uri=write_uri,
        links="https://mempool.space/tx/{}" if settings.bitcoin.network == "main" else "",
    )


def _evm_rail(settings: TillSettings, evm: EvmSettings, store: Store, addresses: Addresses, rates: Rates) -> CoinRail:
    network = evm.title or evm.name.capitalize()
    own = (Asset(evm.coin, "Ether" if evm.coin == "ETH" else evm.coin, network, 18),) if evm.ether else ()
    tokens = tuple(Asset(token.code, token.name, network, token.decimals) for token in evm.tokens)
    contracts = {token.code: token.contract for token in evm.tokens}

    def write_uri(asset: Asset, address: str, units: int) -> str:
        if asset.code in contracts:
            return token_uri(contracts[asset.code], address, chain_id=evm.chain_id, units=units)
        return ether_uri(address, chain_id=evm.chain_id, wei=units)

    return CoinRail(
        evm.name,
        own + tokens,
        store,
        addresses,
        rates,
        ExtendedKey(evm.key.reveal(), "evm"),
        settings.payments,
        depths=evm.confirmations,
        least_usd=evm.least_usd or settings.payments.least_usd,
        write_uri=write_uri,
        links={1: "https://etherscan.io/tx/{}", 137: "https://polygonscan.com/tx/{}"}.get(evm.chain_id, ""),
    )
