"""Listening sockets: opened before there is anybody to serve from them, so that several processes can share them."""

import socket
from typing import Final

from farebox.errors import ConfigError

BACKLOG: Final = 4096
"""Connections that wait to be accepted, where the system allows so many (net.core.somaxconn)."""


def open_doors(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of a host, as asyncio does: a name may have one for each version of IP.

    Port 0: one that the system chooses. Raises OSError; nothing is left open then. May block on a look-up of the name.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    doors: list[socket.socket] = []
    try:
        for family, type_, protocol, _, address in dict.fromkeys(found):
            door = socket.socket(family, type_, protocol)
            doors.append(door)
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            door.setblocking(False)  # noqa: FBT003  the signature of the standard library
            door.bind((address[0], port or doors[0].getsockname()[1], *address[2:]))
            door.listen(BACKLOG)
    except BaseException:
        close_doors(doors)
        raise
    return doors


def close_doors(doors: list[socket.socket]) -> None:
    """Close this process's hold on the sockets; they listen on while another process has them open."""
    for door in doors:
        door.close()


def doors_at(host: str, port: int) -> list[socket.socket]:
    """Open doors; says what to do where they cannot be opened. Raises ConfigError."""
    try:
        return open_doors(host, port)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}; "
            "choose another port, or stop what uses this one"
        ) from error
