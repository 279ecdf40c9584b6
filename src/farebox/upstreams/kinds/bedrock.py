"""Amazon Bedrock, by both of its ways: InvokeModel with event streams, and the endpoint that speaks the Messages API.

Sources: AWS, API reference of Bedrock Runtime (InvokeModel, InvokeModelWithResponseStream, CountTokens) and "Inference
using Anthropic Messages API"; the clients AnthropicBedrock and AnthropicBedrockMantle of Anthropic's SDK.
"""

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Final
from urllib.parse import quote

import msgspec

from farebox.errors import InvalidRequest, NotFound
from farebox.http.client import Answer, Origin
from farebox.http.exchange import Headers
from farebox.http.failures import BadAnswer
from farebox.secret import Secret
from farebox.upstreams.kinds.bodies import beside, with_fields
from farebox.upstreams.kinds.clouds import BETA, VERSION, betas_of, upward, version_of, with_betas
from farebox.upstreams.kinds.eventstream import MessageEvents
from farebox.upstreams.kinds.faults import JSON, fault, reshown, shown
from farebox.upstreams.kinds.kind import COUNT_TOKENS, MESSAGES, Ask, Outgoing, Reply
from farebox.upstreams.kinds.sigv4 import AwsKey, sign, signable_query
from farebox.upstreams.kinds.translated import Translated

_FIRST_VERSION: Final = "bedrock-2023-05-31"
_LARGE_BYTES: Final = 2**20
"""Larger bodies are hashed beside the loop."""
_SSE: Final = b"text/event-stream; charset=utf-8"
_PROFILE: Final = re.compile(r"(?:arn:.*:inference-profile/)?[a-z-]{2,12}\.(?=anthropic\.)")
"""How the id of an inference profile across regions begins, before that of its model."""
_COUNT_BYTES: Final = 64 * 1024
_COUNT_MOST: Final = 10**12
_TYPE: Final = frozenset({b"content-type"})
"""It is signed: whatever a customer makes of it, the signature must be right."""
_OWN_HEADERS: Final = frozenset({VERSION, BETA, b"accept", b"content-type"})


class Credential:
    """What a request to AWS is let in by: a signature, or an API key of Bedrock."""

    def __init__(
        self,
        origin: Origin,
        *,
        service: str,
        region: str,
        key: AwsKey | None,
        api_key: Secret,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._origin = origin
        self._service = service
        self._region = region
        self._key = key
        self._api_key = api_key
        self._now_s = now_s

    async def headers(self, method: str, target: str, headers: Headers, body: bytes) -> Headers:
        """Give the headers that let a request in; its `content-type` is signed."""
        if self._key is None:
            return [(b"authorization", b"Bearer " + self._api_key.reveal().encode("latin-1"))]
        digest = hashlib.sha256(body) if len(body) < _LARGE_BYTES else await asyncio.to_thread(hashlib.sha256, body)
        path, _, query = target.partition("?")
        signed = [(b"host", self._origin.authority)]
        signed += [field for field in headers if field[0] == b"content-type"][:1]
        return sign(
            method,
            self._origin.path + path,
            query,
            signed,
            digest.hexdigest(),
            key=self._key,
            region=self._region,
            service=self._service,
            at_s=self._now_s(),
        )


class BedrockInvoke:
    """Bedrock Runtime: the model in the path, version and betas in the body, streams in frames of AWS's own."""

    speaks_messages = True

    def __init__(self, credential: Credential, betas: Mapping[str, str]) -> None:
        self._credential = credential
        self._betas = betas

    def has(self, path: str) -> bool:
        return path in {MESSAGES, COUNT_TOKENS}

    async def prepare(self, ask: Ask, name: str) -> Outgoing:
        if not self.has(ask.path):
            raise NotFound(f"{ask.path} is not served by this upstream")
        betas = betas_of(ask.headers, self._betas)
        changes = {"model": None, "stream": None, "anthropic_version": version_of(ask.headers, _FIRST_VERSION)}
        body = await beside(ask.body, with_fields, **changes, **({"anthropic_beta": betas} if betas else {}))
        if ask.path == COUNT_TOKENS:
            target = f"/model/{quote(_model_of(name), safe='')}/count-tokens"
            body = await beside(body, _counting)
        else:
            verb = "invoke-with-response-stream" if ask.stream else "invoke"
            target = f"/model/{quote(name, safe='')}/{verb}"
        headers = [*upward(ask.headers, _OWN_HEADERS), JSON, (b"accept", JSON[1])]
        headers += await self._credential.headers("POST", target, headers, body)
        return Outgoing("POST", target, headers, body)

    def reply(self, ask: Ask, answer: Answer) -> Reply:
        if answer.status >= 400:
            return fault(answer)
        if ask.path == COUNT_TOKENS:
            return Translated(answer, answer.status, reshown(answer.headers, JSON[1]), _Counted())
        if (answer.header(b"content-type") or b"").startswith(b"application/vnd.amazon.eventstream"):
            return Translated(answer, answer.status, reshown(answer.headers, _SSE), MessageEvents())
        answer.headers = shown(answer.headers)
        return answer

    async def close(self) -> None:
        """Nothing of it is open."""


class BedrockMessages:
    """The endpoints of Bedrock that speak the Messages API: only the credential and the model's name are its own."""

    speaks_messages = True

    def __init__(self, credential: Credential, betas: Mapping[str, str]) -> None:
        self._credential = credential
        self._betas = betas

    def has(self, path: str) -> bool:
        return path in {MESSAGES, COUNT_TOKENS}

    async def prepare(self, ask: Ask, name: str) -> Outgoing:
        if not self.has(ask.path):
            raise NotFound(f"{ask.path} is not served by this upstream")
        body = ask.body if name == ask.said else await beside(ask.body, with_fields, model=name)
        query = signable_query(ask.query)
        target = f"{ask.path}?{query}" if query else ask.path
        headers = [*with_betas(upward(ask.headers, _TYPE), self._betas), JSON]
        headers += await self._credential.headers(ask.method, target, headers, body)
        return Outgoing(ask.method, target, headers, body)

    def reply(self, ask: Ask, answer: Answer) -> Reply:  # noqa: ARG002
        if answer.status >= 400:
            return fault(answer)
        answer.headers = shown(answer.headers)
        return answer

    async def close(self) -> None:
        """Nothing of it is open."""


def _model_of(name: str) -> str:
    """Give the model that is behind an inference profile across regions: tokens are counted for models alone."""
    return _PROFILE.sub("", name, count=1) if _PROFILE.match(name) else name


class _Thinking(msgspec.Struct):
    budget_tokens: int = 0


class _Counting(msgspec.Struct):
    max_tokens: int | None = None
    thinking: _Thinking | None = None


def _counting(body: bytes) -> bytes:
    """Wrap a body for CountTokens, which wants what InvokeModel does, `max_tokens` included."""
    try:
        said = msgspec.json.decode(body, type=_Counting)
    except msgspec.DecodeError as error:
        raise InvalidRequest(str(error)) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    if said.max_tokens is None:
        body = with_fields(body, max_tokens=(said.thinking.budget_tokens if said.thinking else 0) + 1)
    return b'{"input":{"invokeModel":{"body":"%b"}}}' % base64.b64encode(body)


class _InputTokens(msgspec.Struct):
    inputTokens: Annotated[int, msgspec.Meta(ge=0, le=_COUNT_MOST)]  # noqa: N815


class _Counted:
    """A `Decoder` of CountTokens' answer."""

    def __init__(self) -> None:
        self._body = b""

    def feed(self, data: bytes) -> bytes:
        self._body += data
        if len(self._body) > _COUNT_BYTES:
            raise BadAnswer("the upstream's count is no count")
        return b""

    def end(self) -> bytes:
        try:
            return b'{"input_tokens":%d}' % msgspec.json.decode(self._body, type=_InputTokens).inputTokens
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BadAnswer("the upstream's count is no count") from None
