"""Passkeys (WebAuthn level 3): keys in people's devices that sign what this site alone can ask for.

A passkey is asked to verify its person (by a PIN, a finger, a face), so that it is two factors at once. One whose
counter does not grow is a copy, and is refused.
"""

import ipaddress
import json
from typing import Any, Final, Literal, NoReturn
from urllib.parse import urlsplit

import msgspec
import webauthn
from webauthn.helpers import structs

from farebox.accounts.challenges import Challenges
from farebox.accounts.mail import letter
from farebox.accounts.people import Site
from farebox.accounts.sessions import Session
from farebox.errors import InvalidRequest, StoreConflict
from farebox.store.protocol import Store

Purpose = Literal["a new passkey", "sign-in"]
MOST: Final = 20
NAME_CHARS: Final = 60
NOT_HERE: Final = "passkeys need this site to have a name and https; it is reached by an address without either"
_ANSWER_CHARS: Final = 65_536
_COLUMNS: Final = "id, name, created_at, used_at"
_TIMEOUT_MS: Final = 5 * 60 * 1000


class Passkey(msgspec.Struct, frozen=True):
    """A passkey as its owner sees it."""

    id: bytes
    name: str
    created_at_us: int
    used_at_us: int | None

    @property
    def key(self) -> str:
        """How an address names it."""
        return self.id.hex()[:40]


def host_of_passkeys(public_url: str) -> str:
    """Give the name that passkeys belong to; nothing where browsers make none: they want a name, and https."""
    parts = urlsplit(public_url)
    host = parts.hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host if parts.scheme == "https" or host == "localhost" or host.endswith(".localhost") else ""
    return ""


class Passkeys:
    """Makes, checks and lists passkeys. `host` is empty where this site can have none."""

    def __init__(self, store: Store, challenges: Challenges, site: Site) -> None:
        self._store = store
        self._challenges = challenges
        self._site = site
        self.host = host_of_passkeys(site.public_url)

    async def of(self, account_id: int) -> list[Passkey]:
        """Give an account's passkeys, oldest first."""
        rows = await self._store.fetch(
            f"SELECT {_COLUMNS} FROM passkey WHERE account_id = ? ORDER BY created_at, id",  # noqa: S608  fixed text
            (account_id,),
        )
        return [Passkey(bytes(row[0]), *row[1:]) for row in rows]

    async def offer(self, me: Session, browser: str, now_us: int) -> str:
        """Make what a browser needs to make a passkey, as JSON."""
        options = webauthn.generate_registration_options(
            rp_id=self.host,
            rp_name=self._site.name,
            user_id=me.account_id.to_bytes(8, "big"),
            user_name=me.email,
            challenge=self._challenges.give("a new passkey", browser, now_us),
            timeout=_TIMEOUT_MS,
            authenticator_selection=structs.AuthenticatorSelectionCriteria(
                resident_key=structs.ResidentKeyRequirement.REQUIRED,
                user_verification=structs.UserVerificationRequirement.REQUIRED,
            ),
            exclude_credentials=[
                structs.PublicKeyCredentialDescriptor(id=one.id) for one in await self.of(me.account_id)
            ],
        )
        return webauthn.options_to_json(options)

    async def add(self, me: Session, name: str, answer: str, browser: str, now_us: int) -> None:
        """Keep the passkey that a browser has made. Raises InvalidRequest."""
        if not self.host:
            raise InvalidRequest(NOT_HERE)
        name = " ".join(name.split())
        if not 0 < len(name) <= NAME_CHARS or not name.isprintable():
            raise InvalidRequest(f"a passkey's name has 1 to {NAME_CHARS} characters, such as the device it is on")
        if len(await self.of(me.account_id)) >= MOST:
            raise InvalidRequest(f"an account has at most {MOST} passkeys; remove one first")
        told, challenge = _read(answer)
        await self._challenges.spend(challenge, "a new passkey", browser, now_us)
        try:
            made = webauthn.verify_registration_response(
                credential=told,
                expected_challenge=challenge,
                expected_rp_id=self.host,
                expected_origin=self._site.public_url,
                require_user_verification=True,
            )
        except Exception as error:  # noqa: BLE001  it parses what anybody may send, and raises whatever it trips over
            _refuse(error)
        ways = told["response"].get("transports", [])
        transports = (
            json.dumps([way for way in ways if isinstance(way, str)][:10])[:500] if isinstance(ways, list) else "[]"
        )
        insert = (
            "INSERT INTO passkey (id, account_id, public_key, signs, name, transports, created_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        values = (made.credential_id, me.account_id, made.credential_public_key, made.sign_count, name, transports)
        body = (
            f'A passkey named "{name}" can be used to sign in to your account at {self._site.name} from now on.\n\n'
            f"If it was not you, remove it: {self._site.public_url}/dashboard/settings/passkeys\n"
            f"and choose a new password: {self._site.public_url}/forgot\n"
        )
        try:
            await self._store.write(
                [
                    (insert, (*values, now_us)),
                    letter(me.email, f"A new passkey at {self._site.name}", body, now_us),
                ]
            )
        except StoreConflict as error:
            raise InvalidRequest("this passkey is known here already") from error

    async def remove(self, me: Session, key: str, now_us: int) -> bool:
        """Take a passkey of one's own away. Answers whether there was one."""
        for one in await self.of(me.account_id):
            if one.key == key:
                body = f'The passkey "{one.name}" was removed from your account at {self._site.name}.\n'
                await self._store.write(
                    [
                        ("DELETE FROM passkey WHERE id = ? AND account_id = ?", (one.id, me.account_id)),
                        letter(me.email, f"A passkey was removed at {self._site.name}", body, now_us),
                    ]
                )
                return True
        return False

    async def ask(self, browser: str, now_us: int, account_id: int | None = None) -> str:
        """Make what a browser needs to have a passkey sign, as JSON; without an account it tells whose it is."""
        known = await self.of(account_id) if account_id is not None else []
        options = webauthn.generate_authentication_options(
            rp_id=self.host,
            challenge=self._challenges.give("sign-in", browser, now_us),
            timeout=_TIMEOUT_MS,
            allow_credentials=[structs.PublicKeyCredentialDescriptor(id=one.id) for one in known],
            user_verification=structs.UserVerificationRequirement.REQUIRED,
        )
        return webauthn.options_to_json(options)

    async def check(self, answer: str, browser: str, now_us: int) -> int:
        """Check what a passkey has signed. Answers whose it is. Raises InvalidRequest."""
        if not self.host:
            raise InvalidRequest(NOT_HERE)
        told, challenge = _read(answer)
        await self._challenges.spend(challenge, "sign-in", browser, now_us)
        rows = await self._store.fetch(
            "SELECT p.account_id, p.public_key, p.signs FROM passkey p JOIN account a ON a.id = p.account_id "
            "WHERE p.id = ? AND a.status <> 'closed'",
            (_credential_id(told),),
        )
        if not rows:
            raise InvalidRequest("this passkey is not known here (any more): sign in with your password")
        account_id, public_key, signs = rows[0]
        try:
            signed = webauthn.verify_authentication_response(
                credential=told,
                expected_challenge=challenge,
                expected_rp_id=self.host,
                expected_origin=self._site.public_url,
                credential_public_key=bytes(public_key),
                credential_current_sign_count=signs,
                require_user_verification=True,
            )
        except Exception as error:  # noqa: BLE001  it parses, as above
            _refuse(error)
        # two answers with the same count, at once: the second one finds the counter moved
        claim = "UPDATE passkey SET signs = ?, used_at = ? WHERE id = ? AND signs = ?"
        if not (await self._store.write([(claim, (signed.new_sign_count, now_us, signed.credential_id, signs))]))[0]:
            raise InvalidRequest("this passkey was used twice at once; try again")
        return int(account_id)


def _read(answer: str) -> tuple[dict[str, Any], bytes]:
    """Read what a browser says, and find the challenge in it. Raises InvalidRequest."""
    try:
        told = json.loads(answer[:_ANSWER_CHARS])
        client_data = json.loads(webauthn.base64url_to_bytes(told["response"]["clientDataJSON"]))
        return told, webauthn.base64url_to_bytes(client_data["challenge"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _refuse(error)


def _credential_id(told: dict[str, Any]) -> bytes:
    try:
        return webauthn.base64url_to_bytes(told["id"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _refuse(error)


def _refuse(error: Exception) -> NoReturn:
    raise InvalidRequest("the passkey's answer could not be verified; try again") from error
