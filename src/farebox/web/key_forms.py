"""The form of a key: what its fields say, what is wrong with each, and how a key's rules are written into them."""

from collections.abc import Callable, Mapping
from typing import Final, Self, TypeVar

import msgspec

from farebox.accounts import key_rules
from farebox.accounts.key_rules import Rules, show_network
from farebox.accounts.keys import Key
from farebox.clock import DAY_US
from farebox.errors import InvalidRequest
from farebox.money import decimal_usd

T = TypeVar("T")

LIFETIMES: Final = {"": "until it is revoked", "7": "7 days", "30": "30 days", "90": "90 days", "365": "a year"}
RESETS: Final = {"never": "in all", "daily": "a day", "weekly": "a week", "monthly": "a month"}
BEGINS: Final = {
    "never": "never",
    "daily": "each day, 00:00 UTC",
    "weekly": "each Monday, 00:00 UTC",
    "monthly": "on the 1st, 00:00 UTC",
}
AS_IT_IS: Final = "keep"
OWN_FIELDS: Final = 20
"""Fields of the form beside its models."""
_MODEL: Final = "model."
_TEXTS: Final = ("name", "limit", "lifetime", "requests_per_minute", "networks", "models")


class KeyForm(msgspec.Struct, frozen=True, kw_only=True):
    """A form as it was filled in. `errors` are by the field's name; `rules` are those of the fields that were right."""

    name: str = ""
    limit: str = ""
    resets: str = "never"
    lifetime: str = ""
    requests_per_minute: str = ""
    networks: str = ""
    models: tuple[str, ...] = ()
    errors: dict[str, str] = {}
    rules: Rules = Rules()

    @classmethod
    def read(cls, fields: Mapping[str, str], sold: list[str], now_us: int, before: Key | None = None) -> Self:
        """Read what was sent. A key that is changed may keep models that are sold no longer."""
        known = [*sold, *(before.models if before else ())]
        sent = {name: fields.get(name, "") for name in _TEXTS} | {"resets": fields.get("resets", "never")}
        models = tuple(name.removeprefix(_MODEL) for name, value in fields.items() if name.startswith(_MODEL) and value)
        errors: dict[str, str] = {}

        def read(field: str, how: Callable[[str], T], otherwise: T) -> T:
            try:
                return how(sent[field])
            except InvalidRequest as error:
                errors[field] = str(error)
                return otherwise

        name = read("name", key_rules.read_name, _shown(sent["name"]))
        rules = Rules(
            expires_at_us=read("lifetime", lambda text: _expires_at(text, now_us, before), None),
            models=read("models", lambda _: key_rules.read_models(models, known), ()),
            networks=read("networks", key_rules.read_networks, ()),
            requests_per_minute=read("requests_per_minute", key_rules.read_requests_per_minute, None),
            limit_nanos=read("limit", key_rules.read_limit, None),
            resets=read("resets", key_rules.read_resets, "never"),
        )
        return cls(
            name=name,
            limit=_shown(sent["limit"]),
            resets=_shown(sent["resets"]),
            lifetime=_shown(sent["lifetime"]),
            requests_per_minute=_shown(sent["requests_per_minute"]),
            networks=_shown(sent["networks"]),
            models=models,
            errors=errors,
            rules=rules,
        )

    @classmethod
    def of(cls, key: Key) -> Self:
        """Write a key's rules into the form that changes them."""
        rules = key.rules
        return cls(
            name=key.name,
            limit=decimal_usd(rules.limit_nanos) if rules.limit_nanos is not None else "",
            resets=rules.resets,
            lifetime=AS_IT_IS if rules.expires_at_us is not None else "",
            requests_per_minute=str(rules.requests_per_minute or ""),
            networks="\n".join(show_network(one) for one in rules.networks),
            models=rules.models,
            rules=rules,
        )


def _expires_at(lifetime: str, now_us: int, before: Key | None) -> int | None:
    if before is not None and lifetime == AS_IT_IS:
        return before.expires_at_us
    if lifetime not in LIFETIMES:
        raise InvalidRequest(f"a key works for 7, 30, 90 or 365 days or until it is revoked, got {lifetime[:20]!r}")
    return now_us + int(lifetime) * DAY_US if lifetime else None


def _shown(text: str) -> str:
    """Give a text as a page can hold it: what no document may contain left out."""
    return "".join(char for char in text if char.isprintable() or char == "\n")
