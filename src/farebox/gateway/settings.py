"""What the operator may set about calls: which request features are let through, and the limits of one call.

Values only; farebox.config reads them from `[features]` and `[limits]`.
"""

from typing import Annotated

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class Features(Struct, frozen=True, forbid_unknown_fields=True):
    """Request features hard to bound in cost, or that reach into the upstream account. False: refused."""

    threads: bool = False
    """`thread`: the upstream remembers the conversation, so the body no longer bounds the input."""
    fallbacks: bool = False
    """`fallbacks`: further models tried by the upstream, each billed at its own rate."""
    fallback_credit: bool = False
    """`fallback_credit_token`: the upstream reprices a retry."""
    advisor: bool = False
    """`advisor_*` tools: a second model with its own copy of the context."""
    mcp: bool = False
    """`mcp_servers` and `mcp_toolset`: loops on the upstream's side that re-read a growing context."""
    code_execution: bool = False
    """`code_execution_*` tools: container hours billed to the operator, not in the usage."""
    containers: bool = False
    """`container` and its skills: state in the upstream account, shared by all customers."""
    compaction: bool = False
    """`compaction` and `compact_*` edits: an extra pass over up to the whole context."""
    files: bool = False
    """The Files API, `file_id` sources and `container_upload`: of unknown size, each customer's own."""
    user_profiles: bool = False
    """`user_profile_id`, `billing_policy` and their header: move the bill to another organisation."""
    workspaces: bool = False
    """`workspace_id` and its header: choose a workspace of the operator's account."""
    web_search: bool = True
    """`web_search_*` tools, of models with a price for them. `max_uses` is required: it bounds the cost."""
    web_fetch: bool = False
    """`web_fetch_*` tools: pages become input."""
    url_sources: bool = True
    """Images and documents by `url`; held at the largest size the API accepts."""
    fast: bool = True
    """`speed: "fast"`, of models with fast prices."""


class CallLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of calls. `_s` are seconds; 0 is allowed only where a comment says what it means."""

    body_bytes: Annotated[int, Meta(ge=1024, le=1024**3)] = 32 * 1024**2
    """The largest request body; larger ones get 413."""
    bodies_bytes: Annotated[int, Meta(ge=1024)] = 1024**3
    """Request bodies of all calls under way together; more get 529. An account has a quarter of it, beyond that 429."""
    concurrent_calls: Count = 2000
    """Calls in flight over all accounts; more get 529. Each account also has its plan's limit."""
    drain_s: Annotated[float, Meta(ge=0, le=600)] = 10.0
    """How long to read on after a client hung up, for the upstream's exact usage. 0 cancels at once."""
    recount_s: Annotated[float, Meta(ge=0, le=10)] = 2.0
    """How long to wait for the upstream's count of an answer that was cut off. 0: the published rule alone."""
    stall_s: Seconds = 90.0
    """A stream silent for longer is broken by the upstream. Its pings count as life."""
    keep_alive_ping_s: Seconds = 15.0
    """A client that heard nothing for this long is sent a ping of ours."""
    connect_s: Seconds = 3.0
    """Time to connect to an upstream, TLS included."""
    first_byte_s: Seconds = 600.0
    """Time to an answer's first byte: long, for without streaming it comes after all the thinking."""
    call_s: Seconds = 3600.0
    """No call takes longer, whatever it does."""
    attempts: Annotated[int, Meta(ge=1, le=10)] = 3
    """Tries per call before the first byte, the first included."""
    retry_budget: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """Retries as a share of calls, so that a sick upstream is not beaten. 0: never retry."""
    retry_wait_s: Annotated[float, Meta(gt=0, le=60)] = 0.5
    """The first wait before a retry at the same upstream; doubled each time, with jitter."""
    retry_after_max_s: Annotated[float, Meta(ge=0, le=600)] = 10.0
    """An upstream's `retry-after` up to this is waited for; a longer one is handed on."""
    slice_tokens: Annotated[int, Meta(ge=64)] = 4096
    """Output held ahead of a stream at a time."""
    default_max_tokens: Count = 4096
    """What a request without `max_tokens` gets."""
    count_tokens_per_minute: Count = 2000
    """count_tokens calls per account and minute; they are free, and Claude Code sends 25 in a second."""
    file_bytes: Annotated[int, Meta(ge=1024, le=500 * 1024**2)] = 32 * 1024**2
    """The largest file; larger ones get 413. It is in memory while it is passed on."""
    files: Count = 1000
    """Files of one account."""
    files_bytes: Annotated[int, Meta(ge=1024)] = 1024**3
    """Bytes of all files of one account."""
    questions_per_minute: Count = 120
    """Questions per key and minute about balance, usage, the key and calls, and quotes; a large quote is several."""
