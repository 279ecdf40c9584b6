"""Changes to bodies: what cannot be read is the client's to mend, and a large one keeps nobody waiting."""

import threading

import msgspec
import pytest

from farebox.errors import InvalidRequest
from farebox.upstreams.kinds.bodies import beside, with_fields


@pytest.mark.parametrize("body", [b'{"a":%b1%b}' % (b"[" * 5000, b"]" * 5000), b'{"a":', b"[]"])
def test_a_body_that_cannot_be_read_is_the_clients_to_mend(body: bytes) -> None:
    """What a first reader just takes may be too deep for a second one, further down the stack."""
    with pytest.raises(InvalidRequest, match="cannot be read"):
        with_fields(body, model="b")


@pytest.mark.parametrize("size", [10, 2**20])
async def test_a_large_body_is_changed_beside_the_loop(size: int) -> None:
    threads = []

    def change(body: bytes, **changes: object) -> bytes:
        threads.append(threading.current_thread() is threading.main_thread())
        return with_fields(body, **changes)

    changed = await beside(b'{"model":"a","said":"%b"}' % (b"x" * size), change, model="b")
    assert msgspec.json.decode(changed) == {"model": "b", "said": "x" * size}
    assert threads == [size < 2**20]
