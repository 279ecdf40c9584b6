"""What is wrong with a BTCPay Server's settings, in words, as far as its API key may see them."""

from typing import Final

from farebox.errors import RailTrouble
from farebox.payments.btcpay_api import BtcpayApi, Denied, WebhookSeen

RIGHTS: Final = ("btcpay.store.cancreateinvoice", "btcpay.store.canviewinvoices")
EVENTS: Final = frozenset(
    {
        "InvoiceReceivedPayment",
        "InvoicePaymentSettled",
        "InvoiceProcessing",
        "InvoiceSettled",
        "InvoiceExpired",
        "InvoiceInvalid",
    }
)
"""What a webhook has to send, so that nothing waits for the next round."""
_IMPLIED_BY: Final = {"btcpay.store.canmodifyinvoices", "btcpay.store.canmodifystoresettings"}
_EVERYTHING: Final = "unrestricted"
_LATEST_S: Final = 4_000_000_000
"""In the year 2096: no invoice is younger, so a list of those since then is empty."""


async def check(api: BtcpayApi, webhook_url: str) -> list[str]:
    """Name what keeps top-ups from working, or could be abused; nothing: all is well.

    A webhook can only be looked for by a key that may modify webhooks, which top-ups do not need: without that right,
    nothing is said of it. The speed policy and the times are said with every invoice, so the store's own do not matter.
    """
    try:
        granted = await api.permissions()
    except RailTrouble as trouble:
        return [str(trouble)]
    faults = [
        f"the API key lacks {right} for store {api.store}"
        for right in RIGHTS
        if right not in granted and not granted & {_EVERYTHING, *_IMPLIED_BY}
    ]
    if _EVERYTHING in granted:
        faults.append(f"the API key may do everything, also send money: give it {' and '.join(RIGHTS)} alone")
    try:
        await api.invoices_since(_LATEST_S, most=1)
    except Denied:
        faults.append(f"the API key does not reach store {api.store}: is that the id of the store?")
    except RailTrouble as trouble:
        faults.append(str(trouble))
    try:
        webhooks = await api.webhooks()
    except RailTrouble as trouble:
        return [*faults, str(trouble)]
    return faults if webhooks is None else [*faults, *_faults_of(webhooks, webhook_url)]


def _faults_of(webhooks: list[WebhookSeen], webhook_url: str) -> list[str]:
    ours = [one for one in webhooks if one.url.rstrip("/") == webhook_url]
    if not ours:
        return [f"no webhook of the store leads to {webhook_url}: top-ups are seen up to a minute later"]
    best = max(ours, key=lambda one: (one.enabled, one.redelivers, not one.events, len(one.events & EVENTS)))
    if not best.enabled:
        return [f"the webhook to {webhook_url} is switched off"]
    faults = (
        [] if best.redelivers else [f"the webhook to {webhook_url} does not send again what could not be delivered"]
    )
    if best.events and not best.events >= EVENTS:
        faults.append(f"the webhook to {webhook_url} does not send {', '.join(sorted(EVENTS - best.events))}")
    return faults
