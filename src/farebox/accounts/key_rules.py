"""What one key may do, where that is less than its account may: read from what people type, with refusals that help."""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from farebox.billing.budgets import RESETS, Resets
from farebox.errors import InvalidRequest
from farebox.money import MAX_NANOS, NANOS_PER_USD, parse_usd

NAME_CHARS: Final = 100
MOST_NETWORKS: Final = 50
MOST_MODELS: Final = 100
MOST_REQUESTS: Final = 1_000_000
_NETWORKS_CHARS: Final = 4000


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of a key. None and empty: whatever its account may. Networks are CIDR."""

    expires_at_us: int | None = None
    models: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    limit_nanos: int | None = None
    resets: Resets = "never"


def read_name(text: str) -> str:
    """Read a key's name. Raises InvalidRequest, as all of these do."""
    cleaned = " ".join(text.split())
    if not 0 < len(cleaned) <= NAME_CHARS or not cleaned.isprintable():
        raise InvalidRequest(f"a key's name has 1 to {NAME_CHARS} printable characters, got {text[:40]!r}")
    return cleaned


def read_limit(text: str) -> int | None:
    """Read a spend limit in dollars; nothing is none."""
    if not text.strip():
        return None
    try:
        return parse_usd(text)
    except ValueError:
        raise InvalidRequest(
            f"a spend limit is dollars such as 25 or 0.50, at most {MAX_NANOS // NANOS_PER_USD:,}, got {text[:40]!r}"
        ) from None


def read_resets(text: str) -> Resets:
    """Read how often a spend limit begins anew."""
    for resets in RESETS:
        if text == resets:
            return resets
    raise InvalidRequest(f"a spend limit begins anew {', '.join(RESETS[1:])} or never, got {text[:20]!r}")


def read_requests_per_minute(text: str) -> int | None:
    """Read a key's own limit of requests a minute; nothing is none."""
    cleaned = text.strip().replace(",", "").replace("_", "")
    if not cleaned:
        return None
    if not re.fullmatch(r"\d{1,7}", cleaned, re.ASCII) or not 1 <= int(cleaned) <= MOST_REQUESTS:
        raise InvalidRequest(f"requests a minute are 1…{MOST_REQUESTS:,}, got {text[:20]!r}")
    return int(cleaned)


def read_networks(text: str) -> tuple[str, ...]:
    """Read addresses and networks, separated by spaces, commas or lines, into CIDR, each once."""
    if len(text) > _NETWORKS_CHARS:
        raise InvalidRequest(f"a list of addresses has at most {_NETWORKS_CHARS:,} characters, got {len(text):,}")
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    if len(words) > MOST_NETWORKS:
        raise InvalidRequest(f"a key has at most {MOST_NETWORKS} addresses and networks, got {len(words)}")
    return tuple(dict.fromkeys(_read_network(word) for word in words))


def _read_network(word: str) -> str:
    try:
        network = ipaddress.ip_network(word, strict=False)
    except ValueError:
        raise InvalidRequest(
            f"{word[:50]!r} is no address or network; they look like 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32"
        ) from None
    if "/" in word and str(ipaddress.ip_interface(word).ip) != str(network.network_address):
        raise InvalidRequest(f"{word[:50]!r} has bits beyond its prefix; the network is {network.with_prefixlen}")
    if isinstance(network, ipaddress.IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:
            return f"{mapped}/{network.prefixlen - 96}"
        if network.network_address.scope_id:
            raise InvalidRequest(f"{word[:50]!r} names an interface; leave out what is after the %")
    return network.with_prefixlen


def read_models(wanted: Iterable[str], sold: Iterable[str]) -> tuple[str, ...]:
    """Read the models that a key may use, each once, in the order they are sold in."""
    known = list(dict.fromkeys(sold))
    asked = list(dict.fromkeys(wanted))
    if len(asked) > MOST_MODELS:
        raise InvalidRequest(f"a key names at most {MOST_MODELS} models, got {len(asked)}")
    for model in asked:
        if model not in known:
            raise InvalidRequest(f"{model[:60]!r} is not sold here; these are: {', '.join(known)}")
    return tuple(model for model in known if model in asked)


def show_network(network: str) -> str:
    """Write a network as people do: an address alone without its prefix."""
    whole = ipaddress.ip_network(network)
    return str(whole.network_address) if whole.prefixlen == whole.max_prefixlen else network
