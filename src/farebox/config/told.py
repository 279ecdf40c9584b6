"""What customers are told of the configuration, as the pages take it."""

from msgspec.structs import asdict

from farebox.books.prices import Prices
from farebox.config.settings import Config
from farebox.gateway.unoffered import families
from farebox.web.offer import Limits, Offer


def offer_of(config: Config, prices: Prices) -> Offer:
    """Pick what customers are told out of the configuration."""
    limits = config.limits
    return Offer(
        prices=prices,
        plans=tuple(config.plans),
        limits=Limits(
            default_max_tokens=limits.default_max_tokens,
            slice_tokens=limits.slice_tokens,
            drain_s=limits.drain_s,
            call_s=limits.call_s,
            count_tokens_per_minute=limits.count_tokens_per_minute,
            questions_per_minute=limits.questions_per_minute,
            body_bytes=limits.body_bytes,
            header_bytes=config.server_limits.header_bytes,
        ),
        features=asdict(config.features),
        unoffered=families(config.features),
        base_url=config.base_url,
        public_url=config.public_url,
        key_prefix=config.keys.prefix,
        sign_up=config.site.sign_up,
        private_webhooks=config.webhooks.allow_private,
        payments=config.payments,
        texts=config.site_texts,
    )
