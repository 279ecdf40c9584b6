"""`farebox doctor` about a node of Bitcoin, and the configuration: what would keep top-ups from working is told."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from farebox.cli import cli
from farebox.config import load_config
from farebox.errors import ConfigError
from tests.chains.nodes import Bitcoind
from tests.payments.wallets import VPUB

TABLE = """
[bitcoin]
key = "{key}"
network = "{network}"
rpc = "{rpc}"
rpc_user = "watcher"
rpc_password = "{password}"
{more}
"""


def said(directory: Path, *command: str, **settings: str) -> list[str]:
    """Run a command over a configuration; answers its lines about Bitcoin and payments."""
    file = directory / "farebox.toml"
    file.write_text(
        TABLE.format(**{"key": VPUB, "network": "regtest", "password": "watcher-pass", "more": ""} | settings)
    )
    ran = CliRunner().invoke(cli, [*command, "--config", str(file)])
    return [line for line in ran.output.splitlines() if "bitcoin" in line or "payments." in line]


def test_the_doctor_asks_the_node(tmp_path: Path, bitcoind: Bitcoind) -> None:
    height = bitcoind.ask("getblockcount")
    assert said(tmp_path, "doctor", rpc=bitcoind.url) == [
        f"ok    bitcoin        the node answers, and has block {height}"
    ]
    (line,) = [one for one in said(tmp_path, "doctor", rpc=bitcoind.url, password="wrong") if "FAIL" in one]
    assert "refuses user or password" in line
    (line,) = [one for one in said(tmp_path, "doctor", rpc=bitcoind.url, network="signet") if "FAIL" in one]
    assert "regtest" in line
    (line,) = [one for one in said(tmp_path, "doctor", rpc="http://127.0.0.1:9") if "FAIL" in one]
    assert "cannot be asked" in line


@pytest.mark.parametrize(
    ("rpc", "more", "words"),
    [
        ("http://u:hunter2secret@127.0.0.1:8332", "", "without user and password"),
        ("http://127.0.0.1:8332", '[btcpay]\nurl = "u:hunter2secret@pay.example:99x"', "btcpay.url must be a URL"),
        ("http://127.0.0.1:8332", "[payments]\nsimulated = true", "is true beside a way to pay for real"),
    ],
)
def test_what_is_wrong_is_said_without_a_password(tmp_path: Path, rpc: str, more: str, words: str) -> None:
    file = tmp_path / "farebox.toml"
    file.write_text(TABLE.format(key=VPUB, network="regtest", password="x", rpc=rpc, more=more))
    with pytest.raises(ConfigError) as wrong:
        load_config(file, {})
    assert words in str(wrong.value)
    assert "hunter2" not in str(wrong.value)
