"""Several gateways behind one socket, for real: who dies, who is told to end, and what the sums say meanwhile."""

import asyncio
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from farebox.http.failures import UpstreamError
from tests.cli.test_servers import attempt
from tests.cluster import Cluster
from tests.databases import Databases, read, write
from tests.gateway.play import eventually
from tests.workers.gateways import Service, configuration, serving, until
from tests.workers.test_supervisor import runs

NOBODY = "postgresql://farebox@127.0.0.1:1/farebox"
LONG = "[[sim tokens=60 rate=60 ttft=0]]"
ENDLESS = "[[sim tokens=5000 rate=50 ttft=0]]"


@pytest.fixture
def url(databases: Databases, tmp_path: Path) -> Iterator[str]:
    with databases.fresh("postgresql", tmp_path) as lent:
        yield lent


async def test_all_workers_take_calls_and_one_scrape_shows_them_all(tmp_path: Path, url: str) -> None:
    async with serving(tmp_path, url) as service:
        asked = 0
        while len(service.served_by()) < 4:
            assert asked < 400
            assert await asyncio.gather(*[service.status() for _ in range(40)]) == [200] * 40
            asked += 40
            await until(lambda: service.served_by().total() == asked)  # noqa: B023

        async def all_are_told() -> bool:
            return (await service.figures())['farebox_responses_total{status="200"}'] == asked

        await eventually(all_are_told)
        figures = await service.figures()
        assert figures['farebox_calls_total{outcome="finished"}'] == asked
        assert (figures["farebox_workers"], figures["farebox_worker_restarts_total"]) == (4, 0)
        service.process.send_signal(signal.SIGTERM)
        assert await service.process.wait() == 0
        service.check_books(asked)
        assert {told.get("worker") for told in service.logged("stopped")} == {"1", "2", "3", "4", None}


async def test_a_killed_worker_is_replaced_within_a_second_while_the_others_serve(tmp_path: Path, url: str) -> None:
    """Under load: only calls of the dead are cut, and no sum ever goes back."""
    async with serving(tmp_path, url, workers=3) as service, asyncio.timeout(30):
        counts = {"answered": 0, "cut": 0}
        ended = False

        async def customer() -> None:
            while not ended:
                try:
                    answered = await service.status() == 200
                    counts["answered"] += answered
                except UpstreamError:
                    counts["cut"] += 1

        async def watch() -> None:
            before: dict[str, float] = {}
            while not ended:
                now = await service.figures()
                assert not {name for name in before if "_total" in name and now.get(name, 0) < before[name]}
                before = now
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for task in (watch, *[customer] * 6):
                group.create_task(task())
            await until(lambda: len(service.served_by()) == 3)
            for deaths, worker in ((1, "2"), (2, "3")):
                os.kill(service.pids()[worker], signal.SIGKILL)
                await until(lambda count=3 + deaths: len(service.logged("listening")) == count, 1)  # type: ignore[misc]
                served = counts["answered"]
                await until(lambda enough=served + 30: counts["answered"] >= enough)  # type: ignore[misc]
            await asyncio.sleep(1.2)  # figures are posted once a second
            ended = True
        assert [told["worker"] for told in service.logged("worker_died")] == ["2", "3"]
        assert counts["cut"] <= 12
        figures = await service.figures()
        assert (figures["farebox_workers"], figures["farebox_worker_restarts_total"]) == (3, 2)
        assert counts["answered"] / 2 < figures['farebox_calls_total{outcome="finished"}'] <= sum(counts.values())


@pytest.mark.parametrize("to_all", [False, True])
async def test_sigterm_lets_streams_end_whether_the_supervisor_gets_it_or_all(
    tmp_path: Path, url: str, *, to_all: bool
) -> None:
    """Service managers and terminals signal all processes; that is one signal for each call, not two."""
    async with serving(tmp_path, url) as service, asyncio.timeout(20):
        heard = [await service.listen(LONG) for _ in range(6)]
        for stream in heard:
            await stream.has(b"content_block_delta")
        if to_all:
            os.killpg(service.process.pid, signal.SIGTERM)
        else:
            service.process.send_signal(signal.SIGTERM)
        await until(lambda: refuses(service))
        assert service.process.returncode is None
        for stream in heard:
            await stream.end()
            assert stream.names[-1] == "message_stop"
        assert await service.process.wait() == 0
        service.check_books(6)


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_second_sigterm_ends_streams_at_once_and_free_of_charge(
    tmp_path: Path, url: str, *, at_once: bool
) -> None:
    async with serving(tmp_path, url, shutdown_s=60) as service, asyncio.timeout(20):
        heard = [await service.listen(ENDLESS) for _ in range(6)]
        for stream in heard:
            await stream.has(b"content_block_delta")
        if at_once:  # the supervisor finds both when it wakes up
            service.process.send_signal(signal.SIGSTOP)
            service.process.send_signal(signal.SIGTERM)
            service.process.send_signal(signal.SIGINT)
            service.process.send_signal(signal.SIGCONT)
        else:
            service.process.send_signal(signal.SIGTERM)
            await until(lambda: refuses(service))
            assert not any(stream.ended for stream in heard)
            service.process.send_signal(signal.SIGTERM)
        for stream in heard:
            await stream.end()
            assert stream.last[1]["error"]["type"] == "overloaded_error"
        assert await service.process.wait() == 0
        service.check_books(6)
        assert read(url, "SELECT DISTINCT kind, charged_nanos FROM usage") == [("waived", 0)]


async def test_nothing_outlives_a_killed_supervisor_but_the_calls_that_run(tmp_path: Path, url: str) -> None:
    async with serving(tmp_path, url) as service, asyncio.timeout(20):
        pids = service.pids()
        heard = await service.listen(LONG)
        await heard.has(b"content_block_delta")
        service.process.kill()
        await service.process.wait()
        await until(lambda: refuses(service), 1)
        assert not heard.ended
        await heard.end()
        assert heard.names[-1] == "message_stop"
        await until(lambda: not any(map(runs, pids.values())))
        service.check_books(1)


async def test_a_single_worker_can_be_renewed(tmp_path: Path, url: str) -> None:
    async with serving(tmp_path, url, workers=2) as service, asyncio.timeout(20):
        before = service.pids()
        heard = [await service.listen(LONG) for _ in range(6)]
        os.kill(before["1"], signal.SIGTERM)
        for stream in heard:
            await stream.end()
            assert stream.names[-1] == "message_stop"
        await until(lambda: len(service.logged("listening")) == 3)
        assert [told["worker"] for told in service.logged("worker_ended")] == ["1"]
        after = service.pids()
        assert after["1"] != before["1"]
        assert after["2"] == before["2"]
        assert not service.logged("worker_died")


async def test_the_process_that_shows_metrics_may_die_and_knows_all_when_it_is_back(tmp_path: Path, url: str) -> None:
    async with serving(tmp_path, url, workers=2) as service, asyncio.timeout(20):
        assert await asyncio.gather(*[service.status() for _ in range(10)]) == [200] * 10
        for worker in ("1", "2"):  # in order, so that their last figures are told
            os.kill(service.pids()[worker], signal.SIGTERM)
        await until(lambda: len(service.logged("listening")) == 4)
        os.kill(service.pids()["metrics"], signal.SIGKILL)
        await until(lambda: service.logged("worker_died"))
        figures = await service.figures()  # its socket stayed open: whoever asks meanwhile waits
        assert figures['farebox_calls_total{outcome="finished"}'] == 10
        assert (figures["farebox_workers"], figures["farebox_worker_restarts_total"]) == (2, 2)
        assert service.logged("worker_died")[0]["worker"] == "metrics"


async def test_ten_requests_a_minute_are_ten_with_four_workers(tmp_path: Path, url: str) -> None:
    async with serving(tmp_path, url, plan="free") as service, asyncio.timeout(20):
        begun = asyncio.get_running_loop().time()
        statuses = Counter(await asyncio.gather(*[service.status() for _ in range(60)]))
        assert 10 <= statuses[200] <= 10 + (asyncio.get_running_loop().time() - begun) / 6
        assert statuses.total() == statuses[200] + statuses[429]


async def test_each_worker_knows_what_the_others_have_let_in(tmp_path: Path, url: str) -> None:
    """One after the other they are the only one awake."""
    async with serving(tmp_path, url, plan="free") as service, asyncio.timeout(20):
        begun = asyncio.get_running_loop().time()
        pids = service.pids()
        statuses = []
        for awake in ("1", "2", "3", "4"):
            others = [pids[worker] for worker in "1234" if worker != awake]
            for pid in others:
                os.kill(pid, signal.SIGSTOP)
            statuses += [await service.status() for _ in range(4)]
            for pid in others:
                os.kill(pid, signal.SIGCONT)
        assert asyncio.get_running_loop().time() - begun < 6, "the machine is too slow to tell"
        assert statuses == [200] * 10 + [429] * 6
        await until(lambda: service.served_by() == {"1": 4, "2": 4, "3": 2})


# starts that go wrong, or nearly


async def test_workers_begin_together_on_an_empty_database(tmp_path: Path, cluster: Cluster) -> None:
    with cluster.database() as url:
        async with serving(tmp_path, url, customer=False) as service:
            assert {told["event"] for told in service.events} == {"supervising", "listening"}
            service.process.send_signal(signal.SIGTERM)
            assert await service.process.wait() == 0


async def test_a_start_can_be_given_up_while_it_waits_for_the_database(tmp_path: Path) -> None:
    async with serving(tmp_path, NOBODY, customer=False, awaits="database_awaited") as service, asyncio.timeout(5):
        service.process.send_signal(signal.SIGTERM)
        assert await service.process.wait() == 0
        assert not service.logged("worker_died")


def test_what_makes_a_start_impossible_is_told_once_and_ends_it(tmp_path: Path, url: str) -> None:
    write(url, "INSERT INTO schema_version (version) VALUES (99)")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for books, at, words in (
            (url, 0, "has schema 99"),
            (url, port, f"127.0.0.1:{port} cannot be listened on"),
            ("sqlite:///farebox.db", 0, "so it must be 1"),
        ):
            (tmp_path / "farebox.toml").write_text(configuration(books, 9, f"port = {at}\nworkers = 3"))
            ended = attempt("serve", cwd=tmp_path)
            assert ended.returncode == 1
            assert ended.stderr.count(words) == 1, ended.stderr
            assert ended.stderr.splitlines()[-1].startswith("farebox: ")
            assert "Traceback" not in ended.stderr


def refuses(service: Service) -> bool:
    """Whether nobody listens any more."""
    try:
        socket.create_connection(("127.0.0.1", service.port), timeout=5).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False
