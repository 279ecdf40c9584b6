"""What the operator may set about message batches: values only; farebox.config reads them from `[batches]`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=1)]


class BatchSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Message batches: who runs them, at what price, and how large they may be."""

    run: Literal["native", "any", "own", "off"] = "native"
    """`native`: only where an upstream has batches; `any`: else by Farebox; `own`: always so; `off`: none."""
    percent: Annotated[int, Meta(ge=1, le=1000)] = 100
    """Of the normal price, for batches that Farebox runs. What the upstream runs costs the model's own share of it."""
    at_once: Annotated[int, Meta(ge=1, le=1000)] = 4
    """Items of all batches that one process of Farebox sends at a time."""
    unattended: bool = False
    """Whether Farebox's own go on by themselves after a restart; else as soon as their API key is seen again."""
    batch_bytes: Annotated[int, Meta(ge=1024, le=256 * 1024**2)] = 64 * 1024**2
    """The largest batch; larger ones get 413."""
    batch_items: Annotated[int, Meta(ge=1, le=100_000)] = 100_000
    """Items in one batch at most."""
    open_batches: Count = 20
    """Batches of one account that are under way at a time; more get 429."""
    poll_s: Annotated[float, Meta(gt=0, le=600)] = 10.0
    """How often an upstream is asked how its batches are."""
