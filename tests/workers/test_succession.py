"""A gateway that is replaced while it serves: nobody notices, and what cannot take over changes nothing."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from farebox.store.marks import Marks
from tests.cli.test_servers import attempt
from tests.databases import Databases, read
from tests.gateway.play import eventually
from tests.workers.gateways import Service, serving, until
from tests.workers.rolling import restart, roll

ENDLESS = "[[sim tokens=5000 rate=50 ttft=0]]"


@pytest.fixture
def sqlite_url(databases: Databases, tmp_path: Path) -> Iterator[str]:
    with databases.fresh("sqlite", tmp_path) as lent:
        yield lent


@pytest.mark.parametrize(("kind", "workers"), [("sqlite", 1), ("postgresql", 2)])
async def test_three_restarts_under_load_with_200_streams_fail_nothing_and_cut_nothing(
    tmp_path: Path, databases: Databases, kind: str, workers: int
) -> None:
    with databases.fresh(kind, tmp_path) as url:
        async with serving(tmp_path, url, workers=workers) as service, asyncio.timeout(180):
            customers = await roll(service, streams=200, restarts=3, stream_s=6, pause_s=0.05)
            assert customers.failures == []
            assert customers.seen["streams"] >= 200
            assert customers.seen["streams open at restarts"] >= 200  # of 400; a busy machine begins them late
            assert customers.seen["told to close"] >= 6, "kept connections are given up with an answer that says so"
            answered = customers.seen["calls"] + customers.seen["streams"]

            async def all_are_told() -> bool:
                return (await service.figures())['farebox_calls_total{outcome="finished"}'] == answered

            await eventually(all_are_told)
            await until(lambda: len(service.logged("generation_ended")) == 2)
            await until(lambda: service.logged("retired"))
            service.process.send_signal(signal.SIGTERM)
            assert await service.process.wait() == 0
        service.check_books(answered)
        assert read(url, "SELECT count(*) FROM run WHERE stopped_at IS NULL OR reaped_at IS NOT NULL") == [(0,)]
        assert attempt("audit", cwd=tmp_path).returncode == 0


async def test_what_cannot_take_over_leaves_the_old_one_serving_and_what_can_does(
    tmp_path: Path, sqlite_url: str
) -> None:
    async with serving(tmp_path, sqlite_url, workers=1) as service, asyncio.timeout(30):
        path = tmp_path / "farebox.toml"
        good = path.read_text()
        for bad, words in (
            (good.replace("shutdown_s", "shutdwon_s"), "shutdwon_s"),
            (good.replace("port = 0", "port = 1"), "cannot change while another process hands over"),
            (good.replace("farebox", "elsewhere"), "is not the database of the process that hands over"),
            ("[[", "farebox.toml"),
        ):
            path.write_text(bad)
            failed = len(service.logged("reload_failed"))
            service.process.send_signal(signal.SIGHUP)
            await until(lambda before=failed: len(service.logged("reload_failed")) > before)  # type: ignore[misc]
            assert words in service.logged("reload_failed")[-1]["error"]
            assert await service.status() == 200
        assert not service.logged("handed_over")
        path.write_text(good.replace("requests_per_minute = 100_000", "requests_per_minute = 77_777"))
        await restart(service)
        answer = await service.ask()
        assert answer.header(b"anthropic-ratelimit-requests-limit") == b"77777"
        await answer.read(2**20)
        service.process.send_signal(signal.SIGTERM)
        assert await service.process.wait() == 0
        service.check_books(5)


async def test_the_program_that_takes_over_is_the_one_that_is_there_then(tmp_path: Path, sqlite_url: str) -> None:
    """Versions are folders, of which a link names one: interpreter, libraries and code come from there."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        program = tmp_path / version / "farebox"
        program.write_text(
            f"#!{sys.executable}\nfrom pathlib import Path\nfrom farebox.cli import main\n"
            f'Path("{tmp_path}/version").write_text("{version}")\nmain()\n'
        )
        program.chmod(0o755)
    current = tmp_path / "current"
    current.symlink_to("1")
    command = [str(current / "farebox")]
    async with serving(tmp_path, sqlite_url, workers=1, command=command) as service, asyncio.timeout(20):
        assert (tmp_path / "version").read_text() == "1"
        (tmp_path / "next").symlink_to("2")
        (tmp_path / "next").rename(current)
        await restart(service)
        assert (tmp_path / "version").read_text() == "2"


async def test_an_idle_connection_is_served_once_more_by_the_old_process_and_then_given_up(
    tmp_path: Path, sqlite_url: str
) -> None:
    async with serving(tmp_path, sqlite_url, workers=1) as service, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        request = b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n"
        writer.write(request)
        assert b"connection: close" not in await reader.readuntil(b"ready\n")
        await restart(service)
        await until(lambda: service.logged("retiring"))
        writer.write(request + request)
        first = await reader.readuntil(b"ready\n")
        rest = await reader.read()
        assert first.startswith(b"HTTP/1.1 200"), (
            "it is ready: whoever asks it learns of the address, not of the process"
        )
        assert b"connection: close" not in first, "one more request waits behind this one"
        assert rest.count(b"HTTP/1.1 200") == 1
        assert b"connection: close" in rest
        writer.close()
        await until(lambda: service.logged("retired"))


@pytest.mark.parametrize("second", [False, True])
async def test_sigterm_ends_all_generations_and_a_second_one_ends_them_at_once(
    tmp_path: Path, sqlite_url: str, *, second: bool
) -> None:
    async with serving(tmp_path, sqlite_url, workers=1, shutdown_s=60 if second else 0.5) as service:
        async with asyncio.timeout(20):
            heard = []
            for _ in range(3):
                heard.append(await service.listen(ENDLESS))
                await heard[-1].has(b"content_block_delta")
                if len(heard) < 3:
                    await restart(service)
            service.process.send_signal(signal.SIGTERM)
            await until(lambda: refuses(service))
            if second:
                service.process.send_signal(signal.SIGTERM)
            for stream in heard:
                await stream.end()
                assert stream.names[-1] == "error"
            assert await service.process.wait() == 0
        service.check_books(3)
        assert read(sqlite_url, "SELECT DISTINCT outcome, charged_nanos FROM usage") == [("gateway_broke", 0)]


async def test_what_a_process_held_that_dies_while_it_retires_is_given_back_by_the_next(
    tmp_path: Path, sqlite_url: str
) -> None:
    """And not before: the holds of one that ends its calls are its own."""
    async with serving(tmp_path, sqlite_url, workers=1) as service, asyncio.timeout(20):
        await restart(service)
        heard = await service.listen(ENDLESS)
        await heard.has(b"content_block_delta")
        await restart(service)
        await until(lambda: len(service.logged("retiring")) == 2)
        assert await service.status() == 200
        assert read(sqlite_url, "SELECT count(*) FROM hold") == [(1,)]
        assert attempt("audit", cwd=tmp_path).returncode == 0, "money that is held for a call under way is not stuck"
        os.kill(service.logged("handed_over")[0]["pid"], signal.SIGKILL)
        await until(lambda: read(sqlite_url, "SELECT count(*) FROM hold") == [(0,)])
        assert read(sqlite_url, "SELECT kind FROM usage ORDER BY kind") == [("exact",), ("recovered",)]
        assert await service.status() == 200
        service.process.send_signal(signal.SIGTERM)
        assert await service.process.wait() == 0
        service.check_books(3)


async def test_when_nobody_can_serve_any_more_it_ends_with_1_so_that_it_is_started_anew(
    tmp_path: Path, sqlite_url: str
) -> None:
    async with serving(tmp_path, sqlite_url, workers=1) as service, asyncio.timeout(20):
        await restart(service)
        os.kill(service.logged("handed_over")[0]["pid"], signal.SIGKILL)
        assert await service.process.wait() == 1
        assert service.logged("generation_died")


async def test_the_end_of_the_first_process_ends_all(tmp_path: Path, sqlite_url: str) -> None:
    async with serving(tmp_path, sqlite_url, workers=1, shutdown_s=0) as service, asyncio.timeout(20):
        await restart(service)
        service.process.kill()
        await until(lambda: len(service.logged("stopped")) >= 1)
        await until(lambda: refuses(service))


def test_marks_tell_who_lives_and_give_the_lead_to_one(tmp_path: Path) -> None:
    one, other = Marks(tmp_path / "lock"), Marks(tmp_path / "lock")
    one.live(5 << 50)
    assert other.lives(5 << 50)
    assert not other.lives(6 << 50)
    assert one.lead()
    assert one.lead()
    assert not other.lead()
    one.follow()
    assert other.lead()
    one.close()
    assert not other.lives(5 << 50)
    with pytest.raises(RuntimeError):
        Marks(tmp_path / "lock").live(0)
    other.close()


def refuses(service: Service) -> bool:
    try:
        socket.create_connection(("127.0.0.1", service.port), timeout=5).close()
    except OSError:
        return True
    return False
