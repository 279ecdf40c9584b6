"""`farebox payments check`: what an operator compares with his wallet before anybody pays."""

import asyncio
from pathlib import Path

import pytest
from embit.descriptor.checksum import add_checksum

from farebox.accounts.accounts import create_account
from farebox.payments.addresses import Addresses
from farebox.payments.keys import ExtendedKey
from farebox.store.open import open_store
from tests.chains.evm import CHAIN_ID
from tests.chains.nodes import Anvil, running
from tests.cli.conftest import Farebox
from tests.databases import write
from tests.payments.wallets import ABOUT, ETHER, JUNK, ZPUB, wallet, written

FIRST = ("bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu", "bc1qnjg0jd8228aq7egyzacy8cys3knf9xvrerkf9g")


def chain(name: str, chain_id: int, key: str, rpc: str = "http://127.0.0.1:9") -> str:
    return f'[[evm]]\nname = "{name}"\nchain_id = {chain_id}\nrpc = "{rpc}"\nkey = "{key}"\n'


def configure(*tables: str) -> None:
    Path("farebox.toml").write_text("\n".join(tables))


async def give_out(url: str, key: ExtendedKey, count: int) -> None:
    store = await open_store(url)
    try:
        addresses = Addresses(store)
        for number in range(count):
            account = await create_account(store, f"{number}@example.com", "pro", 1)
            await addresses.fresh(account.id, "bitcoin", "BTC", key, 1)
    finally:
        await store.close()


def test_addresses_are_shown_with_their_paths_before_there_are_any_books(farebox: Farebox) -> None:
    """Chains with the same key are told together, and the books need not be there."""
    configure(f'[bitcoin]\nkey = "{ZPUB}"', chain("ethereum", 1, ETHER), chain("polygon", 137, ETHER))
    told = farebox("payments", "check", "--count", "2")
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines()[:9] == [
        "Bitcoin",
        "  account m/84h/0h/0h (usually), key fcbf7789",
        f"  m/84h/0h/0h/0/0  {FIRST[0]}",
        f"  m/84h/0h/0h/0/1  {FIRST[1]}",
        "",
        "Ethereum, Polygon",
        "  account m/44h/60h/0h (usually), key b112c391",
        "  m/44h/60h/0h/0/0  0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
        "  m/44h/60h/0h/0/1  0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
    ]
    assert "Your wallet must show the same addresses, in this order." in told.out
    assert "How many addresses have been given out is not known: there is no database at" in told.out
    keys = farebox("payments", "check", "--json").json["keys"]
    assert [(one["family"], one["chains"], one["path"], one["path_told"], one["books"]) for one in keys] == [
        ("bitcoin", ["Bitcoin"], "m/84h/0h/0h", False, None),
        ("evm", ["Ethereum", "Polygon"], "m/44h/60h/0h", False, None),
    ]
    assert [place["address"] for place in keys[0]["addresses"]][:2] == list(FIRST)
    assert len(keys[1]["addresses"]) == 3
    for shown in (told.out, told.err, str(keys)):
        assert "pub" not in shown


@pytest.mark.usefixtures("at_books")
def test_what_has_been_given_out_and_paid_to_is_told(farebox: Farebox, database_url: str) -> None:
    key = ExtendedKey(ZPUB, "bitcoin")
    descriptor = add_checksum(f"wpkh([73c5da0a/84h/0h/0h]{written(wallet(ABOUT).derive('m/84h/0h/0h'), 'xpub')}/0/*)")
    configure(f'[bitcoin]\nkey = "{descriptor}"')
    asyncio.run(give_out(database_url, key, 0))
    told = farebox("payments", "check").out
    assert "account m/84h/0h/0h, key fcbf7789" in told
    assert "  none has been given out yet\n" in told
    asyncio.run(give_out(database_url, key, 30))
    assert "given out up to 0/29, none has been paid to: the wallet's gap limit must be 30 or more" in (
        farebox("payments", "check").out
    )
    write(database_url, f"UPDATE deposit_address SET used_at = 1 WHERE address = '{FIRST[1]}'")
    assert "given out up to 0/29, paid to up to 0/1: the wallet's gap limit must be 28 or more" in (
        farebox("payments", "check").out
    )
    assert farebox("payments", "check", "--json").json["keys"][0]["books"] == {
        "highest_issued": 29,
        "highest_used": 1,
        "gap_limit": 28,
        "wrong": [],
    }


@pytest.mark.usefixtures("at_books")
def test_an_address_that_somebody_has_put_into_the_books_is_found(farebox: Farebox, database_url: str) -> None:
    configure(f'[bitcoin]\nkey = "{ZPUB}"')
    asyncio.run(give_out(database_url, ExtendedKey(ZPUB, "bitcoin"), 5))
    assert farebox("payments", "check").code == 0
    theirs = ExtendedKey(ETHER, "bitcoin").address(0)
    write(database_url, f"UPDATE deposit_address SET address = '{theirs}' WHERE position = 3")
    told = farebox("payments", "check")
    assert (told.code, "WRONG: the books have addresses that are not of this key: 0/3\n" in told.out) == (1, True)
    as_json = farebox("payments", "check", "--json")
    assert (as_json.code, as_json.json["keys"][0]["books"]["wrong"]) == (1, ["0/3"])


def test_without_a_key_it_says_how_to_set_one(farebox: Farebox) -> None:
    told = farebox("payments", "check")
    assert (told.code, told.out) == (1, "")
    assert (
        "no key is set, so no coins are taken. Set key in [bitcoin] or [[evm]] to the extended public key" in told.err
    )


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (f'[bitcoin]\nkey = "{ABOUT}"', "is a private key, or the words of one"),
        (
            '[bitcoin]\nkey = "file:seed.txt"',
            "key takes the file seed.txt, which is a private key, or the words of one",
        ),
        (f'[bitcoin]\nkey = "{ZPUB}"\nnetwork = "regtest"', "it is of the main network, and network is"),
        (f'[bitcoin]\nkey = "{ZPUB[:-1]}"', "is 110 characters long"),
        (chain("ethereum", 1, ZPUB), "that is one of Bitcoin; wallets of EVM chains give an xpub"),
        (chain("ethereum", 1, written(wallet(ABOUT).derive("m/44h/60h/0h"), "xprv")), "treat it as compromised"),
    ],
    ids=["words", "words in a file", "network", "cut off", "bitcoin's", "private"],
)
def test_a_wrong_key_is_told_with_its_line_and_never_shown(farebox: Farebox, tables: str, words: str) -> None:
    configure(tables)
    Path("seed.txt").write_text(ABOUT)
    for command in (("payments", "check"), ("config", "check"), ("payments", "check", "--json")):
        told = farebox(*command)
        assert (told.code, told.out) == (1, "")
        assert words in told.err
        assert "farebox.toml:" in told.err
        secret = ABOUT if "seed.txt" in tables else tables.partition('key = "')[2].partition('"')[0]
        assert not [secret[at : at + 8] for at in range(len(secret) - 7) if secret[at : at + 8] in told.err]


def test_addresses_that_were_used_before_are_found_on_their_chain(farebox: Farebox, tmp_path: Path) -> None:
    """Ether that lies on one already would be credited to the customer who gets it."""
    root = wallet(JUNK)
    unused = written(root.derive("m/44h/60h/7h"), "xpub")
    node = Anvil(tmp_path / "anvil")
    with running(node):
        configure(chain("ethereum", CHAIN_ID, unused, node.url), chain("elsewhere", 5, unused, node.url))
        told = farebox("payments", "check", "--online")
        assert told.code == 1
        assert "Ethereum knows nothing of the next 100 addresses, as it should be." in told.out
        assert f"Elsewhere could not be asked: elsewhere: the node is on chain {CHAIN_ID}" in told.out
        configure(chain("ethereum", CHAIN_ID, unused, node.url))
        assert farebox("payments", "check", "--online").code == 0
        content = "ok    chain Ethereum the node answers, and the next 100 addresses are unused\n"
        assert content in farebox("doctor").out
        payee = ExtendedKey(unused, "evm").address(60)
        node.ask("eth_sendTransaction", {"from": node.ask("eth_accounts")[0], "to": payee, "value": hex(25 * 10**16)})
        node.mine()
        told = farebox("payments", "check", "--online")
        assert told.code == 1
        assert f"Ethereum: m/44h/60h/7h/0/60  {payee} holds 0.25 ETH\n" in told.out
        assert "Ethereum: USED BEFORE: 1 of the next 100 addresses; what lies on one would be credited" in told.out
        warned = farebox("doctor")
        assert warned.code == 1
        assert "FAIL  chain Ethereum 1 of the next 100 addresses were used before\n" in warned.out
        assert "credited to the customer who gets it" in warned.out
        assert "chain Ethereum" not in farebox("doctor", "--offline").out
        configure(chain("ethereum", CHAIN_ID, ETHER, node.url))
        (asked,) = farebox("payments", "check", "--online", "--json").json["online"]
        assert len(asked["used"]) == 10
        assert {one["sent"] for one in asked["used"]} == {0, 1}
        assert farebox("payments", "check", "--json").json["online"] is None
