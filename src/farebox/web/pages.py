"""Turns templates and values into pages. Amounts, counts and moments are written here, the same everywhere."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse

from farebox.accounts.announcements import Announcement, Announcements
from farebox.accounts.sessions import Session
from farebox.clock import US_PER_S, Clock
from farebox.money import NANOS_PER_USD
from farebox.web.assets import Assets
from farebox.web.devices import name_device

_FRAGMENTS: Final = frozenset({"usage", "tiles", "steps", "log", "topup", "balance", "announcements"})
"""Blocks that scripts may ask for alone. They need nothing that their templates define around them."""
_UNITS: Final = ((60, "second"), (60, "minute"), (24, "hour"), (30, "day"), (12, "month"), (1000, "year"))


class Pages:
    """Renders templates with what every page shows: the site's name, its base URL, who is signed in."""

    def __init__(
        self,
        *,
        site_name: str,
        support_email: str,
        base_url: str,
        texts: Sequence[str],
        assets: Assets,
        clock: Clock,
        announcements: Announcements,
    ) -> None:
        self._clock = clock
        self._announcements = announcements
        self.site_name = site_name
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("farebox.web"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self._environment.globals.update(
            site_name=site_name,
            support_email=support_email,
            base_url=base_url,
            texts=texts,
            asset=assets.url,
            announced=self.announced,
            me=None,
            balance=None,
        )
        self._environment.filters.update(
            balance=write_balance,
            cost=write_cost,
            pico=write_pico,
            total=write_total,
            took=write_took,
            price=write_price,
            count=write_count,
            utc=write_utc,
            ago=self.ago,
            device=name_device,
        )

    def render(
        self,
        request: Request,
        template: str,
        /,
        *,
        status: int = 200,
        me: Session | None = None,
        headers: dict[str, str] | None = None,
        **context: Any,
    ) -> HTMLResponse:
        """Make the response of a page; only the fragment of it that a script asks for, if one does."""
        fragment = request.headers.get("x-fragment", "")
        shown = self._environment.get_template(template)
        values = {"me": me, "here": request.scope["path"], **context}
        if fragment in _FRAGMENTS and fragment in shown.blocks:
            page = shown.new_context(values)
            text = "".join(shown.blocks[fragment](page))
        else:
            text = shown.render(values)
        return HTMLResponse(text, status, headers)

    def announced(self) -> list[Announcement]:
        """Give what everybody is told now."""
        return self._announcements.shown(self._clock())

    def ago(self, at_us: int) -> str:
        """Say how long ago a moment was: "3 minutes ago"."""
        seconds = (self._clock() - at_us) // US_PER_S
        when, amount = ("ago", seconds) if seconds >= 0 else ("from now", -seconds)
        if amount < 10:
            return "just now"
        for most, unit in _UNITS:
            if amount < most:
                return f"{amount} {unit}{'' if amount == 1 else 's'} {when}"
            amount //= most
        return "long ago"


def write_balance(nanos: int) -> str:
    """Write a balance in dollars and cents, rounded down: never more than there is."""
    cents = abs(nanos) * 100 // NANOS_PER_USD
    return f"{'-' if nanos < 0 else ''}${cents // 100:,}.{cents % 100:02d}"


def write_cost(nanos: int) -> str:
    """Write the cost of a call exactly, in at least two and at most nine places."""
    whole, rest = divmod(abs(nanos), NANOS_PER_USD)
    places = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nanos < 0 else ''}${whole:,}.{places}"


def write_total(nanos: int) -> str:
    """Write a sum of many costs to the cent, or, of little money, to the hundredth of a cent; below that exactly."""
    for least, unit, places in ((NANOS_PER_USD, 10**7, 2), (10**7, 10**5, 4)):
        if abs(nanos) >= least:
            return f"{'-' if nanos < 0 else ''}${_tenths(abs(nanos), unit, places)}"
    return write_cost(nanos)


def _tenths(nanos: int, unit: int, places: int) -> str:
    """Write an amount rounded to so many places, half up."""
    whole, rest = divmod((nanos + unit // 2) // unit, 10**places)
    return f"{whole:,}.{rest:0{places}d}"


def write_took(us: int) -> str:
    """Write how long something took: "12 ms", "3.41 s", "2 min 5 s"."""
    if us < US_PER_S:
        return f"{us // 1000} ms"
    if us < 100 * US_PER_S:
        return f"{us // US_PER_S}.{us % US_PER_S // 10_000:02d} s"
    return f"{us // US_PER_S // 60} min {us // US_PER_S % 60} s"


def write_pico(millionths: int) -> str:
    """Write an amount in nano-dollars × 10⁶, as the lines of a price are, exactly."""
    whole, rest = divmod(millionths, NANOS_PER_USD * 1_000_000)
    places = f"{rest:015d}".rstrip("0").ljust(2, "0")
    return f"${whole:,}.{places}"


def write_price(nanos_per_million: int) -> str:
    """Write a price per million tokens."""
    return write_cost(nanos_per_million)


def write_count(number: int) -> str:
    return f"{number:,}"


def write_utc(at_us: int) -> str:
    """Write a moment to the second."""
    return datetime.fromtimestamp(at_us // US_PER_S, UTC).strftime("%Y-%m-%d %H:%M:%S")
