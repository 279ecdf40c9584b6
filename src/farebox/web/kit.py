"""The kit: what every room of the site works with, made once."""

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from farebox.accounts.announcements import Announcements
from farebox.accounts.factors import SecondFactor
from farebox.accounts.identities import Identities
from farebox.accounts.passkeys import Passkeys
from farebox.accounts.people import People
from farebox.accounts.providers import Provider
from farebox.accounts.sealing import Seals
from farebox.accounts.signing import Signing
from farebox.bills.watch import BillWatch
from farebox.books.ledger import Ledger
from farebox.clock import Clock
from farebox.events.webhooks import Webhooks
from farebox.payments.by_hand import ByHand
from farebox.payments.till import Till
from farebox.store.protocol import Store
from farebox.web.backstage import Backstage
from farebox.web.entrance import Entrance
from farebox.web.hub import Hub
from farebox.web.offer import Offer
from farebox.web.pages import Pages
from farebox.web.visitors import Visitors


class House(Struct, frozen=True):
    """What the operator's own pages go by."""

    site_name: str
    admin_factor: Literal["required", "optional"] = "required"
    """Whether operators need a second factor."""
    cost_percent: int = 100
    """What upstreams charge, in percent of their list prices."""
    has_secret: bool = True
    """Whether secrets are sealed under one of the operator's own; if not, their key lies in the same database."""
    mail_host: str = ""
    """Where mail is handed in; empty: it waits in the outbox."""
    settings: Sequence[tuple[str, str, str, str]] = ()
    """What is configured: table, name, value as TOML writes it, and where that was said."""


class Kit(Struct, frozen=True, kw_only=True):
    """Rooms take it whole and use what they need."""

    store: Store
    ledger: Ledger
    clock: Clock
    seals: Seals
    signing: Signing
    offer: Offer
    pages: Pages
    visitors: Visitors
    people: People
    factor: SecondFactor
    passkeys: Passkeys
    entrance: Entrance
    backstage: Backstage
    hub: Hub
    till: Till
    by_hand: ByHand
    announcements: Announcements
    webhooks: Webhooks
    identities: Identities
    providers: Mapping[str, Provider]
    """Other ways to sign in, by name."""
    bills: BillWatch
    house: House
