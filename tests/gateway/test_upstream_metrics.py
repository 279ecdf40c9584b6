"""Metrics of upstreams: what they count, and that many upstreams with much to tell still fit a worker's report."""

from farebox.gateway.metrics import Metrics
from farebox.gateway.upstream_metrics import upstream_metrics
from farebox.upstreams.health import HEAD_BOUNDS_S
from farebox.workers.board import Board
from farebox.workers.totals import Roster, Totals
from tests.gateway.play import message, script, upstream
from tests.stage import OpenStage
from tests.upstreams.test_choice import told, up
from tests.upstreams.test_pool import pool_of


async def test_tries_failures_and_times_are_counted_by_upstream(open_stage: OpenStage) -> None:
    async with script([b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\n{}"]) as sick:
        ways = upstream("sick", sick.port, priority="0") + upstream("well", 9).replace(
            '"anthropic"\n', '"simulator"\n'
        ).replace('base_url = "http://127.0.0.1:9"\n', "priority = 1\n")
        async with open_stage(upstreams=ways) as stage:
            answer = await stage.post(stage.alice, message("Hi"))
            await answer.read(2**20)
            samples = {
                (sample.name, *sample.labels.values()): sample.value
                for metric in stage.gateway.metrics.collect()
                for sample in metric.samples
                if "upstream" in sample.name
            }
    assert answer.status == 200
    assert samples["farebox_upstream_failures_total", "sick", "503"] == 1
    assert samples["farebox_upstream_tries_total", "sick"] == samples["farebox_upstream_tries_total", "well"] == 1
    assert samples["farebox_upstream_head_seconds_count", "well"] == 1
    assert samples["farebox_upstream_healthy", "sick"] == 1
    assert samples["farebox_upstream_places",] == 1


async def test_what_is_told_of_many_upstreams_is_bounded() -> None:
    upstreams = [up(f"upstream-with-a-long-name-{number}") for number in range(120)]
    for one in upstreams:
        for number in range(150):
            one.rate.learn(f"model-{number}", told(9, 1), 0)
            one.failed_by[f"class-{number}"] += 1
        one.began(HEAD_BOUNDS_S[3])
    pool = pool_of(*upstreams)
    metrics = Metrics()
    metrics.more.append(lambda: upstream_metrics(pool))
    board = Board(2)
    workers = Roster(board, 1)
    workers.begin(1)
    workers.report(1, metrics)
    found = {metric.name: metric for metric in Totals(board).collect()}
    assert {sample.value for sample in found["farebox_upstream_healthy"].samples} == {1}
