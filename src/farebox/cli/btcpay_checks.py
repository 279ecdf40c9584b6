"""What `farebox doctor` asks a BTCPay Server: that it answers, what its key may do, where its webhook leads."""

from typing import Final

from farebox.cli.checks import Finding
from farebox.config import Config
from farebox.payments.btcpay_api import BtcpayApi
from farebox.payments.btcpay_check import check
from farebox.web.processors import BTCPAY_PATH

_ADVICE: Final = "docs/top-ups.md says how its store is set up"


async def check_btcpay(config: Config) -> list[Finding]:
    """Ask the BTCPay Server of the settings, if there is one."""
    if not config.btcpay.url:
        return []
    api = BtcpayApi(config.btcpay)
    try:
        faults = await check(api, config.public_url + BTCPAY_PATH)
    finally:
        await api.close()
    if not faults:
        return [Finding("btcpay", "ok", "the server answers, and its key may do what it must")]
    return [Finding("btcpay", "FAIL", fault, _ADVICE) for fault in faults]
