"""From a request to its demand: how much it can cost at most, or why it cannot be bounded and is refused.

Features whose cost cannot be bounded or metered are refused by name, each behind one switch of `[features]`.
"""

import re
from hashlib import blake2b
from typing import Any, Final

import msgspec

from farebox.billing.bound import (
    CONTEXT_TOKENS,
    DOCUMENT_BYTES_PER_PAGE,
    ESTIMATE_BYTES_PER_TOKEN,
    IMAGE_TOKENS,
    LOCAL_BYTES_PER_TOKEN,
    PAGE_TOKENS,
    SERVER_PROMPT_TOKENS,
    TOOLSET_TOKENS,
    Demand,
)
from farebox.billing.pricing import Model
from farebox.errors import InvalidRequest
from farebox.gateway.ask import Asked
from farebox.gateway.duplicates import read_object, read_objects
from farebox.gateway.settings import Features
from farebox.http.exchange import Headers

_MOST_SEARCHES: Final = 100
_MOST_LEVELS: Final = 3
"""Blocks within blocks. The API knows two; each costs a pass over all that is within."""


class Source(msgspec.Struct):
    type: str = ""
    data: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()


class Block(msgspec.Struct):
    type: str = ""
    source: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()
    cache_control: msgspec.Raw = msgspec.Raw()


class Tool(msgspec.Struct):
    type: str = "custom"
    max_uses: int | None = None
    cache_control: msgspec.Raw = msgspec.Raw()


_blocks: Final = msgspec.json.Decoder(list[Block])
_source: Final = msgspec.json.Decoder(Source)
_tools: Final = msgspec.json.Decoder(list[Tool])
_any: Final = msgspec.json.Decoder(dict[str, Any])

_REFUSED_FIELDS: Final = {
    "thread": "threads",
    "fallbacks": "fallbacks",
    "fallback_credit_token": "fallback_credit",
    "mcp_servers": "mcp",
    "compaction": "compaction",
    "container": "containers",
    "user_profile_id": "user_profiles",
    "billing_policy": "user_profiles",
    "workspace_id": "workspaces",
}
"""Request fields, and the switches that let them through."""
_ERROR_CODES: Final = {"thread": "thread_unsupported_request"}
"""The API's own codes for refused fields, which its clients know how to answer."""
_REFUSED_HEADERS: Final = {b"anthropic-user-profile-id": "user_profiles", b"anthropic-workspace-id": "workspaces"}
_REFUSED_TOOLS: Final = (
    ("advisor_", "advisor"),
    ("mcp_toolset", "mcp"),
    ("code_execution_", "code_execution"),
    ("web_fetch_", "web_fetch"),
    ("web_search_", "web_search"),
)


class Weights:
    """What a walk through messages, system and tools adds up to."""

    def __init__(self) -> None:
        self.embedded_bytes = 0  # base64, which is not text
        self.media_tokens = 0
        self.unbounded = False  # something by reference: only the context window bounds it
        self.caches = False
        self.caches_long = False
        self.web_searches = 0
        self.overhead = 0  # tokens that the server adds
        self.document_tokens = 0  # a guess


def demand_of(
    asked: Asked,
    body_bytes: int,
    model: Model,
    features: Features,
    headers: Headers,
    max_tokens: int,
    *,
    counting: bool = False,
) -> Demand:
    """Bound what a request can cost. Raises InvalidRequest for what is refused, naming field and reason.

    `counting` is for requests that only count tokens: they need no bound on the uses of a tool.
    """
    _refuse_fields(asked, features, headers)
    if asked.speed == "fast" and model.fast_rates is None:
        raise InvalidRequest(f"speed: fast mode is not sold with {model.id}; leave it out")
    weights = _walk(asked, model, features, counting=counting)
    text_bytes = body_bytes - weights.embedded_bytes
    most = max(model.context_tokens, CONTEXT_TOKENS)
    prompt = most if weights.unbounded else min(text_bytes + weights.media_tokens + weights.overhead, most)
    likely = -(-text_bytes // ESTIMATE_BYTES_PER_TOKEN) + weights.media_tokens
    return Demand(
        prompt_tokens=prompt,
        max_tokens=max_tokens,
        caches=weights.caches or weights.caches_long,
        caches_long=weights.caches_long,
        fast=asked.speed == "fast",
        geo_us=asked.inference_geo == "us",
        web_searches=weights.web_searches,
        likely_tokens=prompt if weights.unbounded else min(likely, prompt),
        window_tokens=CONTEXT_TOKENS if _is_wide(headers) else 0,
    )


def estimate_of(asked: Asked, model: Model, features: Features) -> int:
    """Guess the input of a request in tokens, for those who asked to have it counted where nobody can.

    A token for every three bytes of messages, system prompt and tools as they stand, what their pictures and pages
    come to, and what a server adds for tools: rather too many than too few.
    """
    weights = _walk(asked, model, features, counting=True)
    text = sum(len(raw) for name in ("messages", "system", "tools") if (raw := asked.raw(name)) is not None)
    text -= weights.embedded_bytes
    overhead = weights.overhead if asked.raw("tools") is not None else 0
    return -(-text // LOCAL_BYTES_PER_TOKEN) + weights.media_tokens + weights.document_tokens + overhead


def _is_wide(headers: Headers) -> bool:
    """Tell whether a header asks for the long context window, which no field of the body does."""
    return any(name == b"anthropic-beta" and b"context-1m" in value for name, value in headers)


def _walk(asked: Asked, model: Model, features: Features, *, counting: bool) -> Weights:
    """Add up messages, system and tools. Raises InvalidRequest for what is refused in them."""
    weights = Weights()
    tools: list[Tool] = []
    try:
        for message in read_objects(asked.messages):
            if "content" in message:
                _weigh(message["content"], weights, features)
        if "system" in asked.fields:
            _weigh(asked.fields["system"], weights, features)
        if (raw := asked.raw("thinking")) is not None:
            read_object(raw)  # for what it refuses
        if (raw := asked.raw("tools")) is not None:
            tools = _tools.decode(raw)
            read_objects(raw)  # for what it refuses
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"messages, system, thinking or tools: {str(error).replace('`', '')}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply; at most 500 levels are read") from None
    weights.overhead = SERVER_PROMPT_TOKENS if tools else 64
    for tool in tools:
        weights.overhead += _weigh_tool(tool, weights, features, model, counting=counting)
    if "cache_control" in asked.fields:
        _note_cache(asked.fields["cache_control"], weights)
    return weights


def thinks_hidden(asked: Asked) -> bool:
    """Tell whether output may be produced that no event shows: thinking that is on, or not plainly off."""
    thinking = asked.raw("thinking")
    if thinking is None:
        return False
    try:
        return bool(_any.decode(thinking).get("type") != "disabled")
    except msgspec.DecodeError:
        return True


def _refuse_fields(asked: Asked, features: Features, headers: Headers) -> None:
    for field in asked.fields:
        if field in _REFUSED_FIELDS and not getattr(features, _REFUSED_FIELDS[field]) and asked.raw(field) is not None:
            raise InvalidRequest(
                f"{field}: this gateway does not offer it, since its cost cannot be bounded; leave it out",
                error_code=_ERROR_CODES.get(field),
            )
    edits = asked.raw("context_management") or b""
    if not features.compaction and (b'"compact_' in edits or b"\\u00" in edits):  # an escape may hide a letter
        raise InvalidRequest("context_management: compaction on the server is not offered here; leave out its edit")
    if asked.speed == "fast" and not features.fast:
        raise InvalidRequest("speed: fast mode is not offered here; leave it out")
    for name, value in headers:
        if name in _REFUSED_HEADERS and value.strip() and not getattr(features, _REFUSED_HEADERS[name]):
            raise InvalidRequest(f"{name.decode()}: this gateway has one account upstream; leave the header out")


def _weigh(content: msgspec.Raw, weights: Weights, features: Features, depth: int = 0) -> None:
    """Walk one content: a string, a list of blocks, or something a newer API knows."""
    raw = bytes(content)
    if raw[:1] != b"[":
        return
    if depth > _MOST_LEVELS:
        raise InvalidRequest(f"content: blocks are nested too deeply; at most {_MOST_LEVELS} levels are read")
    blocks = _blocks.decode(raw)
    if any(bytes(block.source) or bytes(block.cache_control) for block in blocks):
        read_objects(raw)  # for what it refuses
    for block in blocks:
        if len(bytes(block.cache_control)) > 4:
            _note_cache(block.cache_control, weights)
        if block.type == "container_upload":
            if not features.files:
                raise InvalidRequest(
                    "container_upload: files of the upstream account are not offered here; send the content"
                )
            weights.unbounded = True
        if len(bytes(block.source)) > 4:
            read_object(block.source)  # for what it refuses
            _weigh_source(_source.decode(block.source), block, weights, features, depth)
        if block.type == "tool_result":
            _weigh(block.content, weights, features, depth + 1)


def _weigh_source(source: Source, block: Block, weights: Weights, features: Features, depth: int) -> None:
    if source.type == "base64":
        size = len(bytes(source.data))
        weights.embedded_bytes += size
        weights.media_tokens += IMAGE_TOKENS
        if block.type != "image":
            weights.document_tokens += size // DOCUMENT_BYTES_PER_PAGE * PAGE_TOKENS
            weights.unbounded = True  # a PDF: compressed, hundreds of pages fit into a few kilobytes
    elif source.type == "file":
        if not features.files:
            raise InvalidRequest("source.file_id: files of the upstream account are not offered here; send the content")
        weights.document_tokens += PAGE_TOKENS
        weights.unbounded = True
    elif source.type == "url":
        if not features.url_sources:
            raise InvalidRequest("source.url: fetching by URL is not offered here; send the content as base64")
        if block.type == "image":
            weights.media_tokens += IMAGE_TOKENS
        else:
            weights.document_tokens += PAGE_TOKENS
            weights.unbounded = True
    elif source.type == "content":
        _weigh(source.content, weights, features, depth + 1)


def _weigh_tool(tool: Tool, weights: Weights, features: Features, model: Model, *, counting: bool) -> int:
    """Take note of a tool; answers the tokens the server adds for it."""
    if len(bytes(tool.cache_control)) > 4:
        _note_cache(tool.cache_control, weights)
    if tool.type == "custom":
        return 0
    for prefix, switch in _REFUSED_TOOLS:
        if tool.type.startswith(prefix) and not getattr(features, switch):
            raise InvalidRequest(
                f"tools: {tool.type} is not offered here, since its cost cannot be bounded; leave it out"
            )
    if tool.type.startswith("web_search_") and not counting:
        if model.web_search is None:
            raise InvalidRequest(f"tools: {tool.type} is not sold with {model.id}; leave it out")
        if tool.max_uses is None or not 0 < tool.max_uses <= _MOST_SEARCHES:
            raise InvalidRequest(
                f"tools: {tool.type} needs max_uses of 1…{_MOST_SEARCHES}, which bounds what it can cost"
            )
        weights.web_searches += tool.max_uses
    return TOOLSET_TOKENS


def _note_cache(cache_control: msgspec.Raw, weights: Weights) -> None:
    raw = bytes(cache_control)
    if raw == b"null":
        return
    weights.caches = True
    try:
        read_object(raw)  # for what it refuses
        ttl = _any.decode(raw).get("ttl")
    except msgspec.DecodeError:
        ttl = None
    if ttl is not None and ttl != "5m":
        weights.caches_long = True


_CLAUDE_CODE_SESSION: Final = re.compile(rb"session_id\W{1,8}([0-9a-f-]{36})")


def conversation_of(asked: Asked, headers: Headers, account_id: int) -> bytes:
    """Name the conversation a request belongs to, so that it stays with one upstream and its prompt cache.

    What Claude Code says; else a hash of how its system prompt and its first message begin, which later turns repeat
    but for where they mark the cache.
    """
    for name, value in headers:
        if name == b"x-claude-code-session-id":
            return value[:64]
    metadata = asked.raw("metadata")
    if metadata is not None:
        found = _CLAUDE_CODE_SESSION.search(metadata)
        if found is not None:
            return found.group(1)
    seen = blake2b(b"%d\0" % account_id, digest_size=16)
    system = asked.fields.get("system")
    if system is not None:
        seen.update(_beginning(memoryview(system)))
    seen.update(_beginning(asked.messages))
    return seen.digest()


_FIRST_TEXT: Final = re.compile(rb'"(?:text|content)"\s*:\s*"')
_TO_ITS_END: Final = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*')
_LOOKED_AT_BYTES: Final = 1_024
_HASHED_BYTES: Final = 512


def _beginning(raw: bytes | memoryview) -> bytes | memoryview:
    """Give how a prompt begins: its first text, without what may change around it from turn to turn."""
    found = _FIRST_TEXT.search(raw, 0, _LOOKED_AT_BYTES)
    if found is None:
        return raw[:_HASHED_BYTES]
    text = _TO_ITS_END.match(raw, found.end(), found.end() + _HASHED_BYTES)
    return text.group() if text is not None else b""
