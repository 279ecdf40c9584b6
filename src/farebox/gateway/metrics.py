"""Counters of the data plane: plain integers, turned into Prometheus samples only when somebody scrapes."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from farebox.errors import Refusal
from farebox.http.exchange import Exchange
from farebox.http.server import HttpServer

Gauge = tuple[str, str, Callable[[], float]]


class Metrics:
    """What the gateway has done since it started."""

    def __init__(self) -> None:
        self.responses: Counter[int] = Counter()
        self.settled: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.charged_nanos = 0
        self.shortfall_nanos = 0
        self.waived_nanos = 0
        self.doubts = 0
        self.gauges: list[Gauge] = []
        self.more: list[Callable[[], Iterator[Metric]]] = []
        """What others count."""

    def collect(self) -> Iterator[Metric]:
        """Give everything to a Prometheus registry (see prometheus_client.registry.Collector)."""
        responses = CounterMetricFamily("farebox_responses", "Responses by HTTP status", labels=["status"])
        for status, count in self.responses.items():
            responses.add_metric([str(status)], count)
        yield responses
        settled = CounterMetricFamily("farebox_calls", "Calls that were let in, by how they ended", labels=["outcome"])
        for outcome, count in self.settled.items():
            settled.add_metric([outcome], count)
        yield settled
        tokens = CounterMetricFamily("farebox_tokens", "Tokens by class", labels=["class"])
        for token_class, count in self.tokens.items():
            tokens.add_metric([token_class], count)
        yield tokens
        for name, help_, value in (
            ("farebox_charged_nanodollars", "Charged to customers", self.charged_nanos),
            (
                "farebox_shortfall_nanodollars",
                "Cost above hold and balance, not charged",
                self.shortfall_nanos,
            ),
            (
                "farebox_waived_nanodollars",
                "Cost of calls broken by upstream or gateway, not charged",
                self.waived_nanos,
            ),
            ("farebox_pricing_doubts", "Usage without a price of its own", self.doubts),
        ):
            yield CounterMetricFamily(name, help_, value=value)
        for name, help_, read in self.gauges:
            yield GaugeMetricFamily(name, help_, value=read())
        for collect in self.more:
            yield from collect()


def metrics_server(collector: Collector, log_error: Callable[..., Any]) -> HttpServer:
    """Make the server that Prometheus scrapes, which collects anew each time. It has still to listen."""

    async def handle(exchange: Exchange) -> None:
        found = exchange.path == "/metrics"
        body = generate_latest(collector) if found else b"metrics are at /metrics\n"
        exchange.respond(200 if found else 404, [(b"content-type", CONTENT_TYPE_LATEST.encode())], body)

    def on_bad_request(exchange: Exchange, error: Exception) -> None:
        if not isinstance(error, Refusal):
            log_error("exchange_failed", error=type(error).__name__)
        if exchange.started:
            exchange.abort()
        else:
            exchange.respond(error.status if isinstance(error, Refusal) else 500, [(b"content-type", b"text/plain")])

    return HttpServer(handle, on_bad_request=on_bad_request)
