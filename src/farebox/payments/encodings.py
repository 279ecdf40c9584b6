"""How chains write keys and addresses as text, each with the checksum that its standard asks for. Pure.

Base58Check (BIP32), Bech32 for the first kind of segregated witness (BIP173), descriptor checksums (BIP380), and
addresses of EVM chains in upper and lower case (EIP-55).
"""

import hashlib
from collections.abc import Iterable
from typing import Final

from Crypto.Hash import RIPEMD160, keccak

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32_STEPS: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_DESCRIPTOR: Final = "0123456789()[],'/*abcdefgh@:$%{}IJKLMNOPQRSTUVWXYZ&+-.;<=>?!^_|~ijklmnopqrstuvwxyzABCDEFGH`#\"\\ "
_DESCRIPTOR_STEPS: Final = (0xF5DEE51989, 0xA9FDCA3312, 0x1BAB10E32D, 0x3706B1677A, 0x644D626FFD)


def read_base58(text: str) -> bytes | None:
    """Read Base58Check; None where a character or the checksum is wrong."""
    number = 0
    for character in text:
        digit = _BASE58.find(character)
        if digit < 0:
            return None
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    raw = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
    return raw[:-4] if len(raw) > 4 and _sha256_twice(raw[:-4])[:4] == raw[-4:] else None


def write_base58(payload: bytes) -> str:
    """Write Base58Check."""
    raw = payload + _sha256_twice(payload)[:4]
    number = int.from_bytes(raw, "big")
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + digits


def is_base58(text: str) -> bool:
    return all(character in _BASE58 for character in text)


def segwit_address(prefix: str, public_key: bytes) -> str:
    """Write the address of a compressed public key, native segwit: `prefix` is bc, tb or bcrt."""
    program = RIPEMD160.new(hashlib.sha256(public_key).digest()).digest()
    values = [0]  # the version of the witness; 160 bits are 32 times five, without a rest
    number = int.from_bytes(program, "big")
    values += [number >> shift & 31 for shift in range(155, -1, -5)]
    spread = [ord(character) >> 5 for character in prefix] + [0] + [ord(character) & 31 for character in prefix]
    check = _polymod([*spread, *values, 0, 0, 0, 0, 0, 0], _BECH32_STEPS, 25) ^ 1
    values += [check >> shift & 31 for shift in range(25, -1, -5)]
    return f"{prefix}1" + "".join(_BECH32[value] for value in values)


def descriptor_checksum(body: str) -> str | None:
    """Give the eight characters that stand behind a descriptor's #; None where it has a character it cannot have."""
    symbols: list[int] = []
    groups: list[int] = []
    for character in body:
        place = _DESCRIPTOR.find(character)
        if place < 0:
            return None
        symbols.append(place & 31)
        groups.append(place >> 5)
        if len(groups) == 3:
            symbols.append(groups[0] * 9 + groups[1] * 3 + groups[2])
            groups.clear()
    if groups:
        symbols.append(groups[0] if len(groups) == 1 else groups[0] * 3 + groups[1])
    check = _polymod([*symbols, 0, 0, 0, 0, 0, 0, 0, 0], _DESCRIPTOR_STEPS, 35) ^ 1
    return "".join(_BECH32[check >> shift & 31] for shift in range(35, -1, -5))


def evm_address(public_key: bytes) -> str:
    """Write the address of a public key of 64 bytes, without the byte that says how it is encoded."""
    return checksummed(_keccak(public_key)[-20:].hex())


def checksummed(address: str) -> str:
    """Write an address of an EVM chain, 40 hex digits with or without 0x, in the upper and lower case of EIP-55."""
    digits = address[-40:].lower()
    check = _keccak(digits.encode()).hex()
    return "0x" + "".join(
        digit.upper() if int(nibble, 16) > 7 else digit for digit, nibble in zip(digits, check, strict=False)
    )


def _polymod(values: Iterable[int], steps: tuple[int, ...], bits: int) -> int:
    """Compute the checksum that Bech32 and descriptors share in kind; `bits`: how many of it stay behind each step."""
    check = 1
    for value in values:
        top = check >> bits
        check = (check & ((1 << bits) - 1)) << 5 ^ value
        for bit, step in enumerate(steps):
            if top >> bit & 1:
                check ^= step
    return check


def _sha256_twice(data: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(data).digest()).digest()


def _keccak(data: bytes) -> bytes:
    """Hash as Ethereum does, which is not SHA-3."""
    return keccak.new(digest_bits=256, data=data).digest()
