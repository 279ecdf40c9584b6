"""Extended public keys: what addresses come from. Watching needs no private key, and none is let in.

A key's text is a secret of the operator's, since it tells all his addresses: nothing here shows it, no error quotes it.
"""

import hashlib
import hmac
import re
from typing import Final, Literal, NamedTuple

from coincurve import PublicKey

from farebox.errors import ConfigError
from farebox.payments.encodings import (
    descriptor_checksum,
    evm_address,
    is_base58,
    read_base58,
    segwit_address,
    write_base58,
)

Family = Literal["bitcoin", "evm"]

ACCOUNT_DEPTH: Final = 3
"""m/84h/0h/0h and m/44h/60h/0h: purpose, coin, account. Addresses are at 0/i below it."""
_HARDENED: Final = 1 << 31
_KEY_LENGTH: Final = 111
_PAYLOAD_BYTES: Final = 78
_PREFIXES: Final = {"main": "bc", "test": "tb", "signet": "tb", "regtest": "bcrt"}
_MAIN: Final = bytes.fromhex("0488b21e")
_TEST: Final = bytes.fromhex("043587cf")


class _Kind(NamedTuple):
    """What the first four bytes of an extended public key say (SLIP-132)."""

    name: str
    tests: bool
    """It is of a network for tests."""
    refused: str = ""


_NESTED: Final = (
    "its addresses are of an older kind (segwit inside P2SH, beginning with 3 or 2), which is not written here"
)
_SHARED: Final = "it is one of several keys of a wallet that signs together, which is not supported"
_KINDS: Final = {
    _MAIN: _Kind("xpub", tests=False),
    bytes.fromhex("04b24746"): _Kind("zpub", tests=False),
    _TEST: _Kind("tpub", tests=True),
    bytes.fromhex("045f1cf6"): _Kind("vpub", tests=True),
    bytes.fromhex("049d7cb2"): _Kind("ypub", tests=False, refused=_NESTED),
    bytes.fromhex("044a5262"): _Kind("upub", tests=True, refused=_NESTED),
    bytes.fromhex("0295b43f"): _Kind("Ypub", tests=False, refused=_SHARED),
    bytes.fromhex("02aa7ed3"): _Kind("Zpub", tests=False, refused=_SHARED),
    bytes.fromhex("024289ef"): _Kind("Upub", tests=True, refused=_SHARED),
    bytes.fromhex("02575483"): _Kind("Vpub", tests=True, refused=_SHARED),
}
_EXPRESSION: Final = re.compile(
    r"(?:\[(?P<origin>[0-9a-fA-F]{8}(?:/[0-9]{1,10}[hH']?)*)\])?(?P<key>[0-9A-Za-z]+)(?P<below>/.*)?", re.DOTALL
)
_BELOW: Final = frozenset({"/0/*", "/<0;1>/*"})
_PRIVATE_FORMS: Final = (
    re.compile(r"[A-Za-z]prv[0-9A-Za-z]*"),  # extended: xprv, zprv, tprv and their like
    re.compile(r"[5KLc9][1-9A-HJ-NP-Za-km-z]{50,51}|6P[1-9A-HJ-NP-Za-km-z]{56}"),  # as wallets import one
    re.compile(r"(?:0[xX])?(?:[0-9a-fA-F]{64}|[0-9a-fA-F]{128})"),  # raw, or the seed that words stand for
    re.compile(r"(?:ms|MS)1[0-9A-Za-z]{40,}"),  # a seed, or a share of one (BIP93)
)
_FEWEST_WORDS: Final = 6
_ADDRESS: Final = re.compile(r"(?:bc|tb|bcrt)1[0-9a-z]{20,90}|0[xX][0-9a-fA-F]{40}|[123mn][1-9A-HJ-NP-Za-km-z]{25,34}")
PRIVATE: Final = (
    "is a private key, or the words of one. Farebox only watches, and must never have it. If it has been in a file or "
    "a variable, treat it as compromised: move its coins to a new wallet, and give the public key of an account of "
    "that one (zpub…, xpub…) here"
)
"""What is said of one, wherever it is found, to go on after the name of a setting."""
_COPY_AGAIN: Final = "copy the account's public key from the wallet again"


def fault_in_key(text: str, family: Family, network: str) -> str | None:
    """Say what is wrong with a key, to go on after its name ("is a private key …"); None when it is good.

    Never quotes any of it. `network`, of Bitcoin: main, test, signet or regtest.
    """
    try:
        ExtendedKey(text, family, network)
    except ConfigError as error:
        return str(error)
    return None


class ExtendedKey:
    """An account's extended public key, and the addresses below it.

    `text` is an xpub, zpub, tpub or vpub: alone, with its origin before it, or in a descriptor wpkh(…), whose checksum
    is checked where there is one. Raises ConfigError, in words as of `fault_in_key`.
    """

    __slots__ = ("_branch", "_payload", "family", "fingerprint", "network", "origin")

    def __init__(self, text: str, family: Family, network: str = "main") -> None:
        stated = _take_apart(text.strip(), family)
        payload = _read(stated, family, network)
        self.family: Family = family
        self.network = network if family == "bitcoin" else ""
        self.origin = stated.origin
        """Where the wallet has it, as far as was told: "73c5da0a/84h/0h/0h"; else empty."""
        self._payload = payload
        self._branch = _child(PublicKey(payload[45:]), payload[13:45], 0)
        where = _PREFIXES[network] if family == "bitcoin" else ""
        self.fingerprint = hashlib.sha256(f"{family}:{where}:{payload[13:].hex()}".encode()).hexdigest()
        """What tells it from other keys in the books: SHA-256, in hex, of all that its addresses depend on."""

    def __repr__(self) -> str:
        return f"ExtendedKey({self.family}, {self.fingerprint[:8]})"

    @property
    def path(self) -> str:
        """Where its wallet has it, "m/84h/0h/0h": as was told, else as wallets usually do (BIP84, BIP44)."""
        if "/" in self.origin:
            return f"m/{self.origin.partition('/')[2]}"
        account = int.from_bytes(self._payload[9:13], "big") - _HARDENED
        return f"{_usual_path(self.family, self.network)}/{account}h"

    def address(self, position: int) -> str | None:
        """Give the address at 0/`position`; None where there is none, which happens once in 2^127."""
        try:
            point, _ = _child(*self._branch, position)
        except ValueError:
            return None
        if self.family == "evm":
            return evm_address(point.format(compressed=False)[1:])
        return segwit_address(_PREFIXES[self.network], point.format())

    def descriptor(self) -> str:
        """Write the descriptor of all addresses that people pay to, as Bitcoin Core imports it. It tells them all."""
        version = _MAIN if self.network == "main" else _TEST
        origin = f"[{self.origin}]" if self.origin else ""
        body = f"wpkh({origin}{write_base58(version + self._payload[4:])}/0/*)"
        return f"{body}#{descriptor_checksum(body)}"


def _child(point: PublicKey, chain: bytes, number: int) -> tuple[PublicKey, bytes]:
    """Derive a child that needs no private key (BIP32). Raises ValueError where there is none."""
    hashed = hmac.digest(chain, point.format() + number.to_bytes(4, "big"), "sha512")
    return point.add(hashed[:32]), hashed[32:]


class _Stated(NamedTuple):
    """What an operator wrote: the key, and where it comes from."""

    key: str
    origin: str


def _take_apart(text: str, family: Family) -> _Stated:
    """Find key and origin in what may be a descriptor. Raises ConfigError."""
    if not text:
        raise ConfigError("is empty; it must be the account's extended public key")
    if is_private(text):
        raise ConfigError(PRIVATE)
    if _ADDRESS.fullmatch(text):
        raise ConfigError("is one address; every customer gets others, made of the account's extended public key")
    inner = text
    if "(" in text or "#" in text:
        if family == "evm":
            raise ConfigError("is a descriptor, which only Bitcoin has; it must be the account's xpub")
        inner = _open_descriptor(text)
    found = _EXPRESSION.fullmatch(inner)
    if found is None:
        raise ConfigError(f"cannot be read as an extended public key (xpub…, zpub…); {_COPY_AGAIN}")
    if found["below"] not in _BELOW and (found["below"] or inner is not text):
        raise ConfigError("has another path after the key than /0/*; addresses are always at 0/0, 0/1, 0/2 …")
    return _Stated(found["key"], (found["origin"] or "").lower().replace("'", "h"))


def is_private(text: str) -> bool:
    """Tell whether a text looks like something that coins can be spent with, mistyped or not."""
    if any(form.fullmatch(token) for token in re.findall(r"[0-9A-Za-z]+", text) for form in _PRIVATE_FORMS):
        return True
    words = [word for word in re.split(r"[\s,;.:\"']+", text) if word and not word.isdigit()]
    return len(words) >= _FEWEST_WORDS and all(word.isalpha() for word in words)


def _open_descriptor(text: str) -> str:
    """Give what stands inside wpkh(…). Raises ConfigError."""
    body, marked, checksum = text.partition("#")
    if marked and checksum != descriptor_checksum(body):
        raise ConfigError(
            "is a descriptor whose checksum, the eight characters after #, does not fit: it was changed or cut off; "
            "copy it from the wallet again"
        )
    if not body.startswith("wpkh(") or not body.endswith(")") or body.count("(") > 1:
        raise ConfigError(
            "is a descriptor of another kind than wpkh(…): addresses here are native segwit of one key (bc1q…), so the "
            "wallet must have an account of that kind"
        )
    return body[5:-1]


def _read(stated: _Stated, family: Family, network: str) -> bytes:
    """Check an extended public key, and give its 78 bytes (BIP32). Raises ConfigError."""
    payload = read_base58(stated.key)
    if payload is None or len(payload) != _PAYLOAD_BYTES:
        raise ConfigError(_misread(stated.key))
    if payload[45] == 0:
        raise ConfigError(PRIVATE)
    kind = _KINDS.get(payload[:4])
    if kind is None:
        raise ConfigError(f"is a key of another chain; it must begin with xpub{'' if family == 'evm' else ' or zpub'}")
    if fault := _wrong_kind(kind, family, network):
        raise ConfigError(f"is a key that begins with {kind.name}: {fault}")
    if fault := _wrong_place(payload[4], int.from_bytes(payload[9:13], "big"), stated.origin):
        raise ConfigError(f"is not an account's key: {fault}. Give the one at {_usual_path(family, network)}/0h")
    try:
        PublicKey(payload[45:])
    except ValueError:
        raise ConfigError(f"holds no point of the curve; {_COPY_AGAIN}") from None
    return payload


def _usual_path(family: Family, network: str) -> str:
    """Give the path above accounts."""
    if family == "evm":
        return "m/44h/60h"
    return "m/84h/0h" if network == "main" else "m/84h/1h"


def _misread(text: str) -> str:
    if not is_base58(text):
        return f"has characters that keys do not have (such as 0, O, I or l); {_COPY_AGAIN}"
    if len(text) != _KEY_LENGTH:
        return f"is {len(text)} characters long, where extended keys have {_KEY_LENGTH}; {_COPY_AGAIN}"
    return f"does not fit the checksum in it: a character was changed; {_COPY_AGAIN}"


def _wrong_kind(kind: _Kind, family: Family, network: str) -> str:
    if family == "evm":
        return "" if kind.name == "xpub" else "that is one of Bitcoin; wallets of EVM chains give an xpub"
    if kind.refused:
        return kind.refused
    if kind.tests and network == "main":
        return 'it is of a network for tests, and network is "main"; give an xpub or zpub'
    if not kind.tests and network != "main":
        return f'it is of the main network, and network is "{network}"; give a tpub or vpub'
    return ""


def _wrong_place(depth: int, number: int, origin: str) -> str:
    if depth == 0:
        return "it is the master key of a whole wallet (depth 0)"
    if depth != ACCOUNT_DEPTH:
        return f"it is at depth {depth} of its wallet, accounts are at depth {ACCOUNT_DEPTH}"
    if number < _HARDENED:
        return "the last step of its path is not hardened"
    steps = origin.split("/")[1:]
    if steps and (len(steps) != depth or steps[-1] != f"{number - _HARDENED}h"):
        return "the path in the brackets before it is of another key"
    return ""
