"""Payment URIs: the exact amount in words that wallets know, the same again out of the QR code on the page."""

import re
from decimal import Decimal
from urllib.parse import parse_qsl, urlsplit

import pytest
import zxingcpp
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.payments.uris import bitcoin_uri, ether_uri, token_uri
from farebox.web.qr import draw_qr

SEGWIT = "bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu"
PAYEE = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
TETHER = "0xdAC17F958D2ee523a2206206994597C13D831ec7"

_SCALE = 4
"""Pixels to a module of a code."""


@pytest.mark.parametrize(
    ("satoshis", "label", "query"),
    [
        (123_450, "", "?amount=0.0012345"),
        (1, "", "?amount=0.00000001"),
        (100_000_000, "", "?amount=1"),
        (2_100_000_000_000_000, "", "?amount=21000000"),
        (1_050_000_000, "", "?amount=10.5"),
        (0, "", ""),
        (0, "Farebox", "?label=Farebox"),
        (123_450, "Top-up #12 & co", "?amount=0.0012345&label=Top-up%20%2312%20%26%20co"),
        (1, "für Zoë?", "?amount=0.00000001&label=f%C3%BCr%20Zo%C3%AB%3F"),
    ],
)
def test_bitcoin_is_asked_for_as_bip21_says(satoshis: int, label: str, query: str) -> None:
    assert bitcoin_uri(SEGWIT, satoshis, label) == f"bitcoin:{SEGWIT}{query}"


def test_coins_and_tokens_of_evm_chains_are_asked_for_as_eip681_says() -> None:
    assert ether_uri(PAYEE, chain_id=1, wei=5 * 10**15) == f"ethereum:{PAYEE}@1?value=5000000000000000"
    expected = f"ethereum:{TETHER}@137/transfer?address={PAYEE}&uint256=25000000"
    assert token_uri(TETHER, PAYEE, chain_id=137, units=25_000_000) == expected


@given(st.integers(1, 21 * 10**14), st.text(max_size=30))
def test_any_amount_is_written_exactly_and_without_an_exponent(satoshis: int, label: str) -> None:
    told = dict(parse_qsl(urlsplit(bitcoin_uri(SEGWIT, satoshis, label)).query, strict_parsing=True))
    assert re.fullmatch(r"[0-9]+(\.[0-9]{1,8})?", told["amount"])
    assert Decimal(told["amount"]) * 10**8 == satoshis
    assert told.get("label", "") == label


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2**256 - 1))
def test_a_camera_reads_the_same_from_the_page(units: int) -> None:
    for text in (
        bitcoin_uri(SEGWIT, units % (21 * 10**14), "Top-up, 25 $"),
        ether_uri(PAYEE, chain_id=11_155_111, wei=units),
        token_uri(TETHER, PAYEE, chain_id=1, units=units),
        PAYEE,
    ):
        assert _scan(str(draw_qr(text))) == [text]


def _scan(svg: str) -> list[str]:
    """Paint what the page shows, and read it as a camera would."""
    side = int(re.findall(r'viewBox="0 0 (\d+) \d+"', svg)[0]) // int(re.findall(r"scale\((\d+)\)", svg)[0])
    dark = re.findall(r'stroke="#000" d="([^"]+)"', svg)[0]
    width = side * _SCALE
    pixels = bytearray(b"\xff" * width * width)
    x, y = 0, 0
    for step, across, down in re.findall(r"([Mmh])(-?[\d.]+)(?: (-?[\d.]+))?", dark):
        if step == "h":
            for row in range(y * _SCALE, (y + 1) * _SCALE):
                begin = row * width + x * _SCALE
                pixels[begin : begin + int(across) * _SCALE] = bytes(int(across) * _SCALE)
            x += int(across)
        else:
            x, y = (int(across), int(float(down))) if step == "M" else (x + int(across), y + int(float(down)))
    image = memoryview(pixels).cast("B", (width, width))
    return [found.text for found in zxingcpp.read_barcodes(image)]
