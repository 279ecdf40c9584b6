"""nginx, HAProxy and Caddy, each started from the very sample in deploy/, with the ports and paths of a test put in."""

import asyncio
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farebox.http.client import HttpClient, Origin
from tests.hostile.raw import Line
from tests.house.pages import ROOT

DEPLOY: Final = ROOT / "deploy"
START_S: Final = 5.0
GATEWAYS: Final = ("10.0.0.11:8080", "10.0.0.12:8080")
"""The addresses of the two gateways in every sample."""

NGINX_MAIN: Final = """
daemon off; worker_processes 2; pid {folder}/nginx.pid; error_log {folder}/error.log info;
events {{ worker_connections 512; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    gzip on; gzip_proxied any; gzip_types *; gzip_min_length 1;
    include {folder}/nginx.conf;
}}
"""
"""What stands around the sample, with the compression that some machines have switched on for everything."""


@dataclass(frozen=True)
class Place:
    """Where one balancer is started: its folder, its free ports, and what it speaks TLS with."""

    folder: Path
    port: int
    admin_port: int
    certificate: Path
    key: Path
    both: Path


@dataclass(frozen=True)
class Sample:
    """A sample and how to start it.

    `marks` gives what each marked value of the file becomes. `replaces`: a call that finds its gateway gone is made at
    the other; if not, it is refused, and the next ones go there.
    """

    name: str
    file: str
    marks: Callable[[Place], Mapping[str, str]]
    command: Callable[[Place], list[str]]
    reload: signal.Signals | Callable[[Place], list[str]]
    """Another configuration without a restart: a signal to it, or a command."""
    replaces: bool


def _nginx_marks(place: Place) -> Mapping[str, str]:
    return {
        "listen 443 ssl": f"listen 127.0.0.1:{place.port} ssl",
        "server_name farebox.example;": "server_name localhost;",
        "/etc/ssl/farebox.example.crt": str(place.certificate),
        "/etc/ssl/farebox.example.key": str(place.key),
    }


def _nginx_command(place: Place) -> list[str]:
    user = "user root;" if os.geteuid() == 0 else ""
    (place.folder / "main.conf").write_text(user + NGINX_MAIN.format(folder=place.folder))
    return ["nginx", "-p", str(place.folder), "-e", f"{place.folder}/error.log", "-c", f"{place.folder}/main.conf"]


def _haproxy_marks(place: Place) -> Mapping[str, str]:
    privileges = "    chroot /var/lib/haproxy\n    user haproxy\n    group haproxy\n"
    return {
        "bind :443": f"bind 127.0.0.1:{place.port}",
        "/etc/haproxy/farebox.example.pem": str(place.both),
        privileges: privileges if os.geteuid() == 0 else "",
    }


def _haproxy_command(place: Place) -> list[str]:
    return ["haproxy", "-W", "-db", "-f", str(place.folder / "haproxy.cfg")]


def _caddy_marks(place: Place) -> Mapping[str, str]:
    return {
        "admin localhost:2019": f"admin localhost:{place.admin_port}",
        "farebox.example {": f"https://localhost:{place.port} {{\n\tbind 127.0.0.1",
        "/etc/ssl/farebox.example.crt": str(place.certificate),
        "/etc/ssl/farebox.example.key": str(place.key),
    }


def _caddy_command(place: Place) -> list[str]:
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(place.folder / "Caddyfile")]


def _caddy_reload(place: Place) -> list[str]:
    words = ["caddy", "reload", "--force", "--adapter", "caddyfile", "--config", str(place.folder / "Caddyfile")]
    return [*words, "--address", f"localhost:{place.admin_port}"]


SAMPLES: Final = (
    Sample("nginx", "nginx.conf", _nginx_marks, _nginx_command, signal.SIGHUP, replaces=True),
    Sample("haproxy", "haproxy.cfg", _haproxy_marks, _haproxy_command, signal.SIGUSR2, replaces=True),
    Sample("caddy", "Caddyfile", _caddy_marks, _caddy_command, _caddy_reload, replaces=False),
)


class Balancer:
    """A balancer that runs, and a client that knows its certificate."""

    def __init__(self, sample: Sample, place: Place, process: asyncio.subprocess.Process) -> None:
        self.sample = sample
        self._place = place
        self.folder = place.folder
        self.port = place.port
        self.certificate = place.certificate
        self.tls = ssl.create_default_context(cafile=place.certificate)
        self.client = HttpClient(
            Origin("https", "localhost", place.port, ""), connect_s=5, connections=100, stall_s=20, tls=self.tls
        )
        self.process = process

    async def reload(self) -> None:
        """Have it read its configuration again, as an operator would."""
        how = self.sample.reload
        if isinstance(how, signal.Signals):
            self.process.send_signal(how)
            return
        quiet = subprocess.DEVNULL
        words = how(self._place)
        command = await asyncio.create_subprocess_exec(
            *words, stdout=quiet, stderr=quiet, env=_environment(self.folder)
        )
        async with asyncio.timeout(START_S):
            assert await command.wait() == 0

    def traces(self) -> bytes:
        """All that it has left on the disk: its log, and whatever else it wrote."""
        return b"".join(path.read_bytes() for path in self.folder.rglob("*") if path.is_file())


@asynccontextmanager
async def balance(sample: Sample, folder: Path, certificates: Path, ports: Sequence[int]) -> AsyncIterator[Balancer]:
    """Start a balancer before two gateways on this machine; end it."""
    place = _set_up(sample, folder, certificates, ports)
    words = sample.command(place)
    program = shutil.which(words[0], path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, f"{words[0]} is not installed; tests/deploy/install.sh does it"
    with (folder / "output.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            program, *words[1:], stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=_environment(folder)
        )
    balancer = Balancer(sample, place, process)
    try:
        await _listening(balancer)
        yield balancer
    finally:
        await balancer.client.close()
        await _end(process)


@asynccontextmanager
async def dial(balancer: Balancer) -> AsyncIterator[Line]:
    """A connection of its own, driven by hand."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", balancer.port, ssl=balancer.tls, server_hostname="localhost"
    )
    try:
        yield Line(reader, writer)
    finally:
        writer.transport.abort()


def _set_up(sample: Sample, folder: Path, certificates: Path, ports: Sequence[int]) -> Place:
    folder.mkdir()
    port, admin_port = _free_ports(2)
    files = (certificates / "server.pem", certificates / "server.key", certificates / "both.pem")
    place = Place(folder, port, admin_port, *files)
    gateways = dict(zip(GATEWAYS, (f"127.0.0.1:{number}" for number in ports), strict=True))
    text = put_in((DEPLOY / sample.file).read_text(), gateways | dict(sample.marks(place)))
    (folder / sample.file).write_text(text)
    return place


def put_in(text: str, marks: Mapping[str, str]) -> str:
    """Put values in the place of marks. Each mark must be there."""
    for mark, value in marks.items():
        assert mark in text, f"the sample does not say {mark!r} any more"
        text = text.replace(mark, value)
    return text


def _environment(folder: Path) -> dict[str, str]:
    """Keep what a balancer remembers between runs out of this user's home."""
    return os.environ | dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(folder))


def _free_ports(count: int) -> list[int]:
    plugs = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [plug.getsockname()[1] for plug in plugs]
    for plug in plugs:
        plug.close()
    return ports


async def _listening(balancer: Balancer) -> None:
    async with asyncio.timeout(START_S):
        while True:
            assert balancer.process.returncode is None, (balancer.folder / "output.log").read_text()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", balancer.port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            return


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 3)
        except TimeoutError:
            process.kill()
            await process.wait()
