"""The second factor of an account: an app's codes or recovery codes. Wrong ones are slowed down like wrong passwords.

A passkey stands for it as well (passkeys.py). For operators a passkey alone makes it needed; for everybody else it
is the app that does, so that nobody is locked out by a key that is on one machine only.
"""

from typing import Final

import msgspec

from farebox.accounts.guesses import FREE, Guesses
from farebox.accounts.mail import letter
from farebox.accounts.people import Site
from farebox.accounts.recovery import codes_left, new_codes, take_code
from farebox.accounts.sessions import Session
from farebox.accounts.totp import Offer, Totp
from farebox.errors import InvalidRequest
from farebox.store.protocol import Store

_WRONG: Final = "that code is not right, or was used before: take the one the app shows now"


class Factors(msgspec.Struct, frozen=True):
    """What second factors an account has."""

    app_since_us: int | None
    codes_left: int
    passkeys: int
    role: str

    @property
    def is_needed(self) -> bool:
        """Whether the password alone is not enough to come in."""
        return self.app_since_us is not None or (self.role == "admin" and self.passkeys > 0)


class SecondFactor:
    """Turns the second factor on and off, and checks it."""

    def __init__(self, store: Store, totp: Totp, site: Site, *, passkeys_work: bool) -> None:
        self._store = store
        self._totp = totp
        self._site = site
        self._passkeys_work = passkeys_work
        self._guesses = Guesses(store)

    async def of(self, account_id: int) -> Factors:
        """Look up what an account has. Passkeys that cannot be used at this address do not count."""
        rows = await self._store.fetch(
            "SELECT t.set_at, (SELECT count(*) FROM passkey WHERE account_id = a.id), a.role FROM account a "
            "LEFT JOIN totp t ON t.account_id = a.id WHERE a.id = ?",
            (account_id,),
        )
        set_at_us, passkeys, role = rows[0]
        left = await codes_left(self._store, account_id)
        return Factors(set_at_us, left, passkeys if self._passkeys_work else 0, role)

    def offer(self, me: Session, now_us: int, sealed: str = "") -> Offer:
        """Make a secret for an app to take, or give the one again that was offered before. Raises InvalidRequest."""
        return self._totp.offer(me.account_id, me.email, now_us, sealed)

    async def turn_on(self, me: Session, sealed: str, code: str, now_us: int) -> list[str]:
        """Set an app up by its first code, and end every other session. Answers the recovery codes, kept as hashes.

        Raises InvalidRequest for a wrong code, an old offer, and where an app is set up already.
        """
        keep = self._totp.accept(me.account_id, sealed, code, now_us)
        if keep is None:
            raise InvalidRequest(_WRONG)
        if not (await self._store.write([keep]))[0]:
            raise InvalidRequest("an app is set up for this account already; turn it off first")
        codes, statements = new_codes(me.account_id)
        others = ("DELETE FROM session WHERE account_id = ? AND hash <> ?", (me.account_id, me.hash))
        body = (
            f"From now on your account at {self._site.name} asks for a code from your app beside the password. Every "
            f"other session was ended.\n\n{self._if_not_you()}"
        )
        mail = letter(me.email, f"Two-step sign-in is on at {self._site.name}", body, now_us)
        await self._store.write([*statements, others, mail])
        return codes

    async def renew_codes(self, me: Session, now_us: int) -> list[str]:
        """Make new recovery codes; those there were work no longer. Raises InvalidRequest where no app is set up."""
        if (await self.of(me.account_id)).app_since_us is None:
            raise InvalidRequest("set up an app first: recovery codes stand for its codes")
        codes, statements = new_codes(me.account_id)
        body = f"New recovery codes were made for your account; the old ones work no longer.\n\n{self._if_not_you()}"
        mail = letter(me.email, f"New recovery codes at {self._site.name}", body, now_us)
        await self._store.write([*statements, mail])
        return codes

    async def turn_off(self, me: Session, code: str, network: str, now_us: int) -> None:
        """Do without the app and its recovery codes, knowing one of its codes. Raises InvalidRequest."""
        await self.check(me.account_id, me.email, code, network, now_us)
        body = f"Your account at {self._site.name} asks for the password alone from now on.\n\n{self._if_not_you()}"
        await self._store.write(
            [
                ("DELETE FROM totp WHERE account_id = ?", (me.account_id,)),
                ("DELETE FROM recovery_code WHERE account_id = ?", (me.account_id,)),
                letter(me.email, f"Two-step sign-in is off at {self._site.name}", body, now_us),
            ]
        )

    async def check(self, account_id: int, email: str, code: str, network: str, now_us: int) -> None:
        """Take a code of the app, or a recovery code; each counts once.

        Raises InvalidRequest for a wrong one, and RateLimited after too many: these are counted apart from wrong
        passwords, so that knowing the password does not help to guess codes.
        """
        name = f"factor {account_id}"
        tries = await self._guesses.count(name, network, now_us)
        if "".join(code.split()).isdecimal():
            right = await self._totp.is_right(account_id, code, now_us)
        elif right := await take_code(self._store, account_id, code):
            await self._tell_of_recovery(account_id, email, now_us)
        if not right:
            if tries == FREE:
                await self._warn(email, network, now_us)
            raise InvalidRequest(_WRONG)
        await self._guesses.forgive(name, network)

    async def _tell_of_recovery(self, account_id: int, email: str, now_us: int) -> None:
        left = await codes_left(self._store, account_id)
        body = (
            f"A recovery code has just been used for your account at {self._site.name}; {left} are left.\n"
            f"Make new ones: {self._site.public_url}/dashboard/settings/second-factor\n\n{self._if_not_you()}"
        )
        await self._store.write([letter(email, f"A recovery code was used at {self._site.name}", body, now_us)])

    async def _warn(self, email: str, network: str, now_us: int) -> None:
        """Tell the owner that somebody who has the password does not have the second factor."""
        body = (
            f"Somebody at {network} has given the right password of your account at {self._site.name}, and then "
            f"{FREE} wrong codes. They did not come in.\n\n{self._if_not_you()}"
        )
        await self._store.write([letter(email, f"Wrong codes at {self._site.name}", body, now_us)])

    def _if_not_you(self) -> str:
        return f"If it was not you, choose a new password at once: {self._site.public_url}/forgot\n"
