"""Addresses: what a trusted proxy says is believed, what its client says is not."""

from ipaddress import ip_network

import pytest

from farebox.http.addresses import client_address, is_within

PROXIES = (ip_network("127.0.0.1"), ip_network("192.168.0.0/16"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.5", ["10.0.0.1"], "203.0.113.5"),  # no proxy of ours: whatever it says
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("127.0.0.1", ["10.0.0.1, 203.0.113.5"], "203.0.113.5"),  # the first is the client's own invention
        ("127.0.0.1", ["10.0.0.1", "203.0.113.5"], "203.0.113.5"),
        ("127.0.0.1", ["203.0.113.5, 192.168.3.4"], "203.0.113.5"),
        ("fd00::1", [" 2001:db8::7 "], "2001:db8::7"),
        ("::ffff:127.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("127.0.0.1", ["203.0.113.5, unknown"], "127.0.0.1"),
        ("127.0.0.1", ["192.168.0.9"], "192.168.0.9"),
        ("127.0.0.1", [",,"], "127.0.0.1"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxy(peer: str, forwarded: list[str], client: str) -> None:
    headers = [(b"host", b"x"), *((b"x-forwarded-for", value.encode()) for value in forwarded)]
    assert client_address(peer, headers, PROXIES) == client


@pytest.mark.parametrize(
    ("address", "inside"),
    [("192.168.9.9", True), ("::ffff:192.168.9.9", True), ("192.169.0.0", False), ("", False), ("x", False),
     ("fd12::1%eth0", True), ("fe80::1", False)],
)  # fmt: skip
def test_an_address_lies_in_a_network_however_it_is_written(address: str, inside: bool) -> None:  # noqa: FBT001
    assert is_within(address, PROXIES) == inside
