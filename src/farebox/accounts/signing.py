"""Signing: statements of this gateway that anybody can check offline, long after.

A statement is JSON without fractions. What is signed is its canonical form (RFC 8785), so that a file that was indented
or stored by another program still holds. Keys are Ed25519 (RFC 8032); each is named by its thumbprint (RFC 7638), and
stays published as long as the books are kept. Its private half is sealed, its public half is not.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from farebox.accounts.sealing import Seals, keep_secret
from farebox.errors import FareboxError
from farebox.store.protocol import Reading, Store

KEYS_PATH: Final = "/.well-known/farebox-receipt-keys.json"
"""Where the public halves are published, as a JWK set (RFC 7517, RFC 8037)."""
ALGORITHM: Final = "Ed25519"
_NAMES: Final = "receipt:"
_PUBLIC_BYTES: Final = 32

Statement = dict[str, Any]


class NotGenuine(FareboxError):
    """A statement that nobody signed, or that was changed since."""


class Signing:
    """Signs statements with the newest key that can be opened; knows the public halves of all there have been."""

    def __init__(self, kid: str, key: Ed25519PrivateKey, public_keys: Statement) -> None:
        self._kid = kid
        self._key = key
        self.public_keys = public_keys
        """The JWK set that is published."""

    @classmethod
    async def open(cls, store: Store, seals: Seals, now_us: int) -> "Signing":
        """Make ready what signs. A new key is made at the first start, and when none there is can be opened."""
        kept = await _kept(store)
        opened = next((key for value in reversed(kept) if (key := _opened(seals, value)) is not None), None)
        while opened is None:
            key = Ed25519PrivateKey.generate()
            public = key.public_key().public_bytes_raw()
            fresh = public + seals.seal(key.private_bytes_raw(), _about(public))
            opened = _opened(seals, await keep_secret(store, f"{_NAMES}{len(kept) + 1:06d}", fresh, now_us))
            kept = await _kept(store)
        return cls(thumbprint(opened.public_key().public_bytes_raw()), opened, _key_set(kept))

    def sign(self, statement: Statement) -> Statement:
        """Put a statement, under its own type's name, beside the signature over its canonical form."""
        signature = self._key.sign(canonical(statement))
        return {
            statement["type"]: statement,
            "signature": {"algorithm": ALGORITHM, "key_id": self._kid, "value": _write(signature)},
        }


async def read_public_keys(store: Reading) -> Statement:
    """Give the JWK set of every key there has been, without opening any."""
    return _key_set(await _kept(store))


def check(signed: Any, type_: str, key_set: Any) -> Statement:
    """Give the statement of this type that was signed by one of these keys. Raises NotGenuine, saying what is wrong."""
    try:
        statement, signature = signed[type_], signed["signature"]
        algorithm, kid, value = (str(signature[name]) for name in ("algorithm", "key_id", "value"))
        whole = len(signed) == 2 and isinstance(statement, dict)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise NotGenuine(f"this is no signed {type_}: one holds {type_!r} and 'signature', and nothing else")
    if algorithm != ALGORITHM:
        raise NotGenuine(f"it is signed by {algorithm[:40]!r}; only {ALGORITHM} is known here")
    keys = read_key_set(key_set)
    if kid not in keys:
        raise NotGenuine(f"none of the {len(keys)} keys has the id {kid[:60]!r}; fetch the keys of who issued it")
    try:
        Ed25519PublicKey.from_public_bytes(keys[kid]).verify(_read(value), canonical(statement))
    except (InvalidSignature, ValueError):
        raise NotGenuine("the signature does not fit: something in it was changed after it was signed") from None
    if statement.get("type") != type_:
        raise NotGenuine(f"what is signed is no {type_}")
    return dict(statement)


def read_key_set(key_set: Any) -> Mapping[str, bytes]:
    """Give the Ed25519 keys of a JWK set by their thumbprints, whatever they are called in it. Raises NotGenuine."""
    try:
        texts = [key["x"] for key in key_set["keys"] if key["kty"] == "OKP" and key["crv"] == ALGORITHM]
        found = [_read(text) for text in texts]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise NotGenuine('the keys are no JWK set: {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": …}]}') from None
    if not found or any(len(key) != _PUBLIC_BYTES for key in found):
        raise NotGenuine("the key file holds no usable Ed25519 key")
    return {thumbprint(key): key for key in found}


def canonical(statement: Statement) -> bytes:
    """Write JSON the one way that RFC 8785 leaves for text, whole numbers, lists and objects with ASCII names."""
    return json.dumps(statement, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_json(text: bytes) -> Any:
    """Read JSON as strictly as a signature needs it: no name twice, no fractions. Raises NotGenuine."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_float=_no_fraction, parse_constant=_no_fraction)
    except (ValueError, RecursionError) as error:
        raise NotGenuine(f"this is no JSON of ours: {error}") from None


def thumbprint(public: bytes) -> str:
    """Name a public key by itself (RFC 7638, RFC 8037 appendix A.3)."""
    return _write(hashlib.sha256(canonical({"crv": ALGORITHM, "kty": "OKP", "x": _write(public)})).digest())


def _key_set(kept: list[bytes]) -> Statement:
    return {"keys": [_jwk(value[:_PUBLIC_BYTES]) for value in kept]}


def _jwk(public: bytes) -> Statement:
    shown = {"kty": "OKP", "crv": ALGORITHM, "x": _write(public)}
    return {**shown, "kid": thumbprint(public), "use": "sig", "alg": "EdDSA"}


async def _kept(store: Reading) -> list[bytes]:
    rows = await store.fetch("SELECT value FROM secret WHERE name LIKE ? ORDER BY name", (f"{_NAMES}%",))
    return [bytes(value) for (value,) in rows]


def _opened(seals: Seals, kept: bytes) -> Ed25519PrivateKey | None:
    public = kept[:_PUBLIC_BYTES]
    try:
        return Ed25519PrivateKey.from_private_bytes(seals.open_sealed(kept[_PUBLIC_BYTES:], _about(public)))
    except FareboxError:
        return None


def _about(public: bytes) -> str:
    return f"the key for receipts {thumbprint(public)}"


def _write(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _read(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def _once(pairs: list[tuple[str, Any]]) -> Statement:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name is given twice")
    return dict(pairs)


def _no_fraction(text: str) -> Any:
    raise ValueError(f"{text[:20]} is no whole number")
