"""What `farebox doctor` asks a node of Bitcoin: that it answers, is on the right chain and at its end."""

from typing import Final

from farebox.cli.checks import Finding
from farebox.cli.common import now_us
from farebox.config import Config
from farebox.errors import RailTrouble
from farebox.payments.chains.bitcoin_node import BitcoinNode
from farebox.payments.keys import ExtendedKey

_ADVICE: Final = "docs/top-ups.md says how the node is set up"


async def check_bitcoin(config: Config) -> list[Finding]:
    """Ask the node of the settings, if there is one."""
    settings = config.bitcoin
    if not settings.key:
        return []
    node = BitcoinNode(settings, ExtendedKey(settings.key.reveal(), "bitcoin", settings.network))
    try:
        tip = await node.tip(None, now_us())
    except RailTrouble as trouble:
        return [Finding("bitcoin", "FAIL", str(trouble), _ADVICE)]
    finally:
        await node.close()
    return [Finding("bitcoin", "ok", f"the node answers, and has block {tip.height}")]
