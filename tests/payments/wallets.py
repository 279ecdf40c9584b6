"""Wallets of tests: published seeds, and what their accounts' public keys look like. embit plays the other side."""

from typing import Final

from embit import bip32, bip39

ABOUT: Final = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"
"""The seed of BIP84's own vectors."""
JUNK: Final = "test test test test test test test test test test test junk"
"""The seed that nodes for developers fund."""

ZPUB: Final = (
    "zpub6rFR7y4Q2AijBEqTUquhVz398htDFrtymD9xYYfG1m4wAcvPhXNfE3EfH1r1ADqtfSdVCToUG868RvUUkgDKf31mGDtKsAYz2oz2AGutZYs"
)
"""m/84h/0h/0h of ABOUT, as BIP84 prints it."""
VPUB: Final = (
    "vpub5Y6cjg78GGuNLsaPhmYsiw4gYX3HoQiRBiSwDaBXKUafCt9bNwWQiitDk5VZ5BVxYnQdwoTyXSs2JHRPAgjAvtbBrf8ZhDYe2jWAqvZVnsc"
)
"""m/84h/1h/0h of ABOUT."""
ETHER: Final = (
    "xpub6Ce9NcJvTk36xtLSrJLZqE7wtgA5deCeYs7rSQtreh4cj6ByPtrg9sD7V2FNFLPnf8heNP3FGkeV9qwfzvZNSd54JoNXVsXFYSYwHsnJxqP"
)
"""m/44h/60h/0h of JUNK."""

VERSIONS: Final = {
    name: bytes.fromhex(version)
    for name, version in (
        *(("xpub", "0488b21e"), ("xprv", "0488ade4"), ("zpub", "04b24746"), ("zprv", "04b2430c")),
        *(("ypub", "049d7cb2"), ("yprv", "049d7878"), ("Zpub", "02aa7ed3"), ("Ypub", "0295b43f")),
        *(("tpub", "043587cf"), ("tprv", "04358394"), ("vpub", "045f1cf6"), ("vprv", "045f18bc")),
        *(("upub", "044a5262"), ("uprv", "044a4e28"), ("Ltub", "019da462"), ("Ltpv", "019d9cfe")),
    )
}


def wallet(words: str) -> bip32.HDKey:
    """Open a wallet from its words."""
    return bip32.HDKey.from_seed(bip39.mnemonic_to_seed(words))


def written(key: bip32.HDKey, form: str) -> str:
    """Write a wallet's key as `form` (xpub, zprv, …) says."""
    return str((key if form[1:3] in {"pr", "tp"} else key.to_public()).to_base58(VERSIONS[form]))
