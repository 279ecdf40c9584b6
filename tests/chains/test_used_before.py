"""An operator gives the key of an account that was used before: what lies there is nobody's top-up."""

from tests.chains.evm import ETHER
from tests.chains.nodes import Anvil
from tests.chains.room import KEY, open_chain, open_room, settings_of

HOUR_S = 3600


async def test_ether_that_came_before_its_address_was_given_out_is_nobodys(anvil: Anvil, database_url: str) -> None:
    """It is told to the operator; what the customer pays on top of it counts as always."""
    chain = await open_chain(anvil.url)
    address = KEY.address(0)
    assert address is not None
    fork = await chain.fork()
    await chain.send(address, ETHER)
    await chain.mine(3)
    await chain.rpc.ask("evm_increaseTime", HOUR_S)
    await chain.mine(3)
    async with open_room(database_url, settings_of(anvil.url)) as room:
        room.ahead_us = HOUR_S * 10**6
        told = await room.ask(100, "ETH")
        assert told.topup.address == address
        await room.look()
        await chain.mine(3)
        await room.look()
        (before,) = await room.payments()
        assert (before.state, before.account_id, before.topup_id, before.units) == ("stray", None, None, str(ETHER))
        assert await room.incidents() == ["stray_payment"]
        ((words,),) = await room.store.fetch("SELECT words FROM incident")
        assert "which was given to nobody then: the key is of an account that was used before" in words
        await chain.send(address, ETHER // 40)
        for _ in range(3):
            await chain.mine()
            await room.look()
        assert await room.state(told) == "credited"
        assert await room.balance() == 100 * 10**9
        assert await room.incidents() == ["stray_payment"]
    await chain.undo(fork)
    await chain.close()
