"""The calls that the documents show, run as they stand but for the address; and those that `farebox demo` prints."""

import asyncio
import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest

from tests.clients.run import ENVS, ROOT, Ended, charges, check_books, run, wanted
from tests.stage import Stage

OPENED = 100 * 10**9
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_ADDRESS = re.compile(r"https?://[^/\s'\"]+(?=/api/proxy|/v1|/healthz|/readyz)")


def documented(language: str, beginning: str = "") -> list[str]:
    """Collect the blocks of the documents that call the gateway. docs/simulator.md calls the simulator."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = [page.read_text() for page in pages if page.name != "simulator.md"]
    blocks = [block for text in texts for block in _FENCE.findall(text)]
    return [code for written_in, code in blocks if written_in == language and code.startswith(beginning)]


def filled_in(command: str, stage: Stage) -> str:
    """Put this stage's address into a command, and its key where a key is written out."""
    command = _ADDRESS.sub(stage.base_url.removesuffix("/api/proxy"), command)
    return re.sub(r"sk-cc-[\w…\.]*", stage.alice.key, command)


async def curl(command: str, home: Path, **env: str) -> Ended:
    return await run("sh", "-c", command.replace("curl ", "curl -sS --fail-with-body ", 1), env=env, cwd=home)


def test_the_readme_shows_a_first_call_in_three_languages() -> None:
    assert documented("sh", "curl ")
    assert documented("python")
    assert documented("ts")


async def check_charged(stage: Stage, ended: Ended, words: str) -> None:
    assert ended.code == 0, ended
    assert words in ended.out
    assert await check_books(stage, stage.alice, OPENED) > 0


@pytest.mark.parametrize("command", documented("sh", "curl "))
async def test_a_documented_curl_line_works_as_it_stands(stage: Stage, tmp_path: Path, command: str) -> None:
    """With the address of this stage, and the key where the README says to export it."""
    ended = await curl(filled_in(command, stage), tmp_path, FAREBOX_KEY=stage.alice.key)
    await check_charged(stage, ended, '"type":"message')


@pytest.mark.parametrize("script", documented("python"))
async def test_a_documented_python_snippet_works_as_it_stands(stage: Stage, tmp_path: Path, script: str) -> None:
    env = {"FAREBOX_KEY": stage.alice.key}
    ended = await run(sys.executable, "-c", filled_in(script, stage), env=env, cwd=tmp_path)
    await check_charged(stage, ended, "Farebox simulator")


@pytest.mark.parametrize("script", documented("ts"))
async def test_a_documented_typescript_snippet_works_as_it_stands(stage: Stage, tmp_path: Path, script: str) -> None:
    """It has no types in it, so Node.js runs it as it stands."""
    (tmp_path / "node_modules").symlink_to(wanted(ENVS / "typescript-sdk" / "node_modules"))
    (tmp_path / "snippet.mjs").write_text(filled_in(script, stage))
    ended = await run("node", tmp_path / "snippet.mjs", env={"FAREBOX_KEY": stage.alice.key}, cwd=tmp_path)
    await check_charged(stage, ended, "Farebox simulator")


ASKED = json.dumps({"model": "claude-sonnet-4-6", "messages": [{"role": "user", "content": "Hello!"}]})


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/v1/messages"])
@pytest.mark.parametrize("header", ["authorization: Bearer ", "x-api-key: "])
async def test_either_header_and_a_doubled_path_work_without_max_tokens(
    stage: Stage, tmp_path: Path, path: str, header: str
) -> None:
    command = f"curl {stage.base_url}{path} -H {shlex.quote(header + stage.alice.key)} -d {shlex.quote(ASKED)}"
    ended = await curl(command, tmp_path)
    assert ended.code == 0, ended
    assert json.loads(ended.out)["type"] == "message"
    assert len(await charges(stage, stage.alice)) == 1


async def test_a_large_body_that_curl_announces_first_is_taken(stage: Stage, tmp_path: Path) -> None:
    body = {"model": "claude-sonnet-4-6", "max_tokens": 5, "messages": [{"role": "user", "content": "a" * 2_000_000}]}
    (tmp_path / "body.json").write_text(json.dumps(body))
    ended = await curl(
        f"curl {stage.base_url}/v1/messages/count_tokens -H 'x-api-key: {stage.alice.key}' "
        "-H 'expect: 100-continue' --data-binary @body.json",
        tmp_path,
    )
    assert ended.code == 0, ended
    assert json.loads(ended.out)["input_tokens"] > 400_000


async def test_a_body_that_is_too_large_is_told_so_before_it_is_sent(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "body.json").write_bytes(b"a" * 40 * 2**20)
    for expect in ("100-continue", ""):
        ended = await run(
            "sh",
            "-c",
            f"curl -sS -w '%{{http_code}}' {stage.base_url}/v1/messages -H 'x-api-key: {stage.alice.key}' "
            f"-H 'expect: {expect}' --data-binary @body.json",
            env={},
            cwd=tmp_path,
        )
        assert "request_too_large" in ended.out, ended
        assert ended.out.endswith("413")


async def test_what_the_demo_prints_can_be_pasted(tmp_path: Path) -> None:
    """The demo's own lines, taken from its output, with nothing substituted."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "farebox",
        *("demo", "--port", "0", "--data", str(tmp_path / "data")),
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            printed = (await process.stdout.readuntil(b"Ctrl-C")).decode()
        command = re.search(r"^ *(curl (?:.*\\\n)*.*)$", printed, re.MULTILINE)
        assert command is not None, printed
        ended = await curl(command[1], tmp_path)
        assert ended.code == 0, ended
        assert "event: message_stop" in ended.out
        assert "Farebox" in "".join(re.findall(r'"text":"([^"]*)"', ended.out))
        shown = json.loads((tmp_path / "data" / "demo.json").read_text())
        assert shown["base_url"] in command[1]
        assert shown["api_key"] in command[1]
        exports = dict(re.findall(r"^ *export (\w+)=(\S+)$", printed, re.MULTILINE))
        assert exports == {"ANTHROPIC_BASE_URL": shown["base_url"], "ANTHROPIC_API_KEY": shown["api_key"]}
        python = re.search(r"^Python[^\n]*\n(.*?)^Claude Code", printed, re.MULTILINE | re.DOTALL)
        assert python is not None
        script = "\n".join(line.removeprefix("  ") for line in python[1].splitlines())
        ended = await run(sys.executable, "-c", script, env={}, cwd=tmp_path)
        assert ended.code == 0, ended
        assert "Farebox simulator" in ended.out
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
