"""The gateways that are compared: how each is configured and started in front of the same upstream."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tests.cluster import Cluster

from bench import tools
from bench.process import EVERY_CORE, GATEWAY_CORE, LOAD_CORE, free_port

UPSTREAM_KEY = "sk-ant-bench"
LITELLM_KEY = "sk-6f1c0d7e5b3a49288e7d6c5b4a392817"
MODEL = "claude-sonnet-4-6"


@dataclass(frozen=True)
class Place:
    """Where one start of one gateway happens: an empty folder, its port, the upstream to use."""

    folder: Path
    port: int
    upstream: str
    """Base URL of the upstream, without a path; https for the rows with TLS."""
    certificate: Path
    ending: ExitStack = field(default_factory=ExitStack)
    """What has to end with it."""

    @property
    def tls(self) -> bool:
        return self.upstream.startswith("https:")


@dataclass(frozen=True)
class Launch:
    """A command that starts a gateway in the foreground, and what a request to it must carry."""

    argv: list[str]
    path: str = "/v1/messages"
    headers: dict[str, str] = field(default_factory=lambda: {"x-api-key": UPSTREAM_KEY})
    env: dict[str, str] = field(default_factory=dict)
    verify: Callable[[], None] | None = None
    """Called after the gateway has stopped; raises when its own books disagree with the run."""
    database: int | None = None
    """The first process of the database server, whose tree is measured apart."""


@dataclass(frozen=True)
class Stack:
    name: str
    label: str
    launch: Callable[[Place], Launch] | None
    """None: the load goes straight to the upstream."""
    tls: bool = False
    quick: bool = False
    """Part of `--quick`."""
    postgres: bool = False
    cores: str = GATEWAY_CORE
    """Where the gateway may run, in the words of taskset."""


def _nginx_command(place: Place, listen: str, proxy_pass: str, extra: str = "") -> list[str]:
    """Configure one nginx worker that keeps its upstream connections and buffers no answer."""
    folder = place.folder
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    path = folder / "nginx.conf"
    path.write_text(f"""
{"user root;" if os.geteuid() == 0 else ""}
worker_processes 1; worker_rlimit_nofile 65536; daemon off;
pid {folder}/nginx.pid; error_log {folder}/nginx.log error;
events {{ worker_connections 16384; multi_accept on; }}
http {{
  {" ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)}
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 600s;
  upstream mock {{
    server {place.upstream.partition("//")[2]};
    keepalive 2048; keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{place.port} {listen} backlog=4096;
    {extra}
    location / {{ proxy_pass {proxy_pass}; }}
  }}
}}
""")
    return ["nginx", "-p", str(folder), "-e", f"{folder}/nginx.log", "-c", str(path)]


def terminator(place: Place, key: Path) -> list[str]:
    """Put TLS in front of the upstream: nginx on the load's core, so that its work is nobody's cost."""
    secrets = f"ssl_certificate {place.certificate}; ssl_certificate_key {key};"
    return _nginx_command(place, "ssl", "http://mock", f"{secrets} ssl_session_cache shared:sessions:8m;")


def _nginx(place: Place) -> Launch:
    if not place.tls:
        return Launch(_nginx_command(place, "", "http://mock"))
    trust = f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {place.certificate}; proxy_ssl_name localhost;"
    return Launch(_nginx_command(place, "", "https://mock", trust))


def farebox(place: Place, books: str = "sqlite:///farebox.db", workers: int = 1, most: int = 4000) -> Launch:
    """Billing on: a real key, an account with money, plan limits, a durable hold and settle.

    Everything is as it comes, but for limits that are wide enough for one customer to be the whole load.
    """
    config = place.folder / "farebox.toml"
    config.write_text(f"""
[server]
host = "127.0.0.1"
port = {place.port}
metrics = "127.0.0.1:{free_port()}"
workers = {workers}

[database]
url = "{books}"

[[upstreams]]
name = "mock"
kind = "anthropic"
base_url = "{place.upstream}"
api_key = "{UPSTREAM_KEY}"
connections = {most}

[[plans]]
name = "enterprise"
requests_per_minute = 10_000_000
tokens_per_minute = 1_000_000_000
concurrent = {most}

[limits]
concurrent_calls = {most}
connections = {max(most, 10_000)}
""")
    config.chmod(0o600)
    farebox = str(Path(sys.executable).parent / "farebox")
    with_config = ["--json", "--config", str(config)]
    account = "bench@example.com"
    credit = ["--plan", "enterprise", "--credit", "1000000"]
    tools.run([farebox, "account", "create", account, *credit, *with_config])
    made = json.loads(tools.run([farebox, "key", "create", account, "--name", "bench", *with_config]))

    def audit() -> None:
        tools.run([farebox, "audit", "--config", config])

    return Launch(
        [farebox, "serve", "--config", str(config)],
        path="/api/proxy/v1/messages",
        headers={"x-api-key": made["key"]},
        env={"SSL_CERT_FILE": str(place.certificate)} if place.tls else {},
        verify=audit,
    )


def _farebox_postgres(place: Place, workers: int, cores: str) -> Launch:
    """The same, with the books in a PostgreSQL server of its own on `cores`, as durable as it comes."""
    disk = Path("/var/tmp")  # a real one, too, and with a path short enough for a socket
    server = place.ending.enter_context(Cluster(within=disk, settings="", through=("taskset", "-c", cores)))
    server.create_database("farebox")
    return replace(farebox(place, server.url("farebox"), workers), database=server.processes()[0])


def _litellm(place: Place) -> Launch:
    """Run LiteLLM as fast as it goes: one master key, no database or telemetry, a pool without its limit of 500."""
    config = place.folder / "litellm.yaml"
    config.write_text(f"""
model_list:
  - model_name: {MODEL}
    litellm_params:
      model: anthropic/{MODEL}
      api_base: {place.upstream}
      api_key: {UPSTREAM_KEY}
""")
    options = ["--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1", "--telemetry", "False"]
    return Launch(
        [str(tools.litellm()), "--config", str(config), *options],
        headers={"authorization": f"Bearer {LITELLM_KEY}"},
        env={
            "LITELLM_MASTER_KEY": LITELLM_KEY,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            "AIOHTTP_CONNECTOR_LIMIT": "4000",
            "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "4000",
        },
    )


def _portkey(place: Place) -> Launch:
    to_mock = {"x-portkey-provider": "anthropic", "x-portkey-custom-host": f"{place.upstream}/v1"}
    return Launch(
        ["node", str(tools.portkey()), f"--port={place.port}", "--headless"],
        headers={"x-api-key": UPSTREAM_KEY, "anthropic-version": "2023-06-01", **to_mock},
        env={"NODE_ENV": "production"},
    )


STACKS = (
    Stack("direct", "no gateway", None, quick=True),
    Stack("nginx", "nginx reverse proxy", _nginx, quick=True),
    Stack("farebox", "Farebox, billing on", farebox, quick=True),
    Stack(
        "farebox-pg",
        "Farebox, billing on, PostgreSQL",
        partial(_farebox_postgres, workers=1, cores=LOAD_CORE),
        postgres=True,
    ),
    Stack(
        "farebox-pg-2",
        "Farebox, billing on, PostgreSQL, 2 processes",
        partial(_farebox_postgres, workers=2, cores=EVERY_CORE),
        postgres=True,
        cores=EVERY_CORE,
    ),
    Stack("nginx-tls", "nginx, TLS upstream", _nginx, tls=True),
    Stack("farebox-tls", "Farebox, billing on, TLS upstream", farebox, tls=True),
    Stack("portkey", f"Portkey {tools.PORTKEY}, no billing", _portkey),
    Stack("litellm", f"LiteLLM {tools.LITELLM}, no database", _litellm),
)
