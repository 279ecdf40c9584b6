"""A chain under another name in the settings: what the books know of it already is not credited once more."""

from farebox.money import NANOS_PER_USD
from tests.chains.evm import Contract, EvmChain
from tests.chains.room import USDT, confirmed, one, open_room, settings_of


async def test_a_chain_that_gets_another_name_is_not_read_until_it_has_its_own_again(
    chain: EvmChain, token: Contract, database_url: str
) -> None:
    """Its payments would be credited a second time, under the new name."""
    async with open_room(database_url, settings_of(chain.url, token.address)) as room:
        topup = await room.ask(25)
        await token.send("transfer", topup.topup.address, 25 * USDT)
        await confirmed(room, chain, 3)
        assert await room.balance() == 25 * NANOS_PER_USD
    async with open_room(database_url, settings_of(chain.url, token.address, name="mainnet")) as room:
        for _ in range(3):
            await chain.mine()
            assert 'this chain is "ethereum" in the books' in await room.go()
        assert "wrong_chain" in await room.incidents()
        assert one(await room.payments()).rail == "ethereum"
        assert await room.balance() == 25 * NANOS_PER_USD
    async with open_room(database_url, settings_of(chain.url, token.address)) as room:
        await confirmed(room, chain, 1)
        assert one(await room.payments()).state == "credited"


async def test_another_chain_is_read_beside_the_first(chain: EvmChain, long_chain: EvmChain, database_url: str) -> None:
    await chain.mine(100)
    token, other = await chain.token(), await long_chain.token()
    async with open_room(database_url, settings_of(chain.url, token.address)) as room:
        await confirmed(room, chain, 1)
    async with open_room(database_url, settings_of(long_chain.url, other.address, name="second")) as room:
        await confirmed(room, long_chain, 1)
