"""Schemathesis against a running gateway: requests that fit /openapi.json and requests that do not, of every kind."""

import sys
from pathlib import Path
from typing import Final

from tests.clients.run import Ended, run, wanted
from tests.stage import open_stage

_LIMITS: Final = "questions_per_minute = 1000000\ncount_tokens_per_minute = 1000000"
_SETTINGS: Final = """
[parameters]
request_id = "{request_id}"
model_id = "{model}"

[checks]
# what JSON Schema cannot say (a range of at most 366 days, a model that is sold) is a 400, as it should be
positive_data_acceptance.enabled = false

# what this gateway does not read of a body it passes on: there the provider decides what is wrong
[[operations]]
include-method = "POST"
checks.negative_data_rejection.enabled = false
"""


async def explore(home: Path, examples: int, seed: int) -> Ended:
    """Try every operation with so many examples, after those of the reference and of each boundary."""
    async with open_stage(home, limits=_LIMITS, alice_usd=1_000_000) as stage:
        raise_limits = "UPDATE account SET requests_per_minute = 1000000, tokens_per_minute = 1000000000"
        await stage.gateway.store.write([(raise_limits, ())])
        assert (await stage.ask(stage.alice))[0] == 200
        ((request_id,),) = await stage.rows("SELECT request_id FROM usage")
        settings = home / "schemathesis.toml"
        settings.write_text(_SETTINGS.format(request_id=f"req_{request_id.hex()}", model="claude-sonnet-4-6"))
        origin = f"http://127.0.0.1:{stage.gateway.port}"
        ended = await run(
            wanted(Path(sys.executable).with_name("st")),
            *("--config-file", settings, "--no-color", "run", f"{origin}/openapi.json"),
            *("--url", f"{origin}/api/proxy", "--header", f"x-api-key: {stage.alice.key}", "--warnings", "off"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(examples), "--seed", str(seed)),
            env={},
            cwd=home,
            limit_s=60 + 5 * examples,
        )
        failed = [event for event in stage.events if event["event"] in {"call_failed", "exchange_failed"}]
        assert not failed, failed
        assert (await stage.rows("SELECT count(*) FROM hold")) == [(0,)]
    return ended
