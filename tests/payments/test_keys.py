"""Extended public keys: the same addresses as the operator's wallet shows, and never a private key let in."""

import hashlib
import traceback
from typing import Final

import pytest
from coincurve import PublicKey
from embit import bip32, script
from embit.descriptor.checksum import add_checksum, checksum
from embit.ec import PrivateKey
from embit.networks import NETWORKS
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.errors import ConfigError
from farebox.payments.encodings import checksummed, descriptor_checksum, read_base58, segwit_address, write_base58
from farebox.payments.keys import ExtendedKey, Family, _child, fault_in_key
from tests.payments.wallets import ABOUT, ETHER, JUNK, VPUB, ZPUB, wallet, written

seeds = st.binary(min_size=32, max_size=32)
positions = st.integers(0, 2**31 - 1)

# What the standards print


def test_bip84_addresses_are_those_of_the_standard() -> None:
    key = ExtendedKey(ZPUB, "bitcoin")
    assert key.address(0) == "bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu"
    assert key.address(1) == "bc1qnjg0jd8228aq7egyzacy8cys3knf9xvrerkf9g"


ANVIL: Final = [
    *("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266", "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"),
    *("0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC", "0x90F79bf6EB2c4f870365E785982E1f101E93b906"),
    *("0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65", "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc"),
    *("0x976EA74026E726554dB657fA54763abd0C3a0aa9", "0x14dC79964da2C08b23698B3D3cc7Ca32193d9955"),
    *("0x23618e81E3f5cdF7f54C3d65f7FBc0aBf5B21E8f", "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720"),
]


def test_evm_addresses_are_those_that_nodes_for_developers_fund() -> None:
    key = ExtendedKey(ETHER, "evm")
    assert [key.address(position) for position in range(10)] == ANVIL


@pytest.mark.parametrize(
    ("parent", "number", "child"),
    [
        (
            "xpub661MyMwAqRbcFW31YEwpkMuc5THy2PSt5bDMsktWQcFF8syAmRUapSCGu8ED9W6oDMSgv6Zz8idoc4a6mr8BDzTJY47LJhkJ8UB7WEGuduB",
            0,
            "xpub69H7F5d8KSRgmmdJg2KhpAK8SR3DjMwAdkxj3ZuxV27CprR9LgpeyGmXUbC6wb7ERfvrnKZjXoUmmDznezpbZb7ap6r1D3tgFxHmwMkQTPH",
        ),
        (
            "xpub6ASAVgeehLbnwdqV6UKMHVzgqAG8Gr6riv3Fxxpj8ksbH9ebxaEyBLZ85ySDhKiLDBrQSARLq1uNRts8RuJiHjaDMBU4Zn9h8LZNnBC5y4a",
            1,
            "xpub6DF8uhdarytz3FWdA8TvFSvvAh8dP3283MY7p2V4SeE2wyWmG5mg5EwVvmdMVCQcoNJxGoWaU9DCWh89LojfZ537wTfunKau47EL2dhHKon",
        ),
        (
            "xpub68Gmy5EdvgibQVfPdqkBBCHxA5htiqg55crXYuXoQRKfDBFA1WEjWgP6LHhwBZeNK1VTsfTFUHCdrfp1bgwQ9xv5ski8PX9rL2dZXvgGDnw",
            1,
            "xpub6ASuArnXKPbfEwhqN6e3mwBcDTgzisQN1wXN9BJcM47sSikHjJf3UFHKkNAWbWMiGj7Wf5uMash7SyYq527Hqck2AxYysAA7xmALppuCkwQ",
        ),
        (
            "xpub6FHa3pjLCk84BayeJxFW2SP4XRrFd1JYnxeLeU8EqN3vDfZmbqBqaGJAyiLjTAwm6ZLRQUMv1ZACTj37sR62cfN7fe5JnJ7dh8zL4fiyLHV",
            1_000_000_000,
            "xpub6H1LXWLaKsWFhvm6RVpEL9P4KfRZSW7abD2ttkWP3SSQvnyA8FSVqNTEcYFgJS2UaFcxupHiYkro49S8yGasTvXEYBVPamhGW6cFJodrTHy",
        ),
    ],
    ids=[
        "m/0 of vector 2",
        "m/0/2147483647h/1 of vector 2",
        "m/0h/1 of vector 1",
        "m/0h/1/2h/2/1000000000 of vector 1",
    ],
)
def test_children_are_those_of_bip32(parent: str, number: int, child: str) -> None:
    above, below = read_base58(parent), read_base58(child)
    assert above
    assert below
    point, chain = _child(PublicKey(above[45:]), above[13:45], number)
    assert (point.format(), chain) == (below[45:], below[13:45])


def test_the_standards_own_checksums() -> None:
    """BIP380's descriptor, BIP173's addresses of two networks, and EIP-55's, of which some have one case only."""
    assert descriptor_checksum("raw(deadbeef)") == "89f8spxm"
    public = bytes.fromhex("0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798")
    assert segwit_address("bc", public) == "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
    assert segwit_address("tb", public) == "tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx"
    for address in (
        "0x52908400098527886E0F7030069857D2E4169EE7",
        "0xde709f2102306220921060314715629080e2fb77",
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
        "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
    ):
        assert checksummed(address.lower()) == checksummed(address[2:].upper()) == address


# Another implementation, on keys of chance


@settings(max_examples=60, deadline=None)
@given(seeds, positions, st.sampled_from(["main", "test", "signet", "regtest"]))
def test_bitcoin_addresses_are_those_of_another_wallet(seed: bytes, position: int, network: str) -> None:
    coin, form = (0, "zpub") if network == "main" else (1, "vpub")
    root = bip32.HDKey.from_seed(seed)
    account = root.derive(f"m/84h/{coin}h/0h")
    expected = script.p2wpkh(account.derive(f"m/0/{position}").key).address(NETWORKS[network])
    key = ExtendedKey(written(account, form), "bitcoin", network)
    assert key.address(position) == expected
    again = ExtendedKey(f"[{root.my_fingerprint.hex()}/84'/{coin}'/0']{written(account, form)}", "bitcoin", network)
    assert again.fingerprint == key.fingerprint
    descriptor = again.descriptor()
    plain = written(account, "xpub" if network == "main" else "tpub")
    assert descriptor == add_checksum(f"wpkh([{root.my_fingerprint.hex()}/84h/{coin}h/0h]{plain}/0/*)")
    assert ExtendedKey(descriptor, "bitcoin", network).address(position) == expected


@settings(max_examples=30, deadline=None)
@given(seeds, positions)
def test_keys_of_evm_chains_are_those_of_another_wallet(seed: bytes, position: int) -> None:
    account = bip32.HDKey.from_seed(seed).derive("m/44h/60h/0h")
    key = ExtendedKey(written(account, "xpub"), "evm")
    point, _ = _child(*key._branch, position)
    assert point.format() == account.to_public().derive(f"m/0/{position}").key.sec()


@settings(max_examples=200, deadline=None)
@given(st.text("0123456789()[],'/*abcdefgh@:$%{}IJKLMNOPQRSTUVWXYZ&+-.;<=>?!^_|~ijklmnopqrstuvwxyzABCDEFGH`#\"\\ "))
def test_descriptor_checksums_are_those_of_another_wallet(body: str) -> None:
    assert descriptor_checksum(body) == checksum(body)


@given(st.binary(min_size=1, max_size=90))
def test_base58_comes_back_from_its_text(payload: bytes) -> None:
    assert read_base58(write_base58(payload)) == payload


# What is taken


def test_a_key_is_taken_in_every_form_that_wallets_give_it() -> None:
    """zpub, xpub, with its origin, and descriptors with and without checksum, of one branch or of both."""
    account = wallet(ABOUT).derive("m/84h/0h/0h")
    xpub = written(account, "xpub")
    one, both = f"wpkh([73c5da0a/84'/0'/0']{xpub}/0/*)", f"wpkh([73c5da0a/84h/0h/0h]{xpub}/<0;1>/*)"
    forms = (ZPUB, f"  {ZPUB}\n", xpub, f"[73C5DA0A/84H/0H/0H]{ZPUB}", f"{xpub}/0/*", one, add_checksum(one), both)
    keys = [ExtendedKey(form, "bitcoin") for form in (*forms, add_checksum(both))]
    assert len({key.fingerprint for key in keys}) == 1
    assert {key.address(7) for key in keys} == {keys[0].address(7)}
    assert {key.origin for key in keys} == {"", "73c5da0a/84h/0h/0h"}
    for key in keys:
        assert fault_in_key(key.descriptor(), "bitcoin", "main") is None


def test_the_same_key_elsewhere_is_another_one_in_the_books() -> None:
    """Networks with other addresses count their own positions, and so do the two families."""
    xpub = written(wallet(JUNK).derive("m/44h/60h/0h"), "xpub")
    keys = [ExtendedKey(VPUB, "bitcoin", network) for network in ("test", "signet", "regtest")]
    assert keys[0].fingerprint == keys[1].fingerprint != keys[2].fingerprint
    assert ExtendedKey(xpub, "evm").fingerprint != ExtendedKey(xpub, "bitcoin").fingerprint
    assert keys[0].address(3) == keys[1].address(3) != keys[2].address(3)


def test_a_key_knows_where_its_wallet_has_it() -> None:
    """As was told; else where wallets keep an account of that kind and number."""
    second = written(wallet(ABOUT).derive("m/84h/0h/1h"), "zpub")
    assert ExtendedKey(second, "bitcoin").path == "m/84h/0h/1h"
    assert ExtendedKey(f"[73c5da0a/48h/0h/1h]{second}", "bitcoin").path == "m/48h/0h/1h"
    assert ExtendedKey(f"[73c5da0a]{second}", "bitcoin").path == "m/84h/0h/1h"
    assert ExtendedKey(VPUB, "bitcoin", "signet").path == "m/84h/1h/0h"
    assert ExtendedKey(ETHER, "evm").path == "m/44h/60h/0h"


def test_a_key_does_not_show_itself() -> None:
    key = ExtendedKey(ZPUB, "bitcoin")
    for shown in (repr(key), str(key), f"{key}", f"{[key]}"):
        assert shown.strip("[]") == f"ExtendedKey(bitcoin, {key.fingerprint[:8]})"


# What is refused

_ROOT = wallet(ABOUT)
_ACCOUNT = _ROOT.derive("m/84h/0h/0h")
_SECRET = hashlib.sha256(b"nobody's").digest()
_WIF = PrivateKey(_SECRET).wif(NETWORKS["main"])
_XPUB = written(_ACCOUNT, "xpub")
PRIVATE: Final = {
    **{form: written(_ACCOUNT, form) for form in ("xprv", "yprv", "zprv", "tprv", "uprv", "vprv")},
    "of another chain": written(_ACCOUNT, "Ltpv"),
    "master": written(_ROOT, "xprv"),
    "mistyped": written(_ACCOUNT, "xprv").replace("9", "8", 1)[:-1],
    "in a descriptor": f"wpkh([73c5da0a/84h/0h/0h]{written(_ACCOUNT, 'xprv')}/0/*)",
    "with a path": f"{written(_ACCOUNT, 'xprv')}/0/*",
    "with its origin": f"[73c5da0a/84h/0h/0h]{written(_ACCOUNT, 'xprv')}",
    "beside a public one": f"{_XPUB} {written(_ACCOUNT, 'zprv')}",
    "12 words": ABOUT,
    "24 words": " ".join(["abandon"] * 23 + ["art"]),
    "15 words on lines": "\n".join(["zoo"] * 15),
    "words with numbers": " ".join(f"{number}. {word}" for number, word in enumerate(JUNK.split(), 1)),
    "words with commas": ", ".join(JUNK.split()),
    "words in capitals": JUNK.upper(),
    "Spanish words": " ".join(["ábaco"] * 11 + ["yogur"]),
    "Japanese words": "\u3000".join(["あいこくしん"] * 12),
    "to import": _WIF,
    "to import, uncompressed": write_base58(b"\x80" + _SECRET),
    "to import, for tests": PrivateKey(_SECRET).wif(NETWORKS["test"]),
    "to import, in a descriptor": f"wpkh({_WIF})",
    "under a passphrase": "6PRVWUbkzzsbcVac2qwfssoUJAN1Xhrg6bNk8J7Nzm5H7kxEbn2Nh2ZoGg",
    "hex": _SECRET.hex(),
    "hex with 0x": f"0x{_SECRET.hex().upper()}",
    "a seed in hex": (_SECRET * 2).hex(),
    "a seed of codex32": "ms10testsxxxxxxxxxxxxxxxxxxxxxxxxxx4nzvca9cmczlw",
}


@pytest.mark.parametrize("family", ["bitcoin", "evm"])
@pytest.mark.parametrize("text", PRIVATE.values(), ids=PRIVATE.keys())
def test_private_keys_are_refused_as_compromised_and_never_quoted(text: str, family: Family) -> None:
    with pytest.raises(ConfigError) as refused:
        ExtendedKey(text, family, "main")
    words = str(refused.value)
    assert words.startswith("is a private key, or the words of one. Farebox only watches")
    assert "treat it as compromised: move its coins to a new wallet" in words
    assert words == fault_in_key(text, family, "main")
    _assert_quotes_nothing(text, refused.value)


@settings(max_examples=100, deadline=None)
@given(seeds, st.sampled_from(["xprv", "yprv", "zprv", "tprv", "uprv", "vprv", "Ltpv"]), st.integers(0, 4))
def test_any_private_key_is_refused_at_any_depth(seed: bytes, form: str, depth: int) -> None:
    key = bip32.HDKey.from_seed(seed).derive([2**31] * depth)
    text = written(key, form)
    with pytest.raises(ConfigError, match="treat it as compromised") as refused:
        ExtendedKey(text, "bitcoin", "main")
    _assert_quotes_nothing(text, refused.value)


_CHANGED = _XPUB[:60] + ("a" if _XPUB[60] != "a" else "b") + _XPUB[61:]
_NO_POINT = read_base58(_XPUB) or b""
WRONG: Final = {
    "nothing": ("", "is empty"),
    "anything": ("hunter2", "is 7 characters long, where extended keys have 111"),
    "a sentence": ("my key is here", "cannot be read as an extended public key"),
    "an address": ("bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu", "is one address; every customer gets others"),
    "an old address": ("1LqBGSKuX5yYUonjxT5qGfpUsXKYYWeabA", "is one address"),
    "cut off": (_XPUB[:-1], "is 110 characters long"),
    "a changed character": (_CHANGED, "does not fit the checksum in it: a character was changed"),
    "a letter for a figure": (_XPUB[:-1] + "l", "has characters that keys do not have"),
    "the master key": (
        written(_ROOT, "zpub"),
        "it is the master key of a whole wallet (depth 0). Give the one at m/84",
    ),
    "above an account": (written(_ROOT.derive("m/84h/0h"), "xpub"), "it is at depth 2 of its wallet"),
    "below an account": (written(_ROOT.derive("m/84h/0h/0h/0"), "xpub"), "it is at depth 4 of its wallet"),
    "not hardened": (written(_ROOT.derive("m/84h/0h/0"), "xpub"), "the last step of its path is not hardened"),
    "of an older kind": (written(_ACCOUNT, "ypub"), "begins with ypub: its addresses are of an older kind"),
    "of several": (written(_ACCOUNT, "Zpub"), "begins with Zpub: it is one of several keys of a wallet"),
    "of another chain": (written(_ACCOUNT, "Ltub"), "is a key of another chain; it must begin with xpub or zpub"),
    "of a network for tests": (VPUB, 'begins with vpub: it is of a network for tests, and network is "main"'),
    "another path": (f"{_XPUB}/1/*", "has another path after the key than /0/*"),
    "one address only": (f"wpkh({_XPUB})", "has another path after the key than /0/*"),
    "a hardened path": (f"{_XPUB}/0/*h", "has another path after the key than /0/*"),
    "another origin": (f"[73c5da0a/84h/0h/1h]{_XPUB}", "the path in the brackets before it is of another key"),
    "a longer origin": (f"[73c5da0a/84h/0h/0h/0h]{_XPUB}", "the path in the brackets before it is of another key"),
    "a broken origin": (f"[73c5da0/84h/0h/0h]{_XPUB}", "cannot be read as an extended public key"),
    "a broken checksum": (f"wpkh({_XPUB}/0/*)#qqqqqqqq", "whose checksum, the eight characters after #, does not fit"),
    "no checksum after #": (f"wpkh({_XPUB}/0/*)#", "whose checksum, the eight characters after #, does not fit"),
    "a checksum of nothing": (f"{_XPUB}#qqqqqqqq", "whose checksum, the eight characters after #, does not fit"),
    "an older descriptor": (add_checksum(f"pkh({_XPUB}/0/*)"), "is a descriptor of another kind than wpkh(…)"),
    "nested": (f"sh(wpkh({_XPUB}/0/*))", "is a descriptor of another kind than wpkh(…)"),
    "nested the other way": (f"wpkh(wpkh({_XPUB}/0/*))", "is a descriptor of another kind than wpkh(…)"),
    "taproot": (f"tr({_XPUB}/0/*)", "is a descriptor of another kind than wpkh(…)"),
    "of a group": (f"wsh(sortedmulti(1,{_XPUB}/0/*,{_XPUB}/0/*))", "is a descriptor of another kind than wpkh(…)"),
    "no point": (write_base58(_NO_POINT[:45] + b"\x02" + b"\xff" * 32), "holds no point of the curve"),
    "no encoding of a point": (write_base58(_NO_POINT[:45] + b"\x07" + _NO_POINT[46:]), "holds no point of the curve"),
}


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_with_a_key_is_told_without_quoting_it(text: str, words: str) -> None:
    fault = fault_in_key(text, "bitcoin", "main")
    assert fault is not None
    assert words in fault
    assert "compromised" not in fault
    with pytest.raises(ConfigError) as refused:
        ExtendedKey(text, "bitcoin", "main")
    _assert_quotes_nothing(text, refused.value)


def test_the_network_and_the_family_must_be_those_of_the_key() -> None:
    for network in ("test", "signet", "regtest"):
        assert fault_in_key(VPUB, "bitcoin", network) is None
        assert fault_in_key(ZPUB, "bitcoin", network) == (
            f'is a key that begins with zpub: it is of the main network, and network is "{network}"; '
            "give a tpub or vpub"
        )
    assert fault_in_key(ETHER, "evm", "") is None
    assert fault_in_key(f"[2c4f8d2a/44h/60h/0h]{ETHER}/0/*", "evm", "") is None
    for text in (ZPUB, VPUB):
        assert "that is one of Bitcoin; wallets of EVM chains give an xpub" in (fault_in_key(text, "evm", "") or "")
    assert "is a descriptor, which only Bitcoin has" in (fault_in_key(f"wpkh({_XPUB}/0/*)", "evm", "") or "")
    master = written(wallet(JUNK), "xpub")
    assert (fault_in_key(master, "evm", "") or "").endswith("Give the one at m/44h/60h/0h")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=140) | st.text("xpubzrvtk0/*()#[]h'123456789ABCDEFabcdef ", max_size=140))
def test_nothing_that_is_no_key_is_taken_or_brings_it_down(text: str) -> None:
    assert fault_in_key(text, "bitcoin", "main")
    assert fault_in_key(text, "evm", "")


def _assert_quotes_nothing(text: str, error: BaseException) -> None:
    """No eight characters of a key stand in what is said of it, nor in any error behind that. Its path may be told."""
    told = "".join(traceback.format_exception(error))
    pieces = (text[begin : begin + 8] for begin in range(len(text) - 7))
    assert not [piece for piece in pieces if piece in told and "h/" not in piece]
