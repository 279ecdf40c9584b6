"""Invitations: links by which people may open an account where not everybody can. Each works once."""

import secrets
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from farebox.accounts.accounts import clean_email
from farebox.accounts.mail import letter
from farebox.accounts.tokens import hash_token
from farebox.clock import DAY_US
from farebox.errors import InvalidRequest, NotFound
from farebox.store.protocol import Statement, Store

State = Literal["open", "used", "revoked", "expired"]

DAYS: Final = 14
"""How long an invitation works unless something else is said."""
MOST_DAYS: Final = 365
_NOTE_CHARS: Final = 200
_COLUMNS: Final = "id, email, note, created_by, created_at, ends_at, revoked_at, used_at, account_id"
_IS_OPEN: Final = "used_at IS NULL AND revoked_at IS NULL AND ends_at > ?"
_OPEN: Final = (
    "INSERT INTO account (email, plan, created_at) SELECT ?, ?, ? FROM invitation WHERE hash = ? AND account_id = ?"
)
_NAME: Final = (
    "UPDATE invitation SET account_id = (SELECT id FROM account WHERE email = ?) WHERE hash = ? AND account_id = ?"
)


class Invitation(msgspec.Struct, frozen=True):
    """An invitation as it is known after it was made: without the text of its link."""

    id: int
    email: str
    """Whose address alone it is for; empty: for whoever has the link."""
    note: str
    created_by: str
    created_at_us: int
    ends_at_us: int
    revoked_at_us: int | None
    used_at_us: int | None
    account_id: int | None
    """Who came by it."""

    def state(self, now_us: int) -> State:
        if self.used_at_us is not None:
            return "used"
        if self.revoked_at_us is not None:
            return "revoked"
        return "open" if now_us < self.ends_at_us else "expired"


class Invited(msgspec.Struct, frozen=True):
    """A fresh invitation, with its link, which is never shown again."""

    invitation: Invitation
    url: str


async def create_invitation(
    store: Store,
    public_url: str,
    site_name: str,
    *,
    by: str,
    now_us: int,
    email: str = "",
    note: str = "",
    days: int = DAYS,
    also: Sequence[Statement] = (),
) -> Invited:
    """Make an invitation; one for an address is also mailed there. Raises InvalidRequest.

    `by` is who makes it, as the books name people: "operator:root", or an admin's address. `also` is written with it.
    """
    address = clean_email(email) if email.strip() else ""
    words = " ".join(note.split())
    if len(words) > _NOTE_CHARS or (words and not words.isprintable()):
        raise InvalidRequest(f"a note has at most {_NOTE_CHARS} printable characters, got {words[:40]!r}")
    if not 1 <= days <= MOST_DAYS:
        raise InvalidRequest(f"an invitation works for 1 to {MOST_DAYS} days, got {days}")
    token = secrets.token_urlsafe(32)
    hashed = hash_token(token)
    url = f"{public_url}/signup?invitation={token}"
    insert = (
        "INSERT INTO invitation (hash, email, note, created_by, created_at, ends_at) VALUES (?, ?, ?, ?, ?, ?)",
        (hashed, address, words, by, now_us, now_us + days * DAY_US),
    )
    mail = [letter(address, f"An invitation to {site_name}", _letter(site_name, url, days), now_us)] if address else []
    await store.write([insert, *mail, *also])
    return Invited((await _select(store, "WHERE hash = ?", (hashed,)))[0], url)


async def list_invitations(store: Store, limit: int = 200) -> list[Invitation]:
    """Give the latest invitations, newest first."""
    return await _select(store, "ORDER BY id DESC LIMIT ?", (limit,))


async def revoke_invitation(
    store: Store, invitation_id: int, now_us: int, also: Sequence[Statement] = ()
) -> Invitation:
    """Take an invitation back, and write `also` with it. One that does not work any more stays as it is.

    Raises NotFound.
    """
    found = await _select(store, "WHERE id = ?", (invitation_id,))
    if not found:
        raise NotFound(f"there is no invitation {invitation_id}; `farebox invite list` names them")
    if found[0].state(now_us) != "open":
        return found[0]
    revoke = "UPDATE invitation SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL AND used_at IS NULL"
    await store.write([(revoke, (now_us, invitation_id)), *also])
    return (await _select(store, "WHERE id = ?", (invitation_id,)))[0]


async def look_at_invitation(store: Store, token: str, now_us: int) -> Invitation:
    """Find the invitation of a link without using it up. Raises InvalidRequest for one that works no longer."""
    found = await _select(store, f"WHERE hash = ? AND {_IS_OPEN}", (hash_token(token), now_us))
    if not found:
        raise no_invitation()
    return found[0]


def no_invitation() -> InvalidRequest:
    """Make the refusal of a link: the same whether it never was one, was used, taken back, or is too old."""
    return InvalidRequest("this invitation works no longer: it was used or taken back, or is too old; ask for another")


def open_account(email: str, plan: str, now_us: int, token: str = "") -> list[Statement]:
    """Make the statements that open an account, with an invitation if a link is given: both or nothing.

    When the invitation works no longer, none of them changes anything. The account has no password yet.
    """
    if not token:
        return [("INSERT INTO account (email, plan, created_at) VALUES (?, ?, ?)", (email, plan, now_us))]
    hashed = hash_token(token)
    claim = -secrets.randbits(62) - 1  # ours alone: of two that come at once by one link, the second opens nothing
    use = f"UPDATE invitation SET used_at = ?, account_id = ? WHERE hash = ? AND {_IS_OPEN} AND email IN ('', ?)"  # noqa: S608
    return [
        (use, (now_us, claim, hashed, now_us, email)),
        (_OPEN, (email, plan, now_us, hashed, claim)),
        (_NAME, (email, hashed, claim)),
    ]


def _letter(site_name: str, url: str, days: int) -> str:
    return (
        f"You are invited to open an account at {site_name}:\n\n{url}\n\n"
        f"The link works once, for {days} day{'' if days == 1 else 's'}, with this address. "
        "If you did not expect it, ignore this mail.\n"
    )


async def _select(store: Store, where: str, params: tuple[object, ...]) -> list[Invitation]:
    rows = await store.fetch(f"SELECT {_COLUMNS} FROM invitation {where}", params)  # noqa: S608  fixed texts
    return [Invitation(*row) for row in rows]
