"""What is wrong about the settings of an upstream, wherever they were entered: configuration, admin or command."""

import ipaddress
from collections.abc import Container, Iterator
from typing import Final
from urllib.parse import urlsplit

from msgspec.structs import replace

from farebox.http.client import read_origin
from farebox.upstreams.kinds.make import ANTHROPIC_URL, usual_url
from farebox.upstreams.kinds.needs import faults_of
from farebox.upstreams.settings import UpstreamSettings

_OWN_NAMES: Final = (".local", ".internal", ".lan", ".home.arpa")


def problems(settings: UpstreamSettings, said: Container[str]) -> Iterator[tuple[str, str]]:
    """Tell what is wrong: the setting, and the words that go on from its name. `said`: those that were given at all.

    Secrets may not be known here: whether one is there is asked of `said`. The words never quote one.
    """
    if not settings.name:
        yield "name", "is empty; it is what logs and metrics call this upstream"
    if settings.kind == "anthropic" and "api_key" not in said:
        yield "api_key", 'is missing; it must be "env:NAME", "file:PATH" or the key itself'
    if settings.speed is not None and (settings.kind != "simulator" or settings.base_url):
        yield "speed", 'is for upstreams of kind "simulator" without a base_url; leave it out'
    yield from faults_of(settings, said)
    url = settings.base_url or usual_url(settings)
    if url and (wrong := _wrong_about(url, settings.kind)):
        yield "base_url", wrong


def settled(settings: UpstreamSettings) -> UpstreamSettings:
    """Give settings with the base URL that calls go to, as it is written once and for all."""
    return replace(settings, base_url=(settings.base_url or usual_url(settings)).rstrip("/"))


def goes_in_the_clear(url: str) -> bool:
    """Tell whether a base URL sends keys and prompts by plain http over more than a private network."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return False
    try:
        address = ipaddress.ip_address(parts.hostname)
    except ValueError:
        return "." in parts.hostname and not parts.hostname.endswith(_OWN_NAMES)
    return not address.is_private


def sendable(text: str) -> bool:
    """Tell whether a secret can stand in a header: letters, digits and signs, without spaces or line breaks."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _wrong_about(url: str, kind: str) -> str:
    if "@" in url.partition("://")[2].partition("/")[0]:
        return "holds a password; say api_key instead"
    try:
        parts = urlsplit(url)
        read_origin(url.partition("?")[0].partition("#")[0])
        whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or a host that is none
        whole = False
    if not whole or parts.query or parts.fragment:
        shown = url.rpartition("@")[2][:60]  # what stands before may be a password
        return f'is "{shown}"; it must be a URL such as "{ANTHROPIC_URL}"'
    if kind != "chat" and parts.path.rstrip("/").endswith("/v1"):
        return f'is "{url[:60]}"; leave out the /v1 at its end, it is added'
    return ""
