"""What is entered about an upstream: read from a form or a command for every kind, kept, shown and read again."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from farebox.clock import steady_clock
from farebox.secret import Secret
from farebox.upstreams.checks import goes_in_the_clear, problems, settled
from farebox.upstreams.entries import check_credentials
from farebox.upstreams.fields import (
    FIELDS,
    KINDS,
    fields_of,
    from_plain,
    is_secret,
    plain_of,
    read_fields,
    read_kind,
    read_name,
    said_by,
    secrets_of,
    texts_of,
)
from farebox.upstreams.kinds.anthropic import Anthropic
from farebox.upstreams.settings import UpstreamSettings
from farebox.upstreams.simulator import Simulator
from farebox.upstreams.trial import try_upstream
from farebox.upstreams.upstream import Upstream

SOLD: Final = {
    "claude-sonnet-4-6": "claude-sonnet-4-6",
    "sonnet": "claude-sonnet-4-6",
    "claude-haiku-4-5": "claude-haiku-4-5",
}
NAMED: Final = "sonnet = theirs/of-it:1\nclaude-haiku-4-5"


def service_account() -> str:
    """Make a key file as Google hands it out."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "my-project",
            "private_key_id": "k1",
            "private_key": key.decode(),
            "client_email": "farebox@my-project.iam.gserviceaccount.com",
            "token_uri": "https://oauth2.googleapis.com/token",
        },
        indent=2,
    )


def examples() -> Iterator[tuple[str, dict[str, str]]]:
    """Give what operators would enter for each kind."""
    yield "anthropic", {"api_key": "sk-x"}
    yield "anthropic", {"base_url": "http://10.0.0.5:8000/", "models": NAMED, "stall_s": "2.5", "batches": "false"}
    yield "simulator", {"speed": "0", "weight": "0"}
    yield "bedrock", {"region": "us-east-1", "access_key_id": "AKIAX", "secret_access_key": "s/+x", "models": NAMED}
    yield (
        "bedrock",
        {"region": "eu-west-1", "api_key": "key-of-bedrock", "api": "messages", "models": NAMED, "drop_betas": "a, b"},
    )
    yield "vertex", {"region": "global", "service_account": service_account()}
    yield "foundry", {"resource": "mine", "api_key": "key-of-foundry"}
    yield "foundry", {"resource": "mine", "tenant_id": "t-1", "client_id": "c-1", "client_secret": "secret-of-entra"}
    yield (
        "chat",
        {"base_url": "http://10.0.0.5:8000/v1", "models": NAMED, "output_tokens": "4096", "takes": "top_k, pdf"},
    )


@pytest.mark.parametrize(("kind", "texts"), list(examples()))
async def test_what_is_entered_for_a_kind_is_taken_kept_and_shown_without_its_secrets(
    kind: str, texts: dict[str, str]
) -> None:
    settings, wrong = read_fields("mine", read_kind(kind), texts, {}, SOLD)
    assert wrong == {}
    await check_credentials(settings)
    assert not list(problems(settled(settings), said_by(settled(settings))))
    plain, secrets = json.loads(json.dumps(plain_of(settings))), secrets_of(settings)
    assert from_plain(plain, secrets) == settings
    assert set(secrets) == {name for name in texts if is_secret(name)}
    shown = texts_of(settings)
    assert not [secret for secret in secrets.values() if secret in json.dumps([plain, shown])]
    kept = dict.fromkeys(secrets, "")
    again, wrong = read_fields("mine", read_kind(kind), shown, kept, SOLD)
    assert wrong == {}, "what is shown is taken as it is, with the secrets that stay"
    assert plain_of(again) == plain_of(settings)


def test_every_kind_has_an_example_and_every_field_a_title() -> None:
    assert {kind for kind, _ in examples()} == set(KINDS)
    assert all(field.title and field.help for field in FIELDS)
    for kind in KINDS:
        names = [field.name for field in fields_of(kind)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("kind", "texts", "field"),
    [
        ("anthropic", {}, "api_key"),
        ("anthropic", {"api_key": "two words"}, "api_key"),
        ("anthropic", {"api_key": "x" * 20_001}, "api_key"),
        ("anthropic", {"api_key": "k", "weight": "1.5"}, "weight"),
        ("anthropic", {"api_key": "k", "stall_s": "nan"}, "stall_s"),
        ("anthropic", {"api_key": "k", "stall_s": "inf"}, "stall_s"),
        ("anthropic", {"api_key": "k", "batches": "perhaps"}, "batches"),
        ("anthropic", {"api_key": "k", "base_url": "https://x\0y"}, "base_url"),
        ("anthropic", {"api_key": "k", "base_url": "https://" + "x" * 3000}, "base_url"),
        ("anthropic", {"api_key": "k", "models": "sonnet = a\0b"}, "models"),
        ("bedrock", {"region": "us-east-1", "models": NAMED}, "access_key_id"),
        ("vertex", {"region": "global"}, "service_account"),
        ("vertex", {"region": "global", "service_account": "{}"}, "service_account"),
        ("foundry", {"api_key": "k"}, "resource"),
        ("chat", {}, "base_url"),
        ("chat", {"base_url": "http://h/v1", "takes": "top_k, all"}, "takes"),
    ],
)
def test_what_cannot_be_used_is_told_by_its_field(kind: str, texts: dict[str, str], field: str) -> None:
    _, wrong = read_fields("mine", read_kind(kind), texts, {}, SOLD)
    assert field in wrong
    assert not [text for text in texts.values() if text in wrong[field] and is_secret(field)]


@pytest.mark.parametrize(
    ("url", "clear"),
    [
        ("https://example.com", False),
        ("http://example.com:8000", True),
        ("http://8.8.8.8", True),
        ("http://[2001:4860:4860::8888]", True),
        ("http://127.0.0.1:1", False),
        ("http://[::1]:1", False),
        ("http://192.168.1.1", False),
        ("http://localhost:11434", False),
        ("http://ollama", False),
        ("http://gpu.internal", False),
        ("", False),
    ],
)
def test_plain_http_is_minded_where_strangers_may_listen(url: str, clear: bool) -> None:  # noqa: FBT001
    assert goes_in_the_clear(url) == clear


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "ü", "x" * 65, "new\n", ".."])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(ValueError, match="letters"):
        read_name(name)


async def test_what_cannot_count_is_tried_by_a_call_of_one_token() -> None:
    class Uncounting(Anthropic):
        def has(self, path: str) -> bool:
            return not path.endswith("count_tokens")

    simulator = Simulator(speed=0)
    url = f"http://127.0.0.1:{await simulator.listen()}"
    upstream = Upstream(UpstreamSettings(name="mine", kind="anthropic", base_url=url), connect_s=5, stall_s=5)
    try:
        free = await try_upstream(upstream, "claude-haiku-4-5", steady_clock())
        upstream.kind = Uncounting(Secret("k"))
        paid = await try_upstream(upstream, "claude-haiku-4-5", steady_clock())
        assert [(one.well, one.paid) for one in (free, paid)] == [(True, False), (True, True)]
        sent: list[Any] = [json.loads(request.body) for request in simulator.requests]
        assert [one.get("max_tokens") for one in sent] == [None, 1]
        await simulator.close()
        gone = await asyncio.wait_for(try_upstream(upstream, "claude-haiku-4-5", steady_clock()), 15)
        assert not gone.well
    finally:
        await upstream.client.close()
        await simulator.close()
