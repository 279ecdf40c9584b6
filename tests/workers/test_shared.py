"""What several processes share without being told of each other: doors, and one place for their log lines."""

import errno
import json
import os
import socket
from functools import partial
from typing import Any

import pytest

from farebox.clock import steady_clock
from farebox.http.doors import close_doors, open_doors
from farebox.logs import CallLines
from farebox.workers.process import Line, start


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that stands for two addresses, as localhost does where there is IPv6; each is told twice."""

    def find(_: str, port: int, **__: Any) -> list[tuple[Any, ...]]:
        both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{last}", port)) for last in (1, 2)]
        return both + both

    monkeypatch.setattr(socket, "getaddrinfo", find)


def listens(address: str, port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex((address, port)) == 0


@pytest.mark.usefixtures("two_addresses")
def test_all_addresses_of_a_name_have_the_same_port_also_one_that_the_system_chose() -> None:
    doors = open_doors("localhost", 0)
    port = doors[0].getsockname()[1]
    assert [door.getsockname() for door in doors] == [("127.0.0.1", port), ("127.0.0.2", port)]
    assert listens("127.0.0.1", port)
    assert listens("127.0.0.2", port)
    close_doors(doors)
    assert not listens("127.0.0.1", port)


@pytest.mark.usefixtures("two_addresses")
def test_no_door_is_left_open_when_one_cannot_be_opened() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use") as refused:
            open_doors("localhost", port)
        assert refused.value.errno == errno.EADDRINUSE
        assert not listens("127.0.0.1", port)


def test_lines_of_several_processes_never_mix_in_one_pipe() -> None:
    """Though each writes hundreds of them at once, and the reader is so slow that all of them have to wait."""
    reader, writer = os.pipe()
    clock = steady_clock()

    def write(name: str, _: Line) -> int:
        lines = CallLines(lambda piece: os.write(writer, piece), clock, {"worker": name})
        for number in range(1_200):  # 500 are written by themselves, the rest when told
            lines("call", number=number, padding="x" * (number % 700))
        lines.flush()
        return 0

    processes = [start(name, partial(write, name), lambda: None) for name in "123"]
    os.close(writer)
    heard = b""
    while piece := os.read(reader, 3_000):
        heard += piece
    os.close(reader)
    assert [process.bury() for process in processes] == [0, 0, 0]
    told = [json.loads(line) for line in heard.splitlines()]
    for name in "123":
        assert [line["number"] for line in told if line["worker"] == name] == list(range(1_200))
