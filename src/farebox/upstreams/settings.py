"""What the operator may set about an upstream: values only, read by farebox.config from `[[upstreams]]`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from farebox.secret import Secret

UpstreamKind = Literal["anthropic", "simulator", "bedrock", "vertex", "foundry", "chat"]


class UpstreamSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """One way up. `models` are those it serves; empty: all that are sold."""

    name: str
    kind: UpstreamKind
    base_url: str = ""
    """Scheme, host and an optional path; /v1/messages is added. Empty only for a simulator in process."""
    api_key: Secret = Secret("")
    weight: Annotated[int, Meta(ge=0, le=1000)] = 1
    """Its share of the calls among healthy upstreams; 0: only when no other is healthy."""
    priority: Annotated[int, Meta(ge=0, le=100)] = 0
    """Those of the lowest number are called; the next ones only when none of those is able or has room."""
    concurrency: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """Calls it takes at once; further ones go elsewhere, or wait shortly. 0: as many as there are connections."""
    organization: str = ""
    """Whose account it is, where several are of one: thinking and caches of one are then good at all of them."""
    models: tuple[str, ...] | dict[str, str] = ()
    """Ids of models; or a table of them with what the upstream calls each."""
    connections: Annotated[int, Meta(ge=1)] = 1000
    """Open connections to it at most; further calls go elsewhere, or wait shortly."""
    connect_s: Annotated[float, Meta(gt=0)] | None = None
    """Overrides `limits.connect_s` for this upstream."""
    first_byte_s: Annotated[float, Meta(gt=0)] | None = None
    """Overrides `limits.first_byte_s` for this upstream."""
    stall_s: Annotated[float, Meta(gt=0)] | None = None
    """Overrides `limits.stall_s` for this upstream."""
    batches: bool | None = None
    """Whether it has message batches of its own. Unsaid: kinds "anthropic" and "simulator" have."""
    api: Literal["invoke", "messages"] = "invoke"
    """Bedrock: by InvokeModel and event streams, or by the endpoint that speaks the Messages API."""
    region: str = ""
    """Of AWS for Bedrock; the location for Vertex AI."""
    access_key_id: str = ""
    secret_access_key: Secret = Secret("")
    session_token: Secret = Secret("")
    """Of temporary credentials of AWS, which end when they do."""
    project: str = ""
    """Vertex AI: the project's id. Empty: the service account's own."""
    service_account: Secret = Secret("")
    """Vertex AI: the key file of a service account, as Google hands it out."""
    resource: str = ""
    """Foundry: the resource's name."""
    tenant_id: str = ""
    client_id: str = ""
    client_secret: Secret = Secret("")
    """Foundry: an application in Entra, instead of a key."""
    authority: str = "https://login.microsoftonline.com"
    """Foundry: where tokens of Entra are had; other clouds of Azure have others."""
    drop_betas: tuple[str, ...] = ()
    """Clouds: names in `anthropic-beta` that this one refuses; they are left out."""
    max_tokens_as: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Chat: what max_tokens is called there."""
    output_tokens: Annotated[int, Meta(ge=0)] = 0
    """Chat: the most that the server writes at once; a larger max_tokens is lowered to it. 0: as much as is asked."""
    thinking: Literal["off", "reasoning_effort"] = "off"
    """Chat: how a wish for thinking is put."""
    thinking_history: Literal["drop", "reasoning_content"] = "drop"
    """Chat: what becomes of the thinking in earlier answers."""
    later_system: Literal["system", "user"] = "system"
    """Chat: whose words a system message after the first is put as."""
    takes: tuple[Literal["top_k", "pdf", "continuous_usage"], ...] = ()
    """Chat: what the server takes that not all do."""
    speed: Annotated[float, Meta(ge=0)] | None = None
    """Output tokens a second of a simulator in this process; 0: as fast as possible."""
