"""What a request can ask of the simulator beyond the API: length, pace, figures and every fault.

Asked for by the header `x-farebox-sim: tokens=200; cut_after=5`, or by `[[sim tokens=200 cut_after=5]]` in
the last user message, so that any client can. docs/simulator.md has a row for each; a test compares.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from farebox.errors import InvalidRequest

HEADER: Final = b"x-farebox-sim"
_MAGIC: Final = re.compile(r"\[\[sim\b([^\]]*)\]\]")
_SEPARATORS: Final = re.compile(r"[;\s]+")

_Count = Annotated[int, Meta(ge=0, le=1_000_000)]
_Tokens = Annotated[int, Meta(ge=0, le=100_000_000)]
_Millis = Annotated[int, Meta(ge=0, le=3_600_000)]
_Seconds = Annotated[float, Meta(ge=0, le=3_600)]


class Knobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One field per knob; None or False is the plain API. What each does is in docs/simulator.md."""

    # the answer
    tokens: _Count | None = None
    echo: bool = False
    think: _Count | None = None
    hidden_think: _Count | None = None
    tool: str | None = None
    searches: Annotated[int, Meta(ge=0, le=100)] | None = None
    refusal: _Count | None = None
    big_event: Annotated[int, Meta(ge=1, le=64_000_000)] | None = None

    # the pace
    delay: _Millis | None = None
    ttft: _Millis | None = None
    rate: Annotated[float, Meta(gt=0)] | None = None
    delta: Annotated[int, Meta(ge=1, le=1_000_000)] = 2
    pings: Annotated[int, Meta(ge=0, le=10_000)] = 1
    ping_every: Annotated[int, Meta(ge=10, le=3_600_000)] | None = None

    # the bytes
    chunk: Annotated[int, Meta(ge=1)] | None = None
    events_per_chunk: Annotated[int, Meta(ge=1)] | None = None
    crlf: bool = False
    gzip: bool = False

    # the figures
    usage_input: _Tokens | None = None
    usage_output: _Tokens | None = None
    cache_write_5m: _Tokens | None = None
    cache_write_1h: _Tokens | None = None
    cache_read: _Tokens | None = None
    no_usage: Annotated[str, Meta(pattern="^(all|start|delta)$")] | None = None
    unknown_usage: _Tokens | None = None
    iterations: bool = False
    many_deltas: Annotated[int, Meta(ge=1, le=1000)] | None = None
    model_answered: str | None = None
    fallback: str | None = None
    geo: str | None = None
    tier: str | None = None
    speed: str | None = None

    # refusals
    error: Annotated[str, Meta(pattern=r"^[1-9]\d\d(:\w+)?$")] | None = None
    retry_after: _Count | None = None
    should_retry: bool | None = None
    fail_first: _Count | None = None

    # faults
    close_before: bool = False
    stall_before: _Seconds | None = None
    stall_after: _Count | None = None
    stall: _Seconds = 3_600.0
    cut_after: _Count | None = None
    reset_after: _Count | None = None
    truncate: _Count | None = None
    error_after: _Count | None = None
    garbage_after: _Count | None = None
    bad_json: bool = False
    html: bool = False
    wrong_length: bool = False
    unknown_events: bool = False

    # in a batch
    batch: Annotated[str, Meta(pattern="^(canceled|expired)$")] | None = None


BARE: Final[Mapping[str, str]] = {
    "tool": "*",
    "refusal": "0",
    "searches": "1",
    "many_deltas": "3",
    "no_usage": "all",
    "unknown_usage": "17",
    "fallback": "claude-sonnet-4-6",
    "batch": "expired",
    "truncate": "999999",
    "cut_after": "3",
    "reset_after": "3",
    "stall_after": "3",
    "error_after": "3",
    "garbage_after": "3",
}
"""What a knob means when it is given without a value; for the others that is `true`."""

FAULTS: Final = (
    "error", "close_before", "stall_before", "stall_after", "cut_after", "reset_after", "truncate",
    "error_after", "garbage_after", "bad_json", "html", "wrong_length", "no_usage",
)  # fmt: skip
"""The knobs that spoil an answer; `fail_first` limits them to the first tries."""

PLAIN: Final = Knobs()


def on_try(knobs: Knobs, number: int) -> Knobs:
    """Give the knobs that hold for the n-th try (from 1) of a request under `fail_first`."""
    if knobs.fail_first is None:
        return knobs
    if number > knobs.fail_first:
        return msgspec.structs.replace(knobs, **{name: getattr(PLAIN, name) for name in FAULTS})
    if all(getattr(knobs, name) == getattr(PLAIN, name) for name in FAULTS):
        return msgspec.structs.replace(knobs, error="529")
    return knobs


def read_knobs(*sources: str) -> Knobs:
    """Read knobs from texts of `key=value`, parted by spaces or semicolons; a later source wins.

    Raises InvalidRequest that names an unknown knob or a bad value.
    """
    given: dict[str, Any] = {}
    for source in sources:
        for item in _SEPARATORS.split(source):
            name, has_value, value = item.partition("=")
            if name:
                given[name] = value if has_value else BARE.get(name, "true")
    if not given:
        return PLAIN
    unknown = given.keys() - set(Knobs.__struct_fields__)
    if unknown:
        known = ", ".join(Knobs.__struct_fields__)
        raise InvalidRequest(f"x-farebox-sim: no such knob: {', '.join(sorted(unknown))}; there are: {known}")
    try:
        return msgspec.convert(given, Knobs, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"x-farebox-sim: {error}") from None


def magic_in(text: str) -> str:
    """Give what stands in the `[[sim ...]]` marks of a text."""
    return " ".join(_MAGIC.findall(text)) if "[[sim" in text else ""


def without_magic(text: str) -> str:
    """Give a text without its `[[sim ...]]` marks."""
    return _MAGIC.sub("", text).strip() if "[[sim" in text else text
