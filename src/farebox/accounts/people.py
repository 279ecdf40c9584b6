"""Signing up and in: the same answers, in the same time, for addresses that are known and that are not."""

from typing import Final

import msgspec

from farebox.accounts.accounts import clean_email
from farebox.accounts.guesses import Guesses
from farebox.accounts.invitations import no_invitation, open_account
from farebox.accounts.mail import letter, mails_asked_for
from farebox.accounts.passwords import SHORTEST, SHORTEST_BESIDE_A_FACTOR, Passwords, check_password
from farebox.accounts.tokens import LIVES_S, hash_token, look_at_token, new_token, take_token
from farebox.clock import US_PER_S
from farebox.errors import AuthenticationFailed, InvalidRequest, RateLimited, StoreConflict
from farebox.store.protocol import Statement, Store

MAILS_AT_ONCE: Final = 5
"""Letters of one kind that forms may ask for, to one address: so many an hour; of links to a new password so many in
the time that one works, so that whoever is refused another one has one that works."""
_OF_SIGN_INS: Final = ("session", "token", "familiar", "challenge", "totp", "recovery_code", "passkey", "identity")
"""What an account that is closed keeps nothing in."""
_WAYS_IN: Final = ("totp", "recovery_code", "passkey", "identity", "familiar")
"""What else than a password people come in by."""
_KEEP: Final = (
    "INSERT INTO credential (account_id, password, changed_at) VALUES (?, ?, ?) "
    "ON CONFLICT (account_id) DO UPDATE SET password = excluded.password, changed_at = excluded.changed_at"
)


class Site(msgspec.Struct, frozen=True):
    """What mails say about where they come from."""

    name: str
    public_url: str


class People:
    """Opens accounts, proves addresses and passwords, and changes what proves them."""

    def __init__(self, store: Store, passwords: Passwords, site: Site, default_plan: str) -> None:
        self._store = store
        self._passwords = passwords
        self._site = site
        self._default_plan = default_plan
        self._guesses = Guesses(store)

    # coming in

    async def sign_up(self, email: str, password: str, network: str, now_us: int, invitation: str = "") -> None:
        """Open an account and mail a link that proves the address; one that exists gets a mail that says so.

        Raises InvalidRequest for what is no address, for a password that is easily guessed, and for an invitation
        that works no longer; one is used up by an account that is opened, and by nothing else. Raises RateLimited for
        a network that has asked for too many.
        """
        address = clean_email(email)
        check_password(password, email=address, site=self._site.name)
        await self._guesses.count_sign_up(network, now_us)
        kept = await self._passwords.hash(password)
        opening = open_account(address, self._default_plan, now_us, invitation)
        keep = (  # the moment keeps it from an account that was there before, when no account was opened
            "INSERT INTO credential (account_id, password, changed_at) "
            "SELECT id, ?, ? FROM account WHERE email = ? AND created_at = ?"
        )
        try:
            changed = await self._store.write([*opening, (keep, (kept, now_us, address, now_us))])
        except StoreConflict:
            await self._tell_of_the_account(address, now_us)
            return
        if not changed[-1]:
            raise no_invitation()
        await self.send_verification(address, now_us)

    async def send_verification(self, email: str, now_us: int) -> None:
        """Mail the link that proves an address, if there is such an account without proof."""
        rows = await self._store.fetch("SELECT id FROM account WHERE email = ? AND verified_at IS NULL", (email,))
        subject = f"Confirm your address for {self._site.name}"
        if not rows or await self._too_many_mails(email, subject, now_us):
            return
        token, keep = new_token(rows[0][0], "verify", email, now_us)
        body = (
            f"Welcome to {self._site.name}.\n\nOpen this link to confirm that this address is yours:\n\n"
            f"{self._site.public_url}/verify?token={token}\n\nIt works once, for a day. "
            "If you did not sign up, ignore this mail.\n"
        )
        await self._store.write([*keep, letter(email, subject, body, now_us, asked=True)])

    async def verify(self, token: str, now_us: int) -> str:
        """Take the proof of an address. Answers the address. Raises InvalidRequest for a link that works no longer."""
        account_id, email = await take_token(self._store, token, "verify", now_us)
        prove = "UPDATE account SET verified_at = ? WHERE id = ? AND email = ?"
        await self._store.write([(prove, (now_us, account_id, email))])
        return email

    async def sign_in(self, email: str, password: str, network: str, now_us: int) -> int:
        """Check a password. Answers the account's id.

        Raises AuthenticationFailed, with the same words whatever was wrong, and RateLimited after too many tries.
        """
        address = _plain(email)
        account_id, status = await self._prove(address, password, network, now_us)
        if account_id is None:
            raise AuthenticationFailed("that is not an address and password known here")
        if status == "closed":
            raise AuthenticationFailed("this account has been closed")
        return account_id

    async def note_browser(self, account_id: int, browser: str, agent: str, network: str, now_us: int) -> None:
        """Remember the browser of a sign-in, by its own cookie; about a new one the account's owner gets a mail.

        The first browser of an account is no news.
        """
        rows = await self._store.fetch("SELECT hash FROM familiar WHERE account_id = ?", (account_id,))
        hashed = hash_token(f"{account_id}:{browser}")
        keep = (
            "INSERT INTO familiar (account_id, hash, seen_at) VALUES (?, ?, ?) "
            "ON CONFLICT (hash) DO UPDATE SET seen_at = excluded.seen_at"
        )
        statements = [(keep, (account_id, hashed, now_us))]
        if rows and (hashed,) not in rows:
            email = await self.email_of(account_id)
            body = (
                f"Somebody has just signed in to your account at {self._site.name} from a browser that was not used "
                f"for it before:\n\n{agent[:200] or 'an unnamed browser'}\nfrom {network}\n\nIf it was not you: "
                f"{self._site.public_url}/forgot\nA new password ends every session.\n"
            )
            statements.append(letter(email, f"A new sign-in at {self._site.name}", body, now_us))
        await self._store.write(statements)

    # forgotten passwords

    async def send_reset(self, email: str, now_us: int) -> None:
        """Mail a link to choose a new password, if there is such an account, with a password so far or without."""
        address = _plain(email)
        rows = await self._store.fetch("SELECT id FROM account WHERE email = ? AND status <> 'closed'", (address,))
        subject = f"A new password for {self._site.name}"
        if not rows or await self._too_many_mails(address, subject, now_us, LIVES_S["reset"]):
            return
        token, keep = new_token(rows[0][0], "reset", address, now_us)
        body = (
            f"Somebody, you we hope, wants to choose a new password for {self._site.name}:\n\n"
            f"{self._site.public_url}/reset?token={token}\n\n"
            "The link works once, for 30 minutes. If it was not you, ignore this mail: nothing changes.\n"
        )
        await self._store.write([*keep, letter(address, subject, body, now_us, asked=True)])

    async def reset(self, token: str, password: str, now_us: int) -> None:
        """Set a new password by a mailed link, which also proves the address, and end all sessions.

        Where the address was never proved, whoever signed up with it was perhaps somebody else: what they could come
        in by ends too. Raises InvalidRequest for a link that works no longer, or a password that is easily guessed;
        then the link still works.
        """
        _, email = await look_at_token(self._store, token, "reset", now_us)
        check_password(password, email=email, site=self._site.name)
        account_id, email = await take_token(self._store, token, "reset", now_us)
        prove = "UPDATE account SET verified_at = coalesce(verified_at, ?) WHERE id = ? AND email = ?"
        await self._store.write(
            [*_ending_what_strangers_left(account_id, now_us), (prove, (now_us, account_id, email))]
        )
        await self._set_password(account_id, email, password, b"", now_us)
        await self._store.write([("DELETE FROM failure WHERE name = ?", (f"account:{email}",))])

    # what the owner changes

    async def change_password(
        self, email: str, password: str, new_password: str, session: bytes, network: str, now_us: int
    ) -> None:
        """Choose another password, knowing the present one; every session but this one ends.

        Raises InvalidRequest when the present one is wrong or the new one easily guessed, and RateLimited.
        """
        factor = "SELECT 1 FROM totp t JOIN account a ON a.id = t.account_id WHERE a.email = ? AND t.set_at IS NOT NULL"
        shortest = SHORTEST_BESIDE_A_FACTOR if await self._store.fetch(factor, (email,)) else SHORTEST
        check_password(new_password, email=email, site=self._site.name, shortest=shortest)
        account_id = await self.confirm(email, password, network, now_us)
        await self._set_password(account_id, email, new_password, session, now_us)

    async def ask_for_email(self, email: str, password: str, new_email: str, network: str, now_us: int) -> None:
        """Mail a link to a new address, knowing the password: the account moves to it once the link is used.

        Whether the address has an account of its own is told to that address alone. Raises as `change_password` does.
        """
        address = clean_email(new_email)
        account_id = await self.confirm(email, password, network, now_us)
        subject = f"Your new address for {self._site.name}"
        if address == email or await self._too_many_mails(address, subject, now_us):
            return
        if await self._store.fetch("SELECT 1 FROM account WHERE email = ?", (address,)):
            await self._tell_of_the_account(address, now_us)
            return
        token, keep = new_token(account_id, "email", address, now_us)
        body = (
            f"Open this link to make this the address of your account at {self._site.name}:\n\n"
            f"{self._site.public_url}/email?token={token}\n\nIt works once, for a day. Until then nothing changes.\n"
        )
        await self._store.write([*keep, letter(address, subject, body, now_us, asked=True)])

    async def take_email(self, token: str, now_us: int) -> str:
        """Move an account to the address whose link this is; answers it. The old address is told.

        Raises InvalidRequest for a link that works no longer, and for an address that got an account meanwhile.
        """
        account_id, address = await take_token(self._store, token, "email", now_us)
        before = await self.email_of(account_id)
        body = (
            f"Your account at {self._site.name} now goes by {address}, as was asked for there with its password.\n\n"
            "If it was not you, write to the operator at once.\n"
        )
        move = "UPDATE account SET email = ?, verified_at = ? WHERE id = ? AND status <> 'closed'"
        try:
            await self._store.write(
                [
                    (move, (address, now_us, account_id)),
                    ("DELETE FROM token WHERE account_id = ?", (account_id,)),
                    letter(before, f"Your account at {self._site.name} has a new address", body, now_us),
                ]
            )
        except StoreConflict as error:
            raise InvalidRequest("this address has got an account of its own by now") from error
        return address

    async def close(self, email: str, password: str, network: str, now_us: int) -> None:
        """Close an account for good, knowing the password: keys are revoked, sessions end, the books keep what was.

        Raises InvalidRequest while there is money in it, or a call in flight, and as `confirm` does.
        """
        account_id = await self.confirm(email, password, network, now_us)
        close = (
            "UPDATE account SET status = 'closed' "
            "WHERE id = ? AND status = 'active' AND posted_nanos = 0 AND open_holds = 0"
        )
        if not (await self._store.write([(close, (account_id,))]))[0]:
            raise InvalidRequest("there is money in this account, or it is suspended: it cannot be closed here")
        body = f"Your account at {self._site.name} has been closed, as was asked for there with its password.\n"
        await self._store.write(
            [
                ("UPDATE api_key SET revoked_at = ? WHERE account_id = ? AND revoked_at IS NULL", (now_us, account_id)),
                *((f"DELETE FROM {table} WHERE account_id = ?", (account_id,)) for table in _OF_SIGN_INS),  # noqa: S608
                letter(email, f"Your account at {self._site.name} is closed", body, now_us),
            ]
        )

    async def confirm(self, email: str, password: str, network: str, now_us: int) -> int:
        """Have the owner give the present password again. Answers the account's id. Raises InvalidRequest."""
        try:
            account_id, _ = await self._prove(email, password, network, now_us)
        except RateLimited as error:
            raise InvalidRequest(str(error)) from error
        if account_id is None:
            raise InvalidRequest("that is not your present password")
        return account_id

    async def confirm_alone(self, email: str, password: str, network: str, now_us: int) -> int:
        """Do as `confirm` does, for a password that shall be enough by itself: a short one is refused."""
        account_id = await self.confirm(email, password, network, now_us)
        if len(password) < SHORTEST:
            raise InvalidRequest(
                f"without a second factor a password has at least {SHORTEST} characters: choose a longer one first"
            )
        return account_id

    async def email_of(self, account_id: int) -> str:
        """Give the address of an account."""
        return str((await self._store.fetch("SELECT email FROM account WHERE id = ?", (account_id,)))[0][0])

    async def tell_of_key(self, email: str, name: str, hint: str, now_us: int) -> None:
        """Mail the owner that a key was made."""
        body = (
            f'A key named "{name}" ({hint}) has just been made for your account at {self._site.name}.\n\n'
            f"If it was not you, revoke it: {self._site.public_url}/dashboard/keys\n"
            f"and choose a new password: {self._site.public_url}/forgot\n"
        )
        await self._store.write([letter(email, f"A new API key at {self._site.name}", body, now_us)])

    async def _prove(self, address: str, password: str, network: str, now_us: int) -> tuple[int | None, str]:
        """Check a password; answers id and status of the account, or no id. Raises RateLimited."""
        await self._guesses.count(address, network, now_us)
        rows = await self._store.fetch(
            "SELECT a.id, a.status, c.password FROM account a JOIN credential c ON c.account_id = a.id "
            "WHERE a.email = ?",
            (address,),
        )
        if not await self._passwords.matches(rows[0][2] if rows else None, password):
            return None, ""
        await self._guesses.forgive(address, network)
        account_id, status, kept = rows[0]
        if self._passwords.is_outdated(kept):
            renew = "UPDATE credential SET password = ? WHERE account_id = ? AND password = ?"
            await self._store.write([(renew, (await self._passwords.hash(password), account_id, kept))])
        return int(account_id), str(status)

    async def _set_password(self, account_id: int, email: str, password: str, session: bytes, now_us: int) -> None:
        """Keep a new password, end all sessions but one and what was asked for with the old one; tell the owner."""
        kept = await self._passwords.hash(password)
        body = (
            f"The password of your account at {self._site.name} has just been changed, and every other session was "
            f"ended.\n\nIf it was not you: {self._site.public_url}/forgot\n"
        )
        await self._store.write(
            [
                (_KEEP, (account_id, kept, now_us)),
                ("DELETE FROM session WHERE account_id = ? AND hash <> ?", (account_id, session)),
                ("DELETE FROM challenge WHERE account_id = ?", (account_id,)),
                ("DELETE FROM token WHERE account_id = ? AND purpose <> 'verify'", (account_id,)),
                letter(email, "Your password has been changed", body, now_us),
            ]
        )

    async def _tell_of_the_account(self, email: str, now_us: int) -> None:
        subject = f"You have an account at {self._site.name}"
        if await self._too_many_mails(email, subject, now_us):
            return
        body = (
            f"Somebody tried to use this address for an account at {self._site.name}; it has one already.\n\n"
            f"Sign in: {self._site.public_url}/login\nForgotten the password: {self._site.public_url}/forgot\n"
        )
        await self._store.write([letter(email, subject, body, now_us, asked=True)])

    async def _too_many_mails(self, email: str, subject: str, now_us: int, within_s: int = 3600) -> bool:
        """Keep forms that send mail from filling somebody's inbox, and one form from using up the letters of another.

        Else whoever knows an address could keep its owner from getting a new password.
        """
        return await mails_asked_for(self._store, email, subject, now_us - within_s * US_PER_S) >= MAILS_AT_ONCE


def _ending_what_strangers_left(account_id: int, now_us: int) -> list[Statement]:
    """Make the statements that end what somebody can come in or call by who signed up with an unproved address.

    They change nothing of an account whose address was proved, nor of one that an operator opened.
    """
    theirs = (
        "account_id = ? AND EXISTS (SELECT 1 FROM account a JOIN credential c ON c.account_id = a.id "
        "WHERE a.id = ? AND a.verified_at IS NULL)"
    )
    both = (account_id, account_id)
    waiting = f"done_at IS NULL AND webhook_id IN (SELECT id FROM webhook WHERE {theirs})"  # noqa: S608
    return [
        (f"DELETE FROM delivery WHERE {waiting}", both),  # noqa: S608
        (f"UPDATE api_key SET revoked_at = ? WHERE revoked_at IS NULL AND {theirs}", (now_us, *both)),  # noqa: S608
        (f"UPDATE webhook SET disabled_at = ? WHERE disabled_at IS NULL AND {theirs}", (now_us, *both)),  # noqa: S608
        *((f"DELETE FROM {table} WHERE {theirs}", both) for table in _WAYS_IN),  # noqa: S608
    ]


def _plain(email: str) -> str:
    """Make of what was typed something that can be looked for: no longer than an address, nothing unprintable."""
    return "".join(char for char in email.strip().lower()[:254] if char.isprintable())
