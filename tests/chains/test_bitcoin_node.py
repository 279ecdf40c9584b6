"""What a node of Bitcoin has to be before it is believed, and what its wallet has to watch."""

import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from farebox.clock import US_PER_S
from farebox.errors import RailTrouble, WrongChain
from farebox.payments.chains.bitcoin import BitcoinWatcher, satoshis
from farebox.payments.chains.bitcoin_node import METHODS, Chain, Header, why_behind
from farebox.payments.chains.rpc import Call, JsonRpc, RpcError
from farebox.secret import Secret
from tests.chains.bitcoin_room import AHEAD, Keys, Room, changed, close_wallets, open_room
from tests.chains.nodes import PAYER, Bitcoind, running

ASKED: Final = 50_000
NOW_US: Final = 1_800_000_000 * US_PER_S
GATEWAY: Final = "gateway"
LEFT_OUT: Final = ("listsinceblock", "gettxout")
PASSWORD: Final = "a word of its own"


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys()


@pytest.fixture(scope="module")
def bitcoind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bitcoind]:
    """A node whose wallets watch no more addresses of their own accord than they are told to."""
    node = Bitcoind(tmp_path_factory.mktemp("bitcoind"), ["-keypool=1"])
    with running(node):
        yield node


@pytest.fixture
async def room(bitcoind: Bitcoind, keys: Keys, database_url: str) -> AsyncIterator[Room]:
    async with open_room(database_url, keys.settings(bitcoind), bitcoind) as opened:
        yield opened
    close_wallets(bitcoind)


async def _pay_to(room: Room, position: int, satoshis: int = ASKED) -> None:
    address = room.key.address(position)
    assert address is not None
    room.node.send(address, satoshis)
    room.node.mine()


async def _give_out(room: Room, positions: range) -> None:
    """Give out many addresses at once, each to alice, as if to many customers over a long time."""
    key_id = await room.addresses.open_key(room.key, room.now())
    new = (
        "INSERT INTO deposit_address (family, address, key_id, position, account_id, rail, asset, created_at, used_at) "
        "VALUES ('bitcoin', ?, ?, ?, ?, 'bitcoin', 'BTC', ?, ?)"
    )
    now_us = room.now()
    values = [(room.key.address(at) or "", key_id, at, room.alice, now_us, now_us) for at in positions]
    await room.store.write([(new, one) for one in values])


# Whether it is believed


@pytest.mark.parametrize(
    ("network", "chain", "age_s", "highest", "words"),
    [
        ("main", Chain("main", 900, 900, "00", initialblockdownload=False), 3 * 3600, 900, ""),
        ("main", Chain("main", 900, 901, "00", initialblockdownload=False), 0, None, ""),
        ("main", Chain("main", 894, 894, "00", initialblockdownload=False), 0, 900, ""),
        ("main", Chain("main", 900, 900, "00", initialblockdownload=True), 0, None, "still reading"),
        ("main", Chain("main", 900, 902, "00", initialblockdownload=False), 0, None, "read 900 of 902"),
        ("main", Chain("main", 900, 900, "00", initialblockdownload=False), 3 * 3600 + 1, None, "three hours"),
        ("test", Chain("test", 893, 893, "00", initialblockdownload=False), 0, 900, "block 900 was seen"),
        ("regtest", Chain("regtest", 5, 5, "00", initialblockdownload=False), 10**6, 900, ""),
        ("regtest", Chain("regtest", 5, 5, "00", initialblockdownload=True), 0, None, "still reading"),
    ],
)
def test_a_node_is_behind_when_it_says_so_or_is_behind_what_was_seen(
    network: str, chain: Chain, age_s: int, highest: int | None, words: str
) -> None:
    tip = Header(hash="00", height=chain.blocks, time=NOW_US // US_PER_S - age_s, confirmations=1)
    said = why_behind(network, chain, tip, highest, NOW_US)
    assert words in said
    assert bool(words) == bool(said)


async def test_another_chain_than_configured_is_refused(room: Room) -> None:
    watcher = room.watcher_with(changed(room.settings, network="signet"))
    with pytest.raises(WrongChain, match='is on "regtest", the settings say "signet"'):
        await watcher.look(room.now())
    await watcher.close()


async def test_nothing_is_credited_while_the_node_is_behind(room: Room) -> None:
    told = await room.ask(50)
    node = room.node
    node.send(told.topup.address, ASKED)
    node.mine()
    more, now_s = node.more, room.now() // US_PER_S
    node.more = [*more, f"-mocktime={now_s + 2 * 86_400}"]
    node.restart()
    try:
        assert "is behind: it is still reading the chain" in await room.go()
        assert await room.satoshis() == 0
    finally:
        node.more = more
        node.restart()
    assert await room.go() == ""
    assert await room.satoshis() == ASKED


async def test_a_node_that_starts_again_is_found_again(room: Room) -> None:
    told = await room.ask(50)
    room.node.send(told.topup.address, ASKED)
    room.node.stop()
    try:
        assert "cannot be asked" in await room.go()
    finally:
        room.node.start()
    assert await room.go() == ""
    room.node.mine()
    assert await room.go() == ""
    assert await room.satoshis() == ASKED


async def test_a_wrong_password_is_told_as_such(room: Room) -> None:
    watcher = room.watcher_with(changed(room.settings, rpc_password=Secret("mistyped")))
    with pytest.raises(RailTrouble, match="refuses user or password"):
        await watcher.look(room.now())
    await watcher.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bitcoind]:
    """A node with users that may call the documented methods only, or one less."""
    more = ["-rpcwhitelistdefault=0"]
    for left_out in ("", *LEFT_OUT):
        user = f"{GATEWAY}{left_out}"
        allowed = ",".join(method for method in METHODS if method != left_out)
        more += [_rpcauth(user, PASSWORD), f"-rpcwhitelist={user}:{allowed}"]
    node = Bitcoind(tmp_path_factory.mktemp("guarded"), more)
    with running(node):
        yield node


def _rpcauth(user: str, password: str) -> str:
    """Write a user as bitcoin.conf has it (share/rpcauth)."""
    return f"-rpcauth={user}:00$" + hmac.new(b"00", password.encode(), hashlib.sha256).hexdigest()


async def test_a_user_that_may_call_the_documented_methods_is_enough(
    guarded: Bitcoind, keys: Keys, database_url: str
) -> None:
    settings = changed(keys.settings(guarded), rpc_user=GATEWAY, rpc_password=Secret(PASSWORD))
    async with open_room(database_url, settings, guarded) as room:
        told = await room.ask(50)
        txid = guarded.send(told.topup.address, ASKED)
        await room.look()
        guarded.bump(txid)
        guarded.mine()
        await room.look()
        assert await room.satoshis() == ASKED
        guarded.mine(100, to=guarded.payer("getnewaddress"))
        await room.look()
        assert (await room.compare()).differences == ()
        with pytest.raises(RailTrouble, match="forbids this method to this user"):
            await room.watcher.node.rpc.ask("stop")


@pytest.mark.parametrize("left_out", LEFT_OUT)
async def test_a_method_that_is_forbidden_is_told_and_nothing_concluded(
    guarded: Bitcoind, keys: Keys, database_url: str, left_out: str
) -> None:
    settings = keys.settings(guarded)
    async with open_room(database_url, settings, guarded) as room:
        told = await room.ask(50)
        txid = guarded.send(told.topup.address, ASKED)
        await room.look()
        guarded.double_spend(txid)
        watcher = room.watcher_with(changed(settings, rpc_user=f"{GATEWAY}{left_out}", rpc_password=Secret(PASSWORD)))
        with pytest.raises(RailTrouble, match="forbids this method to this user"):
            await watcher.look(room.now())
        await watcher.close()
        assert await room.state_now(told) == "seen"


class Lying(JsonRpc):
    """A wallet that says other things of transactions than it knows."""

    lie: Callable[[Any], Any]

    async def ask_all(self, calls: Sequence[Call]) -> list[Any]:
        answers = await super().ask_all(calls)
        return [self.lie(one) if call[0] == "gettransaction" else one for call, one in zip(calls, answers, strict=True)]


def _let_wallet_lie(room: Room, lie: Callable[[Any], Any]) -> None:
    settings = room.settings
    wallet = Lying(f"{settings.rpc}/wallet/{settings.wallet}", settings.rpc_user, settings.rpc_password.reveal())
    wallet.lie = lie
    room.watcher.node.wallet = wallet


async def test_nothing_is_concluded_while_the_wallet_is_at_another_block_than_its_node(room: Room) -> None:
    told = await room.ask(50)
    room.node.send(told.topup.address, ASKED)
    room.node.mine()
    old = room.node.ask("getblockhash", 1)
    _let_wallet_lie(room, lambda told: {**told, "lastprocessedblock": {"hash": old, "height": 1}})
    assert "do not agree on what is in the chain" in await room.go()
    assert await room.payments() == []


async def test_what_the_wallet_calls_gone_is_not_while_the_node_has_it(room: Room) -> None:
    told = await room.ask(50)
    room.node.send(told.topup.address, ASKED)
    room.node.mine()
    await room.look()
    assert await room.satoshis() == ASKED
    for lie in (
        lambda _: RpcError("gettransaction", -5, "Invalid or non-wallet transaction id"),
        lambda told: {**told, "confirmations": 0, "blockhash": None},
        lambda told: {**told, "confirmations": -1, "blockhash": None},
    ):
        _let_wallet_lie(room, lie)
        assert "do not agree on what is in the chain" in await room.go()
    assert await room.satoshis() == ASKED
    assert [(one.state, one.lost_at_us) for one in await room.payments()] == [("credited", None)]


async def test_a_block_that_is_on_no_branch_that_counts_confirms_nothing(room: Room) -> None:
    told = await room.ask(50)
    room.node.send(told.topup.address, ASKED)
    (stale,) = room.node.mine()
    room.node.undo(1)
    room.node.mine_only()
    _let_wallet_lie(room, lambda told: {**told, "confirmations": 7, "blockhash": stale})
    assert "do not agree on what is in the chain" in await room.go()
    assert await room.payments() == []


# What the wallet watches


async def test_addresses_given_out_behind_the_watched_ones_are_watched_with_what_came_there(room: Room) -> None:
    await room.look()
    assert (await room.watcher.node.watched())[1] == AHEAD - 1
    await _give_out(room, range(AHEAD + 20))
    await _pay_to(room, AHEAD + 19)
    await room.look()
    assert (await room.watcher.node.watched())[1] == AHEAD + 19 + AHEAD
    assert await room.satoshis() == ASKED


async def test_more_addresses_are_watched_before_they_run_out(room: Room) -> None:
    await room.look()
    await _give_out(room, range(AHEAD - AHEAD // 10 - 1))
    await room.look()
    assert (await room.watcher.node.watched())[1] == AHEAD - 1
    await _give_out(room, range(AHEAD - AHEAD // 10 - 1, AHEAD - AHEAD // 10 + 1))
    await room.look()
    assert (await room.watcher.node.watched())[1] == AHEAD - AHEAD // 10 + AHEAD


async def test_a_wallet_that_was_lost_is_made_anew_and_finds_what_came(room: Room, database_url: str) -> None:
    told = await room.ask(50)
    room.node.send(told.topup.address, ASKED)
    room.node.mine()
    await room.look()
    await _give_out(room, range(1, 3))
    await _pay_to(room, 2, 7_000)
    settings = changed(room.settings, wallet=f"{room.settings.wallet}-anew")
    async with open_room(database_url, settings, room.node) as anew:
        waiting = room.node.send(str(room.key.address(1)), 5_000)
        await anew.look()
        assert await anew.satoshis() == ASKED + 7_000
        assert [one.state for one in await anew.payments() if one.tx == waiting] == ["seen"]
        assert await anew.incidents() == []


async def test_a_wallet_that_is_made_anew_reads_blocks_since_the_first_address_was_given_out(
    tmp_path: Path, keys: Keys, database_url: str
) -> None:
    """Two days ago an address was given out and paid to, then the node lost its wallet before anybody looked."""
    then_s = int(time.time()) - 2 * 86_400
    node = Bitcoind(tmp_path, [f"-mocktime={then_s}"])
    settings = keys.settings(node)
    with running(node):
        async with open_room(database_url, settings, node) as room:
            await _give_out(room, range(1))
            await room.store.write([("UPDATE deposit_address SET created_at = ?", (then_s * US_PER_S,))])
            await _pay_to(room, 0)
            node.more = []
            node.restart()
            node.mine(12, to=node.payer("getnewaddress"))
            await room.look()
            assert await room.satoshis() == ASKED


async def test_an_import_that_the_node_refuses_is_told_and_not_taken_for_done(room: Room) -> None:
    watcher = BitcoinWatcher(room.store, room.deposits, room.settings, room.key, room.addresses, ahead=2_000_000)
    for _ in range(2):
        with pytest.raises(RailTrouble, match="does not watch the key's addresses: Range is too large"):
            await watcher.look(room.now())
    await watcher.close()
    assert await room.go() == ""


async def test_addresses_of_a_key_that_was_changed_stay_watched(room: Room, keys: Keys, database_url: str) -> None:
    told = await room.ask(50)
    settings = changed(keys.settings(room.node), wallet=room.settings.wallet)
    async with open_room(database_url, settings, room.node) as later:
        await later.look()
        room.node.send(told.topup.address, ASKED)
        other = await later.ask(50, later.bob)
        assert other.topup.address == later.key.address(0) != told.topup.address
        room.node.send(other.topup.address, 7_000)
        room.node.mine()
        await later.look()
        assert [await later.satoshis(), await later.satoshis(later.bob)] == [ASKED, 7_000]


async def test_what_lies_at_addresses_of_an_earlier_key_is_found_without_the_wallet(
    room: Room, keys: Keys, database_url: str
) -> None:
    await room.look()
    await _give_out(room, range(1))
    await _pay_to(room, 0)
    async with open_room(database_url, keys.settings(room.node), room.node) as later:
        await later.look()
        (address,) = await later.watcher.addresses("BTC")
        assert await later.watcher.received([address]) == {address: 0}
        assert await later.watcher.scan([address]) == {address: ASKED}
        room.node.mine(100, to=room.node.payer("getnewaddress"))
        assert len((await later.compare()).differences) == 1


async def test_an_import_that_was_cut_short_is_done_again(room: Room) -> None:
    told = await room.ask(50)
    room.node.send(told.topup.address, ASKED)
    room.node.mine()
    since_s = room.now() // US_PER_S
    await room.store.write([("UPDATE watcher SET cursor = ? WHERE name = 'bitcoin'", (f"importing:{since_s}",))])
    await room.look()
    ((cursor,),) = await room.store.fetch("SELECT cursor FROM watcher WHERE name = 'bitcoin'")
    assert room.node.ask("getblockheader", cursor)["confirmations"] == 8
    assert await room.satoshis() == ASKED


async def test_a_cursor_that_the_node_does_not_know_is_begun_anew(room: Room) -> None:
    told = await room.ask(50)
    room.node.send(told.topup.address, ASKED)
    room.node.mine(20)
    await room.store.write([("UPDATE watcher SET cursor = ? WHERE name = 'bitcoin'", ("ab" * 32,))])
    await room.look()
    assert await room.satoshis() == ASKED


async def test_a_wallet_that_can_spend_is_left_alone(room: Room) -> None:
    watcher = room.watcher_with(changed(room.settings, wallet=PAYER))
    with pytest.raises(RailTrouble, match="is not one that only watches"):
        await watcher.look(room.now())
    await watcher.close()


async def test_the_node_derives_the_addresses_that_are_given_out(room: Room) -> None:
    await room.look()
    descriptor, _ = await room.watcher.node.watched()
    derived = await room.watcher.node.rpc.ask("deriveaddresses", descriptor, [0, 20])
    assert derived == [room.key.address(position) for position in range(21)]


def test_amounts_are_read_exactly() -> None:
    assert satoshis(Decimal("0.00000001")) == 1
    assert satoshis(Decimal("20999999.97690000")) == 2_099_999_997_690_000
    assert satoshis(2) == 200_000_000
    for wrong in ("1", None, 0.1, Decimal("0.000000001")):
        with pytest.raises(RailTrouble):
            satoshis(wrong)


def test_operators_are_told_to_allow_the_methods_that_are_asked() -> None:
    text = (Path(__file__).parents[2] / "docs" / "top-ups.md").read_text()
    line = next(one for one in text.splitlines() if one.startswith("rpcwhitelist="))
    assert set(line.partition(":")[2].split(",")) == set(METHODS)
