"""The offer: what is sold here and under which limits, as the public pages tell it."""

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from farebox.billing.plans import Plan
from farebox.billing.pricing import Catalogue, Model
from farebox.books.prices import Prices
from farebox.payments.settings import PaymentSettings


class Limits(Struct, frozen=True, kw_only=True):
    """The limits of one call that customers are told about. `_s` are seconds."""

    default_max_tokens: int
    slice_tokens: int
    drain_s: float
    call_s: float
    count_tokens_per_minute: int
    questions_per_minute: int
    body_bytes: int
    header_bytes: int


class Offer(Struct, frozen=True, kw_only=True):
    """Everything a customer may want to know before the first call."""

    prices: Prices
    plans: tuple[Plan, ...]
    limits: Limits
    features: Mapping[str, bool]
    """The switches of `[features]`: what is refused where they are off."""
    unoffered: Mapping[str, Sequence[str]]
    """Why endpoints are refused, and which they are."""
    base_url: str
    public_url: str
    key_prefix: str
    sign_up: Literal["open", "invitation", "closed"]
    private_webhooks: bool = False
    """Whether webhooks may go to private addresses, and by plain http."""
    payments: PaymentSettings = PaymentSettings()
    """How rates are made, and how long a quote holds."""
    texts: Mapping[str, str]
    """The operator's own pages as Markdown: terms, privacy, refunds; those there are."""

    @property
    def open_to_all(self) -> bool:
        """Whether everybody may open an account."""
        return self.sign_up == "open"

    @property
    def catalogue(self) -> Catalogue:
        """The prices in force now: an operator can bring in new ones at any time."""
        return self.prices.now

    @property
    def models(self) -> tuple[Model, ...]:
        """What is sold now."""
        return self.prices.now.prices.models

    @property
    def sample(self) -> Model:
        """The model that samples use: the first Sonnet, neither the dearest nor the smallest; else the first."""
        return next((model for model in self.models if "sonnet" in model.id), self.models[0])
