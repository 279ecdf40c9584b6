"""QR codes, drawn on the server: dark on white in both themes, which is what phones read."""

import segno
from markupsafe import Markup


def draw_qr(text: str) -> Markup:
    """Draw a text as an SVG element to stand in a page."""
    code = segno.make(text, error="m", micro=False)
    drawn = code.svg_inline(border=3, scale=5, dark="#000", light="#fff", svgclass="qr", lineclass=None, omitsize=True)
    return Markup(drawn)  # noqa: S704  segno writes paths, none of the text
