"""The herald: looks out for what people want to be told, and tells it. One process at a time does."""

from farebox.accounts.sealing import Seals
from farebox.events.alerts import Lookout
from farebox.events.courier import Courier
from farebox.events.webhooks import Webhooks
from farebox.http.errands import Errands
from farebox.store.protocol import Store


class Herald:
    """Owns the lookout and the courier. `webhooks` is what pages work with."""

    def __init__(self, store: Store, seals: Seals, *, allow_private: bool, site_name: str, public_url: str) -> None:
        self.webhooks = Webhooks(store, seals, https_only=not allow_private)
        self.lookout = Lookout(store, site_name=site_name, public_url=public_url)
        self.courier = Courier(
            store, self.webhooks, Errands(allow_private=allow_private), site_name=site_name, public_url=public_url
        )
