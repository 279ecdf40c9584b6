"""The clouds of these tests take what the clients of Anthropic's SDK send: they are as strict as they are honest."""

from collections.abc import Callable
from typing import Any, Final

import anthropic
import pytest
from google.oauth2 import service_account

from tests.upstreams.kinds.clouds import (
    ACCESS_KEY,
    BEDROCK_KEY,
    COUNTED,
    FOUNDRY_KEY,
    PROFILE,
    PROJECT,
    REGION,
    SECRET_KEY,
    SESSION_TOKEN,
    Bedrock,
    Cloud,
    Foundry,
    Mantle,
    Vertex,
    running,
)

AWS: Final[dict[str, Any]] = {"aws_access_key": ACCESS_KEY, "aws_secret_key": SECRET_KEY, "aws_region": REGION}


def vertex(cloud: Vertex) -> anthropic.AsyncAnthropicVertex:
    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
    key = service_account.Credentials.from_service_account_info(cloud.account, scopes=scopes)  # type: ignore[no-untyped-call]
    return anthropic.AsyncAnthropicVertex(
        region="us-east5", project_id=PROJECT, credentials=key, base_url=f"{cloud.url}/v1", max_retries=0
    )


CLIENTS: Final[dict[str, tuple[type[Cloud], str, Callable[[Any], Any]]]] = {
    "invoke": (
        Bedrock,
        PROFILE,
        lambda cloud: anthropic.AsyncAnthropicBedrock(**AWS, base_url=cloud.url, max_retries=0),
    ),
    "invoke, temporary": (
        Bedrock,
        PROFILE,
        lambda cloud: anthropic.AsyncAnthropicBedrock(
            **AWS, aws_session_token=SESSION_TOKEN, base_url=cloud.url, max_retries=0
        ),
    ),
    "invoke, key": (
        Bedrock,
        PROFILE,
        lambda cloud: anthropic.AsyncAnthropicBedrock(
            api_key=BEDROCK_KEY, aws_region=REGION, base_url=cloud.url, max_retries=0
        ),
    ),
    "messages": (
        Mantle,
        "anthropic.claude-sonnet-4-6",
        lambda cloud: anthropic.AsyncAnthropicBedrockMantle(**AWS, base_url=cloud.url, max_retries=0),
    ),
    "vertex": (Vertex, "claude-sonnet-4-6", vertex),
    "foundry": (
        Foundry,
        "my-sonnet",
        lambda cloud: anthropic.AsyncAnthropicFoundry(api_key=FOUNDRY_KEY, base_url=cloud.url, max_retries=0),
    ),
}


@pytest.mark.parametrize("name", CLIENTS)
async def test_the_real_client_is_let_in_and_understands(name: str) -> None:
    type_, model, make = CLIENTS[name]
    ask: dict[str, Any] = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}
    async with running(type_()) as cloud, make(cloud) as client:
        whole = await client.messages.create(**ask)
        assert whole.content[0].text.startswith("Grüezi 世界")
        events = [event async for event in await client.messages.create(**ask, stream=True)]
        assert events[0].type == "message_start"
        assert events[-1].type == "message_stop"
        beta = await client.beta.messages.create(**ask, betas=["context-1m-2025-08-07"])
        assert beta.usage.output_tokens == 34
        if not name.startswith("invoke"):
            assert (await client.messages.count_tokens(model=model, messages=ask["messages"])).input_tokens == COUNTED
        assert not cloud.refused


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_wrong_credential_is_not_let_in(name: str) -> None:
    """What lets everybody in would prove nothing."""
    type_, model, make = CLIENTS[name]
    async with running(type_()) as cloud, make(cloud) as client:
        if hasattr(client, "aws_secret_key"):
            client.aws_secret_key = "wrong"
            client.api_key = "wrong" if client.api_key else None
        elif isinstance(client, anthropic.AsyncAnthropicVertex):
            client.access_token = "wrong"
        else:
            client.api_key = "wrong"
        with pytest.raises((anthropic.PermissionDeniedError, anthropic.AuthenticationError)):
            await client.messages.create(model=model, max_tokens=5, messages=[{"role": "user", "content": "Hi"}])
        assert cloud.refused
