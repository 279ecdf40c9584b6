"""A short random life of an EVM chain, once as ever and once as never before; tests/soak.py has longer ones."""

import random
from pathlib import Path

import pytest

from tests.chains.fuzz_evm import live


@pytest.mark.parametrize("seed", [5, random.SystemRandom().getrandbits(32)], ids=["kept", "any"])
async def test_credited_is_what_the_chain_holds_whatever_happens(database_url: str, tmp_path: Path, seed: int) -> None:
    seen = await live(database_url, tmp_path, seed, 100)
    print(f"seed {seed}: {dict(seen)}")
    assert min(seen["reorgs"], seen["crashes"], seen["payments"]) > 0
