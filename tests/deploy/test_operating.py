"""What docs/operating.md says of services, containers, balancers and PostgreSQL is what the files and the code say."""

import re

import pytest

from farebox.gateway.settings import CallLimits
from farebox.http.server import ServerLimits
from farebox.store.postgres import _LANE_SESSION, CONNECTIONS
from tests.cluster import Cluster
from tests.deploy.balancers import DEPLOY, SAMPLES
from tests.house.pages import ROOT, codes, rows, section

PAGE = (ROOT / "docs" / "operating.md").read_text()
IN_WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def test_the_settings_that_matter_are_in_the_samples() -> None:
    """What the table names for a balancer stands in its file; what it warns of does not."""
    for row in rows(section(PAGE, "Behind a load balancer")):
        for cell, sample in zip(row[2:], SAMPLES, strict=True):
            told, _, warned = re.sub(r"\b(without|no) ", "|", cell, count=1).partition("|")
            text = "\n".join(line.partition("#")[0] for line in (DEPLOY / sample.file).read_text().splitlines())
            assert [setting for setting in codes(told) if setting not in text] == []
            assert [setting for setting in codes(warned) if setting in text] == []


def test_the_lines_of_the_unit_are_in_it() -> None:
    text = (DEPLOY / "farebox.service").read_text()
    lines = [line for row in rows(section(PAGE, "systemd")) for line in codes(row[0])]
    assert lines
    assert [line for line in lines if line not in text] == []


@pytest.mark.parametrize(
    ("file", "setting"),
    [("nginx.conf", "proxy_read_timeout"), ("haproxy.cfg", "timeout server"), ("haproxy.cfg", "timeout client")],
)
def test_a_call_ends_before_the_balancer_ends_it(file: str, setting: str) -> None:
    (minutes,) = re.findall(rf"{setting} (\d+)m\b", (DEPLOY / file).read_text())
    assert int(minutes) * 60 > CallLimits().call_s


@pytest.mark.parametrize(("file", "setting"), [("nginx.conf", "keepalive_timeout"), ("Caddyfile", "keepalive")])
def test_the_balancer_closes_connections_before_the_gateway_does(file: str, setting: str) -> None:
    (seconds,) = re.findall(rf"{setting} (\d+)s\b", (DEPLOY / file).read_text())
    assert int(seconds) < ServerLimits().keep_alive_s
    assert f"`limits.keep_alive_s` ({ServerLimits().keep_alive_s:g})" in PAGE


def test_the_figures_of_postgresql_are_those_of_the_code() -> None:
    text = " ".join(section(PAGE, "PostgreSQL").split())
    assert f"A process has {IN_WORDS[CONNECTIONS]} at most" in text
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        assert f"`{name}` ({_LANE_SESSION[name].removesuffix('s')} s)" in text


def test_the_role_that_is_shown_can_be_made(cluster: Cluster) -> None:
    """Its lines run as they stand, and make a database whose owner is durable whatever the server's default is."""
    (lines,) = re.findall(r"```sql\n(.*?)```", section(PAGE, "PostgreSQL"), re.DOTALL)
    statements = lines.replace("farebox", "documented").split(";")[:-1]
    for statement in statements:
        cluster.execute(statement)
    try:
        ((settings, public),) = cluster.fetch(
            "SELECT s.setconfig, has_database_privilege('public', d.oid, 'CONNECT') FROM pg_database d "
            "JOIN pg_db_role_setting s ON s.setdatabase = d.oid WHERE datname = 'documented'"
        )
        assert (settings, public) == (["synchronous_commit=on"], False)
    finally:
        cluster.drop_database("documented")
        cluster.execute("DROP ROLE documented")
