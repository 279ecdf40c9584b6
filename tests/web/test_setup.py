"""The scripts that customers run: one points Claude Code at the server, one finds out what stands in its way."""

import asyncio
import json
import os
import shutil
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients.run import Ended
from tests.stage import Stage

PYTHON = os.path.realpath(sys.executable)
THEIRS: Final[dict[str, Any]] = {
    "permissions": {"allow": ["Bash(ls)"]},
    "env": {"FOO": "bär", "ANTHROPIC_MODEL": "claude-opus-5-5"},
}


async def fetch(stage: Stage, path: str, **headers: str) -> tuple[int, bytes, dict[bytes, bytes]]:
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    answer = await stage.client.request("GET", path, fields, b"", first_byte_s=5)
    return answer.status, await answer.read(2**20), dict(answer.headers)


async def script(stage: Stage, path: str) -> str:
    """Get a script as curl does, with the port that this stage has."""
    status, body, headers = await fetch(stage, path, accept="*/*")
    assert status == 200
    assert headers[b"content-type"] == b"text/x-shellscript; charset=utf-8"
    public_url = stage.gateway.config.public_url
    assert public_url.encode() in body
    return body.decode().replace(public_url, stage.base_url.removesuffix("/api/proxy"))


async def sh(text: str, home: Path, *options: str, tools: Sequence[str] = (), **env: Any) -> Ended:
    """Run a script as `curl … | sh` does: it comes on standard input, and no terminal is there."""
    path = os.environ["PATH"]
    if tools:
        there = home / "bin"
        there.mkdir(exist_ok=True)
        for name in (*tools, "sh", "curl", "sed", "mkdir", "dirname", "mv", "cat", "mktemp", "rm", "head"):
            found = PYTHON if name == "python3" else shutil.which(name)
            assert found, name
            if not (there / name).exists():
                (there / name).symlink_to(found)
        path = str(there)
    process = await asyncio.create_subprocess_exec(
        "setsid",  # without a terminal, wherever the tests run
        shutil.which("sh") or "sh",
        "-s",
        "--",
        *options,
        env={"HOME": str(home), "PATH": path, "LC_ALL": "C.UTF-8", **env},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=home,
        executable=shutil.which("setsid"),
    )
    out, err = await asyncio.wait_for(process.communicate(text.encode()), 30)
    return Ended(process.returncode or 0, out.decode(), err.decode())


def settings_in(home: Path) -> Path:
    return home / ".claude" / "settings.json"


def write(home: Path, value: Any) -> Path:
    path = settings_in(home)
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def read(home: Path) -> Any:
    return json.loads(settings_in(home).read_text())


def ours(stage: Stage, key: str) -> dict[str, str]:
    return {"ANTHROPIC_BASE_URL": stage.base_url, "ANTHROPIC_AUTH_TOKEN": key, "ANTHROPIC_API_KEY": ""}


async def test_a_browser_is_led_to_the_manual_and_everybody_else_gets_the_script(stage: Stage) -> None:
    for path, section in (("/setup", "set-it-up"), ("/doctor", "when-it-does-not-work")):
        status, _, headers = await fetch(stage, path, accept="text/html,application/xhtml+xml")
        assert (status, headers[b"location"]) == (303, f"/docs/claude-code#{section}".encode())
        _, page, _ = await fetch(stage, "/docs/claude-code", accept="text/html")
        assert f'id="{section}"'.encode() in page
        bare = await script(stage, path)
        assert bare == await script(stage, f"{path}.sh")
        status, body, _ = await fetch(stage, path, accept="*/*", x_api_key=stage.alice.key)
        assert status == 200
        assert stage.alice.key.encode() not in body


@pytest.mark.parametrize("tool", ["python3", "node"])
async def test_what_else_is_in_the_settings_stays_and_can_be_had_back(stage: Stage, tmp_path: Path, tool: str) -> None:
    text = await script(stage, "/setup")
    path = write(tmp_path, THEIRS)
    ended = await sh(text, tmp_path, tools=(tool,), FAREBOX_KEY=stage.alice.key)
    assert ended.code == 0, ended
    assert read(tmp_path) == {**THEIRS, "env": {**THEIRS["env"], **ours(stage, stage.alice.key)}}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = path.with_name("settings.json.before-farebox")
    assert json.loads(kept.read_text()) == THEIRS
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stage.alice.key not in ended.out + ended.err
    ended = await sh(text, tmp_path, "--undo", tools=(tool,))
    assert ended.code == 0, ended
    assert read(tmp_path) == THEIRS
    assert sorted(one.name for one in path.parent.iterdir()) == ["settings.json", "settings.json.before-farebox"]


@pytest.mark.parametrize("tool", ["python3", "node"])
async def test_what_stood_in_the_place_of_ours_comes_back_however_often_it_ran(
    stage: Stage, tmp_path: Path, tool: str
) -> None:
    text = await script(stage, "/setup")
    mine = {"env": {"ANTHROPIC_API_KEY": "their-own", "ANTHROPIC_BASE_URL": "https://elsewhere.example"}, "x": "\ud800"}
    home = tmp_path / "a home, with spaces"
    home.mkdir()
    write(home, json.dumps(mine))
    for _ in range(2):
        ended = await sh(text, home, tools=(tool,), FAREBOX_KEY=stage.alice.key)
        assert ended.code == 0, ended
    assert read(home)["env"] == ours(stage, stage.alice.key)
    assert json.loads(settings_in(home).with_name("settings.json.before-farebox").read_text()) == mine
    ended = await sh(text, home, "--undo", tools=(tool,))
    assert ended.code == 0, ended
    assert read(home) == mine


@pytest.mark.parametrize("tool", ["python3", "node"])
async def test_runs_at_the_same_time_leave_whole_settings(stage: Stage, tmp_path: Path, tool: str) -> None:
    text = await script(stage, "/setup")
    write(tmp_path, THEIRS)
    runs = [sh(text, tmp_path, tools=(tool,), FAREBOX_KEY=stage.alice.key) for _ in range(4)]
    assert 0 in {ended.code for ended in await asyncio.gather(*runs)}
    assert read(tmp_path) == {**THEIRS, "env": {**THEIRS["env"], **ours(stage, stage.alice.key)}}
    assert json.loads(settings_in(tmp_path).with_name("settings.json.before-farebox").read_text()) == THEIRS
    assert sorted(one.name for one in settings_in(tmp_path).parent.iterdir()) == [
        "settings.json", "settings.json.before-farebox",
    ]  # fmt: skip


@pytest.mark.parametrize("tool", ["python3", "node"])
async def test_what_cannot_be_read_or_may_not_be_written_is_left_alone(stage: Stage, tmp_path: Path, tool: str) -> None:
    text = await script(stage, "/setup")
    path = write(tmp_path, "{}")
    path.chmod(0o444)
    ended = await sh(text, tmp_path, tools=(tool,), FAREBOX_KEY=stage.alice.key)
    assert (ended.code, "is read-only; nothing was changed" in ended.err) == (1, True)
    path.chmod(0o644)
    for before in (b'{"env": {"FOO": "b\xe4r"}}', b'{"env": ' * 5000 + b"{}" + b"}" * 5000):
        path.write_bytes(before)
        ended = await sh(text, tmp_path, tools=(tool,), FAREBOX_KEY=stage.alice.key)
        assert ended.code == 1
        assert "Traceback" not in ended.err
        assert path.read_bytes() == before
    path.unlink()
    path.mkdir()
    ended = await sh(text, tmp_path, tools=(tool,), FAREBOX_KEY=stage.alice.key)
    assert (ended.code, "is as it was" in ended.err, "Traceback" in ended.err) == (1, True, False)


async def test_no_beginning_of_a_script_does_anything(stage: Stage, tmp_path: Path) -> None:
    for name in ("/setup", "/doctor"):
        text = await script(stage, name)
        end = text.rindex('{ main "$@"; }')
        for cut in range(end, end + len('{ main "$@"; }')):
            ended = await sh(text[:cut], tmp_path, FAREBOX_KEY=stage.alice.key)
            assert (ended.out, settings_in(tmp_path).exists()) == ("", False), cut - end


async def test_what_a_server_says_moves_no_terminal(stage: Stage, tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"error":{"message":"no \x1b[2J\x07such key"}}'
        writer.write(b"HTTP/1.1 401 X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        other = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for name in ("/setup", "/doctor"):
            text = (await script(stage, name)).replace(stage.base_url, f"{other}/api/proxy")
            ended = await sh(text, tmp_path, FAREBOX_KEY="sk-cc-x", ANTHROPIC_BASE_URL=f"{other}/api/proxy")
            assert "[2Jsuch key" in ended.out + ended.err
            assert "\x1b" not in ended.out + ended.err
            assert "\x07" not in ended.out + ended.err


@pytest.mark.parametrize("tools", [("python3",), ("node",), ("true",)], ids=["python3", "node", "neither"])
async def test_a_first_file_is_written_for_its_owner_alone(stage: Stage, tmp_path: Path, tools: tuple[str]) -> None:
    ended = await sh(await script(stage, "/setup"), tmp_path, tools=tools, FAREBOX_KEY=stage.alice.key)
    assert ended.code == 0, ended
    assert read(tmp_path) == {"env": ours(stage, stage.alice.key)}
    assert stat.S_IMODE(settings_in(tmp_path).stat().st_mode) == 0o600


@pytest.mark.parametrize("tool", ["python3", "node"])
@pytest.mark.parametrize(
    ("before", "words"),
    [
        ('{"env": {} // mine\n}', "is not plain JSON"),
        ("[1]", "does not look like settings"),
        ('{"env": ["A=1"]}', "does not look like settings"),
        ('{"env": null}', "does not look like settings"),
    ],
    ids=["comments", "a list", "a list of env", "null"],
)
async def test_a_file_it_does_not_understand_is_left_alone(
    stage: Stage, tmp_path: Path, tool: str, before: str, words: str
) -> None:
    path = write(tmp_path, before)
    ended = await sh(await script(stage, "/setup"), tmp_path, tools=(tool,), FAREBOX_KEY=stage.alice.key)
    assert ended.code == 1
    assert words in ended.err
    assert path.read_text() == before
    assert [one.name for one in path.parent.iterdir()] == ["settings.json"]


async def test_without_python_and_node_a_file_that_is_there_is_left_alone(stage: Stage, tmp_path: Path) -> None:
    path = write(tmp_path, THEIRS)
    ended = await sh(await script(stage, "/setup"), tmp_path, tools=("true",), FAREBOX_KEY=stage.alice.key)
    assert ended.code == 1
    assert f"write ANTHROPIC_BASE_URL={stage.base_url}, ANTHROPIC_AUTH_TOKEN" in ended.err
    assert json.loads(path.read_text()) == THEIRS


async def test_a_link_is_followed_and_another_place_is_respected(stage: Stage, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "claude.json"
    real.parent.mkdir()
    real.write_text("{}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "settings.json").symlink_to(real)
    text = await script(stage, "/setup")
    ended = await sh(text, tmp_path, FAREBOX_KEY=stage.alice.key, CLAUDE_CONFIG_DIR=str(elsewhere))
    assert ended.code == 0, ended
    assert json.loads(real.read_text()) == {"env": ours(stage, stage.alice.key)}
    assert (elsewhere / "settings.json").is_symlink()
    assert not settings_in(tmp_path).exists()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("sk-cc-nobodys", "does not take this key: "),
        ("", "set FAREBOX_KEY to a key from "),
        ("sk-cc-a b", "that is no key"),
        ('sk-cc-"; touch pwned; "', "that is no key"),
    ],
    ids=["unknown", "none", "a space", "a command"],
)
async def test_a_key_that_is_none_changes_nothing(stage: Stage, tmp_path: Path, key: str, words: str) -> None:
    ended = await sh(await script(stage, "/setup"), tmp_path, FAREBOX_KEY=key)
    assert ended.code == 1
    assert words in ended.err
    assert not any((tmp_path / name).exists() for name in (".claude", "pwned"))


async def test_a_dry_run_and_half_a_download_change_nothing(stage: Stage, tmp_path: Path) -> None:
    text = await script(stage, "/setup")
    ended = await sh(text, tmp_path, "--dry-run", FAREBOX_KEY=stage.alice.key)
    assert ended.code == 0, ended
    assert "would write" in ended.err
    assert stage.alice.key not in ended.err
    for size in range(0, len(text.rstrip()) - 40, len(text) // 25):
        await sh(text[:size], tmp_path, FAREBOX_KEY=stage.alice.key)
    assert not settings_in(tmp_path).exists()


async def test_undo_leaves_another_servers_settings_alone(stage: Stage, tmp_path: Path) -> None:
    other = {"env": {"ANTHROPIC_BASE_URL": "https://elsewhere.example", "ANTHROPIC_AUTH_TOKEN": "theirs"}}
    write(tmp_path, other)
    ended = await sh(await script(stage, "/setup"), tmp_path, "--undo")
    assert ended.code == 1
    assert "does not point at" in ended.err
    assert read(tmp_path) == other


# the doctor


async def test_the_doctor_finds_nothing_where_nothing_is_wrong(stage: Stage, tmp_path: Path) -> None:
    write(tmp_path, {"env": ours(stage, stage.alice.key)})
    ended = await sh(await script(stage, "/doctor"), tmp_path)
    assert ended.code == 0, ended
    assert "FAIL" not in ended.out
    assert "note" not in ended.out, ended.out
    assert "ok    $100.00 are free" in ended.out
    assert "ok    the test stream came as it was sent" in ended.out
    assert stage.alice.key not in ended.out + ended.err


async def test_the_doctor_tells_a_doubled_address_a_poor_balance_and_two_credentials(
    stage: Stage, tmp_path: Path
) -> None:
    carl = await stage.person("carl@example.com", 0)
    env = {
        "ANTHROPIC_BASE_URL": f"{stage.base_url}/v1",
        "ANTHROPIC_AUTH_TOKEN": carl.key,
        "ANTHROPIC_API_KEY": "sk-ant-x",
    }
    ended = await sh(await script(stage, "/doctor"), tmp_path, **env)
    assert ended.code == 1
    assert "leave out the /v1 at its end" in ended.out
    assert "are both set and differ" in ended.out
    assert "FAIL  the balance is used up" in ended.out


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({}, "there is no key"),
        ({"ANTHROPIC_AUTH_TOKEN": "sk-cc-nobodys"}, "answers 401: "),
        ({"ANTHROPIC_AUTH_TOKEN": "x", "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}, "does not answer"),
        ({"ANTHROPIC_AUTH_TOKEN": "sk-cc-\u00a0x"}, "signs in it that no key has"),
    ],
    ids=["no key", "wrong key", "no server", "a strange sign"],
)
async def test_the_doctor_says_what_stands_in_the_way(
    stage: Stage, tmp_path: Path, env: dict[str, str], words: str
) -> None:
    ended = await sh(await script(stage, "/doctor"), tmp_path, **env)
    assert ended.code == 1, ended
    assert words in ended.out


@asynccontextmanager
async def collecting_proxy(port: int) -> AsyncIterator[int]:
    """A proxy that hands an answer on once it has all of it, as some do with streams."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_connection("127.0.0.1", port)
        head = await reader.readuntil(b"\r\n\r\n")
        down.write(head.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        writer.write(await up.read())
        writer.close()
        down.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_the_doctor_tells_when_streams_are_held_back(stage: Stage, tmp_path: Path) -> None:
    async with collecting_proxy(stage.gateway.port) as port:
        env = {"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}/api/proxy", "FAREBOX_KEY": stage.alice.key}
        ended = await sh(await script(stage, "/doctor"), tmp_path, **env)
    assert ended.code == 1, ended
    assert "something on the way holds streams back" in ended.out
