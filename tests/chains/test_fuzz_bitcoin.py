"""A short random life of Bitcoin, once as ever and once as never before; tests/soak.py has longer ones."""

import random
from pathlib import Path

import pytest

from tests.chains.fuzz_bitcoin import live


@pytest.mark.parametrize("seed", [3, random.SystemRandom().getrandbits(32)], ids=["kept", "any"])
async def test_credited_is_what_lies_there_whatever_happens(database_url: str, tmp_path: Path, seed: int) -> None:
    seen = await live(database_url, tmp_path, seed, 30)
    print(f"seed {seed}: {dict(seen)}")
    assert min(seen["looks"], seen["payments"]) > 0
