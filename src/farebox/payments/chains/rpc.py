"""JSON-RPC over HTTP, as nodes of Bitcoin and of EVM chains speak it. One request at a time, or many in one batch.

Amounts are exact: numbers with decimals come as Decimal. Whatever is no answer to what was asked is a RailTrouble, so
that nothing is ever concluded from a broken one.
"""

import asyncio
import base64
import ssl
from collections.abc import Sequence
from decimal import Decimal
from itertools import count
from typing import Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec

from farebox.errors import RailTrouble
from farebox.http.client import HttpClient, read_origin
from farebox.http.failures import UpstreamError

Call = tuple[str, list[Any]]
"""A method and its parameters."""

_MOST_BYTES: Final = 64 * 2**20
_BATCH: Final = 500
_DECODER: Final = msgspec.json.Decoder(Any, float_hook=Decimal)


class RpcError(RailTrouble):
    """The node understood, and said no."""

    def __init__(self, method: str, code: int, words: str, data: Any = None) -> None:
        super().__init__(f"{method}: {words} ({code})")
        self.code = code
        self.words = words
        self.data = data


class JsonRpc:
    """One node. `user` and `password` go into the header; so do those in the URL."""

    def __init__(self, url: str, user: str = "", password: str = "", *, within_s: float = 30.0) -> None:
        """Raises ValueError for what is no http(s) URL."""
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self._origin = read_origin(urlunsplit((parts.scheme, host, "", "", "")))
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        user, password = user or unquote(parts.username or ""), password or unquote(parts.password or "")
        self._headers = [(b"content-type", b"application/json"), (b"accept", b"application/json")]
        if user or password:
            token = base64.b64encode(f"{user}:{password}".encode())
            self._headers.append((b"authorization", b"Basic " + token))
        self._within_s = within_s
        self._client: HttpClient | None = None
        self._numbers = count(1)

    @property
    def place(self) -> str:
        """Where it is, without what may be a secret in its path."""
        return f"{self._origin.scheme}://{self._origin.host}:{self._origin.port}"

    def at(self, path: str) -> "JsonRpc":
        """Give the same node by another path, such as that of a wallet."""
        other = JsonRpc(self.place, within_s=self._within_s)
        other._target, other._headers = path, self._headers
        return other

    async def ask(self, method: str, *params: Any) -> Any:
        """Call one method. Raises RpcError for its own no, RailTrouble for no answer."""
        (answer,) = await self.ask_all([(method, list(params))])
        if isinstance(answer, RpcError):
            raise answer
        return answer

    async def ask_all(self, calls: Sequence[Call]) -> list[Any]:
        """Call many methods; answers in their order, an RpcError in the place of each no. Raises RailTrouble."""
        answers: list[Any] = []
        for begin in range(0, len(calls), _BATCH):
            answers += await self._batch(calls[begin : begin + _BATCH])
        return answers

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _batch(self, calls: Sequence[Call]) -> list[Any]:
        asked = {next(self._numbers): call for call in calls}
        body: Any = [
            {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            for number, (method, params) in asked.items()
        ]
        single = len(body) == 1
        told = await self._send(msgspec.json.encode(body[0] if single else body))
        if isinstance(told, dict) and not single and isinstance(told.get("error"), dict):
            raise self._no(calls[0][0], told["error"])  # the batch as a whole was refused
        replies = [told] if single else told
        if not isinstance(replies, list) or not all(isinstance(one, dict) for one in replies):
            raise RailTrouble(f"the node at {self.place} answers in no form that is known")
        by_number = {one.get("id"): one for one in replies}
        return [self._read(method, by_number.get(number)) for number, (method, _) in asked.items()]

    def _read(self, method: str, reply: dict[str, Any] | None) -> Any:
        if reply is None or ("result" not in reply and "error" not in reply):
            raise RailTrouble(f"the node at {self.place} does not answer {method}")
        if reply.get("error") is not None:
            return self._no(method, reply["error"])
        return reply.get("result")

    def _no(self, method: str, error: Any) -> RpcError:
        told = error if isinstance(error, dict) else {}
        code = told.get("code")
        return RpcError(
            method, code if isinstance(code, int) else 0, str(told.get("message", error))[:300], told.get("data")
        )

    async def _send(self, body: bytes) -> Any:
        try:
            async with asyncio.timeout(self._within_s):
                client = self._client = self._client or await self._open()
                answer = await client.request("POST", self._target, self._headers, body, first_byte_s=self._within_s)
                text = await answer.read(_MOST_BYTES)
        except TimeoutError as error:
            raise RailTrouble(f"the node at {self.place} took longer than {self._within_s:g} s") from error
        except UpstreamError as error:
            raise RailTrouble(f"the node at {self.place} cannot be asked: {error}") from error
        try:
            return _DECODER.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # also an empty body: what a node says to a method off its whitelist
            words = {401: "refuses user or password", 403: "forbids this method to this user"}
            said = words.get(answer.status, f"answers with status {answer.status} and no JSON")
            raise RailTrouble(f"the node at {self.place} {said}") from error

    async def _open(self) -> HttpClient:
        tls = await asyncio.to_thread(ssl.create_default_context) if self._origin.scheme == "https" else None
        return HttpClient(self._origin, connect_s=self._within_s, connections=4, stall_s=self._within_s, tls=tls)
