"""Medians with min and max, ratios taken round by round, targets with pass or miss, as Markdown."""

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.phases import EVENTS_PER_S, OPEN_RATE, OPEN_STREAMS, STREAMS, Figures
from bench.process import GATEWAY_CORE, LOAD_CORE
from bench.stacks import STACKS

Results = Mapping[str, Sequence[Figures]]
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"

COLUMNS = (
    ("CPU µs/request, 16 conns", "c16_us", 1),
    ("CPU µs/request, 64 conns", "c64_us", 1),
    ("CPU µs/request of its database, 16", "c16_database_us", 1),
    ("CPU µs/request of its database, 64", "c64_database_us", 1),
    ("requests/s, 64 conns", "c64_rps", 0),
    ("core busy", "c64_busy", 2),
    (f"added p50 ms at {OPEN_RATE}/s", "added_p50_ms", 2),
    (f"added p99 ms at {OPEN_RATE}/s", "added_p99_ms", 2),
    ("CPU µs/event", "event_us", 1),
    ("events/s", "events_per_s", 0),
    ("event lag p50 ms", "lag_p50_ms", 1),
    ("KiB/open stream", "stream_kib", 0),
    (f"MB, {OPEN_STREAMS:,} streams open", "open_mb", 0),
    ("MB idle", "idle_mb", 0),
    ("start s", "start_s", 2),
)


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        middle, low, high = (f"{x:,.{digits}f}" for x in (self.median, self.low, self.high))
        return middle if low == high else f"{middle} ({low} to {high})"


@dataclass(frozen=True)
class Ratio:
    """`over` divided by `under` in the same round, and what it should be."""

    words: str
    figure: str
    over: str
    under: str
    at_least: float | None = None
    at_most: float | None = None


RATIOS = (
    Ratio("Farebox ÷ nginx, CPU/request, 16", "c16_us", "farebox", "nginx", at_most=8),
    Ratio("Farebox ÷ nginx, CPU/request, 64", "c64_us", "farebox", "nginx", at_most=8),
    Ratio("Farebox ÷ nginx, CPU/event", "event_us", "farebox", "nginx", at_most=2),
    Ratio("Farebox ÷ nginx, both to a TLS upstream, CPU/request, 64", "c64_us", "farebox-tls", "nginx-tls"),
    Ratio("Farebox ÷ nginx, both to a TLS upstream, CPU/event", "event_us", "farebox-tls", "nginx-tls"),
    Ratio("Farebox, PostgreSQL ÷ SQLite, CPU/request, 16", "c16_us", "farebox-pg", "farebox", at_most=1),
    Ratio("Farebox, PostgreSQL ÷ SQLite, CPU/request, 64", "c64_us", "farebox-pg", "farebox", at_most=1),
    Ratio("Farebox, PostgreSQL ÷ SQLite, requests/s, 64", "c64_rps", "farebox-pg", "farebox"),
    Ratio("Farebox, PostgreSQL, 2 processes ÷ 1, CPU/request, 64", "c64_us", "farebox-pg-2", "farebox-pg"),
    Ratio("Farebox, PostgreSQL, 2 processes ÷ 1, requests/s, 64", "c64_rps", "farebox-pg-2", "farebox-pg"),
    Ratio("LiteLLM ÷ Farebox, CPU/request, 16", "c16_us", "litellm", "farebox", at_least=80),
    Ratio("LiteLLM ÷ Farebox, CPU/request, 64", "c64_us", "litellm", "farebox", at_least=80),
    Ratio("LiteLLM ÷ Farebox, CPU/event", "event_us", "litellm", "farebox"),
    Ratio("Portkey ÷ Farebox, CPU/request, 16", "c16_us", "portkey", "farebox", at_least=15),
    Ratio("Portkey ÷ Farebox, CPU/request, 64", "c64_us", "portkey", "farebox", at_least=15),
    Ratio("Portkey ÷ Farebox, CPU/event", "event_us", "portkey", "farebox"),
)

LIMITS = (
    (f"Farebox with {OPEN_STREAMS:,} open streams, MB", "open_mb", "farebox", 250),
    (f"Farebox, added p50 at {OPEN_RATE} requests/s, ms", "added_p50_ms", "farebox", 1),
    (f"Farebox, added p99 at {OPEN_RATE} requests/s, ms", "added_p99_ms", "farebox", 5),
    (f"Farebox, PostgreSQL, added p50 at {OPEN_RATE} requests/s, ms", "added_p50_ms", "farebox-pg", 3),
)


def summary(results: Results) -> dict[str, object]:
    """Return the medians, ratios and targets as plain data."""
    full = _with_added_latency(results)
    return {
        "machine": machine(),
        "figures": {
            name: {figure: vars(_spread([r[figure] for r in rounds])) for figure in sorted(_common(rounds))}
            for name, rounds in full.items()
        },
        "targets": [vars(t) for t in _targets(full)],
    }


def markdown(results: Results) -> str:
    """Return the table, the ratios and targets, and what disturbed the run."""
    full = _with_added_latency(results)
    rounds = max(len(r) for r in full.values())
    head = "| gateway | " + " | ".join(title for title, _, _ in COLUMNS) + " |"
    intro = (
        f"{machine()}; {rounds} interleaved round{'s' * (rounds > 1)}, median (min to max)."
        f" Gateway on core {GATEWAY_CORE}; upstream, load generator and PostgreSQL on core {LOAD_CORE};"
        " two gateway processes and their PostgreSQL on both."
        f" Events: {STREAMS:,} streams at {EVENTS_PER_S} events/s each."
    )
    lines = [
        intro,
        "",
        head,
        "|---" * (len(COLUMNS) + 1) + "|",
        *(_row(s.label, full[s.name]) for s in STACKS if s.name in full and s.launch),
        "",
        *_notes(full),
    ]
    if targets := _targets(full):
        lines += ["", "| ratio or limit | measured | target | |", "|---|---|---|---|"]
        lines += [f"| {t.words} | {t.measured.text(t.digits)} | {t.wanted} | {t.verdict} |" for t in targets]
    return "\n".join(lines) + "\n"


def write(path: Path, results: Results) -> None:
    """Put the report between the two marks in `path`, leaving all around it as it is."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"bench: {path} lacks the lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n{END}{after}")


def machine() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    return f"{len(models)} cores of {model}, Linux {platform.release()}, Python {platform.python_version()}"


@dataclass(frozen=True)
class Outcome:
    words: str
    measured: Spread
    digits: int
    wanted: str
    verdict: str


def _targets(full: Results) -> list[Outcome]:
    outcomes = []
    for ratio in RATIOS:
        pairs = zip(full.get(ratio.over, ()), full.get(ratio.under, ()), strict=False)
        values = [o[ratio.figure] / u[ratio.figure] for o, u in pairs if ratio.figure in o and ratio.figure in u]
        if values:
            outcomes.append(_outcome(ratio.words, values, ratio.at_least, ratio.at_most))
    for words, figure, name, most in LIMITS:
        if values := [r[figure] for r in full.get(name, ()) if figure in r]:
            outcomes.append(_outcome(words, values, None, most))
    return outcomes


def _outcome(words: str, values: Sequence[float], at_least: float | None, at_most: float | None) -> Outcome:
    measured = _spread(values)
    wanted, verdict = "", ""
    if at_least is not None:
        wanted, verdict = f"≥ {at_least:g}", "pass" if measured.median >= at_least else "**miss**"
    elif at_most is not None:
        wanted, verdict = f"≤ {at_most:g}", "pass" if measured.median <= at_most else "**miss**"
    return Outcome(words, measured, 0 if measured.median >= 30 else 2, wanted, verdict)


def _with_added_latency(results: Results) -> dict[str, list[Figures]]:
    """Subtract, round by round, the latency of going straight to the upstream."""
    direct = results.get("direct", ())
    full = {name: [dict(r) for r in rounds] for name, rounds in results.items()}
    for name, rounds in full.items():
        for mine, bare in zip(rounds, direct, strict=False):
            if name != "direct" and "open_p50_ms" in mine:
                for part in ("p50", "p99"):
                    mine[f"added_{part}_ms"] = mine[f"open_{part}_ms"] - bare[f"open_{part}_ms"]
    return full


def _row(label: str, rounds: Sequence[Figures]) -> str:
    known = _common(rounds)
    cells = [
        _spread([r[figure] for r in rounds]).text(digits) if figure in known else "n/a" for _, figure, digits in COLUMNS
    ]
    return f"| {label} | " + " | ".join(cells) + " |"


def _notes(full: Results) -> list[str]:
    every: list[tuple[str, Figures]] = [(name, r) for name, rounds in full.items() for r in rounds]
    notes = []
    if direct := full.get("direct"):
        p50, p99 = (_spread([r[f"open_{p}_ms"] for r in direct]).text(2) for p in ("p50", "p99"))
        notes.append(f"Straight to the upstream at {OPEN_RATE}/s: p50 {p50} ms, p99 {p99} ms.")
    if memory := [r["database_mb"] for _, r in every if "database_mb" in r]:
        notes.append(f"PostgreSQL's own memory: {_spread(memory).text(0)} MB.")
    foreign = [value for _, r in every for figure, value in r.items() if figure.endswith("_foreign")]
    if foreign:
        notes.append(
            f"Other processes on the gateway's core: {statistics.median(foreign):.2f} of it,"
            f" {max(foreign):.2f} at worst."
        )
    failed = [
        f"{name} {figure.removesuffix('_errors')} {value:.0f}"
        for name, r in every
        for figure, value in r.items()
        if figure.endswith("_errors") and value
    ]
    notes.append("Failed or unanswered: " + ("; ".join(failed) if failed else "none") + ".")
    if any("c64_rps" in r and "open_p50_ms" not in r for _, r in every):
        notes.append(f"No latency at {OPEN_RATE}/s for a gateway that can hardly do {OPEN_RATE}/s on one core.")
    if late := sorted({name for name, r in every if r["lag_p50_ms"] > 1000 / EVENTS_PER_S}):
        notes.append(
            f"Events came later than the next one was due through {', '.join(late)}: several are then relayed"
            " at once, which makes each look cheaper than it is."
        )
    return [" ".join(notes)]


def _common(rounds: Sequence[Figures]) -> set[str]:
    return set.intersection(*(set(r) for r in rounds)) if rounds else set()


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))
