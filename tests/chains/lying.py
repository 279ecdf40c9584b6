"""A node between the gateway and an anvil that lags, refuses, cuts, or lies: as hosted ones behind a balancer do."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from farebox.http.client import HttpClient, read_origin
from farebox.http.exchange import Exchange
from farebox.http.server import HttpServer

Twist = Callable[[list[Any], Any], Awaitable[Any]]
"""Makes another result of a method's parameters and its true result."""
_HEADERS = [(b"content-type", b"application/json")]


class Refusal(Exception):
    """What the node says instead of a result. Raised by twists."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.error = {"code": code, "message": words}


class LyingNode:
    """Honest until it is told otherwise. Everything that it is told holds until it is told again."""

    def __init__(self, upstream: str) -> None:
        self._upstream = read_origin(upstream)
        self._client: HttpClient | None = None
        self.url = ""
        self.lags = 0
        """It has not got so many of the newest blocks: by hash it says so, in ranges it just finds nothing there."""
        self.most_range: int | None = None
        """The most blocks of a range; more is an error, in the words of `range_error`."""
        self.range_error = (-32005, "query returned more than 10000 results")
        self.cut_after: int | None = None
        """So many more requests are answered, then connections are cut without an answer."""
        self.cut_halfway = False
        """... or in the middle of it."""
        self.most_batch: int | None = None
        """The most calls in one request; more is refused as a whole, in the words of `batch_error`."""
        self.batch_error = (-32600, "batch too large")
        self.twists: dict[str, Twist] = {}
        """By method: what becomes of its results."""
        self.asked: list[str] = []
        """The methods in the order of their calls."""
        self.ranges: list[int] = []
        """The sizes of the ranges that were asked for."""

    async def serve(self, exchange: Exchange) -> None:
        body = json.loads(await exchange.read_body(2**26))
        if self.cut_after is not None:
            if self.cut_after <= 0 and not self.cut_halfway:
                exchange.break_off(reset=True)
                return
            self.cut_after -= 1
        if isinstance(body, list) and self.most_batch is not None and len(body) > self.most_batch:
            answer: Any = {"jsonrpc": "2.0", "id": None, "error": Refusal(*self.batch_error).error}
        elif isinstance(body, list):
            answer = [await self._answer(call) for call in body]
        else:
            answer = await self._answer(body)
        text = json.dumps(answer).encode()
        if self.cut_after is not None and self.cut_after < 0:
            exchange.start(200, _HEADERS, length=len(text))
            exchange.write(text[: len(text) // 2])
            exchange.break_off(reset=True)
            return
        exchange.respond(200, _HEADERS, text)

    async def true(self, method: str, *params: Any) -> Any:
        """Ask the honest node."""
        answer = await self._forward({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)})
        return answer.get("result")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _answer(self, call: dict[str, Any]) -> dict[str, Any]:
        method, params = call["method"], list(call.get("params", []))
        self.asked.append(method)
        try:
            params = await self._narrowed(method, params)
            answer = await self._forward({**call, "params": params})
            if "error" not in answer:
                answer["result"] = await self._twisted(method, params, answer["result"])
        except Refusal as refusal:
            return {"jsonrpc": "2.0", "id": call["id"], "error": refusal.error}
        return answer

    async def _narrowed(self, method: str, params: list[Any]) -> list[Any]:
        """Ask the honest node only for what this one would know."""
        newest = await self._newest() if self.lags else 0
        if method == "eth_getLogs" and "fromBlock" in params[0]:
            span = dict(params[0])
            first, last = int(span["fromBlock"], 16), int(span["toBlock"], 16)
            self.ranges.append(last - first + 1)
            if self.most_range is not None and last - first + 1 > self.most_range:
                raise Refusal(*self.range_error)
            if self.lags:
                span["toBlock"] = hex(min(last, newest))
            if self.lags and first > newest:
                span = {**span, "fromBlock": "0x0", "toBlock": "0x0"}
            return [span]
        if self.lags and method == "eth_getBlockByNumber" and params[0] == "latest":
            return [hex(newest), *params[1:]]
        return params

    async def _twisted(self, method: str, params: list[Any], result: Any) -> Any:
        if self.lags and (height := await self._height(method, params, result)) is not None:
            newest = await self._newest()
            if height > newest and method == "eth_getLogs":
                raise Refusal(-32000, "unknown block")
            if height > newest and method in {"eth_getBalance", "eth_getTransactionCount", "eth_call"}:
                raise Refusal(-32001, "Resource not found")
            if height > newest:
                result = None
        twist = self.twists.get(method)
        return result if twist is None else await twist(params, result)

    async def _height(self, method: str, params: list[Any], result: Any) -> int | None:
        """Give the height of the block that a call is about; None for calls about none, or by a tag."""
        if method in {"eth_getBlockByNumber", "eth_getBlockByHash"} and result:
            return int(result["number"], 16)
        if method == "eth_getTransactionReceipt" and result:
            return int(result["blockNumber"], 16)
        named = [one for one in params if isinstance(one, dict) and "blockHash" in one]
        if not named:
            return None
        block = await self.true("eth_getBlockByHash", named[0]["blockHash"], False)  # noqa: FBT003  JSON
        return None if block is None else int(block["number"], 16)

    async def _newest(self) -> int:
        return max(0, int(await self.true("eth_blockNumber"), 16) - self.lags)

    async def _forward(self, call: dict[str, Any]) -> dict[str, Any]:
        if self._client is None:
            self._client = HttpClient(self._upstream, connect_s=10, connections=4, stall_s=30)
        answer = await self._client.request("POST", "/", _HEADERS, json.dumps(call).encode(), first_byte_s=30)
        told: dict[str, Any] = json.loads(await answer.read(2**26))
        return told


@asynccontextmanager
async def lying(upstream: str) -> AsyncIterator[LyingNode]:
    """Stand before a node, on loopback; `url` is where."""
    node = LyingNode(upstream)
    server = HttpServer(node.serve, on_bad_request=lambda exchange, _: exchange.respond(400, [], b""))
    node.url = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}"
    try:
        yield node
    finally:
        await server.close(1)
        await server.shut()
        await node.close()
