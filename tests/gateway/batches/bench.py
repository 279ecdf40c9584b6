"""What tests of batches share: making one, waiting for its end, and seeing that the books agree to the nano-dollar."""

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from farebox.books.audit import audit
from tests.gateway.play import USD, eventually, exact, nanos
from tests.stage import MODEL, Person, Stage

PATH = "/api/proxy/v1/messages/batches"
FAST = "[batches]\npoll_s = 0.05\n"
OWN = '[batches]\nrun = "own"\npoll_s = 0.05\n'


def params(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": text}], **fields}


def items(*texts: str, **fields: Any) -> list[dict[str, Any]]:
    """Give requests named i0, i1, …"""
    return [{"custom_id": f"i{place}", "params": params(text, **fields)} for place, text in enumerate(texts)]


async def call(
    stage: Stage, person: Person, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    """Ask for something; answers status and body, decoded where it is JSON."""
    fields = {"x-api-key": person.key, "anthropic-version": "2023-06-01", **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    answer = await stage.client.request(method, path, raw, body, first_byte_s=30)
    data = await answer.read(2**26)
    try:
        return answer.status, json.loads(data)
    except ValueError:
        return answer.status, data


async def make(stage: Stage, person: Person, requests: list[dict[str, Any]]) -> dict[str, Any]:
    status, batch = await call(stage, person, "POST", PATH, json.dumps({"requests": requests}).encode())
    assert status == 200, batch
    assert isinstance(batch, dict)
    return batch


async def ended(stage: Stage, person: Person, batch_id: str) -> dict[str, Any]:
    """Ask after a batch, wait until it has ended, and ask again."""
    status, batch = await call(stage, person, "GET", f"{PATH}/{batch_id}")
    assert status == 200, batch

    async def has_ended() -> bool:
        return bool(await stage.rows("SELECT 1 FROM batch WHERE id = ? AND state = 'ended'", batch_id))

    await eventually(has_ended, 20)
    status, batch = await call(stage, person, "GET", f"{PATH}/{batch_id}")
    assert (status, batch["processing_status"]) == (200, "ended")
    assert isinstance(batch, dict)
    return batch


async def results(stage: Stage, person: Person, batch: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Fetch results from where the batch says they are, by custom id."""
    url = str(batch["results_url"])
    origin = f"http://127.0.0.1:{stage.gateway.port}"
    assert url.startswith(origin)
    status, data = await call(stage, person, "GET", url.removeprefix(origin))
    assert status == 200, data
    lines = [data] if isinstance(data, dict) else [json.loads(line) for line in data.splitlines()]
    return {line["custom_id"]: line["result"] for line in lines}


def price(usage: Mapping[str, Any], share: str) -> int:
    """Work out by hand what an answer costs at a share of the normal price."""
    return nanos(exact(MODEL, share, input=usage["input_tokens"], output=usage["output_tokens"]))


async def books_agree(stage: Stage, person: Person, had: int = 100 * USD) -> int:
    """See that nothing is held, that the balance moved by what the usage rows say, and that the audit finds no fault.

    Answers what was charged.
    """
    posted, held = await stage.balance(person)
    charged = (
        await stage.rows("SELECT coalesce(sum(charged_nanos), 0) FROM usage WHERE account_id = ?", person.account_id)
    )[0][0]
    assert (posted, held) == (had - charged, 0)
    assert not await stage.rows("SELECT 1 FROM hold WHERE account_id = ?", person.account_id)
    assert (await stage.rows("SELECT open_holds FROM account WHERE id = ?", person.account_id))[0][0] == 0
    broken = [f"{check.name}: {check.detail}" for check in await audit(stage.gateway.store) if not check.ok]
    assert not broken, broken
    return int(charged)


HALF = str(Fraction(1, 2))
