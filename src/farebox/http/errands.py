"""Errands: single requests to servers that somebody else has named. Bounded in time and size; redirects are answers.

Where private addresses are refused, a name is looked up first and the connection goes to the very address that was
looked at: one that points elsewhere a moment later changes nothing (OWASP, "Server-Side Request Forgery Prevention").
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from msgspec import Struct

from farebox.http.client import HttpClient, Origin, read_origin
from farebox.http.failures import AnswerTimeout, ConnectFailed

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_ADDRESSES_TRIED: Final = 2
_LOOK_UPS: Final = 32
"""Look-ups at once. A name's server that does not answer holds one up for half a minute, whoever waits for it."""


class Reply(Struct, frozen=True):
    """What came back."""

    status: int
    body: bytes


class Errands:
    """Runs errands. `allow_private`: also to addresses that only this machine or its network can reach."""

    def __init__(self, *, allow_private: bool, tls: ssl.SSLContext | None = None) -> None:
        self.allow_private = allow_private
        self._tls = tls
        # threads of their own: those of the process write the books' spool and check passwords
        self._look_ups = ThreadPoolExecutor(_LOOK_UPS, "look-up")

    async def run(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"", *, within_s: float, most_bytes: int
    ) -> Reply:
        """Send one request on a connection of its own; takes no longer than `within_s` in all.

        With `most_bytes` 0 only the status is waited for.
        Raises ValueError for what is no URL, and UpstreamError when no answer of that size came.
        """
        origin, target = read_target(url)
        if origin.scheme == "https" and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        try:
            async with asyncio.timeout(within_s):
                return await self._try(origin, method, target, fields, body, within_s, most_bytes)
        except TimeoutError as error:
            raise AnswerTimeout(f"no answer within {within_s:g} s") from error

    async def _try(
        self,
        origin: Origin,
        method: str,
        target: str,
        fields: list[tuple[bytes, bytes]],
        body: bytes,
        within_s: float,
        most_bytes: int,
    ) -> Reply:
        failed: ConnectFailed | None = None
        for address in (await self._addresses(origin))[:_ADDRESSES_TRIED]:
            client = HttpClient(
                origin, connect_s=within_s, connections=1, stall_s=within_s, tls=self._tls, address=address
            )
            try:
                answer = await client.request(method, target, fields, body, first_byte_s=within_s)
                return Reply(answer.status, await answer.read(most_bytes) if most_bytes else b"")
            except ConnectFailed as error:
                failed = error
            finally:
                await client.close()
        assert failed is not None
        raise failed

    async def _addresses(self, origin: Origin) -> list[str]:
        """Look a name up. Raises ConnectFailed where one of its addresses is not for everybody, or there is none."""
        try:
            look_up = partial(socket.getaddrinfo, origin.host, origin.port, type=socket.SOCK_STREAM)
            found = await asyncio.get_running_loop().run_in_executor(self._look_ups, look_up)
        except (OSError, UnicodeError):
            found = []
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        if not self.allow_private and not all(is_public(address) for address in addresses):
            addresses = []
        if not addresses:  # the same words for a name of this network alone as for none: they give none away
            raise ConnectFailed(f"{origin.host} has no {'' if self.allow_private else 'public '}address")
        return addresses


def read_target(url: str) -> tuple[Origin, str]:
    """Split a URL into where to connect and what to ask for there. Raises ValueError."""
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError("a URL is of letters, digits and signs, without spaces")
    parts = urlsplit(url)
    if "#" in url:
        raise ValueError("a URL to send to has no # part")
    origin = read_origin(urlunsplit((parts.scheme, parts.netloc, "", "", "")))
    return origin, (parts.path or "/") + ("?" + parts.query if parts.query else "")


def is_public(address: str) -> bool:
    """Tell whether an address is one of the internet at large, and not of this machine or a network around it."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.sixtofour is not None or ip.teredo is not None or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
