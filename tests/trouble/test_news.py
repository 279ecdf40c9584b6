"""What one process changes about keys and accounts counts in all others at once, told or not."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from farebox.accounts.accounts import set_status
from farebox.accounts.keys import revoke_key
from farebox.store import postgres
from tests.gateway.play import eventually, listen
from tests.stage import Person, Stage, open_stage
from tests.trouble.acts import finished, store_of
from tests.trouble.proxy import Proxy


@asynccontextmanager
async def two(directory: Path, url: str, other_url: str = "") -> AsyncIterator[tuple[Stage, Stage]]:
    """Two gateways over the same books."""
    for name in ("one", "other"):
        (directory / name).mkdir()
    async with (
        open_stage(directory / "one", database_url=url) as one,
        open_stage(directory / "other", database_url=other_url or url) as other,
    ):
        yield one, other


async def models(stage: Stage, person: Person) -> int:
    """Ask for something that needs no hold, and so no more than a key that is known."""
    answer = await stage.client.request(
        "GET", "/api/proxy/v1/models", [(b"x-api-key", person.key.encode())], b"", first_byte_s=5
    )
    await answer.read(2**20)
    return answer.status


async def revoke(stage: Stage, person: Person) -> None:
    ((key_id,),) = await stage.rows("SELECT id FROM api_key WHERE account_id = ?", person.account_id)
    await revoke_key(stage.gateway.store, key_id, stage.gateway.clock())


async def suspend(stage: Stage, person: Person) -> None:
    await set_status(stage.gateway.store, person.account_id, "suspended")


@pytest.mark.parametrize(("change", "status"), [(revoke, 401), (suspend, 403)])
async def test_a_change_made_through_one_gateway_is_seen_by_the_other_at_once(
    tmp_path: Path, postgres_url: str, change: Any, status: int
) -> None:
    async with two(tmp_path, postgres_url) as (one, other):
        assert (await other.ask(one.alice))[0] == 200
        assert await models(other, one.alice) == 200
        assert (await other.ask(one.bob))[0] == 402
        await change(one, one.alice)

        async def told() -> bool:
            return await models(other, one.alice) == status

        await eventually(told, timeout_s=2)
        assert (await other.ask(one.alice))[0] == status
        assert (await other.ask(one.bob))[0] == 402


@pytest.mark.parametrize(("change", "status"), [(revoke, 401), (suspend, 403)])
async def test_no_call_is_let_in_after_a_change_even_if_nobody_was_told(
    tmp_path: Path, postgres_url: str, change: Any, status: int
) -> None:
    """The hold decides by what is in the database, not by what was known of the key."""
    async with two(tmp_path, postgres_url) as (one, other):
        await other.gateway.jobs.stop()  # nothing that would listen
        assert (await other.ask(one.alice))[0] == 200
        await change(one, one.alice)
        assert await models(other, one.alice) == 200
        assert (await other.ask(one.alice))[0] == status
        assert await models(other, one.alice) == status


@pytest.mark.parametrize("how", [Proxy.cut, Proxy.forsake])
async def test_a_gateway_whose_ear_has_died_finds_out_and_listens_anew(
    tmp_path: Path,
    postgres_url: str,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[Proxy], None],
) -> None:
    """A connection may die without a word. Till that shows, only what needs no hold is still open to a revoked key."""
    monkeypatch.setattr(postgres, "_PROBE_S", 0.1)
    monkeypatch.setattr(postgres, "_PATIENCE_S", 0.2)
    async with two(tmp_path, postgres_url, proxy.url(postgres_url)) as (one, other):

        async def listens() -> bool:
            return store_of(other)._listener is not None

        await eventually(listens)
        assert await models(other, one.alice) == 200
        how(proxy)
        await revoke(one, one.alice)

        async def told() -> bool:
            return await models(other, one.alice) == 401

        await eventually(told)
        await eventually(listens)
        assert await models(other, one.bob) == 200
        await revoke(one, one.bob)

        async def told_of_bob() -> bool:
            return await models(other, one.bob) == 401

        await eventually(told_of_bob, timeout_s=2)


async def test_a_stream_that_runs_goes_on_when_its_key_is_revoked_elsewhere(tmp_path: Path, postgres_url: str) -> None:
    """It was let in, its money is held, and it ends and is charged as any other."""
    async with two(tmp_path, postgres_url) as (one, other):
        heard = await listen(other, one.alice, "[[sim tokens=3000 rate=10000]]", max_tokens=20_000)
        await heard.has(b"content_block_delta")
        await revoke(one, one.alice)
        assert finished(await heard.end())
        assert await one.rows("SELECT kind, output_tokens FROM usage") == [("exact", 3000)]
