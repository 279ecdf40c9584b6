"""What is measured on one running gateway, and how long each part takes."""

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.process import GATEWAY_CORE, LOAD_CORE, core_busy_s, cpu_ns, ended_ns, rss_bytes, tree
from bench.stacks import MODEL
from bench.tools import say

Figures = dict[str, float]

CONNECTIONS = (16, 64)
OPEN_RATE = 500
STREAMS, EVENTS_PER_S = 1000, 25
OPEN_STREAMS = 2000
OPENED_PER_S = 500


@dataclass(frozen=True)
class Timing:
    warm_s: float
    closed_s: float
    open_s: float
    streams_s: float


FULL = Timing(warm_s=1, closed_s=4, open_s=10, streams_s=5)
QUICK = Timing(warm_s=0.5, closed_s=2, open_s=3, streams_s=3)


@dataclass(frozen=True)
class Target:
    """Where the load goes. `gateway` is None when that is the upstream itself."""

    port: int
    path: str
    headers: Mapping[str, str]
    gateway: int | None
    cores: str
    """Those of the gateway."""
    database: int | None
    upstream: int
    load: Path
    folder: Path


def body(*, stream: bool, rate: int = EVENTS_PER_S, events: int = 1_000_000, kib: int = 1) -> bytes:
    """Return a request of 1 KB, or of so many; the mock upstream reads rate and events from the prompt."""
    prompt = f"rate={rate} events={events} " + "What does the fare cost tonight, and who has paid it? " * 16 * kib
    call: dict[str, Any] = {"model": MODEL, "max_tokens": 4096 if stream else 1024}
    if stream:
        call["stream"] = True
    return json.dumps({**call, "messages": [{"role": "user", "content": prompt}]}).encode()


def ask(target: Target, payload: bytes) -> tuple[int, bytes]:
    """Send one request the slow way and return status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)
    try:
        headers = {**target.headers, "content-type": "application/json"}
        connection.request("POST", target.path, payload, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def check(target: Target) -> None:
    """Raise unless the gateway relays an answer with its usage, and a stream to its end."""
    status, whole = ask(target, body(stream=False))
    if status != 200 or json.loads(whole)["usage"]["output_tokens"] != 150:
        raise RuntimeError(f"a plain request came back as {status}: {whole[:500]!r}")
    status, whole = ask(target, body(stream=True, rate=100, events=3))
    if status != 200 or whole.count(b"text_delta") != 3 or b"message_stop" not in whole:
        raise RuntimeError(f"a stream came back as {status}: {whole[:2000]!r}")


def measure_speed(target: Target, timing: Timing) -> Figures:
    figures: Figures = {}
    if target.gateway is not None:
        for connections in CONNECTIONS:
            closed(target, timing, figures, connections)
    # An open loop faster than the gateway only measures its own queue.
    if target.gateway is None or figures["c64_rps"] > 1.2 * OPEN_RATE:
        _open_loop(target, timing, figures)
    streams(target, timing, figures)
    return figures


def measure_memory(target: Target, timing: Timing) -> Figures:
    """Open many slow streams on a gateway that has done nothing else yet."""
    assert target.gateway is not None
    idle = rss_bytes(tree(target.gateway))
    payload = body(stream=True, rate=2)
    got = _load(target, "streams", payload, OPEN_STREAMS, timing.warm_s, 0.5, OPENED_PER_S, 60)
    figures = {"idle_mb": idle / 1e6, "open_streams": got["with_event"], "open_errors": got["errors"]}
    figures["stream_kib"] = (got["rss"] - idle) / max(got["with_event"], 1) / 1024
    if got["with_event"] == OPEN_STREAMS:
        figures["open_mb"] = got["rss"] / 1e6
    if target.database is not None:
        figures["database_mb"] = rss_bytes(tree(target.database)) / 1e6
    return figures


def measure_crowd(target: Target, timing: Timing, streams: int, kib: int) -> Figures:
    """Open very many streams, an event a second each, and look at memory and CPU while they go on.

    Each is asked for by a prompt of so many KiB.
    """
    assert target.gateway is not None
    idle = rss_bytes(tree(target.gateway))
    got = _load(target, "streams", body(stream=True, rate=1, kib=kib), streams, timing.warm_s, 20, OPENED_PER_S, 120)
    figures = {"idle_mb": idle / 1e6, "open_mb": got["rss"] / 1e6, "stream_kib": (got["rss"] - idle) / streams / 1024}
    figures |= {"open_streams": got["with_event"], "finished": got["finished"], "errors": got["errors"]}
    figures |= {"events_per_s": got["events"] / got["window_s"], "lag_p50_ms": got["lag_p50_ms"]}
    figures |= {"lag_p99_ms": got["lag_p99_ms"], "event_us": got["cpu_s"] * 1e6 / max(got["events"], 1)}
    return figures | {"core_busy": got["cpu_s"] / got["wall_s"]}


def measure_overload(target: Target, timing: Timing, times: float, connections: int) -> Figures:
    """Offer what can be served at most, then so many times as much, then the first again.

    The offer goes on whatever becomes of it: a request is due at its time, and waits for a connection to be free.
    """
    figures = {"peak_rps": _peak(target, timing)}
    rate = times * figures["peak_rps"]
    got = _load(target, "open", body(stream=False), rate, 3, timing.open_s, connections)
    figures |= {"offered_rps": rate, "served_rps": got["requests"] / got["window_s"]}
    figures["goodput"] = figures["served_rps"] / figures["peak_rps"]
    figures |= {"refused_rps": got["refused"] / got["window_s"], "unsent_rps": got["unsent"] / got["window_s"]}
    figures |= {"errors": got["errors"], "unanswered": got["unanswered"], "rss_mb": got["rss"] / 1e6}
    return figures | {"after_rps": _peak(target, timing)}


def _peak(target: Target, timing: Timing) -> float:
    got = _load(target, "closed", body(stream=False), CONNECTIONS[-1], timing.warm_s, timing.closed_s)
    return got["requests"] / got["window_s"]


def closed(target: Target, timing: Timing, figures: Figures, connections: int) -> None:
    got = _load(target, "closed", body(stream=False), connections, timing.warm_s, timing.closed_s)
    prefix = f"c{connections}"
    figures |= {f"{prefix}_rps": got["requests"] / got["window_s"], f"{prefix}_p50_ms": got["p50_ms"]}
    figures |= _cpu(prefix, got, got["requests"])


def _open_loop(target: Target, timing: Timing, figures: Figures) -> None:
    got = _load(target, "open", body(stream=False), OPEN_RATE, timing.warm_s, timing.open_s)
    figures |= {"open_p50_ms": got["p50_ms"], "open_p99_ms": got["p99_ms"]} | _cpu("open", got, got["requests"])


def streams(target: Target, timing: Timing, figures: Figures) -> None:
    payload = body(stream=True)
    got = _load(target, "streams", payload, STREAMS, timing.warm_s, timing.streams_s, OPENED_PER_S, 60)
    figures |= {"events_per_s": got["events"] / got["window_s"], "lag_p50_ms": got["lag_p50_ms"]}
    figures |= {"lag_p99_ms": got["lag_p99_ms"]} | _cpu("event", got, got["events"])


def _cpu(prefix: str, got: Figures, units: float) -> Figures:
    """Turn what was read at both ends of the window into figures per request or event."""
    figures = {f"{prefix}_errors": got["errors"] + got["unanswered"]}
    if "cpu_s" in got:
        figures[f"{prefix}_us"] = got["cpu_s"] * 1e6 / max(units, 1)
        figures[f"{prefix}_busy"] = got["cpu_s"] / got["wall_s"]
    if "core_s" in got:
        figures[f"{prefix}_foreign"] = max(0.0, (got["core_s"] - got["cpu_s"]) / got["wall_s"])
    if "database_s" in got:
        figures[f"{prefix}_database_us"] = got["database_s"] * 1e6 / max(units, 1)
    return figures


def _load(target: Target, mode: str, payload: bytes, *numbers: float) -> Figures:
    """Run the load generator; read the gateway's CPU time and memory when its window begins and ends."""
    request = target.folder / "request"
    headers = {"host": f"127.0.0.1:{target.port}", "content-type": "application/json", **target.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    start = f"POST {target.path} HTTP/1.1\r\n{head}content-length: {len(payload)}\r\n\r\n"
    request.write_bytes(start.encode() + payload)
    command = [str(target.load), mode, str(target.port), str(request), *map(str, numbers)]
    with subprocess.Popen(["taskset", "-c", LOAD_CORE, *command], stdout=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        readings = []
        for line in load.stdout:
            if line in {"begin\n", "end\n"}:
                readings.append(_read_costs(target))
            else:
                got: Figures = json.loads(line)
            if line == "end\n":
                os.kill(target.upstream, signal.SIGUSR1)  # all open streams finish as real ones do
    if load.returncode or len(readings) != 2:
        raise RuntimeError(f"the load generator failed in mode {mode}")
    if got["errors"] or got["unanswered"]:
        say(f"    {mode}: {got['errors']:.0f} errors, {got['unanswered']:.0f} unanswered")
    begin, end = readings
    return got | {name: end[name] - begin[name] for name in begin if name != "rss"} | {"rss": end.get("rss", 0)}


def _read_costs(target: Target) -> Figures:
    costs = {"wall_s": time.monotonic()}
    if target.gateway is not None:
        pids = tree(target.gateway)
        costs |= {"cpu_s": cpu_ns(pids) / 1e9, "rss": float(rss_bytes(pids))}
        if target.cores == GATEWAY_CORE:
            costs["core_s"] = core_busy_s(GATEWAY_CORE)
    if target.database is not None:
        costs["database_s"] = (cpu_ns(tree(target.database)) + ended_ns(target.database)) / 1e9
    return costs
