"""The wire: what may cross between client and upstream, and what a request asks for as far as money goes.

Bodies cross as they came (promise 8). Headers cross by the lists below, which docs/headers.md explains line by line.
The request is decoded only in part, to bound its cost; the decoded copy is never sent anywhere.
"""

from typing import Final

from farebox.http.exchange import Headers

REQUEST_HEADERS_DROPPED: Final = frozenset(
    {
        # credentials: the gateway's key stays here, the upstream gets the operator's
        b"authorization", b"x-api-key", b"cookie", b"proxy-authorization",
        # about this connection, not about the request (RFC 9110 7.6.1)
        b"host", b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"content-length", b"expect", b"http2-settings",
        # who is behind the gateway
        b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port",
        b"x-forwarded-prefix", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip", b"via",
        # the answer must be readable by the meter
        b"accept-encoding",
        # these choose an account of the operator's
        b"anthropic-workspace-id", b"anthropic-organization-id", b"anthropic-user-profile-id",
        # said to this gateway
        b"farebox-fallback",
        # a browser's origin is for this gateway to judge
        b"origin", b"referer",
    }
)  # fmt: skip

RESPONSE_HEADERS_DROPPED: Final = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"content-length", b"date", b"server", b"via", b"alt-svc", b"set-cookie", b"strict-transport-security",
        b"proxy-authenticate", b"www-authenticate", b"report-to", b"nel", b"x-robots-tag", b"cf-ray",
        b"cf-cache-status", b"location",
        # ours stand in their place
        b"request-id", b"x-should-retry", b"retry-after", b"retry-after-ms",
        # name the operator's account
        b"anthropic-organization-id", b"anthropic-workspace-id", b"openai-organization", b"openai-project",
    }
)  # fmt: skip
DEFAULT_VERSION: Final = b"2023-06-01"
"""For clients that name no API version, as plain cURL lines do; the API itself requires one."""
RESPONSE_PREFIXES_DROPPED: Final = (
    *(b"anthropic-ratelimit-", b"anthropic-priority-", b"anthropic-fast-", b"x-ratelimit-"),
    # proxies tell with these what a call cost the operator, and where it went
    *(b"x-litellm-", b"llm_provider-"),
)


def upstream_headers(headers: Headers) -> Headers:
    """Choose what of a client's headers goes up; asks for an answer without compression."""
    names = dict(headers).keys()
    kept = [field for field in headers if field[0] not in REQUEST_HEADERS_DROPPED]
    if b"connection" in names:
        named = b",".join(value.lower() for name, value in headers if name == b"connection")
        hop = {part.strip() for part in named.split(b",")} - {b"content-type"}
        kept = [field for field in kept if field[0] not in hop]
        names = dict(kept).keys()
    kept.append((b"accept-encoding", b"identity"))
    if b"anthropic-version" not in names:
        kept.append((b"anthropic-version", DEFAULT_VERSION))
    return kept


def client_headers(headers: Headers) -> Headers:
    """Choose what of an upstream's headers comes down."""
    return [
        field
        for field in headers
        if field[0] not in RESPONSE_HEADERS_DROPPED and not field[0].startswith(RESPONSE_PREFIXES_DROPPED)
    ]
