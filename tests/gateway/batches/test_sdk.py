"""The official Python SDK's batches against the gateway, unmodified: nothing but base URL and key."""

import asyncio

import anthropic
import pytest

from tests.gateway.batches.bench import FAST, OWN, books_agree, ended, items
from tests.stage import OpenStage, Stage


def _make(client: anthropic.Anthropic) -> str:
    made = client.messages.batches.create(requests=items("one", "two", "[[sim error=400]]"))  # type: ignore[arg-type]
    assert made.processing_status == "in_progress"
    assert made.request_counts.processing == 3
    return made.id


def _read(client: anthropic.Anthropic, batch_id: str) -> None:
    batch = client.messages.batches.retrieve(batch_id)
    assert (batch.processing_status, batch.request_counts.succeeded, batch.request_counts.errored) == ("ended", 2, 1)
    found = {line.custom_id: line.result for line in client.messages.batches.results(batch_id)}
    assert {name: result.type for name, result in found.items()} == {
        "i0": "succeeded",
        "i1": "succeeded",
        "i2": "errored",
    }
    assert found["i0"].type == "succeeded"
    assert found["i0"].message.usage.output_tokens > 0
    assert batch_id in [one.id for one in client.messages.batches.list(limit=1)]
    assert client.messages.batches.delete(batch_id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(batch_id)


def _cancel(client: anthropic.Anthropic) -> str:
    made = client.messages.batches.create(requests=items(*["[[sim delay=3000]]"] * 20))  # type: ignore[arg-type]
    assert client.messages.batches.cancel(made.id).processing_status == "canceling"
    return made.id


def _client(stage: Stage) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=stage.base_url, api_key=stage.alice.key, max_retries=0)


@pytest.mark.parametrize("settings", [FAST, OWN])
async def test_create_retrieve_list_results_cancel_and_delete(open_stage: OpenStage, settings: str) -> None:
    async with open_stage(settings) as stage:
        with _client(stage) as client:
            batch_id = await asyncio.to_thread(_make, client)
            await ended(stage, stage.alice, batch_id)
            await asyncio.to_thread(_read, client, batch_id)
            batch_id = await asyncio.to_thread(_cancel, client)
            batch = await ended(stage, stage.alice, batch_id)
            assert batch["request_counts"]["canceled"] >= 1
        await books_agree(stage, stage.alice)
