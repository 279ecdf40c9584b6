"""The commands that serve, as processes of their own: demo, serve, simulate."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cli.test_operator import put_calls
from tests.stage import config_text

COMMAND = [sys.executable, "-c", "from farebox.cli import main; main()"]
HELLO = {"model": "claude-sonnet-4-6", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello!"}]}


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FAREBOX_", "ANTHROPIC_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}


@contextmanager
def running(*words: str, cwd: Path, reads: str = "stdout", **more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a command that serves; gives it with its first line, and ends it."""
    process = subprocess.Popen(
        [*COMMAND, *words], cwd=cwd, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = getattr(process, reads).readline()
        assert line, process.stderr.read() if process.stderr else ""
        yield process, line
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def attempt(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], cwd=cwd, env=environment(), capture_output=True, text=True, check=False, timeout=60
    )


def run(*words: str, cwd: Path) -> Any:
    done = attempt(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def post(base_url: str, key: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        base_url + "/v1/messages",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_demo_serves_charges_and_keeps_balance_and_key(tmp_path: Path) -> None:
    with running("demo", "--port", "0", "--data", "d", "--json", cwd=tmp_path) as (process, line):
        shown = json.loads(line)
        assert json.loads((tmp_path / "d" / "demo.json").read_text()) == shown
        assert shown["base_url"].endswith("/api/proxy")
        assert (tmp_path / "d" / "demo.json").stat().st_mode & 0o077 == 0
        status, message = post(shown["base_url"], shown["api_key"], HELLO)
        assert status == 200
        config = ("--config", str(tmp_path / "d" / "farebox.toml"))
        (call,) = run(*config, "usage", "--account", shown["account_email"], "--json", cwd=tmp_path)
        assert call["message_id"] == message["id"]
        assert call["output_tokens"] == message["usage"]["output_tokens"]
        (account,) = run(*config, "account", "show", shown["account_email"], "--json", cwd=tmp_path)
        assert account["plan"] == "pro"
        assert account["balance_nanos"] == 5_000_000_000 - call["charged_nanos"]
        assert all(check["ok"] for check in run(*config, "audit", "--json", cwd=tmp_path))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    with running("demo", "--port", "0", "--data", "d", "--json", cwd=tmp_path) as (_, line):
        again = json.loads(line)
        assert again["api_key"] == shown["api_key"]
        (kept,) = run(*config, "account", "show", shown["account_email"], "--json", cwd=tmp_path)
        assert kept["balance_nanos"] == account["balance_nanos"]


def test_the_demo_prints_lines_that_can_be_pasted(tmp_path: Path) -> None:
    with running("demo", "--port", "0", "--data", "d", cwd=tmp_path) as (process, first):
        assert process.stdout is not None
        text = first
        while "Ctrl-C" not in text:
            text += process.stdout.readline()
        lines = text.split("curl\n")[1].split("Python")[0]
        done = subprocess.run(["sh", "-c", lines], capture_output=True, text=True, check=False, timeout=30)
        assert "event: message_stop" in done.stdout, done
        exports = text.split("Claude Code\n")[1].split("What it cost")[0]
        assert "export ANTHROPIC_BASE_URL=" in exports
        assert "export ANTHROPIC_API_KEY=sk-cc-" in exports


def test_the_demo_uses_the_real_api_when_there_is_a_key_for_it(tmp_path: Path) -> None:
    with running("simulate", "--port", "0", "--api-key", "real", "--json", "--speed", "0", cwd=tmp_path) as (_, line):
        real = {"ANTHROPIC_API_KEY": "real", "ANTHROPIC_UPSTREAM_URL": json.loads(line)["base_url"]}
        with running("demo", "--port", "0", "--data", "d", "--json", cwd=tmp_path, **real) as (_, demo_line):
            shown = json.loads(demo_line)
            assert shown["upstream"] == "anthropic"
            assert post(shown["base_url"], shown["api_key"], HELLO)[0] == 200
    assert "real" not in (tmp_path / "d" / "farebox.toml").read_text().replace("real API", "")


def test_the_demo_answers_at_the_pace_it_is_told(tmp_path: Path) -> None:
    """1,000 tokens take 17 s at the usual pace."""
    with running("demo", "--port", "0", "--data", "d", "--speed", "0", "--json", cwd=tmp_path) as (_, line):
        shown = json.loads(line)
        begun = time.monotonic()
        said = [{"role": "user", "content": "[[sim tokens=1000]]"}]
        status, message = post(shown["base_url"], shown["api_key"], HELLO | {"max_tokens": 2000, "messages": said})
        assert (status, message["usage"]["output_tokens"]) == (200, 1000)
        assert time.monotonic() - begun < 12
    assert "speed = 0.0\n" in (tmp_path / "d" / "farebox.toml").read_text()
    refused = attempt("demo", "--speed", "-1", cwd=tmp_path)
    assert (refused.returncode, "speed" in refused.stderr) == (2, True)


def test_a_key_of_our_own_in_the_environment_is_not_taken_for_a_real_one(tmp_path: Path) -> None:
    own = {"ANTHROPIC_API_KEY": "sk-cc-mine"}
    with running("demo", "--port", "0", "--data", "d", "--json", cwd=tmp_path, **own) as (_, line):
        assert json.loads(line)["upstream"] == "simulator"


def test_a_running_server_sees_what_the_command_line_changes(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "farebox.toml").write_text(config_text(tmp_path, database_url=database_url))
    with running("serve", cwd=tmp_path, reads="stderr") as (_, logged):
        base_url = f"http://127.0.0.1:{json.loads(logged)['port']}"
        (made,) = run("account", "create", "new@example.com", "--credit", "1", "--json", cwd=tmp_path)
        (key,) = run("key", "create", "new@example.com", "--name", "k", "--json", cwd=tmp_path)
        assert post(base_url, key["key"], HELLO)[0] == 200
        run("account", "suspend", str(made["account_id"]), "--json", cwd=tmp_path)
        assert answers_within_a_second(base_url, key["key"], {401, 403})
        run("account", "resume", "new@example.com", "--json", cwd=tmp_path)
        assert answers_within_a_second(base_url, key["key"], {200})
        run("key", "revoke", str(key["key_id"]), "--json", cwd=tmp_path)
        assert answers_within_a_second(base_url, key["key"], {401})


def answers_within_a_second(base_url: str, key: str, statuses: set[int]) -> bool:
    """Call until one of these statuses is the answer, for a second at most."""
    until = time.monotonic() + 1
    while time.monotonic() < until:
        if post(base_url, key, HELLO)[0] in statuses:
            return True
        time.sleep(0.05)
    return False


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    with running("simulate", "--port", "0", "--json", cwd=tmp_path) as (_, line):
        port = str(json.loads(line)["port"])
        for words in (("simulate", "--port", port), ("demo", "--port", port, "--data", "d")):
            refused = attempt(*words, cwd=tmp_path)
            assert refused.returncode == 1
            assert "cannot be listened on" in refused.stderr
            assert "Traceback" not in refused.stderr


def test_a_configuration_serves_until_it_is_told_to_stop(tmp_path: Path, database_url: str) -> None:
    with running("simulate", "--port", "0", "--json", "--speed", "0", "--api-key", "up", cwd=tmp_path) as (_, line):
        (tmp_path / "farebox.toml").write_text(
            f'[server]\nport = 0\nmetrics = "off"\n[database]\nurl = "{database_url}"\n'
            '[[upstreams]]\nname = "sim"\nkind = "anthropic"\napi_key = "file:key"\n'
            f"base_url = {json.dumps(json.loads(line)['base_url'])}\n"
        )
        (tmp_path / "key").write_text("up\n")
        (tmp_path / "key").chmod(0o600)
        found = {check["check"]: check["status"] for check in run("doctor", "--json", cwd=tmp_path)}
        assert found["upstream sim"] == "ok"
        run("account", "create", "alice@example.com", "--credit", "1", "--json", cwd=tmp_path)
        (key,) = run("key", "create", "alice@example.com", "--name", "k", "--json", cwd=tmp_path)
        with running("serve", cwd=tmp_path, reads="stderr") as (process, logged):
            port = json.loads(logged)["port"]
            assert post(f"http://127.0.0.1:{port}", key["key"], HELLO)[0] == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def test_a_reader_that_leaves_early_is_no_accident(tmp_path: Path) -> None:
    attempt("account", "create", "alice@example.com", cwd=tmp_path)
    put_calls(f"sqlite:///{tmp_path}/farebox.db", 5_000)
    told = subprocess.run(
        ["sh", "-c", '"$0" "$@" | head -n 1', *COMMAND, "usage", "--all", "--json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert json.loads(told.stdout)["message_id"] == "msg_0"
    assert told.stderr == ""


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = attempt("demo", "--port", "0", "--data", "file/d", cwd=tmp_path)
    assert refused.returncode == 1
    assert (
        refused.stderr
        == f"farebox: {tmp_path}/file/d: cannot be written to: Not a directory; name another place with --data\n"
    )
    (tmp_path / "farebox.toml").write_text('[database]\nurl = "sqlite:///file/farebox.db"\n')
    refused = attempt("account", "create", "alice@example.com", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1, refused.stderr
