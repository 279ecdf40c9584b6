"""The nodes themselves derive the same addresses."""

import random

from embit import bip32

from farebox.payments.keys import ExtendedKey
from tests.chains.nodes import Anvil, Bitcoind
from tests.payments.wallets import ETHER, VPUB, written

SEED = 20_261_122


def test_bitcoind_derives_the_same_addresses_from_our_descriptor(bitcoind: Bitcoind) -> None:
    """Of the standard's wallet and of keys of chance, with the checksum that the node itself computes."""
    chance = random.Random(SEED)
    texts = [VPUB]
    for _ in range(10):
        root = bip32.HDKey.from_seed(chance.randbytes(32))
        account = f"84h/1h/{chance.randrange(2**31)}h"
        texts.append(f"[{root.my_fingerprint.hex()}/{account}]{written(root.derive(f'm/{account}'), 'tpub')}/<0;1>/*")
    for text in texts:
        key = ExtendedKey(text, "bitcoin", "regtest")
        told = bitcoind.ask("getdescriptorinfo", key.descriptor().partition("#")[0])
        assert key.descriptor().endswith(f"#{told['checksum']}")
        assert told["isrange"]
        assert not told["hasprivatekeys"]
        begin = chance.randrange(2**31 - 10)
        derived = bitcoind.ask("deriveaddresses", key.descriptor(), [begin, begin + 5])
        assert derived == [key.address(begin + position) for position in range(6)]


def test_anvil_has_its_money_at_the_same_addresses(anvil: Anvil) -> None:
    key = ExtendedKey(ETHER, "evm")
    rich = [address.lower() for address in anvil.ask("eth_accounts")]
    assert rich == [(key.address(position) or "").lower() for position in range(len(rich))]
