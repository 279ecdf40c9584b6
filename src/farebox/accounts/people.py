"""Signing up and in: the same answers, in the same time, for addresses that are known and that are not."""

import hashlib
import secrets
from typing import Final

import msgspec

from farebox.accounts.accounts import clean_email
from farebox.accounts.mail import letter
from farebox.accounts.passwords import Passwords, check_password
from farebox.clock import US_PER_S
from farebox.errors import AuthenticationFailed, InvalidRequest, RateLimited, StoreConflict
from farebox.store.protocol import Statement, Store

VERIFY_S: Final = 24 * 3600
RESET_S: Final = 30 * 60
_FREE_FAILURES: Final = 5
_LONGEST_PAUSE_S: Final = 15 * 60
_NETWORK_FAILURES: Final = 20
_NETWORK_WINDOW_S: Final = 10 * 60
_MAILS_PER_HOUR: Final = 5


class Site(msgspec.Struct, frozen=True):
    """What mails say about where they come from."""

    name: str
    public_url: str


class People:
    """Opens accounts, proves addresses and passwords."""

    def __init__(self, store: Store, passwords: Passwords, site: Site, default_plan: str) -> None:
        self._store = store
        self._passwords = passwords
        self._site = site
        self._default_plan = default_plan

    async def sign_up(self, email: str, password: str, now_us: int) -> None:
        """Open an account and mail a link that proves the address; one that exists gets a mail that says so.

        Raises InvalidRequest for what is no address, and for a password that is easily guessed.
        """
        address = clean_email(email)
        check_password(password, email=address, site=self._site.name)
        kept = await self._passwords.hash(password)
        open_account = "INSERT INTO account (email, plan, created_at) VALUES (?, ?, ?)"
        keep = "INSERT INTO credential (account_id, password, changed_at) SELECT id, ?, ? FROM account WHERE email = ?"
        try:
            await self._store.write(
                [(open_account, (address, self._default_plan, now_us)), (keep, (kept, now_us, address))]
            )
        except StoreConflict:
            await self._tell_of_the_account(address, now_us)
            return
        await self.send_verification(address, now_us)

    async def send_verification(self, email: str, now_us: int) -> None:
        """Mail the link that proves an address, if there is such an account without proof."""
        rows = await self._store.fetch("SELECT id FROM account WHERE email = ? AND verified_at IS NULL", (email,))
        if not rows or await self._too_many_mails(email, now_us):
            return
        token, keep = _token(rows[0][0], "verify", email, now_us + VERIFY_S * US_PER_S)
        body = (
            f"Welcome to {self._site.name}.\n\nOpen this link to confirm that this address is yours:\n\n"
            f"{self._site.public_url}/verify?token={token}\n\nIt works once, for a day. "
            "If you did not sign up, ignore this mail.\n"
        )
        await self._store.write([keep, letter(email, f"Confirm your address for {self._site.name}", body, now_us)])

    async def verify(self, token: str, now_us: int) -> str:
        """Take the proof of an address. Answers the address. Raises InvalidRequest for a link that works no longer."""
        account_id, email = await self._take(token, "verify", now_us)
        prove = "UPDATE account SET verified_at = ? WHERE id = ? AND email = ?"
        await self._store.write([(prove, (now_us, account_id, email))])
        return email

    async def sign_in(self, email: str, password: str, network: str, now_us: int) -> int:
        """Check a password. Answers the account's id.

        Raises AuthenticationFailed, with the same words whatever was wrong, and RateLimited after too many failures.
        """
        address = email.strip().lower()
        names = (f"account:{address[:254]}", f"network:{network}")
        await self._slow_down(names, now_us)
        rows = await self._store.fetch(
            "SELECT a.id, c.password, a.status FROM account a JOIN credential c ON c.account_id = a.id "
            "WHERE a.email = ?",
            (address,),
        )
        kept = rows[0][1] if rows else None
        if not await self._passwords.matches(kept, password):
            await self._store.write([_failed(name, now_us) for name in names])
            raise AuthenticationFailed("that is not an address and password known here")
        if rows[0][2] == "closed":
            raise AuthenticationFailed("this account has been closed")
        await self._store.write([("DELETE FROM failure WHERE name = ?", (names[0],))])
        return int(rows[0][0])

    async def send_reset(self, email: str, now_us: int) -> None:
        """Mail a link to choose a new password, if there is such an account."""
        address = email.strip().lower()
        rows = await self._store.fetch(
            "SELECT a.id FROM account a JOIN credential c ON c.account_id = a.id WHERE a.email = ?", (address,)
        )
        if not rows or await self._too_many_mails(address, now_us):
            return
        token, keep = _token(rows[0][0], "reset", address, now_us + RESET_S * US_PER_S)
        body = (
            f"Somebody, you we hope, wants to choose a new password for {self._site.name}:\n\n"
            f"{self._site.public_url}/reset?token={token}\n\n"
            "The link works once, for 30 minutes. If it was not you, ignore this mail: nothing changes.\n"
        )
        await self._store.write([keep, letter(address, f"A new password for {self._site.name}", body, now_us)])

    async def reset(self, token: str, password: str, now_us: int) -> None:
        """Set a new password by a mailed link, which also proves the address, and end all sessions.

        Raises InvalidRequest for a link that works no longer, or a password that is easily guessed; then the link
        still works.
        """
        rows = await self._store.fetch("SELECT email FROM token WHERE hash = ?", (_hash(token),))
        check_password(password, email=rows[0][0] if rows else "", site=self._site.name)
        account_id, email = await self._take(token, "reset", now_us)
        await self.set_password(account_id, email, password, now_us)
        await self._store.write(
            [
                ("UPDATE account SET verified_at = coalesce(verified_at, ?) WHERE id = ?", (now_us, account_id)),
                ("DELETE FROM session WHERE account_id = ?", (account_id,)),
                ("DELETE FROM failure WHERE name = ?", (f"account:{email}",)),
            ]
        )

    async def set_password(self, account_id: int, email: str, password: str, now_us: int) -> None:
        """Keep a new password, and tell its owner by mail. Raises InvalidRequest for one that is easily guessed."""
        check_password(password, email=email, site=self._site.name)
        kept = await self._passwords.hash(password)
        keep = (
            "INSERT INTO credential (account_id, password, changed_at) VALUES (?, ?, ?) "
            "ON CONFLICT (account_id) DO UPDATE SET password = excluded.password, changed_at = excluded.changed_at"
        )
        body = (
            f"The password of your account at {self._site.name} has just been changed.\n\nIf it was not you: "
            f"{self._site.public_url}/forgot\n"
        )
        await self._store.write(
            [(keep, (account_id, kept, now_us)), letter(email, "Your password has been changed", body, now_us)]
        )

    async def _tell_of_the_account(self, email: str, now_us: int) -> None:
        if await self._too_many_mails(email, now_us):
            return
        body = (
            f"Somebody tried to open an account at {self._site.name} with this address, which has one already.\n\n"
            f"Sign in: {self._site.public_url}/login\nForgotten the password: {self._site.public_url}/forgot\n"
        )
        await self._store.write([letter(email, f"You have an account at {self._site.name}", body, now_us)])

    async def _too_many_mails(self, email: str, now_us: int) -> bool:
        """Keep forms that send mail from filling somebody's inbox."""
        rows = await self._store.fetch(
            "SELECT count(*) FROM outbox WHERE recipient = ? AND at > ?", (email, now_us - 3600 * US_PER_S)
        )
        return bool(rows[0][0] >= _MAILS_PER_HOUR)

    async def _take(self, token: str, purpose: str, now_us: int) -> tuple[int, str]:
        """Use a token up: whoever deletes it may go on."""
        rows = await self._store.fetch(
            "SELECT account_id, email FROM token WHERE hash = ? AND purpose = ? AND ends_at > ?",
            (_hash(token), purpose, now_us),
        )
        taken = await self._store.write([("DELETE FROM token WHERE hash = ?", (_hash(token),))]) if rows else [0]
        if not rows or not taken[0]:
            raise InvalidRequest("this link works no longer: it was used, or is too old; ask for another one")
        account_id, email = rows[0]
        return account_id, email

    async def _slow_down(self, names: tuple[str, str], now_us: int) -> None:
        """Make whoever guesses wait: longer and longer by account, by the number within minutes by network."""
        rows = await self._store.fetch("SELECT name, count, at FROM failure WHERE name IN (?, ?)", names)
        for name, count, at in rows:
            if name == names[0]:
                pause_s = min(2.0 ** (count - _FREE_FAILURES), _LONGEST_PAUSE_S) if count >= _FREE_FAILURES else 0.0
            else:
                pause_s = _NETWORK_WINDOW_S if count >= _NETWORK_FAILURES else 0.0
            wait_s = pause_s - (now_us - at) / US_PER_S
            if wait_s > 0:
                seconds = int(wait_s) + 1
                raise RateLimited(f"too many wrong passwords; try again in {seconds} s", retry_after_s=seconds)


def _failed(name: str, now_us: int) -> Statement:
    forget_before = now_us - 24 * 3600 * US_PER_S
    if name.startswith("network:"):
        forget_before = now_us - _NETWORK_WINDOW_S * US_PER_S
    count = (
        "INSERT INTO failure (name, count, at) VALUES (?, 1, ?) ON CONFLICT (name) DO UPDATE SET "
        "count = CASE WHEN failure.at < ? THEN 1 ELSE failure.count + 1 END, at = excluded.at"
    )
    return count, (name, now_us, forget_before)


def _token(account_id: int, purpose: str, email: str, ends_at_us: int) -> tuple[str, Statement]:
    token = secrets.token_urlsafe(32)
    keep = "INSERT INTO token (hash, account_id, purpose, email, ends_at) VALUES (?, ?, ?, ?, ?)"
    return token, (keep, (_hash(token), account_id, purpose, email, ends_at_us))


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
