"""The gateway that the clients call: on the event loop of production, over SQLite alone, since no client can tell."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module")
def database_kind() -> str:
    return "sqlite"
