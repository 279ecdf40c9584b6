"""The settings as values: what each table of the configuration file may say, and its defaults."""

from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from farebox.accounts.mail import MailSettings
from farebox.accounts.providers import ProviderSettings
from farebox.billing.plans import Plans
from farebox.billing.pricing import Model, PriceList
from farebox.bills.reports import BillSettings
from farebox.gateway.batches.settings import BatchSettings
from farebox.gateway.settings import CallLimits, Features
from farebox.http.addresses import Network
from farebox.http.server import ServerLimits
from farebox.payments.settings import BitcoinSettings, BtcpaySettings, EvmSettings, PaymentSettings
from farebox.secret import Secret
from farebox.store.urls import without_password
from farebox.upstreams.settings import UpstreamSettings

Host = Annotated[str, Meta(pattern=r"^[A-Za-z0-9.:_-]+$", description='an address or a host name such as "127.0.0.1"')]
Port = Annotated[int, Meta(ge=0, le=65535)]
PublicUrl = Annotated[
    str,
    Meta(
        pattern=r"^(https?://[^/\s?#]+)?$",
        description='scheme and host without a path, such as "https://farebox.example"',
    ),
]
BasePath = Annotated[
    str,
    Meta(
        pattern=r"^(/(?!v1$)[A-Za-z0-9._~-]+)*$",
        description='a path such as "/api/proxy", without a slash at its end and without /v1, which is added',
    ),
]
Metrics = Annotated[
    str,
    Meta(
        pattern=r"^(off|\[[0-9a-fA-F:]+\]:\d{1,5}|[A-Za-z0-9._-]+:\d{1,5})$",
        description='"host:port" or "off"',
    ),
]
Proxies = Annotated[
    str,
    Meta(
        pattern=r"^[0-9A-Fa-f:./ ]*$",
        description='addresses and networks with spaces between them, such as "127.0.0.1 10.0.0.0/8"',
    ),
]
KeyPrefix = Annotated[
    str,
    Meta(
        pattern=r"^[a-z][a-z0-9_-]{1,15}$",
        description="2 to 16 of a-z, 0-9, - and _, a letter first",
    ),
]
Email = Annotated[
    str,
    Meta(pattern=r"^([^@\s]+@[^@\s]+\.[^@\s.]+)?$", description='an address such as "support@farebox.example"'),
]


class ServerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    host: Host = "127.0.0.1"
    port: Port = 8080
    workers: Annotated[int, Meta(ge=1)] = 1
    public_url: PublicUrl = ""
    base_path: BasePath = "/api/proxy"
    metrics: Metrics = "127.0.0.1:9464"
    shutdown_s: Annotated[float, Meta(ge=0)] = 30.0
    handover_s: Annotated[float, Meta(ge=0)] = 3700.0
    secret: Secret = Secret("")
    proxies: Proxies = ""

    @property
    def trusted(self) -> tuple[Network, ...]:
        """Whose x-forwarded-for is believed."""
        return tuple(map(ip_network, self.proxies.split()))

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Where metrics are served; None: nowhere."""
        if self.metrics == "off":
            return None
        host, _, port = self.metrics.rpartition(":")
        return host.strip("[]"), int(port)


class DatabaseSettings(Struct, frozen=True, forbid_unknown_fields=True):
    url: str = "sqlite:///farebox.db"
    spool: str = ""
    lease_s: Annotated[float, Meta(ge=0.5, le=45)] = 30.0
    keep_months: Annotated[int, Meta(ge=0, le=1200)] = 0


class SiteSettings(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1)] = "Farebox"
    support_email: Email = ""
    sign_up: Literal["open", "invitation", "closed"] = "open"
    admin_factor: Literal["required", "optional"] = "required"
    cost_percent: Annotated[int, Meta(ge=0, le=1000)] = 100
    terms: str = ""
    privacy: str = ""
    refunds: str = ""


class WebhookSettings(Struct, frozen=True, forbid_unknown_fields=True):
    allow_private: bool = False


class KeySettings(Struct, frozen=True, forbid_unknown_fields=True):
    prefix: KeyPrefix = "sk-cc-"


class LogSettings(Struct, frozen=True, forbid_unknown_fields=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"
    calls: bool = True


class Config(Struct, frozen=True, kw_only=True):
    """Everything an operator may set, checked as a whole."""

    server: ServerSettings
    database: DatabaseSettings
    database_path: Path | None
    """The SQLite file that `database.url` names, absolute; None for PostgreSQL."""
    spool_path: Path
    """The directory for settles that the database cannot take, absolute."""
    site: SiteSettings
    site_texts: Mapping[str, str]
    """The operator's own pages as Markdown, by name: "terms", "privacy", "refunds"; those there are."""
    payments: PaymentSettings
    bitcoin: BitcoinSettings
    evm: tuple[EvmSettings, ...]
    btcpay: BtcpaySettings
    keys: KeySettings
    mail: MailSettings
    webhooks: WebhookSettings
    sign_in: tuple[ProviderSettings, ...]
    """Providers that people may sign in with."""
    upstreams: tuple[UpstreamSettings, ...]
    models: tuple[Model, ...]
    plans: Plans
    limits: CallLimits
    server_limits: ServerLimits
    features: Features
    batches: BatchSettings
    bills: tuple[BillSettings, ...]
    log: LogSettings
    source: Path | None = None
    """The file all this was read from."""
    origins: Mapping[str, str]
    """Where each setting that is no default came from, by dotted key: "farebox.toml:12" or a variable."""

    @property
    def books_url(self) -> str:
        """Where the books are: what `farebox.store.open` takes."""
        return self.database.url if self.database_path is None else str(self.database_path)

    @property
    def books_place(self) -> str:
        """Where the books are, for people: without the password."""
        return without_password(self.books_url)

    @property
    def public_url(self) -> str:
        """What customers reach the server by: as set, or else the address it listens on."""
        return self.server.public_url or listening_url(self.server.host, self.server.port)

    @property
    def base_url(self) -> str:
        """What an SDK takes as its base URL."""
        return self.public_url + self.server.base_path

    def price_list(self, version: int) -> PriceList:
        """Give the configured prices as the version the books know them by."""
        return PriceList(version, self.models)


def listening_url(host: str, port: int) -> str:
    """Write the address of a listening socket as a URL that a client on this machine can use."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
