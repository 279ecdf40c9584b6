"""No request is two requests, whoever reads it: direct, behind nginx and behind HAProxy, as deploy/ has them."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.deploy.balancers import SAMPLES, Balancer, Sample, balance
from tests.deploy.framings import CASES, ONCE, REFUSED, SERVED, Case, Told, Witness, tell, witnessing

EXPECTED = {SERVED: ["first", "second"], ONCE: ["first"], REFUSED: []}
Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


async def _all(dial: Dial, patience_s: float) -> dict[int, Told]:
    """Send every case on a connection of its own, some at a time."""
    free = asyncio.Semaphore(60)

    async def one(number: int, case: Case) -> tuple[int, Told]:
        async with free:
            reader, writer = await dial()
            return number, await tell(reader, writer, case.bytes_for(number), patience_s)

    return dict(await asyncio.gather(*(one(number, case) for number, case in enumerate(CASES))))


def _wrong(case: Case, number: int, told: Told, witness: Witness) -> str:
    """Say what no reading of a case may come to, wherever it passes through."""
    seen = witness.seen[number]
    if any(owner != number for owner, _ in told.answers):
        return "a client got the answer to somebody else's request"
    if [what for _, what in told.answers] != seen:
        return "requests and answers do not match"
    if case.verdict != REFUSED and "hidden" in seen:
        return "a request was found in the body of another"
    return "" if told.closed else "the connection stays open"


def test_there_are_cases_enough_and_each_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 150


async def test_the_gateways_server_reads_each_case_in_the_one_way_it_has() -> None:
    async with witnessing() as witness:
        told = await _all(lambda: asyncio.open_connection("127.0.0.1", witness.port), 5)
    wrong = []
    for number, case in enumerate(CASES):
        problem = _wrong(case, number, told[number], witness)
        if not problem and witness.seen[number] != EXPECTED[case.verdict]:
            problem = "read otherwise than declared"
        if not problem and case.verdict == REFUSED and (told[number].statuses or [0])[-1] not in range(400, 500):
            problem = "refused without a word"
        if problem:
            wrong.append(f"{case.name}: {problem}; {witness.seen[number]}, {told[number]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("sample", SAMPLES[:2], ids=lambda sample: sample.name)
async def test_a_balancer_and_the_gateway_read_each_case_alike(
    tmp_path: Path, certificates: Path, sample: Sample
) -> None:
    """Whatever the gateway takes for a request, the balancer has sent as one, and its answer reached who had asked."""
    async with witnessing() as witness:
        witness.behind_balancer = True
        ports = (witness.port, witness.port)
        async with balance(sample, tmp_path / sample.name, certificates, ports) as balancer:
            told = await _all(lambda: _through(balancer), 4)
    wrong = []
    for number, case in enumerate(CASES):
        problem = _wrong(case, number, told[number], witness)
        if problem and problem != "the connection stays open":  # how long it waits for more is the balancer's affair
            wrong.append(f"{case.name}: {problem}; {witness.seen[number]}, {told[number]}")
    assert not wrong, "\n".join(wrong)
    assert not witness.unmeant
    served = sum(case.verdict != REFUSED and "first" in witness.seen[at] for at, case in enumerate(CASES))
    assert served > 20, "what is plain comes through"


async def _through(balancer: Balancer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", balancer.port, ssl=balancer.tls, server_hostname="localhost")
