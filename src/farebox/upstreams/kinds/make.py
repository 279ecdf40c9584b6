"""From settings to a kind."""

from typing import Final

from farebox.upstreams.kinds.anthropic import Anthropic
from farebox.upstreams.kinds.kind import Kind
from farebox.upstreams.settings import UpstreamSettings

ANTHROPIC_URL: Final = "https://api.anthropic.com"


def usual_url(settings: UpstreamSettings) -> str:
    """Give the base URL of an upstream that names none; empty when it must."""
    match settings.kind:
        case "anthropic":
            return ANTHROPIC_URL
        case _:
            return ""


def make_kind(settings: UpstreamSettings) -> Kind:
    """Make the kind that an upstream's settings ask for. Raises ValueError for credentials that cannot be used."""
    match settings.kind:
        case "anthropic" | "simulator":
            return Anthropic(settings.api_key)
