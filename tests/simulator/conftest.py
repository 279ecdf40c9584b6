"""A fast simulator, and the official SDK and a raw client pointed at it."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from farebox.upstreams.simulator import Simulator

from .client import Ask, Reply, body_of, receive, send


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    simulator = Simulator(speed=0, seed=7)
    await simulator.listen()
    yield simulator
    await simulator.close()
    assert not simulator.crashes


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[anthropic.AsyncAnthropic]:
    base = f"http://127.0.0.1:{simulator.port}"
    async with anthropic.AsyncAnthropic(api_key="sk-any", base_url=base, max_retries=0) as client:
        yield client


@pytest.fixture
def ask(simulator: Simulator) -> Ask:
    async def ask(said: Any = "Hello", knobs: str = "", **fields: Any) -> Reply:
        return await receive(await send(simulator.port, body_of(said, **fields), knobs))

    return ask
