"""The site of a running gateway: what pages are told of its configuration, and the door they are served at."""

from farebox.backstage import Gatehouse
from farebox.config.show import settings_in_force
from farebox.config.told import offer_of
from farebox.gateway.routes import Handler
from farebox.parts import Parts
from farebox.web.asgi import AsgiDoor
from farebox.web.kit import House
from farebox.web.site import make_site


def make_frontage(parts: Parts, gatehouse: Gatehouse) -> Handler:
    """Make what serves all pages."""
    config = parts.config
    site = make_site(
        parts.store,
        parts.ledger,
        gatehouse,
        parts.till,
        parts.announcements,
        parts.herald.webhooks,
        parts.hub,
        parts.bills,
        clock=parts.clock,
        seals=parts.seals,
        signing=parts.signing,
        offer=offer_of(config, parts.prices),
        name=config.site.name,
        support_email=config.site.support_email,
        house=House(
            site_name=config.site.name,
            admin_factor=config.site.admin_factor,
            cost_percent=config.site.cost_percent,
            has_secret=bool(config.server.secret),
            mail_host=config.mail.host,
            settings=settings_in_force(config),
        ),
        log=parts.log.info,
        providers=config.sign_in,
    )
    return AsgiDoor(site, scheme=config.public_url.partition(":")[0]).serve
