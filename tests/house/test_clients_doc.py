"""docs/clients.md tells what the clients are run with, and has been written by a run of these clients."""

import pytest

from tests.clients.rounds import Client
from tests.clients.table import CLIENTS
from tests.house.pages import ROOT, codes, rows, section

PAGE = (ROOT / "docs" / "clients.md").read_text()
ANYTHING_ELSE = "anything else"


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.env)
def test_the_settings_that_are_told_are_those_that_are_tried(client: Client) -> None:
    (told,) = [row for row in rows(section(PAGE, "Settings")) if row[0] == client.name]
    assert (codes(told[1]) + codes(told[2]))[: len(client.settings)] == list(client.settings)


def test_no_client_is_told_of_that_is_not_tried() -> None:
    told = [row[0] for row in rows(section(PAGE, "Settings")) if row[0] != ANYTHING_ELSE]
    assert told == [client.name for client in CLIENTS]


def test_the_table_is_of_these_clients_at_these_versions_and_all_passed() -> None:
    """Written anew by `make clients` after any change here."""
    run = {row[0]: row for row in rows(section(PAGE, "What was exercised"))}
    assert list(run) == [client.name for client in CLIENTS]
    for client in CLIENTS:
        _, package, parts, passed, _, _ = run[client.name]
        assert package == f"`{client.package}` {client.version}"
        assert parts == "; ".join(part.name for part in client.exercises)
        assert passed == f"{len(client.exercises)} of {len(client.exercises)}"
