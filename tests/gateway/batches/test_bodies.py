"""Bodies of batches that nobody means well with, or that ask for what batches do not have: refused, naming the item."""

import json
from typing import Any

import pytest

from tests.gateway.batches.bench import FAST, PATH, books_agree, call, items, make, params
from tests.stage import OpenStage


def _requests(*values: Any) -> bytes:
    return json.dumps({"requests": list(values)}).encode()


def _one(**fields: Any) -> bytes:
    return _requests(items("fine")[0], {"custom_id": "second", "params": params(**fields)})


REFUSED: list[tuple[bytes, str]] = [
    (b"", "not valid JSON"),
    (b"[]", "object"),
    (b"{}", "requests: field required"),
    (_requests(), "1…5"),
    (_requests(*items(*["x"] * 6)), "1…5"),
    (b'{"requests":[' + b"0," * 100_000 + b"0]}", "requests.0"),
    (b'{"requests":' + b"[" * 5_000 + b"]" * 5_000 + b"}", "nested too deeply"),
    (b'{"requests":[],"requests":[]}', "given twice"),
    (
        b'{"requests":[{"custom_id":"a","custom_id":"b","params":{}}]}',
        "requests.0: custom_id: the field is given twice",
    ),
    (b'{"requests":[{"custom_id":"a","params":{"model":"x","model":"y"}}]}', "requests.0 (a): model"),
    (_requests({"custom_id": "a"}), "requests.0"),
    (_requests({"params": params()}), "requests.0"),
    (_requests({"custom_id": "a", "params": params(), "url": "/v1"}), "'url'"),
    (_requests({"custom_id": "a b", "params": params()}), "1…64 of"),
    (_requests({"custom_id": "ä", "params": params()}), "1…64 of"),
    (_requests(*items("x"), *items("y")), "requests.1.custom_id: 'i0' is given twice"),
    (_one(stream=True), "requests.1 (second): stream"),
    (_one(speed="fast"), "requests.1 (second): speed"),
    (_one(fallbacks="default"), "requests.1 (second): fallbacks"),
    (_one(max_tokens=0), "requests.1 (second): max_tokens"),
    (_one(max_tokens=-1), "requests.1 (second): max_tokens"),
    (_one(model="gpt-7"), "requests.1 (second): model: 'gpt-7' is not sold here"),
    (_one(container="c"), "requests.1 (second): container"),
    (_one(thread={}), "requests.1 (second): thread"),
    (_one(temperature=3), "requests.1 (second): temperature"),
    (_one(messages=[]), "requests.1 (second): messages"),
    (b'{"requests":[{"custom_id":"a","params":{"model":"claude-sonnet-4-6","messages":["\xff"]}}]}', "UTF-8"),
]


@pytest.mark.parametrize(("body", "words"), REFUSED, ids=range(len(REFUSED)))
async def test_it_is_refused_and_the_item_named(open_stage: OpenStage, body: bytes, words: str) -> None:
    async with open_stage(f"{FAST}batch_items = 5\n") as stage:
        status, refusal = await call(stage, stage.alice, "POST", PATH, body)
        assert (status, refusal["error"]["type"]) == (400, "invalid_request_error")
        assert words in refusal["error"]["message"]
        assert not stage.simulator.requests
        assert await books_agree(stage, stage.alice) == 0


async def test_it_goes_up_byte_for_byte_unless_max_tokens_is_missing(open_stage: OpenStage) -> None:
    async with open_stage(FAST) as stage:
        strange = '{ "requests" : [ {"params":%s ,"custom_id":"a"}, {"custom_id":"b","params":%s}\n ] }'
        body = (strange % (json.dumps(params("ä\u2028"), ensure_ascii=False), json.dumps(params()))).encode()
        status, _ = await call(stage, stage.alice, "POST", PATH, body, {"anthropic-beta": "new-2027-01-01"})
        assert status == 200
        sent = stage.simulator.requests[0]
        assert sent.body == body
        assert sent.header(b"anthropic-beta") == b"new-2027-01-01"
        without = {name: value for name, value in params().items() if name != "max_tokens"}
        status, _ = await call(stage, stage.alice, "POST", PATH, _requests({"custom_id": "c", "params": without}))
        assert status == 200
        made = [one for one in stage.simulator.requests if one.method == "POST"][-1]
        assert json.loads(made.body) == {"requests": [{"custom_id": "c", "params": {**without, "max_tokens": 4096}}]}


async def test_limits_of_size_and_number_are_told(open_stage: OpenStage) -> None:
    async with open_stage(f"{FAST}batch_bytes = 4096\nopen_batches = 2\n") as stage:
        status, refusal = await call(stage, stage.alice, "POST", PATH, _one(system="x" * 5000))
        assert (status, refusal["error"]["type"]) == (413, "request_too_large")
        for _ in range(2):
            await make(stage, stage.alice, items("[[sim delay=3600000]]"))
        status, refusal = await call(stage, stage.alice, "POST", PATH, _requests(*items("x")))
        assert (status, refusal["error"]["type"]) == (429, "rate_limit_error")


async def test_where_nobody_runs_batches_it_says_so(open_stage: OpenStage) -> None:
    none = '[[upstreams]]\nname = "sim"\nkind = "simulator"\nbatches = false'
    async with open_stage(FAST, upstreams=none) as stage:
        status, refusal = await call(stage, stage.alice, "POST", PATH, _requests(*items("x")))
        assert (status, refusal["error"]["type"]) == (400, "invalid_request_error")
        alice = stage.alice
    async with open_stage('[batches]\nrun = "off"\n') as stage:
        assert (await call(stage, alice, "GET", PATH))[0] == 404


async def test_a_name_that_the_operator_made_up_goes_up_as_the_models_own(open_stage: OpenStage) -> None:
    models = """
[[models]]
id = "claude-sonnet-4-6"
nicknames = ["claude-mascot-4-6"]
context = 200_000
max_output = 64_000
list = { input = 3, output = 15 }
discount = 0.5
"""
    async with open_stage(FAST + models) as stage:
        await make(stage, stage.alice, items("one", model="claude-mascot-4-6"))
        sent = json.loads(next(one for one in stage.simulator.requests if one.method == "POST").body)
        assert sent["requests"][0]["params"]["model"] == "claude-sonnet-4-6"
