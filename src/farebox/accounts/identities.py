"""Identities: which provider account opens which account here, and who is on the way to a provider and back."""

import hashlib
from typing import Final

import msgspec

from farebox.accounts.accounts import clean_email
from farebox.accounts.invitations import no_invitation, open_account
from farebox.accounts.mail import letter
from farebox.accounts.people import Site
from farebox.accounts.providers import Departure, Persona, Provider
from farebox.clock import US_PER_S
from farebox.errors import InvalidRequest, StoreConflict
from farebox.store.protocol import Store

AWAY_S: Final = 10 * 60
_PURPOSE: Final = "provider"
_NAME_CHARS: Final = 100
_LINK: Final = "INSERT INTO identity (id, provider, account_id, name, created_at) VALUES (?, ?, ?, ?, ?)"
_LINK_NEW: Final = (
    "INSERT INTO identity (id, provider, account_id, name, created_at) "
    "SELECT ?, ?, id, ?, ? FROM account WHERE email = ? AND created_at = ?"
)
_VERIFY_NEW: Final = "UPDATE account SET verified_at = ? WHERE email = ? AND created_at = ?"


class Identity(msgspec.Struct, frozen=True):
    """A provider account that opens an account here."""

    provider: str
    account_id: int
    name: str
    created_at_us: int


class Away(msgspec.Struct, frozen=True):
    """Somebody who was sent to a provider: what to check when they come back, and what they wanted."""

    provider: str
    verifier: str
    nonce: str
    wanted: str = ""
    invitation: str = ""
    linking: int | None = None
    """The account to link, of somebody who was signed in."""


class Identities:
    """All identities, in the store."""

    def __init__(self, store: Store, site: Site, default_plan: str) -> None:
        self._store = store
        self._site = site
        self._default_plan = default_plan

    async def leave(self, departure: Departure, away: Away, browser: str, now_us: int) -> None:
        """Remember somebody who leaves for a provider, by the state they come back with and their browser."""
        keep = "INSERT INTO challenge (hash, account_id, purpose, data, ends_at) VALUES (?, ?, ?, ?, ?)"
        ends_at_us = now_us + AWAY_S * US_PER_S
        data = msgspec.json.encode(away).decode()
        await self._store.write(
            [
                ("DELETE FROM challenge WHERE ends_at < ?", (now_us,)),
                (keep, (_hash(departure.state, browser), away.linking, _PURPOSE, data, ends_at_us)),
            ]
        )

    async def come_back(self, state: str, browser: str, now_us: int) -> Away | None:
        """Find who has come back, once; nobody with a state that this browser did not leave with."""
        hashed = _hash(state, browser)
        rows = await self._store.fetch(
            "SELECT data FROM challenge WHERE hash = ? AND purpose = ? AND ends_at > ?", (hashed, _PURPOSE, now_us)
        )
        taken = await self._store.write([("DELETE FROM challenge WHERE hash = ?", (hashed,))]) if rows else [0]
        return msgspec.json.decode(rows[0][0], type=Away) if taken[0] else None

    async def of(self, account_id: int) -> dict[str, Identity]:
        """Give an account's identities by provider."""
        rows = await self._store.fetch(
            "SELECT provider, account_id, name, created_at FROM identity WHERE account_id = ? ORDER BY created_at",
            (account_id,),
        )
        return {row[0]: Identity(*row) for row in rows}

    async def account_of(self, provider: Provider, persona: Persona) -> tuple[int, str] | None:
        """Give id and status of the account that a provider account opens, if it does any."""
        rows = await self._store.fetch(
            "SELECT a.id, a.status FROM identity i JOIN account a ON a.id = i.account_id WHERE i.id = ?",
            (_id(provider, persona),),
        )
        return (int(rows[0][0]), str(rows[0][1])) if rows else None

    async def link(self, account_id: int, email: str, provider: Provider, persona: Persona, now_us: int) -> None:
        """Let a provider account open this account; its owner is told by mail. Doing it twice is doing it once.

        Raises InvalidRequest for one that opens another account, and where another of that provider opens this one.
        """
        found = await self.account_of(provider, persona)
        if found is not None and found[0] == account_id:
            return
        if provider.name in await self.of(account_id):
            raise InvalidRequest(f"another {provider.shown} account is linked; unlink that one first")
        body = (
            f"The {provider.shown} account {_plain(persona.name)} can now sign in to your account at "
            f"{self._site.name}.\n\nIf it was not you: {self._site.public_url}/dashboard/settings/linked\n"
            f"and choose a new password: {self._site.public_url}/forgot\n"
        )
        values = (_id(provider, persona), provider.name, account_id, _plain(persona.name), now_us)
        mail = letter(email, f"{provider.shown} was linked to your account at {self._site.name}", body, now_us)
        try:
            await self._store.write([(_LINK, values), mail])
        except StoreConflict as error:
            raise InvalidRequest(f"this {provider.shown} account is linked to another account here") from error

    async def unlink(self, account_id: int, provider_name: str) -> None:
        """Let a provider open this account no more."""
        unlink = "DELETE FROM identity WHERE account_id = ? AND provider = ?"
        await self._store.write([(unlink, (account_id, provider_name))])

    async def sign_up(self, provider: Provider, persona: Persona, invitation: str, now_us: int) -> int:
        """Open an account for a provider account, with the address that the provider has proof of.

        Answers its id. Raises InvalidRequest where there is no such proof, where the address has an account already,
        and for an invitation that works no longer.
        """
        if not persona.email:
            raise InvalidRequest(f"{provider.shown} has no proof of your e-mail address; sign up with a password")
        email = clean_email(persona.email)
        opening = open_account(email, self._default_plan, now_us, invitation)
        values = (_id(provider, persona), provider.name, _plain(persona.name), now_us, email, now_us)
        try:  # nothing of it touches an account that was there before
            changed = await self._store.write(
                [*opening, (_VERIFY_NEW, (now_us, email, now_us)), (_LINK_NEW, values)],
            )
        except StoreConflict as error:
            raise InvalidRequest(
                f"no account here is linked to that {provider.shown} account; sign in and link it under settings"
            ) from error
        if not changed[-1]:
            raise no_invitation()
        found = await self.account_of(provider, persona)
        assert found is not None
        return found[0]


def _id(provider: Provider, persona: Persona) -> str:
    return f"{provider.name}:{persona.subject}"


def _plain(name: str) -> str:
    return "".join(char for char in name if char.isprintable())[:_NAME_CHARS]


def _hash(state: str, browser: str) -> bytes:
    return hashlib.sha256(f"{state}:{browser}".encode("utf-8", "replace")).digest()
