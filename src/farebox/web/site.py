"""The site as one ASGI application: routes from the rooms, guarded as a whole."""

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.announcements import Announcements
from farebox.accounts.challenges import Challenges
from farebox.accounts.factors import SecondFactor
from farebox.accounts.identities import Identities
from farebox.accounts.passkeys import Passkeys
from farebox.accounts.passwords import Passwords
from farebox.accounts.people import People, Site
from farebox.accounts.providers import Provider, ProviderSettings
from farebox.accounts.sealing import Seals
from farebox.accounts.sessions import Sessions
from farebox.accounts.signing import Signing
from farebox.accounts.totp import Totp
from farebox.billing.plans import Plans
from farebox.bills.watch import BillWatch
from farebox.books.ledger import Ledger
from farebox.clock import Clock
from farebox.errors import StoreUnavailable
from farebox.events.webhooks import Webhooks
from farebox.http.errands import Errands
from farebox.payments.by_hand import ByHand
from farebox.payments.till import Till
from farebox.store.protocol import Store
from farebox.web.admin.room import Admin
from farebox.web.alerts import AlertRoom
from farebox.web.asgi import App
from farebox.web.assets import Assets
from farebox.web.backstage import Backstage
from farebox.web.batches import BatchRoom
from farebox.web.calls import Calls
from farebox.web.confirm import Confirm
from farebox.web.dashboard import Dashboard
from farebox.web.docs.room import Docs
from farebox.web.doctor import DoctorRoom
from farebox.web.entrance import Entrance
from farebox.web.hub import Hub
from farebox.web.keys import Keys
from farebox.web.kit import House, Kit
from farebox.web.limits import Limits
from farebox.web.linked import LinkedRoom
from farebox.web.live import LiveRoom
from farebox.web.offer import Offer
from farebox.web.pages import Pages
from farebox.web.passkeys import PasskeyRoom
from farebox.web.playground import Playground
from farebox.web.processors import BTCPAY_PATH, Processors
from farebox.web.public import Public
from farebox.web.receipts import Receipts
from farebox.web.receipts_signed import SignedReceipts
from farebox.web.second_factor import SecondFactorRoom
from farebox.web.second_step import SecondStep
from farebox.web.security import Guard
from farebox.web.settings import Settings
from farebox.web.setup import Setup
from farebox.web.sign_in import SignIn
from farebox.web.takeout import Takeout
from farebox.web.topups import TopupRoom
from farebox.web.transactions import Transactions
from farebox.web.visitors import Visitors
from farebox.web.webhooks import WebhookRoom
from farebox.web.work import WorkRoom


def make_site(
    store: Store,
    ledger: Ledger,
    backstage: Backstage,
    till: Till,
    announcements: Announcements,
    webhooks: Webhooks,
    hub: Hub,
    bills: BillWatch,
    *,
    clock: Clock,
    seals: Seals,
    signing: Signing,
    offer: Offer,
    name: str,
    support_email: str,
    house: House,
    log: Callable[..., None],
    providers: Sequence[ProviderSettings] = (),
) -> App:
    """Make the application that serves every page."""
    assets = Assets()
    pages = Pages(
        site_name=name,
        support_email=support_email,
        base_url=offer.base_url,
        texts=list(offer.texts),
        assets=assets,
        clock=clock,
        announcements=announcements,
    )
    visitors = Visitors(Sessions(store), clock, secure=offer.public_url.startswith("https://"))
    site = Site(name, offer.public_url)
    people = People(store, Passwords(), site, offer.plans[0].name)
    challenges = Challenges(store, seals)
    passkeys = Passkeys(store, challenges, site)
    factor = SecondFactor(store, Totp(store, seals, name), site, passkeys_work=bool(passkeys.host))
    kit = Kit(
        store=store,
        ledger=ledger,
        clock=clock,
        seals=seals,
        signing=signing,
        offer=offer,
        pages=pages,
        visitors=visitors,
        people=people,
        factor=factor,
        passkeys=passkeys,
        entrance=Entrance(visitors, people, factor, challenges, clock),
        backstage=backstage,
        hub=hub,
        till=till,
        by_hand=ByHand(store, ledger, Plans(offer.plans), site_name=name, public_url=offer.public_url),
        announcements=announcements,
        webhooks=webhooks,
        identities=Identities(store, site, offer.plans[0].name),
        providers=_providers(providers, offer.public_url),
        bills=bills,
        house=house,
    )

    async def refuse(request: Request, error: Exception) -> Response:
        return _refuse(pages, request, error)

    routes = [Route("/static/{version}/{name:path}", assets.serve), *_rooms(kit, assets, name, support_email)]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refuse, StoreUnavailable: refuse})
    return Guard(app, offer.public_url, log=log, signed=frozenset({BTCPAY_PATH}))


def _rooms(kit: Kit, assets: Assets, name: str, support_email: str) -> list[Route]:
    """Give the routes of all rooms."""
    rooms = (
        Public(kit.pages, kit.visitors, assets, kit.offer, kit.backstage.service),
        Docs(kit.pages, kit.visitors, kit.offer, name, support_email),
        SignIn(kit),
        SecondStep(kit),
        Dashboard(kit),
        LiveRoom(kit),
        Playground(kit),
        Calls(kit),
        BatchRoom(kit),
        WorkRoom(kit),
        Keys(kit),
        Limits(kit),
        Transactions(kit),
        TopupRoom(kit),
        Receipts(kit),
        SignedReceipts(kit),
        Setup(kit.offer),
        DoctorRoom(kit),
        Settings(kit),
        Confirm(kit),
        SecondFactorRoom(kit),
        PasskeyRoom(kit),
        LinkedRoom(kit),
        AlertRoom(kit),
        WebhookRoom(kit),
        Processors(kit),
        Takeout(kit),
        Admin(kit),
    )
    return [one for room in rooms for one in room.routes()]


def _refuse(pages: Pages, request: Request, error: Exception) -> Response:
    """Say on a page of its own why there is no other."""
    status = error.status_code if isinstance(error, HTTPException) else 503
    title, words = _WORDS.get(status, ("That did not work", "Go back and try again."))
    return pages.render(request, "error.html", status=status, title=title, words=words)


def _providers(settings: Sequence[ProviderSettings], public_url: str) -> dict[str, Provider]:
    """Make the other ways to sign in. Their addresses are the operator's own choice, so private ones are taken."""
    errands = Errands(allow_private=True)
    return {one.name: Provider(one, errands, f"{public_url}/login/from/{one.name}") for one in settings}


_WORDS = {
    403: ("Only to look at", "You see this account as its owner does; changing it from here is not possible."),
    404: ("There is nothing here", "The address is wrong, or what was here has gone."),
    405: ("Not like this", "This address takes another kind of request."),
    503: ("One moment", "The books cannot be read just now. Nothing is lost; try again in a few seconds."),
}
