"""Upstreams over TLS: their certificates are checked against what the machine trusts, and connections are kept."""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from farebox.http.client import HttpClient, Origin
from farebox.http.failures import ConnectFailed
from farebox.upstreams.simulator import Simulator
from tests.gateway.play import books, envelope, listen, message
from tests.stage import Stage, open_stage
from tests.upstreams.wire import chunked, whole

LARGE = bytes(range(256)) * 2_000


def _openssl(directory: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a certificate of it for the name localhost alone."""
    directory = tmp_path_factory.mktemp("certificates")
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2")
    _openssl(directory, *new, "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE")
    names = ("-subj", "/CN=upstream", "-addext", "subjectAltName=DNS:localhost")
    _openssl(directory, *new, *signed, *names, "-keyout", "server.key", "-out", "server.pem")
    return directory


@pytest.fixture
def trusted(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    return certificates


class Shim:
    """TLS in front of the simulator, byte for byte."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.connections = 0
        self._target = target

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        behind, ahead = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(_pipe(reader, ahead), _pipe(behind, writer))


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


def _server_context(certificates: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    return context


@asynccontextmanager
async def _over_tls(
    tmp_path: Path, certificates: Path, host: str = "localhost"
) -> AsyncIterator[tuple[Stage, Shim, Simulator]]:
    """A gateway whose one upstream is reached over TLS."""
    simulator = Simulator(speed=0, api_key="theirs")
    shim = Shim(await simulator.listen())
    listening = await asyncio.start_server(shim.serve, "127.0.0.1", 0, ssl=_server_context(certificates))
    shim.port = listening.sockets[0].getsockname()[1]
    upstreams = (
        '[[upstreams]]\nname = "tls"\nkind = "anthropic"\napi_key = "theirs"\n'
        f'base_url = "https://{host}:{shim.port}"\n'
    )
    try:
        async with open_stage(tmp_path, upstreams=upstreams) as stage:
            yield stage, shim, simulator
    finally:
        listening.close()
        await simulator.close()


async def test_calls_over_tls_are_answered_and_charged_over_one_connection(tmp_path: Path, trusted: Path) -> None:
    async with _over_tls(tmp_path, trusted) as (stage, shim, simulator):
        for _ in range(3):
            assert (await stage.ask(stage.alice, "[[sim tokens=50]]"))[0] == 200
            heard = await (await listen(stage, stage.alice, "[[sim tokens=1500]]")).end()
            assert heard.names[-1] == "message_stop"
        row = await books(stage, stage.alice, calls=6)
        assert (row["kind"], row["output_tokens"]) == ("exact", 1500)
        assert shim.connections == 1
        assert simulator.requests[-1].header(b"host") == b"localhost:%d" % shim.port


async def test_a_stream_cut_under_tls_is_free(tmp_path: Path, trusted: Path) -> None:
    async with _over_tls(tmp_path, trusted) as (stage, _, _):
        for knobs in ("cut_after=8", "reset_after=8"):
            heard = await (await listen(stage, stage.alice, f"[[sim tokens=60 events_per_chunk=1 {knobs}]]")).end()
            assert heard.last[1]["error"]["type"] == "upstream_error"
        assert (await books(stage, stage.alice, calls=2))["outcome"] == "upstream_broke"


async def test_a_stream_over_tls_that_its_client_leaves_is_drained_and_charged(tmp_path: Path, trusted: Path) -> None:
    async with _over_tls(tmp_path, trusted) as (stage, _, simulator):
        heard = await listen(stage, stage.alice, "[[sim tokens=200 rate=1000 ttft=0]]")
        await heard.has(b"content_block_delta")
        heard.hang_up()
        assert (await books(stage, stage.alice))["output_tokens"] == 200
        assert simulator.requests[-1].outcome == "finished"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_certificate_that_is_not_trusted_or_not_the_hosts_is_a_502_without_details(
    tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Nothing is sent, nothing is charged, and the customer learns no host, port or certificate."""
    if host != "localhost":  # trusted, but made out to another name
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    async with _over_tls(tmp_path, certificates, host) as (stage, shim, simulator):
        for stream in (True, False):
            answer = await stage.post(stage.alice, message(stream=stream))
            kind, words = envelope(await answer.read(2**20))
            assert (answer.status, kind) == (502, "upstream_error")
            assert words == "the upstream gave no usable answer after 3 tries; nothing was charged"
        row = await books(stage, stage.alice, calls=2)
        assert (row["kind"], row["charged_nanos"], row["outcome"]) == ("waived", 0, "upstream_broke")
        assert len(simulator.requests) == 0
        assert stage.gateway.pool is not None
        with pytest.raises(ConnectFailed, match="certificate verify failed"):
            await stage.gateway.pool.upstreams[0].client.request("GET", "/", [], b"", first_byte_s=1)
        assert str(shim.port) not in words


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("answer", [whole(LARGE), chunked(LARGE)])
def test_large_answers_come_whole_over_a_kept_connection_on_both_loops(
    certificates: Path, loop: type[asyncio.AbstractEventLoop], answer: bytes
) -> None:
    """The server runs on uvloop, most tests on asyncio's own loop; their TLS is not the same code."""

    async def work() -> None:
        connections: list[object] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(writer)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(answer)
                    await writer.drain()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=_server_context(certificates))
        port = server.sockets[0].getsockname()[1]
        context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        origin = Origin("https", "localhost", port, "")
        client = HttpClient(origin, connect_s=5, connections=2, stall_s=5, tls=context)
        for _ in range(3):
            got = await client.request("GET", "/", [], b"", first_byte_s=5)
            await asyncio.sleep(0.02)  # more comes than may wait unread: the reading pauses
            assert await got.read(2**22) == LARGE
        assert len(connections) == 1
        await client.close()
        server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(work())
