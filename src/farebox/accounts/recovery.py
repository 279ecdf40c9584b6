"""Recovery codes: ten texts to keep on paper, each of which stands for the second factor once. Kept as hashes."""

import base64
import hashlib
import secrets
from typing import Final

from farebox.store.protocol import Statement, Store

COUNT: Final = 10
_BYTES: Final = 10
"""80 random bits: as a hash without salt they withstand whoever has the database."""
_CHARS: Final = 100


def new_codes(account_id: int) -> tuple[list[str], list[Statement]]:
    """Make recovery codes, and the statements that put them in the place of those there were."""
    codes = [base64.b32encode(secrets.token_bytes(_BYTES)).decode().lower() for _ in range(COUNT)]
    insert = "INSERT INTO recovery_code (hash, account_id) VALUES (?, ?)"
    keep: list[Statement] = [(insert, (_hash(account_id, code), account_id)) for code in codes]
    shown = ["-".join(code[at : at + 4] for at in range(0, len(code), 4)) for code in codes]
    return shown, [("DELETE FROM recovery_code WHERE account_id = ?", (account_id,)), *keep]


async def take_code(store: Store, account_id: int, code: str) -> bool:
    """Use a recovery code up: whoever deletes it may go on."""
    plain = "".join(char for char in code[:_CHARS].lower() if char.isalnum())
    delete = "DELETE FROM recovery_code WHERE hash = ? AND account_id = ?"
    return (await store.write([(delete, (_hash(account_id, plain), account_id))]))[0] > 0


async def codes_left(store: Store, account_id: int) -> int:
    """Count the codes that have not been used."""
    return int((await store.fetch("SELECT count(*) FROM recovery_code WHERE account_id = ?", (account_id,)))[0][0])


def _hash(account_id: int, plain: str) -> bytes:
    return hashlib.sha256(f"{account_id}:{plain}".encode("utf-8", "replace")).digest()
