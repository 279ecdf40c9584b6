"""Names of models that an operator made up: customers use them, no upstream sees them, and answers tell the model."""

import json

from farebox.books.audit import audit
from tests.gateway.play import books, listen, message
from tests.stage import MODEL, OpenStage

_MODELS = f"""
[[models]]
id = "{MODEL}"
nicknames = ["good"]
context = 200_000
max_output = 64_000
list = {{ input = 3, output = 15 }}
discount = 0.5
"""


async def test_a_nickname_goes_up_as_the_id_and_the_answer_says_what_it_means(open_stage: OpenStage) -> None:
    async with open_stage(_MODELS) as stage:
        answer = await stage.post(stage.alice, message("Hi", model="good", metadata={"user_id": "Zoë"}))
        await answer.read(2**20)
        (seen,) = stage.simulator.requests
        assert (answer.status, answer.header(b"farebox-model")) == (200, MODEL.encode())
        assert json.loads(seen.body) == message("Hi", model=MODEL, metadata={"user_id": "Zoë"})
        await books(stage, stage.alice)
        heard = await (await listen(stage, stage.alice, "Hi", model="good")).end()
        assert heard.answer.header(b"farebox-model") == MODEL.encode()
        usage = await books(stage, stage.alice, calls=2)
        assert (usage["model"], usage["asked_model"]) == (MODEL, MODEL)
        counted = await stage.post(
            stage.alice,
            {"model": "good", "messages": [{"role": "user", "content": "Hi"}]},
            path="/api/proxy/v1/messages/count_tokens",
        )
        assert counted.status == 200
        plain = await stage.post(stage.alice, message("Hi"))
        await plain.read(2**20)
        assert plain.header(b"farebox-model") is None
        await books(stage, stage.alice, calls=3)
        assert all(check.ok for check in await audit(stage.gateway.store))
