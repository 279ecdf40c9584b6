"""What the tests of trouble do again and again."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from farebox.books.audit import audit
from farebox.gateway.settling import Settler
from farebox.gateway.streaming import Streams
from farebox.http.client import Answer
from farebox.store.postgres import PostgresStore
from tests.gateway.play import Heard, books, eventually, exact, message, nanos, usage_rows
from tests.stage import Person, Stage

ADMIT: Final = b'"type":"admit"'
SETTLE: Final = b'"type":"settle"'
RESIZE: Final = b'"type":"resize"'
REFUSED_WITHIN_S: Final = 2.0


def settler_of(stage: Stage) -> Settler:
    settler = stage.gateway._settler
    assert settler is not None
    return settler


def streams_of(stage: Stage) -> Streams:
    streams = stage.gateway._streams
    assert streams is not None
    return streams


def store_of(stage: Stage) -> PostgresStore:
    store = stage.gateway.store
    assert isinstance(store, PostgresStore)
    return store


def hurry(stage: Stage, *, settle_s: float = 0.3, stream_s: float = 0.3, apply_s: float = 0.3) -> None:
    """Shorten what is ten seconds in earnest, and a second and a half."""
    settler_of(stage)._patience_s = settle_s
    streams_of(stage)._patience_s = stream_s
    store_of(stage).apply_patience_s = apply_s


def spooled(stage: Stage) -> int:
    """What `farebox_spooled` shows."""
    return len(settler_of(stage)._spool.waiting)


def logged(stage: Stage, event: str) -> list[dict[str, Any]]:
    return [told for told in stage.events if told["event"] == event]


async def refused(answer: Answer) -> None:
    """See that a call was refused in words that help."""
    error = json.loads(await answer.read(2**20))
    assert answer.status == 503
    assert (error["type"], error["error"]["type"]) == ("error", "api_error")
    assert "try again" in error["error"]["message"]
    assert error["request_id"].startswith("req_")
    assert int(answer.header(b"retry-after") or b"0") > 0
    assert answer.header(b"x-should-retry") == b"true"


async def refused_in_time(stage: Stage, person: Person, **fields: Any) -> float:
    """See that a new call is refused soon; answers how soon."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await refused(await stage.post(person, message(**fields)))
    took = loop.time() - began
    assert took < REFUSED_WITHIN_S
    return took


async def probe(stage: Stage, path: str) -> int:
    """What a load balancer is told."""
    answer = await stage.client.request("GET", path, [], b"", first_byte_s=5)
    await answer.read(2**10)
    return answer.status


async def is_ready(stage: Stage) -> bool:
    return await probe(stage, "/readyz") == 200


async def is_unready(stage: Stage) -> bool:
    return await probe(stage, "/readyz") == 503


async def serves_again(stage: Stage, person: Person) -> None:
    """Wait until calls are let in again."""

    async def asked() -> bool:
        return (await stage.ask(person))[0] == 200

    await eventually(asked)


async def delivered(stage: Stage) -> None:
    """Empty the spool and end stray holds, as jobs do every now and then."""
    assert stage.gateway.books is not None
    await settler_of(stage).retry()
    await stage.gateway.books.runs.end_strays()
    assert spooled(stage) == 0
    assert settler_of(stage).unsettled == {}


async def charged_exactly(stage: Stage, person: Person, calls: int = 1) -> dict[str, Any]:
    """See that all calls have ended and were charged what they cost, once, and that the books are sound.

    Calls that were refused may have left free rows: their hold came to be all the same.
    """
    sql = "SELECT count(*) FROM usage WHERE account_id = ? AND kind = 'recovered'"
    ((strays,),) = await stage.rows(sql, person.account_id)
    await books(stage, person, calls=calls + strays)
    rows = [row for row in await usage_rows(stage, person) if row["kind"] != "recovered"]
    for row in rows:
        assert row["kind"] in {"exact", "late"}
        assert row["charged_nanos"] == nanos(exact(input=row["input_tokens"], output=row["output_tokens"]))
    await sound(stage)
    return rows[-1]


async def sound(stage: Stage) -> None:
    """Let the books prove themselves."""
    broken = [check for check in await audit(stage.gateway.store) if not check.ok]
    assert not broken, broken


@asynccontextmanager
async def held_up(stage: Stage, person: Person, **fields: Any) -> AsyncIterator["asyncio.Task[tuple[int, bytes]]"]:
    """A call that was let in, and whose answer is on its way for about a third of a second."""
    before = len(stage.simulator.requests)
    asking = asyncio.create_task(stage.ask(person, "[[sim tokens=60 ttft=300]]", **fields))

    async def arrived() -> bool:
        return len(stage.simulator.requests) > before

    await eventually(arrived)
    yield asking
    await asking


def finished(heard: Heard) -> bool:
    return heard.names[-2:] == ["message_delta", "message_stop"]
