"""Upstreams by command: entered, shown without their secrets, changed, drained, tested and removed."""

import asyncio
import io
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import pytest

from farebox.cli.upstream import upstream
from farebox.upstreams.fields import FIELDS, KINDS, fields_of
from farebox.upstreams.settings import UpstreamKind, UpstreamSettings
from farebox.upstreams.simulator import Simulator
from tests.cli.conftest import Farebox, Run
from tests.databases import read
from tests.gateway.play import eventually
from tests.stage import open_stage

pytestmark = pytest.mark.usefixtures("at_books")

KEY: Final = "sk-upstream-of-a-command-77x1"
FIELDS_TOLD: Final = {
    *("name", "kind", "source", "state", "drained", "settings", "secrets", "created_at", "changed_at")
}


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    file = tmp_path / "key.txt"
    file.write_text(f"{KEY}\n")
    return str(file)


def add(farebox: Farebox, key_file: str, name: str = "mine", **options: str) -> Run:
    words = [word for option, value in options.items() for word in (f"--{option.replace('_', '-')}", value)]
    return farebox("upstream", "add", name, "--kind", "anthropic", "--key-file", key_file, *words, "--json")


def lines(url: str) -> list[tuple[Any, ...]]:
    """Give what the audit log says of upstreams."""
    found = read(url, "SELECT action, target, before, after, reason, actor FROM audit_log ORDER BY id")
    assert KEY not in repr(found)
    return [tuple(row) for row in found]


def test_one_is_entered_shown_changed_and_removed_and_its_key_is_nowhere(
    farebox: Farebox, key_file: str, at_books: str
) -> None:
    made = add(farebox, key_file, base_url="https://llm.example/base", weight="3", reason="more quota")
    assert made.code == 0, made.err
    assert set(made.json) == FIELDS_TOLD
    assert made.json["settings"] == {"base_url": "https://llm.example/base", "weight": 3}
    assert set(made.json["secrets"]) == {"api_key"}
    assert (made.json["source"], made.json["state"]) == ("admin", "in force")
    assert "sealed under one that lies in the same database" in made.err
    seen = [made, *(farebox("upstream", *words) for words in (("list",), ("list", "--json"), ("show", "mine")))]
    seen.append(farebox("upstream", "edit", "mine", "--weight", "", "--stall-s", "2.5", "--json"))
    assert seen[-1].json["settings"] == {"base_url": "https://llm.example/base", "stall_s": 2.5}
    assert "is as it was" in farebox("upstream", "edit", "mine", "--stall-s", "2.5").out
    assert not [one for one in seen if KEY in one.out + one.err or KEY[-4:] in one.out + one.err]
    assert KEY not in repr(read(at_books, "SELECT * FROM upstream"))
    removed = farebox("upstream", "remove", "mine", "--reason", "over", "--json")
    assert removed.json == {"name": "mine", "removed": True}
    assert farebox("upstream", "show", "mine").code == 1
    told = lines(at_books)
    assert [(line[0], line[1], line[4]) for line in told] == [
        ("upstream.add", "upstream:mine", "more quota"),
        ("upstream.edit", "upstream:mine", "by hand"),
        ("upstream.remove", "upstream:mine", "over"),
    ]
    assert json.loads(told[0][3])["api_key"] == "entered"
    assert all(line[5].startswith("cli:") for line in told)


def test_a_key_comes_from_stdin_or_from_whoever_sits_there(
    farebox: Farebox, monkeypatch: pytest.MonkeyPatch, at_books: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(KEY + "\n"))
    made = farebox("upstream", "add", "one", "--kind", "anthropic", "--key-file", "-", "--json")
    assert made.code == 0, made.err
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "there is no secret in it" in farebox("upstream", "edit", "one", "--key-file", "-").err
    refused = farebox("upstream", "add", "two", "--kind", "anthropic", "--json")
    assert (refused.code, "api_key is missing" in refused.err) == (1, True)
    assert "there is no secret" in farebox("upstream", "edit", "one", "--key-file", "/dev/null").err
    assert "nothing.txt" in farebox("upstream", "edit", "one", "--key-file", str(tmp_path / "nothing.txt")).err
    on_the_line = farebox("upstream", "add", "two", "--kind", "anthropic", "--api-key", KEY)
    assert on_the_line.code == 2, "others on the machine could read it there"
    ((first,),) = read(at_books, "SELECT secrets FROM upstream")
    monkeypatch.setattr(sys, "stdin", io.StringIO("sk-another\n"))
    assert farebox("upstream", "edit", "one", "--key-file", "-").code == 0
    ((second,),) = read(at_books, "SELECT secrets FROM upstream")
    assert bytes(first) != bytes(second)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kind", "nothing"), "'nothing' is not one of"),
        (("--kind", "anthropic", "--base-url", "ftp://x"), "base_url is"),
        (("--kind", "anthropic", "--weight", "-1"), "weight is “-1”; it must be a whole number from 0 to 1000"),
        (("--kind", "anthropic", "--speed", "5"), "--speed means nothing to kind anthropic"),
        (("--kind", "simulator", "--models", "nothing"), "models name “nothing”, which is not sold"),
    ],
)
def test_what_is_no_upstream_is_refused(farebox: Farebox, words: tuple[str, ...], said: str, at_books: str) -> None:
    farebox("account", "create", "alice@example.com")
    refused = farebox("upstream", "add", "mine", *words)
    assert refused.code in {1, 2}
    assert said in refused.err
    assert read(at_books, "SELECT count(*) FROM upstream") == [(0,)]
    assert "letters, digits, dots" in farebox("upstream", "add", "a/b", "--kind", "simulator").err


def test_those_of_the_file_are_shown_and_drained_but_not_changed(
    farebox: Farebox, tmp_path: Path, key_file: str, at_books: str
) -> None:
    (tmp_path / "farebox.toml").write_text('[[upstreams]]\nname = "sim"\nkind = "simulator"\n')
    assert farebox("upstream", "list", "--json").json["source"] == "file"
    for words in (("edit", "sim", "--weight", "2"), ("remove", "sim")):
        farebox("upstream", "drain", "sim")
        assert "of the configuration file: change it there" in farebox("upstream", *words).err
    assert "of the configuration file" in add(farebox, key_file, "sim").err
    assert farebox("upstream", "show", "sim", "--json").json["drained"]
    assert farebox("upstream", "enable", "sim", "--json").json["state"] == "in force"
    assert [line[0] for line in lines(at_books)] == ["upstream.drain", "upstream.enable"]
    assert farebox("upstream", "drain", "nothing").code == 1
    assert "there is nothing to be reached" in farebox("upstream", "test", "sim").err


@contextmanager
def simulated(**options: Any) -> Iterator[str]:
    """Serve a simulator on a loop of its own in a thread; gives its base URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    simulator = Simulator(speed=0, **options)
    try:
        port = asyncio.run_coroutine_threadsafe(simulator.listen(), loop).result(10)
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(simulator.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_a_test_says_whether_it_takes_the_key_and_the_doctor_too(farebox: Farebox, key_file: str) -> None:
    with simulated(api_key=KEY) as url:
        add(farebox, key_file, base_url=url)
        well = farebox("upstream", "test", "mine", "--json")
        assert (well.code, well.json["ok"], well.json["paid"]) == (0, True, False)
        findings = {one["check"]: one for one in farebox("doctor", "--json").lines}
        assert findings["upstream mine"]["status"] == "ok"
        assert findings["upstream keys"]["status"] == "warn"
        assert "upstreams" not in findings
    failed = farebox("upstream", "test", "mine", "--json")
    assert (failed.code, failed.json["ok"]) == (1, False)
    with simulated(api_key="another") as url:
        farebox("upstream", "edit", "mine", "--base-url", url)
        refused = farebox("upstream", "test", "mine")
        assert (refused.code, "401" in refused.err) == (1, True)
        findings = {one["check"]: one for one in farebox("doctor", "--json").lines}
        assert (findings["upstream mine"]["status"], KEY in str(findings)) == ("fail", False)


def test_the_doctor_tells_of_none_of_hidden_ones_and_of_models_that_nobody_serves(
    farebox: Farebox, tmp_path: Path, key_file: str
) -> None:
    def findings() -> Mapping[str, Any]:
        return {one["check"]: one for one in farebox("doctor", "--offline", "--json").lines}

    farebox("account", "create", "alice@example.com")
    assert (findings()["upstreams"]["status"], findings()["models"]["status"]) == ("warn", "warn")
    add(farebox, key_file, models="claude-haiku-4-5")
    found = findings()
    assert "upstreams" not in found
    assert "no upstream serves" in found["models"]["found"]
    farebox("upstream", "edit", "mine", "--models", "")
    assert findings()["models"]["status"] == "ok"
    (tmp_path / "farebox.toml").write_text('[[upstreams]]\nname = "mine"\nkind = "simulator"\n')
    assert "which is in force" in findings()["upstream mine"]["found"]
    assert [one["state"] for one in farebox("upstream", "list", "--json").lines] == [
        "in force",
        "hidden by the one of the file",
    ]
    (tmp_path / "farebox.toml").write_text('[server]\nsecret = "a-secret-of-our-own"\n')
    assert "upstream keys" not in findings()
    farebox("upstream", "edit", "mine", "--key-file", key_file)
    (tmp_path / "farebox.toml").write_text("")
    assert "was sealed under another secret" in findings()["upstream mine"]["found"]
    assert farebox("upstream", "list").code == 0


async def test_a_server_that_runs_follows_at_once(
    farebox: Farebox, key_file: str, at_books: str, tmp_path: Path
) -> None:
    async def command(*words: str) -> Run:
        return await asyncio.to_thread(farebox, "upstream", *words)

    @asynccontextmanager
    async def known() -> Any:
        simulator = Simulator(speed=0, api_key=KEY)
        try:
            yield f"http://127.0.0.1:{await simulator.listen()}"
        finally:
            await simulator.close()

    (tmp_path / "served").mkdir()
    async with known() as url, open_stage(tmp_path / "served", upstreams="\n", database_url=at_books) as stage:

        async def answers(status: int) -> None:
            async def does() -> bool:
                return (await stage.ask(stage.alice))[0] == status

            await eventually(does)

        await answers(502)
        assert [one["event"] for one in stage.events].count("no_upstreams") == 1
        made = await command("add", "mine", "--kind", "anthropic", "--key-file", key_file, "--base-url", url)
        assert made.code == 0, made.err
        await answers(200)
        await command("drain", "mine")
        await answers(502)
        await command("enable", "mine")
        await answers(200)
        await command("remove", "mine")
        await answers(502)


def test_every_setting_can_be_entered_and_every_kind_is_told() -> None:
    """A setting that is added to the configuration is one of the form and of the command, too."""
    told = [field.name for field in FIELDS]
    assert sorted([*told, "name", "kind"]) == sorted(UpstreamSettings.__struct_fields__)
    assert set(KINDS) == set(get_args(UpstreamKind))
    assert {kind for field in FIELDS for kind in field.kinds} <= set(KINDS)
    for kind in KINDS:
        assert {field.name for field in fields_of(kind)} <= set(told)
    assert {"list", "show", "add", "edit", "remove", "drain", "enable", "test"} == set(upstream.commands)
    assert msgspec.structs.fields(UpstreamSettings)


def test_a_secret_is_forgotten_where_it_is_not_needed(farebox: Farebox, key_file: str, at_books: str) -> None:
    assert add(farebox, key_file).code == 0
    assert "api_key is missing" in farebox("upstream", "edit", "mine", "--forget", "api-key").err
    bare = farebox("upstream", "edit", "mine", "--forget", "api-key", "--base-url", "http://127.0.0.1:9", "--json")
    assert (bare.code, bare.json["secrets"]) == (0, {})
    assert "is as it was" in farebox("upstream", "edit", "mine", "--forget", "api-key").out
    assert json.loads(lines(at_books)[-1][3])["api_key"] == "none"


def test_a_secret_that_cannot_be_opened_is_not_told_to_be_in_force(
    farebox: Farebox, tmp_path: Path, key_file: str
) -> None:
    config = tmp_path / "farebox.toml"
    config.write_text('[server]\nsecret = "a-first-secret-that-is-long-enough-to-be-one"\n')
    assert add(farebox, key_file).json["state"] == "in force"
    assert farebox("upstream", "show", "mine", "--json").json["state"] == "in force"
    config.write_text('[server]\nsecret = "another-secret-that-is-long-enough-to-be-one"\n')
    assert farebox("upstream", "show", "mine", "--json").json["state"] == "its secrets cannot be opened"
    assert "its secrets cannot be opened" in farebox("upstream", "list").out
    config.write_text('[server]\nsecret = "file:not-there"\n')  # who may not read it is told what is known
    assert farebox("upstream", "list").code == 0
