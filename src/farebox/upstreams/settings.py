"""What the operator may set about an upstream: values only, read by farebox.config from `[[upstreams]]`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from farebox.secret import Secret

UpstreamKind = Literal["anthropic", "simulator"]


class UpstreamSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """One way up. `models` are those it serves; empty: all that are sold."""

    name: str
    kind: UpstreamKind
    base_url: str = ""
    """Scheme, host and an optional path; /v1/messages is added. Empty only for a simulator in process."""
    api_key: Secret = Secret("")
    weight: Annotated[int, Meta(ge=0, le=1000)] = 1
    """Its share of the calls among healthy upstreams; 0: only when no other is healthy."""
    models: tuple[str, ...] | dict[str, str] = ()
    """Ids of models; or a table of them with what the upstream calls each."""
    connections: Annotated[int, Meta(ge=1)] = 1000
    """Open connections to it at most; further calls wait, within `connect_s`."""
    connect_s: Annotated[float, Meta(gt=0)] | None = None
    """Overrides `limits.connect_s` for this upstream."""
    first_byte_s: Annotated[float, Meta(gt=0)] | None = None
    """Overrides `limits.first_byte_s` for this upstream."""
    stall_s: Annotated[float, Meta(gt=0)] | None = None
    """Overrides `limits.stall_s` for this upstream."""
    speed: Annotated[float, Meta(ge=0)] | None = None
    """Output tokens a second of a simulator in this process; 0: as fast as possible."""
