"""Clouds that are not there: they check signature, token, path, headers and body as the real ones do, and answer in
their recorded shapes. Signatures are checked by botocore, tokens by google-auth."""

import asyncio
import base64
import contextlib
import json
import re
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt

ACCESS_KEY: Final = "AKIDFAREBOX"
SECRET_KEY: Final = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
SESSION_TOKEN: Final = "FwoGZXIvYXdzEBYaD/session=="
BEDROCK_KEY: Final = "bedrock-api-key-canary"
FOUNDRY_KEY: Final = "foundry-key-canary"
CLIENT_SECRET: Final = "entra-secret~canary"
REGION: Final = "us-east-1"
PROJECT: Final = "fare-project"
PROFILE: Final = "us.anthropic.claude-sonnet-4-6-v1:0"
USAGE: Final = {
    "input_tokens": 12,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 1000,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 34,
}
COUNTED: Final = 321


class Request:
    """One request as it stood on the wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = first.split(" ")
        self.fields = [
            (name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines if line)
        ]
        self.headers = dict(self.fields)
        self.path, _, self.query = self.target.partition("?")
        self.raw = body

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


class Said(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, body: Any, **headers: str) -> None:
        super().__init__(status)
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


Pieces = Sequence[bytes]
Answered = tuple[int, dict[str, str], Pieces]


class Cloud:
    """A server on this machine. `next` holds what it says to the next requests instead of what it would."""

    base = ""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.refused: list[str] = []
        """Why requests were not let in."""
        self.next: list[Said | Callable[[Request], Answered]] = []
        self.port = 0
        self.pause_s = 0.0
        """Between the pieces of a stream."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.base}"

    def answer(self, request: Request) -> Answered:
        raise NotImplementedError

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
                request = Request(head[:-4], await reader.readexactly(int(length[1]) if length else 0))
                self.requests.append(request)
                status, headers, pieces = self._said(request)
                lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{lines}transfer-encoding: chunked\r\n\r\n".encode())
                for piece in pieces:
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    await writer.drain()
                    await asyncio.sleep(self.pause_s)
                writer.write(b"0\r\n\r\n")
        writer.close()

    def _said(self, request: Request) -> Answered:
        try:
            said = self.next.pop(0) if self.next and not request.path.endswith("/token") else None
            if isinstance(said, Said):
                raise said
            return said(request) if said else self.answer(request)
        except Said as error:
            self.refused.append(error.body.decode())
            return error.status, {"content-type": "application/json", **error.headers}, [error.body]


T = TypeVar("T", bound=Cloud)


@asynccontextmanager
async def running(cloud: T) -> AsyncIterator[T]:
    server = await asyncio.start_server(cloud.serve, "127.0.0.1", 0, limit=2**26)
    cloud.port = server.sockets[0].getsockname()[1]
    try:
        yield cloud
    finally:
        server.close()


# what the model says


def events_of(body: Any, *, metrics: bool = False) -> list[dict[str, Any]]:
    """Give the events of an answer, in the order they are recorded in; a body with tools gets a call of the first."""
    start: dict[str, Any] = {
        "id": "msg_bdrk_01Canary", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6", "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": {**USAGE, "output_tokens": 1},
    }  # fmt: skip
    if body.get("tools"):
        block: dict[str, Any] = {
            "type": "tool_use",
            "id": "toolu_bdrk_1",
            "name": body["tools"][0]["name"],
            "input": {},
        }
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in ("", '{"city": "Zürich', '"}')]
        reason = "tool_use"
    else:
        block = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": part} for part in ("Grüezi", " 世界 \u2028", ' "quoted" \n end')]
        reason = "end_turn"
    stop: dict[str, Any] = {"type": "message_stop"}
    if metrics:
        stop["amazon-bedrock-invocationMetrics"] = {
            "inputTokenCount": 12, "outputTokenCount": 34, "invocationLatency": 1234, "firstByteLatency": 321,
        }  # fmt: skip
    return [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"output_tokens": 34},
        },
        stop,
    ]


def message_of(body: Any) -> bytes:
    """Give the same answer as one message."""
    events = events_of(body)
    message = dict(events[0]["message"])
    block = dict(events[1]["content_block"])
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    if block["type"] == "text":
        block["text"] = "".join(delta["text"] for delta in deltas)
    else:
        block["input"] = json.loads("".join(delta["partial_json"] for delta in deltas))
    message |= {"content": [block], "stop_reason": events[-2]["delta"]["stop_reason"], "usage": USAGE}
    return json.dumps(message, ensure_ascii=False).encode()


def sse(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def frame(payload: bytes, **headers: str) -> bytes:
    """Write one message of an event stream, by the words of AWS's specification."""
    named = b"".join(
        struct.pack(">B", len(name.encode()))
        + name.encode()
        + struct.pack(">BH", 7, len(text.encode()))
        + text.encode()
        for name, text in ((f":{name.replace('_', '-')}", text) for name, text in headers.items())
    )
    prelude = struct.pack(">II", 16 + len(named) + len(payload), len(named))
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + named + payload
    return whole + struct.pack(">I", zlib.crc32(whole))


def chunk(event: dict[str, Any] | bytes) -> bytes:
    """Write an event of the model as Bedrock frames it, padding included."""
    raw = event if isinstance(event, bytes) else json.dumps(event, ensure_ascii=False).encode()
    payload = json.dumps({"bytes": base64.b64encode(raw).decode(), "p": "abcdefghijkl"}).encode()
    return frame(payload, event_type="chunk", content_type="application/json", message_type="event")


def exception(kind: str, words: str) -> bytes:
    payload = json.dumps({"message": words}).encode()
    return frame(payload, exception_type=kind, content_type="application/json", message_type="exception")


STREAMED: Final = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "cloud-1"}


def answered(body: Any, *, stream: bool) -> Answered:
    """Answer as those do that speak the Messages API."""
    if stream:
        return 200, STREAMED, [sse(event) for event in events_of(body)]
    return 200, {"content-type": "application/json"}, [message_of(body)]


# Amazon


class Bedrock(Cloud):
    """Both endpoints of Bedrock: InvokeModel and CountTokens, and the Messages API below /anthropic."""

    service = "bedrock"

    def answer(self, request: Request) -> Answered:
        self.let_in(request)
        if request.path.startswith("/anthropic/v1/messages"):
            return self._messages(request)
        found = re.fullmatch(r"/model/([^/]+)/(invoke|invoke-with-response-stream|count-tokens)", request.path)
        if not found or request.method != "POST" or request.query:
            raise Said(404, {"message": "no such operation"}, x_amzn_errortype="UnknownOperationException:")
        model, verb = unquote(found[1]), found[2]
        if request.headers["content-type"] != "application/json":
            raise Said(415, {"message": "content type"}, x_amzn_errortype="ValidationException:")
        if verb == "count-tokens":
            if not model.startswith("anthropic."):
                raise _validation("The provided model doesn't support counting tokens.")
            self._check(json.loads(base64.b64decode(request.body["input"]["invokeModel"]["body"])))
            return (
                200,
                {"content-type": "application/json", "x-amzn-requestid": "r-1"},
                [b'{"inputTokens":%d}' % COUNTED],
            )
        if not re.fullmatch(r"(us\.)?anthropic\.claude-[a-z0-9-]+(-v\d(:\d)?)?", model):
            raise _validation("The provided model identifier is invalid.")
        self._check(request.body)
        headers = {"x-amzn-requestid": "r-1", "x-amzn-bedrock-input-token-count": "12", "date": "x"}
        if verb == "invoke":
            return 200, {**headers, "content-type": "application/json"}, [message_of(request.body)]
        frames = [chunk(event) for event in events_of(request.body, metrics=True)]
        return 200, {**headers, "content-type": "application/vnd.amazon.eventstream"}, frames

    def let_in(self, request: Request) -> None:
        """Check who asks, with botocore's own signer."""
        words = request.headers.get("authorization", "")
        if words == f"Bearer {BEDROCK_KEY}":
            return
        found = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, "
            r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})",
            words,
        )
        if not found or found[1] != ACCESS_KEY or found[3] != REGION or found[4] != self.service:
            raise Said(403, {"message": "The security token included in the request is invalid."},
                       x_amzn_errortype="UnrecognizedClientException:http://internal.amazon.com/")  # fmt: skip
        names = found[5].split(";")
        assert {"host", "x-amz-date"} <= set(names)
        if "x-amz-security-token" in request.headers:
            assert "x-amz-security-token" in names
        if signature_of(request, names, found[3], found[4]) != found[6]:
            raise Said(403, {"message": "The request signature we calculated does not match yours."},
                       x_amzn_errortype="InvalidSignatureException:")  # fmt: skip

    def _check(self, body: Any) -> None:
        if body.get("anthropic_version") not in {"bedrock-2023-05-31", "2026-10-21"}:
            raise _validation("anthropic_version: Field required")
        for name in ("model", "stream"):
            if name in body:
                raise _validation(f"{name}: Extra inputs are not permitted")
        if "max_tokens" not in body:
            raise _validation("max_tokens: Field required")
        if "unheard-of" in body.get("anthropic_beta", []):
            raise _validation("invalid beta flag")

    def _messages(self, request: Request) -> Answered:
        assert request.headers["anthropic-version"] in {"2023-06-01", "2026-10-21"}
        if not request.body["model"].startswith("anthropic."):
            raise Said(
                404, {"type": "error", "error": {"type": "not_found_error", "message": "model"}, "request_id": "r"}
            )
        if request.path.endswith("/count_tokens"):
            return 200, {"content-type": "application/json"}, [b'{"input_tokens":%d}' % COUNTED]
        return answered(request.body, stream=bool(request.body.get("stream")))


class Mantle(Bedrock):
    service = "bedrock-mantle"
    base = "/anthropic"


def _validation(words: str) -> Said:
    return Said(400, {"message": words}, x_amzn_errortype="ValidationException:http://internal.amazon.com/coral/")


def signature_of(request: Request, names: Sequence[str], region: str, service: str) -> str:
    """Sign a request anew, as botocore does."""
    again = AWSRequest(
        method=request.method,
        url=f"http://{request.headers['host']}{request.target}",
        headers={name: request.headers[name] for name in names},
        data=request.raw,
    )
    again.context["timestamp"] = request.headers["x-amz-date"]
    auth = SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY, request.headers.get("x-amz-security-token")), service, region)
    canonical = auth.canonical_request(again)
    return str(auth.signature(auth.string_to_sign(again, canonical), again))


# Google


class Vertex(Cloud):
    """Vertex AI and, at /token, where tokens of service accounts are had."""

    def __init__(self) -> None:
        super().__init__()
        self._key = rsa.generate_private_key(65537, 2048)
        self.tokens: list[str] = []
        self.good: set[str] = set()
        self.life_s: float = 3600
        self.token_trouble: list[Said] = []

    @property
    def account(self) -> dict[str, str]:
        """The key file."""
        private = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {
            "type": "service_account", "project_id": PROJECT, "private_key_id": "kid-1",
            "private_key": private.decode(), "client_email": f"fare@{PROJECT}.iam.gserviceaccount.com",
            "token_uri": f"http://127.0.0.1:{self.port}/token",
        }  # fmt: skip

    def answer(self, request: Request) -> Answered:
        if request.path == "/token":
            return self._grant(request)
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.good:
            raise _google(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        models = f"/v1/projects/{PROJECT}/locations/us-east5/publishers/anthropic/models/"
        model, _, verb = request.path.removeprefix(models).partition(":")
        body = request.body
        if not request.path.startswith(models) or verb not in {"rawPredict", "streamRawPredict"} or request.query:
            raise _google(404, "NOT_FOUND", f"Publisher Model `projects/{PROJECT}/x` was not found.")
        if body.get("anthropic_version") not in {"vertex-2023-10-16", "2026-10-21"}:
            raise Said(
                400, {"type": "error", "error": {"type": "invalid_request_error", "message": "anthropic_version"}}
            )
        if model == "count-tokens":
            assert body["model"].startswith("claude-")
            return 200, {"content-type": "application/json"}, [b'{"input_tokens":%d}' % COUNTED]
        if model != "claude-sonnet-4-6" and not re.fullmatch(r"claude-[a-z0-9-]+@\d{8}", model):
            raise _google(404, "NOT_FOUND", f"Publisher Model `projects/{PROJECT}/{model}` was not found.")
        if "model" in body:
            raise Said(
                400, {"type": "error", "error": {"type": "invalid_request_error", "message": "model: Extra inputs"}}
            )
        return answered(body, stream=verb == "streamRawPredict")

    def _grant(self, request: Request) -> Answered:
        if self.token_trouble:
            raise self.token_trouble.pop(0)
        form = parse_qs(request.raw.decode())
        assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
        public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        audiences = [self.account["token_uri"], "https://oauth2.googleapis.com/token"]
        claims = jwt.decode(form["assertion"][0], certs=public, audience=audiences)  # type: ignore[no-untyped-call]
        assert claims["iss"] == self.account["client_email"]
        assert "https://www.googleapis.com/auth/cloud-platform" in claims["scope"].split()
        assert claims["exp"] - claims["iat"] <= 3600
        self.tokens.append(f"ya29.canary-{len(self.tokens)}")
        self.good.add(self.tokens[-1])
        granted = {"access_token": self.tokens[-1], "expires_in": self.life_s, "token_type": "Bearer"}
        return 200, {"content-type": "application/json"}, [json.dumps(granted).encode()]


def _google(status: int, code: str, words: str) -> Said:
    return Said(status, [{"error": {"code": status, "message": words, "status": code}}])


# Microsoft


class Foundry(Cloud):
    """A resource of Foundry and, beside it, where tokens of Entra are had."""

    base = "/anthropic"

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[str] = []

    @property
    def authority(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, request: Request) -> Answered:
        if request.path == "/tenant.example/oauth2/v2.0/token":
            form = {name: values[0] for name, values in parse_qs(request.raw.decode()).items()}
            assert form == {
                "grant_type": "client_credentials", "client_id": "app-1", "client_secret": CLIENT_SECRET,
                "scope": "https://ai.azure.com/.default",
            }  # fmt: skip
            self.tokens.append(f"eyJ.canary-{len(self.tokens)}")
            granted = {
                "token_type": "Bearer",
                "expires_in": 3599,
                "ext_expires_in": 3599,
                "access_token": self.tokens[-1],
            }
            return 200, {"content-type": "application/json; charset=utf-8"}, [json.dumps(granted).encode()]
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if request.headers.get("x-api-key") != FOUNDRY_KEY and bearer not in self.tokens:
            words = "Access denied due to invalid subscription key or wrong API endpoint."
            raise Said(401, {"error": {"code": "401", "message": words}})
        assert request.headers["anthropic-version"] in {"2023-06-01", "2026-10-21"}
        path = urlsplit(request.target).path
        if path == "/anthropic/v1/messages/count_tokens":
            return 200, {"content-type": "application/json"}, [b'{"input_tokens":%d}' % COUNTED]
        if path != "/anthropic/v1/messages":
            raise Said(
                404, {"error": {"code": "api_not_supported", "message": "Requested API is currently not supported"}}
            )
        if request.body["model"] not in {"claude-sonnet-4-6", "my-sonnet"}:
            raise Said(404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}})
        return answered(request.body, stream=bool(request.body.get("stream")))
