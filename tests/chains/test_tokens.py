"""Token payments on a real EVM node, into the real books: what is paid counts, what only looks so does not."""

from typing import Any

import pytest

from farebox.accounts.accounts import create_account
from farebox.money import NANOS_PER_USD
from farebox.payments.reconcile import Reconciler
from tests.chains.evm import Contract, EvmChain
from tests.chains.lying import LyingNode, Refusal
from tests.chains.room import KEY, NOBODY, USDT, Room, confirmed, one, open_room, settings_of

# What customers do


@pytest.mark.parametrize(
    ("paid", "ago_s", "stands", "credited"),
    [
        ((25,), 0, "credited", 25),
        ((7,), 0, "credited under", 7),
        ((60,), 0, "credited over", 60),
        ((25,), 7200, "credited late", 25),
        ((20, 5), 0, "credited several", 25),
        ((20, 20), 7200, "credited over late several", 40),
    ],
)
async def test_what_is_confirmed_is_credited_whatever_was_asked(
    room: Room, chain: EvmChain, token: Contract, paid: tuple[int, ...], ago_s: int, stands: str, credited: int
) -> None:
    topup = await room.ask(25, ago_s=ago_s)
    assert await room.state(topup) == ("expired" if ago_s else "waiting")
    for amount in paid:
        await token.send("transfer", topup.topup.address, amount * USDT)
        await chain.mine()
        assert await room.go() == ""
    assert (await room.state(topup)).startswith("confirming")
    assert await room.balance() == 0
    await confirmed(room, chain, 2)
    assert await room.state(topup) == stands
    assert await room.balance() == credited * NANOS_PER_USD
    await confirmed(room, chain, 3)
    assert await room.balance() == credited * NANOS_PER_USD
    assert await room.incidents() == []


async def test_each_log_of_one_transaction_is_a_payment_of_its_own(
    room: Room, chain: EvmChain, token: Contract
) -> None:
    batch = await chain.deploy("Batch")
    await token.send("transfer", batch.address, 100 * USDT)
    his, hers = (await room.ask(10, account=room.bob)).topup.address, (await room.ask(10)).topup.address
    tx = await batch.send("transfer", token.address, [hers, his, NOBODY, hers], [3 * USDT, 4 * USDT, 5, 6 * USDT])
    await confirmed(room, chain)
    assert {(each.ident, each.tx, int(each.units)) for each in await room.payments()} == {
        (f"{tx}:0", tx, 3 * USDT),
        (f"{tx}:1", tx, 4 * USDT),
        (f"{tx}:3", tx, 6 * USDT),
    }
    assert (await room.balance(), await room.balance(room.bob)) == (9 * NANOS_PER_USD, 4 * NANOS_PER_USD)


async def test_what_a_token_keeps_as_a_fee_is_not_credited(room: Room, chain: EvmChain, token: Contract) -> None:
    await token.send("setParams", 10, 1000 * USDT)
    topup = await room.ask(25)
    await token.send("transfer", topup.topup.address, 25 * USDT)
    await confirmed(room, chain)
    assert await token.ask("balanceOf", topup.topup.address) == 24_975_000
    assert await room.balance() == 24_975_000 * 1000
    assert await room.state(topup) == "credited"


async def test_nothing_else_that_looks_like_a_transfer_is_one(room: Room, chain: EvmChain, token: Contract) -> None:
    address = (await room.ask(25)).topup.address
    fake, batch, other = await chain.deploy("Fake"), await chain.deploy("Batch"), await chain.token()
    await token.send("transfer", batch.address, 100 * USDT)
    await fake.send("forge", chain.people[0], address, 25 * USDT)
    await other.send("transfer", address, 25 * USDT)
    await token.send("transfer", address, 0)
    reverted = await batch.send("transferAndRevert", token.address, [address], [25 * USDT])
    await token.send("setBlackListed", chain.people[2], True)  # noqa: FBT003  a contract's argument
    await token.send("transfer", chain.people[2], 50 * USDT)
    await chain.mine()
    frozen = await token.send("transfer", address, 25 * USDT, sender=chain.people[2])
    await token.send("transfer", NOBODY, 25 * USDT)
    await confirmed(room, chain)
    assert [await chain.status(tx) for tx in (reverted, frozen)] == [0, 0]
    assert not any(room.deposits.told)
    assert await room.payments() == []
    assert await room.balance() == 0


async def test_a_large_payment_waits_until_the_chain_calls_it_final(
    room: Room, chain: EvmChain, token: Contract
) -> None:
    topup = await room.ask(2000)
    await token.send("transfer", topup.topup.address, 2000 * USDT)
    await confirmed(room, chain, 5)
    await chain.mine(59)
    assert await room.go() == ""
    assert one(await room.payments()).confirmations == 64
    assert await room.balance() == 0
    await confirmed(room, chain, 1)
    assert await room.balance() == 2000 * NANOS_PER_USD
    assert one(await room.payments()).final == 1


async def test_where_a_chain_names_no_final_block_a_large_payment_waits_for_256(
    doubtful: Room, liar: LyingNode, chain: EvmChain, token: Contract
) -> None:
    async def no_tags(params: list[Any], result: Any) -> Any:
        if params[0] == "finalized":
            raise Refusal(-32602, "invalid argument 0: hex string without 0x prefix")
        return result

    liar.twists["eth_getBlockByNumber"] = no_tags
    topup = await doubtful.ask(2000)
    await token.send("transfer", topup.topup.address, 2000 * USDT)
    await chain.mine(255)
    assert await doubtful.go() == ""
    assert one(await doubtful.payments()).confirmations == 255
    assert await doubtful.balance() == 0
    await confirmed(doubtful, chain, 1)
    assert await doubtful.balance() == 2000 * NANOS_PER_USD


@pytest.mark.usefixtures("apart")
async def test_a_payment_to_an_address_that_was_made_for_another_chain_is_its_owners(
    chain: EvmChain, token: Contract, database_url: str
) -> None:
    async with open_room(database_url, settings_of(chain.url, token.address)) as ethereum:
        address = (await ethereum.ask(25)).topup.address
    other = await chain.token()
    async with open_room(database_url, settings_of(chain.url, other.address, name="polygon")) as polygon:
        await other.send("transfer", address, 11 * USDT)
        await confirmed(polygon, chain)
        payment = one(await polygon.payments())
        assert (payment.rail, payment.account_id, payment.topup_id) == ("polygon", polygon.alice, None)
        assert await polygon.balance() == 11 * NANOS_PER_USD


@pytest.mark.parametrize(("together", "many"), [(3, 2000), (500, 2)])
async def test_any_number_of_addresses_is_watched(
    room: Room, chain: EvmChain, token: Contract, monkeypatch: pytest.MonkeyPatch, together: int, many: int
) -> None:
    """In several filters, or, when they are too many, by none."""
    monkeypatch.setattr("farebox.payments.chains.evm.RECIPIENTS", together)
    monkeypatch.setattr("farebox.payments.chains.evm.MANY_RECIPIENTS", many)
    batch = await chain.deploy("Batch")
    await token.send("transfer", batch.address, 100 * USDT)
    accounts = [(await create_account(room.store, f"{n}@example.com", "pro", room.now())).id for n in range(10)]
    addresses = [await room.addresses.fresh(one, "ethereum", "USDT", KEY, room.now()) for one in accounts]
    assert await room.go() == ""
    await batch.send("transfer", token.address, [*addresses, NOBODY], [*range(1, 11), 5])
    await confirmed(room, chain)
    assert [await room.balance(one) for one in accounts] == [amount * 1000 for amount in range(1, 11)]
    assert len(await room.payments()) == 10


async def test_payments_in_a_token_that_is_taken_no_more_are_still_followed(
    chain: EvmChain, token: Contract, database_url: str
) -> None:
    async with open_room(database_url, settings_of(chain.url, token.address)) as room:
        topup = await room.ask(25)
        await token.send("transfer", topup.topup.address, 25 * USDT)
        await confirmed(room, chain, 1)
    async with open_room(database_url, settings_of(chain.url)) as room:
        await confirmed(room, chain, 2)
        assert one(await room.payments()).confirmations == 3


async def test_an_address_made_while_the_watcher_looks_is_not_missed(
    doubtful: Room, liar: LyingNode, chain: EvmChain, token: Contract
) -> None:
    """It is made, and paid to, in the moment in which the node tells its newest block: in that very block."""
    await doubtful.ask(10)
    made: list[str] = []

    async def late(params: list[Any], result: Any) -> Any:
        if params[0] != "latest" or made:
            return result
        made.append(await doubtful.addresses.fresh(doubtful.bob, "ethereum", "USDT", KEY, doubtful.now()))
        await token.send("transfer", made[0], 25 * USDT)
        await chain.mine()
        return await liar.true("eth_getBlockByNumber", "latest", False)  # noqa: FBT003  JSON

    liar.twists["eth_getBlockByNumber"] = late
    assert await doubtful.go() == ""
    assert one(await doubtful.payments()).address == made[0]
    await confirmed(doubtful, chain)
    assert await doubtful.balance(doubtful.bob) == 25 * NANOS_PER_USD


# Chain and books compared


async def test_chain_and_books_agree_until_something_came_that_was_never_seen(
    room: Room, chain: EvmChain, token: Contract
) -> None:
    """What is swept afterwards is no difference; what is hidden from the watcher is one."""
    await chain.mine(70)
    reconciler = Reconciler(room.store, {"ethereum": room.watcher}, {"ethereum": room.rail.assets[1:]})
    first, second = (await room.ask(25)).topup.address, (await room.ask(25, account=room.bob)).topup.address
    for address in (first, second, second):
        await token.send("transfer", address, 25 * USDT)
    await confirmed(room, chain)
    (early,) = await reconciler.compare(room.now())
    assert (early.looked_at, early.chain_units, early.differences, early.error) == (0, 0, (), "")
    await chain.mine(70)
    assert await room.go() == ""
    (agreed,) = await reconciler.compare(room.now())
    assert (agreed.looked_at, agreed.chain_units, agreed.books_units) == (2, 75 * USDT, 75 * USDT)
    assert (agreed.differences, agreed.error) == ((), "")

    await chain.rpc.ask("anvil_setBalance", first, hex(10**18))
    await chain.rpc.ask("anvil_impersonateAccount", first)
    await token.send("transfer", chain.people[0], 25 * USDT, sender=first)
    await chain.mine(70)
    assert await room.go() == ""
    (swept,) = await reconciler.compare(room.now())
    assert (swept.chain_units, swept.differences) == (50 * USDT, ())

    await token.send("transfer", second, 1)
    hide = "UPDATE deposit_address SET address = ? WHERE address = ?"
    await room.store.write([(hide, (chain.people[1], second))])
    await chain.mine()
    assert await room.go() == ""
    await room.store.write([(hide, (second, chain.people[1]))])
    await chain.mine(70)
    assert await room.go() == ""
    (hidden,) = await reconciler.compare(room.now())
    assert len(hidden.differences) == 1
    assert f"{second} on ethereum holds 50.000001 USDT, the books know of 50 there" in hidden.differences
    assert await room.incidents() == ["difference"]


# A chain that is not the one, or a token that is not the one


async def test_another_chain_than_the_settings_name_counts_for_nothing(
    doubtful: Room, liar: LyingNode, chain: EvmChain, token: Contract
) -> None:
    topup = await doubtful.ask(25)
    await token.send("transfer", topup.topup.address, 25 * USDT)
    await chain.mine(4)

    async def other(_params: list[Any], _result: Any) -> Any:
        return "0x89"

    liar.twists["eth_chainId"] = other
    told = await doubtful.go()
    assert told == "ethereum: the node is on chain 137, the configuration says 31337: correct `rpc` or `chain_id`"
    assert (await doubtful.payments(), await doubtful.incidents()) == ([], ["wrong_chain"])
    liar.twists.clear()
    assert await doubtful.go() == ""
    assert await doubtful.balance() == 25 * NANOS_PER_USD


async def test_a_token_that_counts_otherwise_than_the_settings_say_is_refused(
    chain: EvmChain, token: Contract, database_url: str
) -> None:
    wrong = settings_of(chain.url, token.address, decimals=18)
    async with open_room(database_url, wrong) as room:
        told = await room.go()
        assert "has 6 decimals, the configuration says 18: correct `decimals` or `contract`" in told
        assert await room.incidents() == ["wrong_chain"]
    async with open_room(database_url, settings_of(chain.url, NOBODY)) as room:
        assert "there is no token contract at " + NOBODY in await room.go()
    async with open_room(database_url, settings_of(chain.url, token.address)) as room:
        assert await room.go() == ""
