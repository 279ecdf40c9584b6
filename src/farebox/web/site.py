"""The site as one ASGI application: routes from the rooms, guarded as a whole."""

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.passwords import Passwords
from farebox.accounts.people import People, Site
from farebox.accounts.sessions import Sessions
from farebox.billing.plans import Plans
from farebox.billing.pricing import Model
from farebox.clock import Clock
from farebox.errors import StoreUnavailable
from farebox.store.protocol import Store
from farebox.web.asgi import App
from farebox.web.assets import Assets
from farebox.web.calls import Calls
from farebox.web.dashboard import Dashboard
from farebox.web.keys import Keys
from farebox.web.pages import Pages
from farebox.web.public import Public
from farebox.web.security import Guard
from farebox.web.settings import Settings
from farebox.web.sign_in import SignIn
from farebox.web.transactions import Transactions
from farebox.web.visitors import Visitors


def make_site(
    store: Store,
    *,
    clock: Clock,
    models: tuple[Model, ...],
    plans: Plans,
    name: str,
    support_email: str,
    public_url: str,
    base_url: str,
    key_prefix: str,
    open_to_all: bool,
    forget_keys: Callable[[], None],
) -> App:
    """Make the application that serves every page. `forget_keys` is called when keys cease to work."""
    assets = Assets()
    pages = Pages(site_name=name, support_email=support_email, base_url=base_url, assets=assets, clock=clock)
    visitors = Visitors(Sessions(store), clock, secure=public_url.startswith("https://"))
    people = People(store, Passwords(), Site(name, public_url), plans.default.name)
    rooms = (
        Public(pages, visitors, models, plans),
        SignIn(pages, visitors, people, clock, open_to_all=open_to_all),
        Dashboard(pages, visitors, store, clock),
        Calls(pages, visitors, store, clock, models),
        Keys(pages, visitors, people, store, clock, prefix=key_prefix, forget_keys=forget_keys),
        Transactions(pages, visitors, store, clock),
        Settings(pages, visitors, people, store, clock, forget_keys=forget_keys),
    )
    routes = [Route("/static/{version}/{name:path}", assets.serve), *(one for room in rooms for one in room.routes())]

    async def refuse(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 503
        title, words = _WORDS.get(status, ("That did not work", "Go back and try again."))
        return pages.render(request, "error.html", status=status, title=title, words=words)

    app = Starlette(routes=routes, exception_handlers={HTTPException: refuse, StoreUnavailable: refuse})
    return Guard(app, public_url)


_WORDS = {
    404: ("There is nothing here", "The address is wrong, or what was here has gone."),
    405: ("Not like this", "This address takes another kind of request."),
    503: ("One moment", "The books cannot be read just now. Nothing is lost; try again in a few seconds."),
}
