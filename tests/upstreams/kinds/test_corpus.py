"""The corpus through clouds: recorded streams in Bedrock's frames, recorded requests by every way up."""

import json
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from farebox.http.surrogates import without_halves
from tests.corpus import exchanges
from tests.gateway.play import Heard, books, message
from tests.upstreams.kinds.clouds import Answered, Request, chunk
from tests.upstreams.kinds.test_clouds import WAYS, OpenCloud, asked, fields, open_cloud

__all__ = ["open_cloud"]
EVENTSTREAM = {"content-type": "application/vnd.amazon.eventstream"}


def whole_events(body: bytes) -> list[bytes] | None:
    """Give the data of a stream's events, if each is as Bedrock's chunks have them: JSON that says its type."""
    found = []
    for event in body.split(b"\n\n")[:-1]:
        name, _, data = event.partition(b"\ndata: ")
        try:
            if name != b"event: " + json.loads(data)["type"].encode() or b"\n" in data or b"\r" in data:
                return None
        except (ValueError, KeyError, TypeError):
            return None
        found.append(data)
    return found if body.endswith(b"\n\n") else None


def recorded() -> Iterator[tuple[exchanges.Exchange, list[bytes]]]:
    """Give the recorded streams that end well."""
    for name in exchanges.names():
        if name.startswith(("stream/", "usage/", "wire/")):
            exchange = exchanges.read(name)
            plain = exchange.gets == "the same" and exchange.metered.kind == "exact" and not exchange.stays_open
            if plain and b"text/event-stream" in exchange.head and (events := whole_events(exchange.seen_body)):
                yield exchange, events


async def test_every_recorded_stream_comes_through_bedrocks_frames_and_is_metered(open_cloud: OpenCloud) -> None:
    choices = random.Random(20261123)
    found = list(recorded())
    assert len(found) >= 40
    models = {
        exchange.ask.get("model", "claude-sonnet-4-6"): f"anthropic.{number}"
        for number, (exchange, _) in enumerate(found)
    }
    table = ", ".join(f'"{model}" = "{name}"' for model, name in models.items())
    async with open_cloud("invoke", f"models = {{ {table} }}") as (stage, cloud):
        rich = await stage.person("corpus@example.com", 10_000, plan="enterprise")
        for number, (exchange, events) in enumerate(found, 1):
            framed = b"".join(chunk(event) for event in events)
            pieces = exchanges.split(framed, choices, 8)

            def answer(_: Request, pieces: Any = pieces) -> Answered:
                return 200, EVENTSTREAM, [piece for piece in pieces if piece]

            cloud.next = [answer]
            heard = await Heard(await stage.post(rich, message(**{"stream": True, **exchange.ask}))).end()
            assert heard.data == exchange.seen_body, exchange.name
            row = await books(stage, rich, had=10_000 * 10**9, calls=number)
            wanted = {**msgspec.structs.asdict(exchange.metered), "upstream": "cloud", "status": heard.status}
            assert {name: row[name] or wanted[name] * 0 for name in wanted} == wanted, exchange.name


@pytest.mark.parametrize("way", WAYS)
async def test_every_recorded_request_goes_up_in_its_own_words(open_cloud: OpenCloud, way: str) -> None:
    tried = 0
    async with open_cloud(way) as (stage, cloud):
        for path in sorted(exchanges.ROOT.glob("requests/*.toml")):
            sent = msgspec.toml.decode(path.read_bytes())
            if sent.get("status", 200) != 200:
                continue
            body = path.with_suffix(".json").read_bytes()
            for mark, count in sent.get("grow", {}).items():
                body = body.replace(mark.encode(), b"x" * count)
            cloud.requests.clear()
            answer = await stage.post(stage.alice, body, headers=sent.get("headers", {}))
            told = await answer.read(2**26)
            assert answer.status == 200, (path.stem, told)
            (request,) = asked(cloud)
            theirs, ours = fields(request.raw), fields(without_halves(body) or body)
            same = ours.keys() - {"model", "stream"}
            assert {name: theirs.get(name) for name in same} == {name: ours[name] for name in same}, path.stem
            assert theirs.keys() - same <= {"model", "stream", "anthropic_version", "anthropic_beta"}
            tried += 1
    assert tried >= 10
    assert not cloud.refused
