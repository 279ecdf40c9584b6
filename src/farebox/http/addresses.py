"""Addresses: who is at the other end of a connection, and for whom a proxy speaks that is trusted to say so."""

import ipaddress
from collections.abc import Collection
from typing import Final

from farebox.http.exchange import Headers

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_ANY: Final[tuple[Network, ...]] = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))


def is_within(text: str, networks: Collection[Network]) -> bool:
    """Tell whether an address lies in one of several networks; what is no address lies in none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # how a socket for both kinds shows an IPv4 peer
    return any((mapped or address) in network for network in networks)


def client_address(peer: str, headers: Headers, proxies: Collection[Network]) -> str:
    """Give the address behind trusted proxies, as they wrote it into x-forwarded-for; else the peer's own.

    Each proxy adds whom it heard at the end: the last one that is no proxy is the client. What stands before that the
    client may have made up.
    """
    if not is_within(peer, proxies):
        return peer
    listed = b",".join(value for name, value in headers if name == b"x-forwarded-for").decode("latin-1")
    for part in reversed(listed.split(",")):
        address = part.strip()
        if not is_within(address, _ANY):
            return peer
        peer = address
        if not is_within(peer, proxies):
            return peer
    return peer
