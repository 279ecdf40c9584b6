"""Starting and stopping while the database is away: patience where waiting helps, one clear line where it does not."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from farebox import app
from farebox.books import keeping
from farebox.errors import StoreUnavailable
from farebox.http.client import HttpClient, Origin
from farebox.http.failures import UpstreamError
from farebox.store.urls import database_name
from tests.cli.test_servers import COMMAND, environment
from tests.cluster import ROLE, Cluster
from tests.databases import name_of, read
from tests.gateway.play import USD, Heard, eventually, message
from tests.stage import Person, Stage, config_text, open_stage
from tests.trouble.acts import (
    SETTLE,
    charged_exactly,
    delivered,
    finished,
    held_up,
    hurry,
    logged,
    settler_of,
    sound,
    spooled,
)
from tests.trouble.proxy import Proxy


@contextlib.asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A real `farebox serve`, with what it says on standard error to be read."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "serve", cwd=directory, env=environment(), stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def said(process: asyncio.subprocess.Process, event: str) -> dict[str, object]:
    """Wait for an event in its log."""
    assert process.stderr is not None
    async with asyncio.timeout(20):
        while line := await process.stderr.readline():
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                if told["event"] == event:
                    return dict(told)
    raise AssertionError(f"it ended without {event}")


# away at the start


@pytest.mark.parametrize("how", ["refuses", "is silent"])
async def test_a_gateway_waits_for_its_database_and_starts_when_it_comes(
    tmp_path: Path, postgres_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(keeping, "_WAIT_PAUSE_S", 0.02)
    if how == "refuses":
        await proxy.refuse()
    else:
        proxy.fall_silent()
    told: list[Stage] = []

    async def start() -> None:
        async with open_stage(tmp_path, database_url=proxy.url(postgres_url)) as stage:
            told.append(stage)
            assert (await stage.ask(stage.alice))[0] == 200

    starting = asyncio.create_task(start())
    await asyncio.sleep(0.3)
    assert not starting.done()
    assert not told
    await proxy.heal()
    await starting
    assert len(logged(told[0], "database_awaited")) == 1


async def test_it_waits_only_so_long(
    tmp_path: Path, postgres_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_WAIT_S", 0.2)
    monkeypatch.setattr(keeping, "_WAIT_PAUSE_S", 0.02)
    await proxy.refuse()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        async with open_stage(tmp_path, database_url=proxy.url(postgres_url)):
            pass


@pytest.fixture
def with_password(cluster: Cluster) -> Iterator[str]:
    """A role that has to show a password."""
    access = cluster.directory / "data" / "pg_hba.conf"
    before = access.read_text()
    cluster.execute("CREATE ROLE careful LOGIN PASSWORD 'right'")
    access.write_text("host all careful 127.0.0.1/32 scram-sha-256\n" + before)
    cluster.configure(application_name="reload")
    yield "careful"
    access.write_text(before)
    cluster.configure(application_name=None)
    cluster.execute("DROP ROLE careful")


MISTAKES = {
    "a wrong password": ("{role}:wrong@{host}/{database}", "password authentication failed"),
    "no password": ("{role}@{host}/{database}", "password"),
    "no such role": ("nobody_here@{host}/{database}", 'role "nobody_here" does not exist'),
    "no such database": ("farebox@{host}/nothing_here", 'database "nothing_here" does not exist'),
    "another program's database": ("farebox@{host}/{foreign}", "cannot be used"),
    "a role that may not read": ("other@{host}/{database}", "permission denied"),
    "a newer schema": ("farebox@{host}/{newer}", "newer"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_is_told_in_one_line_at_once(
    tmp_path: Path, postgres_url: str, cluster: Cluster, with_password: str, mistake: str
) -> None:
    form, words = MISTAKES[mistake]
    cluster.execute("CREATE ROLE other LOGIN")
    with cluster.database() as foreign, cluster.database(name_of(postgres_url)) as newer:
        cluster.execute("CREATE TABLE account (name text)", database=name_of(foreign))
        cluster.execute(f"ALTER TABLE account OWNER TO {ROLE}", database=name_of(foreign))
        cluster.execute("INSERT INTO schema_version VALUES (999)", database=name_of(newer))
        rest = form.format(
            role=with_password,
            host=f"127.0.0.1:{cluster.port}",
            database=name_of(postgres_url),
            foreign=name_of(foreign),
            newer=name_of(newer),
        )
        (tmp_path / "farebox.toml").write_text(config_text(tmp_path, database_url=f"postgresql://{rest}"))
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            "serve",
            cwd=tmp_path,
            env=environment(),
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(10):
            out, err = await process.communicate()
    cluster.execute("DROP ROLE other")
    lines = [line for line in (out + err).decode().splitlines() if line.startswith("farebox: ")]
    assert process.returncode == 1
    assert len(lines) == 1, err.decode()
    assert words in lines[0]
    assert "Traceback" not in err.decode()
    assert "wrong" not in lines[0]


# away at the end


@pytest.mark.parametrize("how", ["refuses", "is silent"])
async def test_a_gateway_stops_in_time_and_the_next_one_delivers_its_spool(
    tmp_path: Path, postgres_url: str, proxy: Proxy, how: str
) -> None:
    loop = asyncio.get_running_loop()
    async with open_stage(tmp_path, database_url=proxy.url(postgres_url)) as stage:
        hurry(stage)
        alice = stage.alice
        async with held_up(stage, alice) as asking:
            if how == "refuses":
                await proxy.refuse()
            else:
                proxy.fall_silent()
            assert (await asking)[0] == 200
        began = loop.time()
    assert loop.time() - began < 10
    assert len(logged(stage, "run_end_not_written")) == 1
    (left,) = (tmp_path / f"{database_name(postgres_url)}.spool").iterdir()
    assert left.stat().st_size
    await proxy.heal()
    async with open_stage(tmp_path, database_url=proxy.url(postgres_url)) as heir:
        await delivered(heir)
        row = await charged_exactly(heir, alice)
        assert row["kind"] == "exact"
        assert not left.exists()


@pytest.mark.parametrize("moment", ["at its first try", "while it insists", "when it is spooled"])
async def test_a_call_that_is_cut_while_it_is_settled_is_not_charged_for_what_did_not_leave(
    stage: Stage, proxy: Proxy, moment: str
) -> None:
    """A gateway that stops can wait no longer. The books had the charge all the same: it is given back."""
    hurry(stage, settle_s=0.2 if moment == "when it is spooled" else 5.0)
    server, settler = stage.gateway._server, settler_of(stage)
    assert server is not None
    proxy.lose_answer(SETTLE, stay_away=True)
    asking = asyncio.create_task(stage.ask(stage.alice))

    async def so_far() -> bool:
        return bool(proxy.lost if moment == "at its first try" else settler._running)

    await eventually(so_far)
    for task in list(server.tasks):
        task.cancel()

    async def cut() -> bool:
        return bool(settler.unsettled)

    if moment == "while it insists":
        await proxy.heal()
    await eventually(cut)
    await proxy.heal()
    assert not asking.done()
    ((kind, charged),) = await stage.rows("SELECT kind, charged_nanos FROM usage")
    assert (kind, charged > 0) == ("exact", True)
    await delivered(stage)
    assert await stage.balance(stage.alice) == (100 * USD, 0)
    await sound(stage)
    asking.cancel()


@pytest.mark.parametrize("how", ["spooled", "booked"])
async def test_what_a_gateway_charged_and_could_not_deliver_before_it_stopped_is_not_paid(
    tmp_path: Path, postgres_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It stops while the database is away, and cuts the calls that it settles: the next one makes it good."""
    monkeypatch.setattr(app, "_END_S", 0.1)
    async with open_stage(tmp_path, database_url=proxy.url(postgres_url)) as stage:
        hurry(stage, settle_s=1.0)
        alice, settler = stage.alice, settler_of(stage)
        if how == "booked":
            proxy.lose_answer(SETTLE, stay_away=True)
        asking = asyncio.create_task(stage.ask(alice, "[[sim tokens=60 ttft=300]]"))

        async def in_the_books() -> bool:
            return bool(stage.gateway.ledger.live)

        async def settling() -> bool:
            return bool(settler._running)

        await eventually(in_the_books)
        if how == "spooled":
            await proxy.refuse()
        await eventually(settling)
        stage.gateway.hurry()
        await stage.gateway.stop()
        with pytest.raises(UpstreamError):
            await asking
        assert len(logged(stage, "settles_spooled")) == 1
    assert len(read(postgres_url, "SELECT 1 FROM usage WHERE charged_nanos > 0")) == (how == "booked")
    await proxy.heal()
    async with open_stage(tmp_path, database_url=proxy.url(postgres_url)) as heir:
        await settler_of(heir).retry()
        await delivered(heir)
        assert await heir.balance(alice) == (100 * USD, 0)
        assert len(await heir.rows("SELECT 1 FROM transfer WHERE code = 'refund'")) == (how == "booked")
        await sound(heir)


async def test_what_a_killed_gateway_had_spooled_is_booked_by_the_next(
    tmp_path: Path, postgres_url: str, proxy: Proxy
) -> None:
    """A real process, with the ten seconds it waits in earnest."""
    async with open_stage(tmp_path, database_url=postgres_url) as stage:
        alice = stage.alice
    upstream = '[[upstreams]]\nname = "sim"\nkind = "simulator"\nspeed = 100'
    text = config_text(tmp_path, upstreams=upstream, database_url=proxy.url(postgres_url))
    (tmp_path / "farebox.toml").write_text(text)
    async with serving(tmp_path) as process:
        port = (await said(process, "listening"))["port"]
        heard = await _listen(port, alice, "[[sim tokens=60]]")
        await heard.has(b"content_block_delta")
        await proxy.refuse()
        assert finished(await heard.end(timeout_s=20))
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert read(postgres_url, "SELECT 1 FROM usage") == []
    await proxy.heal()
    async with open_stage(tmp_path, database_url=postgres_url) as heir:
        await delivered(heir)
        row = await charged_exactly(heir, alice)
        assert (row["kind"], row["output_tokens"]) == ("exact", 60)
        assert spooled(heir) == 0
        assert len(list((tmp_path / f"{database_name(postgres_url)}.spool").iterdir())) == 1  # its own


async def _listen(port: object, person: Person, text: str) -> Heard:
    client = HttpClient(Origin("http", "127.0.0.1", int(str(port)), ""), connect_s=5, connections=1)
    fields = [(b"x-api-key", person.key.encode()), (b"content-type", b"application/json")]
    body = json.dumps(message(text, stream=True)).encode()
    return Heard(await client.request("POST", "/v1/messages", fields, body, first_byte_s=10))


async def test_a_gateway_that_has_no_spool_says_so_when_it_starts(tmp_path: Path, postgres_url: str) -> None:
    """Rather than in the outage for which it would be needed. It serves all the same."""
    (tmp_path / f"{database_name(postgres_url)}.spool").write_text("in the way")
    async with open_stage(tmp_path, database_url=postgres_url) as stage:
        assert len(logged(stage, "spool_not_durable")) == 1
        assert (await stage.ask(stage.alice))[0] == 200
