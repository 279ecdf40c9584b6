"""Counters of the upstreams, one label value for each upstream, model and class of failure: all of them bounded."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from farebox.upstreams.health import HEAD_BOUNDS_S
from farebox.upstreams.pool import Pool
from farebox.upstreams.upstream import Upstream

_Read = tuple[str, str, Callable[[Upstream], float]]
_UPSTREAMS: Final = 40
"""Of more, the first are told: what a worker reports has a limit."""
_CLASSES: Final = 12
"""Statuses and kinds of errors are few, unless an upstream makes up new ones."""
_REMAINING: Final = 400


def upstream_metrics(pool: Pool) -> Iterator[Metric]:
    """Give what is counted of the upstreams."""
    now = asyncio.get_running_loop().time()
    upstreams = pool.upstreams[:_UPSTREAMS]
    gauges: tuple[_Read, ...] = (
        ("healthy", "Whether calls go there", lambda one: int(one.is_healthy(now) and not one.drained)),
        ("in_flight", "Calls under way there", lambda one: one.in_flight),
    )
    for name, help_, read in gauges:
        gauge = GaugeMetricFamily(f"farebox_upstream_{name}", help_, labels=["upstream"])
        for upstream in upstreams:
            gauge.add_metric([upstream.name], read(upstream))
        yield gauge
    counters: tuple[_Read, ...] = (
        ("tries", "Tries sent there", lambda one: one.calls),
        ("limited", "Answers 429", lambda one: one.limited),
        ("ejections", "Times that it came to rest", lambda one: one.ejections),
    )
    for name, help_, read in counters:
        counter = CounterMetricFamily(f"farebox_upstream_{name}", help_, labels=["upstream"])
        for upstream in upstreams:
            counter.add_metric([upstream.name], read(upstream))
        yield counter
    failures = CounterMetricFamily("farebox_upstream_failures", "Tries that failed", labels=["upstream", "class"])
    remaining = GaugeMetricFamily(
        "farebox_upstream_remaining", "What it says is left of its limits", labels=["upstream", "model", "limit"]
    )
    heads = HistogramMetricFamily("farebox_upstream_head_seconds", "Until an answer began", labels=["upstream"])
    for upstream in upstreams:
        for name, count in upstream.failed_by.most_common(_CLASSES):
            failures.add_metric([upstream.name, name], count)
        for model, limit, left in upstream.rate.told()[: _REMAINING // len(upstreams)]:
            remaining.add_metric([upstream.name, model, limit], left)
        heads.add_metric([upstream.name], _buckets(upstream), upstream.head_total_s)
    yield failures
    yield remaining
    yield heads
    yield GaugeMetricFamily("farebox_upstream_waiting", "Calls that wait for room", value=len(pool.waiting))
    yield GaugeMetricFamily("farebox_upstream_places", "Conversations that have a place", value=len(pool.places))


def _buckets(upstream: Upstream) -> list[tuple[str, float]]:
    found, total = [], 0
    for bound, count in zip((*map(str, HEAD_BOUNDS_S), "+Inf"), upstream.head_counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
