"""Exercises of the clients that are programs: Claude Code, its SDK, OpenCode, Aider and llm."""

import asyncio
import json
import os
import pty
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.clients.rounds import Exercise, Round
from tests.stage import MODEL

SIMULATOR: Final = "This is the Farebox simulator answering as"
TOLD: Final = 'The tool answered: "simulated"'
"""The answer after the tool Bash has run what the simulator has it run: `echo simulated`."""


def prompts(at: Round) -> list[str]:
    """The messages of each call, as JSON."""
    bodies = [json.loads(r.body) for r in at.stage.simulator.requests if r.path == "/v1/messages"]
    return [json.dumps(body["messages"]) for body in bodies]


def saw(at: Round, *texts: str) -> None:
    """Some one prompt had all of these in it, as when a later turn brings along the earlier ones."""
    assert any(all(text in prompt for text in texts) for prompt in prompts(at)), [p[-300:] for p in prompts(at)]


async def done(at: Round, *command: str | Path, **env: str) -> str:
    ended = await at.run(*command, **env)
    assert ended.code == 0, ended
    return ended.out


# the Claude Agent SDK


async def sdk_message(at: Round) -> None:
    assert SIMULATOR in (await at.scene("message"))["text"]
    saw(at, "How are you?")


async def sdk_turns(at: Round) -> None:
    seen = await at.scene("turns")
    assert SIMULATOR in seen["text"]
    saw(at, "How are you?", seen["first"][:60], "And now?")


async def sdk_resumed(at: Round) -> None:
    seen = await at.scene("resumed")
    saw(at, "How are you?", seen["first"][:60], "And now?")


async def sdk_delegated(at: Round) -> None:
    seen = await at.scene("delegated")
    assert SIMULATOR in seen["text"]
    saw(at, "simulated prompt")
    assert at.sent() >= 3


AGENT_SDK: Final = (
    Exercise("message", sdk_message, None),
    Exercise("several turns", sdk_turns, None),
    Exercise("resumed session", sdk_resumed, None),
    Exercise("sub-agent", sdk_delegated, None),
)


# Claude Code


def claude(at: Round) -> Path:
    return at.client.home / "node_modules" / "@anthropic-ai" / "claude-code-linux-x64" / "claude"


async def print_mode(at: Round) -> None:
    assert SIMULATOR in await done(at, claude(at), "-p", "How are you?")
    saw(at, "How are you?")


async def bash_tool(at: Round) -> None:
    assert TOLD in await done(at, claude(at), "-p", "--allowedTools", "Bash", "--", "[[sim tool=Bash]] Look around")


async def several_turns(at: Round) -> None:
    """Both turns in one process, as programs drive it."""
    turns = [{"type": "user", "message": {"role": "user", "content": text}} for text in ("How are you?", "And now?")]
    told = " ".join(shlex.quote(json.dumps(turn)) for turn in turns)
    stream = "-p --input-format stream-json --output-format stream-json --verbose"
    out = await done(at, "sh", "-c", f"printf '%s\\n' {told} | {shlex.quote(str(claude(at)))} {stream}")
    results = [one for one in map(json.loads, out.splitlines()) if one["type"] == "result"]
    assert [one["is_error"] for one in results] == [False, False], results
    saw(at, "How are you?", results[0]["result"][:60], "And now?")


async def resumed_session(at: Round) -> None:
    """By its id, and as the latest one."""
    first = json.loads(await done(at, claude(at), "-p", "--output-format", "json", "How are you?"))
    again = json.loads(
        await done(at, claude(at), "-p", "--output-format", "json", "--resume", first["session_id"], "And now?")
    )
    await done(at, claude(at), "-p", "--continue", "And then?")
    saw(at, "How are you?", first["result"][:60], "And now?", again["result"][-60:-10], "And then?")


async def sub_agent(at: Round) -> None:
    said = json.loads(await done(at, claude(at), "-p", "--output-format", "json", "[[sim tool=Agent]] Delegate it"))
    assert said["subagent_stats"]["spawned"] == 1, said
    assert said["subagent_stats"]["completed"] == 1, said
    saw(at, "simulated prompt")
    ((sessions,),) = await at.stage.rows("SELECT COUNT(DISTINCT session) FROM usage")
    assert sessions == 1, "a sub-agent's calls belong to the session that started it"


async def model_discovery(at: Round) -> None:
    await done(at, claude(at), "-p", "How are you?", CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY="1")
    found = json.loads((at.home / ".claude" / "cache" / "gateway-models.json").read_text())
    sold = {model.id for model in at.stage.gateway.config.models}
    assert {model["id"] for model in found["models"]} == sold
    assert all(model["display_name"] for model in found["models"])


async def status_line(at: Round) -> None:
    """In a terminal, as people use it: the command of the status line is given model and cost."""
    told = at.home / "told"
    (at.home / ".claude").mkdir()
    line = {"type": "command", "command": f"cat > {told}.new && mv {told}.new {told} && echo status"}
    (at.home / ".claude" / "settings.json").write_text(json.dumps({"statusLine": line}))
    accepted = {
        "hasCompletedOnboarding": True,
        "projects": {str(at.home): {"hasTrustDialogAccepted": True}},
        "customApiKeyResponses": {"approved": [at.person.key[-20:]], "rejected": []},
    }
    (at.home / ".claude.json").write_text(json.dumps(accepted))
    await in_terminal(at, claude(at), "How are you?", told=told)
    status = json.loads(told.read_text())
    assert status["cost"]["total_cost_usd"] > 0
    assert [status["model"]["id"]] in ([row[0]] for row in await at.stage.rows("SELECT DISTINCT model FROM usage"))


async def in_terminal(at: Round, *command: str | Path, told: Path) -> None:
    """Run a program in a terminal until what it told the status line names a cost, then end it."""
    ours, theirs = pty.openpty()
    screen = bytearray()
    process = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": os.environ["PATH"], "HOME": str(at.home), "TERM": "xterm-256color", "LANG": "C.UTF-8", **at.env},
        cwd=at.home,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    loop = asyncio.get_running_loop()

    def read() -> None:
        with suppress(OSError):
            screen.extend(os.read(ours, 65536))

    loop.add_reader(ours, read)
    try:
        async with asyncio.timeout(60):
            while not names_a_cost(told):  # noqa: ASYNC110  another program's doing
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"no cost came to the status line; the screen said {bytes(screen[-3000:])!r}") from None
    finally:
        loop.remove_reader(ours)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()
        os.close(ours)


def names_a_cost(told: Path) -> bool:
    return told.exists() and json.loads(told.read_text())["cost"]["total_cost_usd"] > 0


async def told_to_top_up(at: Round) -> None:
    ended = await at.run(claude(at), "-p", "How are you?")
    assert ended.code == 1, ended
    assert "your free balance is $0.00" in ended.out, ended
    assert "top up at http" in ended.out, ended


CLAUDE_CODE: Final = (
    Exercise("print mode", print_mode, 1),
    Exercise("tools", bash_tool, 2),
    Exercise("several turns", several_turns, 2),
    Exercise("resumed session", resumed_session, 3),
    Exercise("sub-agent", sub_agent, None),
    Exercise("model discovery", model_discovery, None),
    Exercise("status line", status_line, None),
    Exercise("empty balance", told_to_top_up, 0, poor=True),
)


# OpenCode


def opencode(at: Round, *options: str) -> tuple[str | Path, ...]:
    program = at.client.home / "node_modules" / "opencode-linux-x64" / "bin" / "opencode"
    return (program, "run", "--model", f"anthropic/{MODEL}", *options)


async def opencode_message(at: Round) -> None:
    assert f"{SIMULATOR} {MODEL}" in await done(at, *opencode(at, "How are you?"))
    saw(at, "How are you?")


async def opencode_tool(at: Round) -> None:
    assert TOLD in await done(at, *opencode(at, "--auto", "[[sim tool=bash]] Look around"))


async def opencode_continued(at: Round) -> None:
    first = await done(at, *opencode(at, "How are you?"))
    await done(at, *opencode(at, "--continue", "And now?"))
    saw(at, "How are you?", first.strip()[:60], "And now?")


async def opencode_poor(at: Round) -> None:
    ended = await at.run(*opencode(at, "How are you?"))
    assert "top up at http" in ended.out + ended.err, ended


OPENCODE: Final = (
    Exercise("message", opencode_message, None),
    Exercise("tools", opencode_tool, None),
    Exercise("continued session", opencode_continued, None),
    Exercise("empty balance", opencode_poor, 0, poor=True),
)


# Aider

OPTIONS: Final = (
    "--no-git --yes-always --no-check-update --no-show-release-notes --no-show-model-warnings --analytics-disable"
    " --no-pretty --map-tokens 0"
)
EDIT: Final = "hello.py\n```\ngreeting = 2222222222\n```\n"
"""A file as Aider wants it from a model; the simulator is asked to say just that."""


def aider(at: Round, said: str, *files: str) -> tuple[str | Path, ...]:
    program = at.client.home / "bin" / "aider"
    return (program, "--model", f"anthropic/{MODEL}", *OPTIONS.split(), "--message", said, *files)


async def aider_message(at: Round) -> None:
    assert SIMULATOR in " ".join((await done(at, *aider(at, "/ask How are you?"))).split())
    saw(at, "How are you?")


async def aider_poor(at: Round) -> None:
    ended = await at.run(*aider(at, "/ask How are you?"))
    assert "top up at http" in " ".join((ended.out + ended.err).split()), ended


async def aider_edit(at: Round) -> None:
    """The answer is an edit, and Aider makes it."""
    (at.home / "hello.py").write_text("greeting = 1\n")
    await done(at, *aider(at, f"[[sim echo tokens={(len(EDIT) + 3) // 4}]] {EDIT}\n\n", "hello.py"))
    assert (at.home / "hello.py").read_text().strip() == "greeting = 2222222222"
    saw(at, "greeting = 1")


AIDER: Final = (
    Exercise("question", aider_message, 1),
    Exercise("edit of a file", aider_edit, 1),
    Exercise("empty balance", aider_poor, 0, poor=True),
)


# llm

FUNCTION: Final = 'def get_weather(city: str): return "Sunny in " + city'


def llm(at: Round, *options: str) -> tuple[str | Path, ...]:
    return (at.client.home / "bin" / "llm", *options)


async def llm_message(at: Round) -> None:
    out = await done(at, *llm(at, "-m", "claude-sonnet-4.6", "How are you?"))
    assert f"{SIMULATOR} {MODEL}" in out
    assert 'You wrote: "How are you?"' in out


async def llm_whole(at: Round) -> None:
    out = await done(at, *llm(at, "-m", "claude-sonnet-4.6", "--no-stream", "-o", "max_tokens", "500", "How are you?"))
    assert 'You wrote: "How are you?"' in out


async def llm_continued(at: Round) -> None:
    first = await done(at, *llm(at, "-m", "claude-sonnet-4.6", "How are you?"))
    await done(at, *llm(at, "-c", "And now?"))
    saw(at, "How are you?", first.strip()[:60], "And now?")


async def llm_tool(at: Round) -> None:
    out = await done(at, *llm(at, "-m", "claude-sonnet-4.6", "--functions", FUNCTION, "Use the tool for Ghent"))
    assert 'The tool answered: "Sunny in simulated city"' in out


async def llm_schema(at: Round) -> None:
    out = await done(at, *llm(at, "-m", "claude-sonnet-4.6", "--schema", "name,people int", "Which city?"))
    assert json.loads(out) == {"name": "simulated name", "people": 42}


async def llm_poor(at: Round) -> None:
    ended = await at.run(*llm(at, "-m", "claude-sonnet-4.6", "Hi"))
    assert ended.code != 0
    assert "top up at http" in ended.err, ended


LLM: Final = (
    Exercise("message", llm_message, 1),
    Exercise("message, not streamed", llm_whole, 1),
    Exercise("continued conversation", llm_continued, 2),
    Exercise("tool", llm_tool, 2),
    Exercise("structured output", llm_schema, 1),
    Exercise("empty balance", llm_poor, 0, poor=True),
)


def quiet(*names: str) -> dict[str, str]:
    """Switches that are on when they are 1."""
    return dict.fromkeys(names, "1")
