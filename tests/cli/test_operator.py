"""Reports, settings and the doctor: stable JSON, honest exit codes, and nothing changed by looking."""

import os
from pathlib import Path

import pytest

from farebox import __version__
from farebox.config.load import load_config
from tests.cli.conftest import Farebox
from tests.databases import write

SIMULATOR = '[server]\nport = 0\nmetrics = "off"\n[[upstreams]]\nname = "sim"\nkind = "simulator"\n'
CALL_FIELDS = {
    "request_id", "message_id", "model", "kind", "at", "input_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens",
    "cache_read_tokens", "output_tokens", "charged_nanos",
}  # fmt: skip


def put_calls(url: str, count: int) -> None:
    """Write usage rows as the gateway would, one a second."""
    insert = (
        "INSERT INTO usage (request_id, at, account_id, key_id, kind, model, asked_model, price_version, "
        "input_tokens, output_tokens, cost_nanos, list_nanos, charged_nanos, shortfall_nanos, waived_nanos, "
        "status, outcome, message_id) VALUES (?, ?, 1, 1, 'exact', 'm', 'm', 1, 10, 20, 7, 14, 7, 0, 0, "
        "200, 'finished', ?)"
    )
    moments = ((n, 1_700_000_000_000_000 + n * 1_000_000) for n in range(count))
    write(url, *((insert, (n.to_bytes(16, "big"), at, f"msg_{n}")) for n, at in moments))


def test_usage_gives_one_object_a_line_with_stable_names(farebox: Farebox, at_books: str) -> None:
    farebox("account", "create", "alice@example.com")
    put_calls(at_books, 3)
    calls = farebox("usage", "--account", "alice@example.com", "--json").lines
    assert set(calls[0]) >= CALL_FIELDS
    assert [call["message_id"] for call in calls] == ["msg_0", "msg_1", "msg_2"]
    assert calls[0]["request_id"] == "req_" + "0" * 32
    assert calls[0]["at"] == "2023-11-14T22:13:20.000000Z"
    assert calls[0]["charged_nanos"] == 7


def test_usage_is_limited_to_the_last_calls_unless_all_are_asked_for(farebox: Farebox, at_books: str) -> None:
    farebox("account", "create", "alice@example.com")
    put_calls(at_books, 2_500)
    names = [call["message_id"] for call in farebox("usage", "--json", "--limit", "2").lines]
    assert names == ["msg_2498", "msg_2499"]
    assert farebox("usage").out.count("alice@example.com") == 50
    everything = [call["message_id"] for call in farebox("usage", "--json", "--all", "--account", "1").lines]
    assert everything == [f"msg_{n}" for n in range(2_500)]
    assert len(farebox("usage", "--json").lines) == len(everything), "scripts get all, whatever a screen shows"
    since = farebox("usage", "--json", "--all", "--since", "2023-11-14T22:50:00Z").lines
    assert since[0]["at"] == "2023-11-14T22:50:00.000000Z"
    assert "2,500 calls, $0.0000175 charged" in farebox("usage", "--all").out


def test_a_statement_ends_at_the_balance(farebox: Farebox, at_books: str) -> None:
    farebox("account", "create", "alice@example.com", "--credit", "1")
    farebox("account", "credit", "alice@example.com", "2", "--gift")
    farebox("account", "debit", "alice@example.com", "0.5")
    put_calls(at_books, 2)
    entries = farebox("ledger", "--account", "alice@example.com", "--json").lines
    assert [entry["code"] for entry in entries] == ["usage", "usage", "deposit", "promotion", "debit"]
    assert [entry["balance_nanos"] for entry in entries][-1] == 2_500_000_000 - 14
    assert entries[0]["balance_nanos"] == -7
    assert farebox("ledger", "--account", "1", "--limit", "2", "--json").lines == entries[-2:]
    assert "-$0.50" in farebox("ledger", "--account", "1").out


def test_the_totals_of_all_accounts_are_zero(farebox: Farebox, at_books: str) -> None:
    farebox("account", "create", "alice@example.com", "--credit", "1")
    farebox("account", "credit", "alice@example.com", "2", "--gift")
    put_calls(at_books, 2)
    totals = farebox("ledger", "--totals", "--json").json["totals_nanos"]
    assert sum(totals.values()) == 0
    assert totals["customers"] == 3_000_000_000 - 14
    assert totals["house:promotion"] == -2_000_000_000


def test_audit_exits_with_1_when_the_books_are_broken(farebox: Farebox, at_books: str) -> None:
    farebox("account", "create", "alice@example.com", "--credit", "1")
    sound = farebox("audit", "--json")
    assert sound.code == 0, sound.out
    assert all(check["ok"] for check in sound.lines)
    write(at_books, "UPDATE account SET posted_nanos = posted_nanos + 1")
    broken = farebox("audit")
    assert broken.code == 1
    assert "BROKEN" in broken.out


@pytest.mark.parametrize("words", [("account", "list"), ("usage",), ("ledger",), ("key", "list")])
def test_looking_makes_no_database(farebox: Farebox, tmp_path: Path, words: tuple[str, ...]) -> None:
    refused = farebox(*words)
    assert refused.code == 1
    assert "there is no database" in refused.err
    assert list(tmp_path.iterdir()) == []


def test_the_printed_example_is_a_configuration(farebox: Farebox, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(farebox("config", "example").out)
    assert load_config(tmp_path / "mine.toml", {"ANTHROPIC_API_KEY": "k"}).upstreams[0].name == "anthropic"


def test_a_wrong_configuration_is_told_line_by_line_by_every_command(farebox: Farebox, tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text("[server]\nprot = 1\nhost = 2\n")
    for words in (("config", "check"), ("account", "list"), ("serve",), ("doctor",)):
        refused = farebox(*words)
        assert refused.code == 1, words
        assert "farebox.toml:2: server.prot is not a setting; did you mean port?" in refused.out + refused.err
        assert "farebox.toml:3: server.host is 2" in refused.out + refused.err


def test_config_is_found_by_option_variable_and_place(
    farebox: Farebox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("option", "variable", "farebox"):
        (tmp_path / f"{name}.toml").write_text(f'[site]\nname = "{name}"\n')

    def name_shown(*words: str) -> str:
        return str(farebox(*words, "config", "show", "--json").json["site"]["name"])

    assert name_shown() == "farebox"
    monkeypatch.setenv("FAREBOX_CONFIG", str(tmp_path / "variable.toml"))
    assert name_shown() == "variable"
    assert name_shown("--config", str(tmp_path / "option.toml")) == "option"
    shown = farebox("config", "show", "--json", "--config", str(tmp_path / "option.toml"))
    assert shown.json["site"]["name"] == "option"
    assert farebox("--config", "nowhere.toml", "config", "show").err.startswith("farebox: nowhere.toml: No such file")


def test_settings_are_shown_with_where_they_come_from_and_without_secrets(
    farebox: Farebox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "farebox.toml").write_text(
        '[limits]\nattempts = 5\n[[upstreams]]\nname = "a"\nkind = "anthropic"\napi_key = "sk-ant-canary"\n'
    )
    monkeypatch.setenv("FAREBOX_SERVER_PORT", "81")
    for words in (("config", "show"), ("config", "show", "--json"), ("doctor", "--offline")):
        assert "canary" not in farebox(*words).out
    lines = farebox("config", "show").out.splitlines()
    assert any(line.startswith("limits.attempts = 5 ") and line.endswith("# farebox.toml:2") for line in lines)
    assert any(line.startswith("server.port = 81 ") and line.endswith("# FAREBOX_SERVER_PORT") for line in lines)


def test_models_are_shown_with_exact_prices(farebox: Farebox) -> None:
    shown = farebox("config", "show", "--models").out
    opus = next(line.split() for line in shown.splitlines() if line.startswith("claude-opus-4-6"))
    assert opus[1:4] == ["sell", "$7.50", "$37.50"]
    assert farebox("config", "show", "--models", "--json").lines[0]["rates"]["sell"]["input"] == 7_500_000_000


def test_config_check_wants_an_upstream_and_its_secret(farebox: Farebox, tmp_path: Path) -> None:
    assert "0 upstreams" in farebox("config", "check").out
    (tmp_path / "farebox.toml").write_text(SIMULATOR)
    assert farebox("config", "check", "--json").json["ok"] is True


def test_the_doctor_is_content_with_a_good_place(farebox: Farebox, tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text(SIMULATOR)
    seen = farebox("doctor", "--json")
    checks = {line["check"]: line["status"] for line in seen.lines}
    assert seen.code == 0, seen.out
    assert {"settings", "sqlite", "database", "disk", "sync", "clock", "port", "files", "prices", "models"} <= set(
        checks
    )
    assert checks["prices"] == "warn"  # the default catalogue sells below the public list
    assert {path.name for path in tmp_path.iterdir()} == {"farebox.toml"}


def test_the_doctor_finds_what_would_fail(farebox: Farebox, tmp_path: Path) -> None:
    (tmp_path / "farebox.db").write_bytes(b"not a database at all, but long enough to be read as one" * 40)
    (tmp_path / "farebox.toml").write_text(
        SIMULATOR.replace("port = 0", "port = 1\nhost = '203.0.113.1'")
        + 'base_url = "http://127.0.0.1:1"\nmodels = ["claude-opus-4-6"]\napi_key = "literal"\n'
    )
    os.chmod(tmp_path / "farebox.toml", 0o644)  # noqa: PTH101
    seen = farebox("doctor")
    assert seen.code == 1
    for words in (
        "may be read by others",
        "cannot be read",
        "cannot be listened on",
        "does not answer",
        "no upstream serves",
        "public_url",
    ):
        assert words in seen.out, words


def test_the_doctor_looks_at_the_file_of_every_secret(farebox: Farebox, tmp_path: Path) -> None:
    (tmp_path / "aws.key").write_text("canary")
    (tmp_path / "aws.key").chmod(0o644)
    (tmp_path / "farebox.toml").write_text(
        '[[upstreams]]\nname = "a"\nkind = "bedrock"\nregion = "us-east-1"\naccess_key_id = "AKIA"\n'
        'secret_access_key = "file:aws.key"\nmodels = { "claude-sonnet-4-6" = "us.anthropic.claude-sonnet-4-6" }\n'
    )
    assert "aws.key may be read by others" in farebox("doctor", "--offline").out


def test_the_doctor_finds_a_clock_that_was_set_back(farebox: Farebox, tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text(SIMULATOR)
    farebox("account", "create", "alice@example.com")
    later = "INSERT INTO transfer VALUES ('x', 4000000000000000, 'house:a', 'house:b', 1, 'c', 'a', 'm')"
    write(f"sqlite:///{tmp_path}/farebox.db", later)
    seen = farebox("doctor", "--offline")
    assert seen.code == 1
    assert "is before the newest entry" in seen.out


def test_exit_codes_tell_misuse_from_failure(farebox: Farebox) -> None:
    assert farebox("--help").code == 0
    assert farebox().code == 2
    assert farebox("acount").code == 2
    assert "Did you mean 'account'?" in farebox("acount").err
    assert farebox("account", "create").code == 2
    assert farebox("usage", "--since", "yesterday").code == 2
    assert '"error"' in farebox("account", "create", "--json").err
    assert farebox("version", "--json").json["farebox"] == __version__


def test_every_command_takes_json_and_config_and_has_help(farebox: Farebox) -> None:
    import click  # noqa: PLC0415

    from farebox.cli import cli  # noqa: PLC0415

    def leaves(group: click.Group, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], click.Command]]:
        found = []
        for name, command in group.commands.items():
            here = (*path, name)
            found += leaves(command, here) if isinstance(command, click.Group) else [(here, command)]
        return found

    for path, command in leaves(cli, ()):
        assert {"json", "config"} <= {option.name for option in command.params}, path
        shown = farebox(*path, "--help")
        assert shown.code == 0
        assert command.help, path
        assert "..." not in command.get_short_help_str(70), path


def test_the_doctor_tells_of_mail_and_of_the_secret(farebox: Farebox, tmp_path: Path) -> None:
    """Who signs up waits for a letter: an operator hears in time that none will come."""
    path = tmp_path / "farebox.toml"
    path.write_text(SIMULATOR)

    def found() -> dict[str, str]:
        return {line["check"]: line["status"] for line in farebox("doctor", "--json").lines}

    seen = found()
    assert (seen["mail"], seen["secret"]) == ("warn", "warn")
    secret = f'[server]\nsecret = "{"s" * 40}"\n'
    mail = '[mail]\nhost = "mail.example.com"\nsender = "post@farebox.example"\n'
    path.write_text(SIMULATOR.replace("[server]\n", secret, 1) + mail)
    seen = found()
    assert seen["mail"] == "ok"
    assert "secret" not in seen
