"""The form of a key: what its fields say, what is wrong with each, and how a key's rules are written into them."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Self

import msgspec

from farebox.accounts import key_rules
from farebox.accounts.key_rules import Rules, show_network
from farebox.accounts.keys import Key
from farebox.clock import DAY_US
from farebox.errors import InvalidRequest
from farebox.money import decimal_usd

LIFETIMES: Final = {"": "until it is revoked", "7": "7 days", "30": "30 days", "90": "90 days", "365": "a year"}
RESETS: Final = {
    "never": "in all",
    "daily": "a day",
    "weekly": "a week, from Monday",
    "monthly": "a month",
}
AS_IT_IS: Final = "keep"
OWN_FIELDS: Final = 20
"""Fields of the form beside its models."""
_MODEL: Final = "model."
_TEXTS: Final = ("name", "limit", "lifetime", "requests_per_minute", "networks")


class KeyForm(msgspec.Struct, kw_only=True):
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
        form = msgspec.convert({name: _shown(value) for name, value in sent.items()}, cls)
        form.models = tuple(
            name.removeprefix(_MODEL) for name, value in fields.items() if name.startswith(_MODEL) and value
        )
        form.name = form._try("name", sent["name"], key_rules.read_name, form.name)
        form.rules = Rules(
            expires_at_us=form._expires_at(now_us, before),
            models=form._try("models", form.models, lambda wanted: key_rules.read_models(wanted, known), ()),
            networks=form._try("networks", sent["networks"], key_rules.read_networks, ()),
            requests_per_minute=form._try(
                "requests_per_minute", sent["requests_per_minute"], key_rules.read_requests_per_minute, None
            ),
            limit_nanos=form._try("limit", sent["limit"], key_rules.read_limit, None),
            resets=form._try("resets", sent["resets"], key_rules.read_resets, "never"),
        )
        return form

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

    def _expires_at(self, now_us: int, before: Key | None) -> int | None:
        if before is not None and self.lifetime == AS_IT_IS:
            return before.expires_at_us
        if self.lifetime not in LIFETIMES:
            self.errors["lifetime"] = (
                f"a key works for 7, 30, 90 or 365 days or until it is revoked, got {self.lifetime[:20]!r}"
            )
            return None
        return now_us + int(self.lifetime) * DAY_US if self.lifetime else None

    def _try(self, field: str, value: Any, read: Callable[[Any], Any], otherwise: Any) -> Any:
        try:
            return read(value)
        except InvalidRequest as error:
            self.errors[field] = str(error)
            return otherwise


def _shown(text: str) -> str:
    """Give a text as a page can hold it: what no document may contain left out."""
    return "".join(char for char in text if char.isprintable() or char == "\n")
