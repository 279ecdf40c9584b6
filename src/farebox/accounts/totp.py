"""Codes from an app as a second factor (RFC 6238): SHA-1, six digits, 30 seconds; each code counts once."""

import base64
import hmac
from typing import Final

import msgspec
import pyotp

from farebox.accounts.sealing import Seals
from farebox.clock import US_PER_S
from farebox.errors import FareboxError, InvalidRequest
from farebox.store.protocol import Statement, Store

_STEP_US: Final = 30 * US_PER_S
_WINDOW: Final = (-1, 0, 1)
"""Codes of how many steps before and after the present one are taken: clocks differ."""
_OFFER_LIVES_US: Final = 60 * 60 * US_PER_S


class Offer(msgspec.Struct, frozen=True):
    """A secret that an app may take. `sealed` comes back with the first code; until then nobody keeps it."""

    secret: str
    uri: str
    sealed: str


class Totp:
    """Sets apps up, and checks their codes."""

    def __init__(self, store: Store, seals: Seals, site_name: str) -> None:
        self._store = store
        self._seals = seals
        self._site_name = site_name

    def offer(self, account_id: int, email: str, now_us: int, sealed: str = "") -> Offer:
        """Make a secret for an app; or give the one again that was offered before. Raises InvalidRequest."""
        secret = self._offered(account_id, sealed, now_us) if sealed else pyotp.random_base32()
        if not sealed:
            value = now_us.to_bytes(8, "big") + secret.encode()
            sealed = base64.urlsafe_b64encode(self._seals.seal(value, _offered_to(account_id))).decode()
        uri = pyotp.TOTP(secret).provisioning_uri(name=email, issuer_name=self._site_name)
        return Offer(secret, uri, sealed)

    def accept(self, account_id: int, sealed: str, code: str, now_us: int) -> Statement | None:
        """Check the first code of an offered secret. Answers the statement that turns it on; None for a wrong code.

        It changes nothing where an app is set up already. Raises InvalidRequest when the offer is too old.
        """
        secret = self._offered(account_id, sealed, now_us)
        step = _step_of(secret, code, now_us)
        if step is None:
            return None
        insert = (
            "INSERT INTO totp (account_id, secret, set_at, last_step) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (account_id) DO NOTHING"
        )
        return insert, (account_id, self._seals.seal(secret.encode(), _of(account_id)), now_us, step)

    async def is_right(self, account_id: int, code: str, now_us: int) -> bool:
        """Tell whether a code is right, and use it up: neither it nor an older one is right again.

        Raises InvalidRequest when the secret cannot be read, since the one that sealed it is not configured any more.
        """
        rows = await self._store.fetch(
            "SELECT secret, last_step FROM totp WHERE account_id = ? AND set_at IS NOT NULL", (account_id,)
        )
        if not rows:
            return False
        try:
            secret = self._seals.open_sealed(bytes(rows[0][0]), _of(account_id)).decode()
        except FareboxError as error:
            raise InvalidRequest("this server cannot check your app's codes any more: use a recovery code") from error
        step = _step_of(secret, code, now_us)
        if step is None or step <= rows[0][1]:
            return False
        claim = "UPDATE totp SET last_step = ? WHERE account_id = ? AND last_step < ?"
        return (await self._store.write([(claim, (step, account_id, step))]))[0] > 0

    def _offered(self, account_id: int, sealed: str, now_us: int) -> str:
        try:
            value = self._seals.open_sealed(base64.urlsafe_b64decode(sealed), _offered_to(account_id))
        except (FareboxError, ValueError) as error:
            raise InvalidRequest("begin again: this page is not the one that was shown here") from error
        if now_us - int.from_bytes(value[:8], "big") > _OFFER_LIVES_US:
            raise InvalidRequest("begin again: this page was open for more than an hour")
        return value[8:].decode()


def _step_of(secret: str, code: str, now_us: int) -> int | None:
    """Find the step whose code this is; all are compared, whichever fits."""
    digits = "".join(code.split())
    present = now_us // _STEP_US
    codes = pyotp.TOTP(secret)
    found = [
        present + offset
        for offset in _WINDOW
        if hmac.compare_digest(codes.generate_otp(present + offset).encode(), digits.encode("utf-8", "replace"))
    ]
    return found[-1] if found else None


def _of(account_id: int) -> str:
    return f"the second factor of account {account_id}"


def _offered_to(account_id: int) -> str:
    return f"the second factor offered to account {account_id}"
