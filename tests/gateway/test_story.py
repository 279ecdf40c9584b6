"""A call through the whole gateway: what the customer sees and what the books say."""

import json

from tests.stage import Stage


async def test_a_finished_answer_is_charged_exactly_and_nothing_stays_held(stage: Stage) -> None:
    status, body = await stage.ask(stage.alice)
    usage = json.loads(body)["usage"]
    cost = -(-(usage["input_tokens"] * 1_500_000_000 + usage["output_tokens"] * 7_500_000_000) // 1_000_000)
    assert status == 200
    assert await stage.balance(stage.alice) == (100 * 10**9 - cost, 0)
