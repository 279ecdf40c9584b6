"""The spool keeps what was answered for: on disk before `put` says so, in the books once, through whatever happens."""

import asyncio
import fcntl
import os
import signal
import sys
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from farebox.billing.ledger import Answer, Command, Settle, Settled, Transfer
from farebox.books import spool as spool_module
from farebox.books.audit import audit
from farebox.books.keeping import open_books
from farebox.books.ledger import Ledger
from farebox.books.spool import Spool
from farebox.clock import steady_clock
from farebox.errors import StoreUnavailable
from farebox.store.protocol import Store
from tests.books.nodes import CENT, Node, open_node
from tests.books.shop import PLANS


@pytest.fixture
async def node(database_url: str) -> AsyncIterator[Node]:
    async with open_node(database_url) as opened:
        yield opened


class Keeper:
    """A spool, and what it told."""

    def __init__(self, directory: Path, **fields: Any) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.spool = Spool(directory, alert=lambda event, **facts: self.told.append((event, facts)), **fields)
        self.booked: list[tuple[Settle, Settled]] = []

    async def deliver(self, ledger: Ledger) -> bool:
        return await self.spool.deliver(ledger, lambda *booked: self.booked.append(booked))

    def die(self) -> None:
        """As a process does that is killed: its file stays, the lock goes."""
        descriptor = self.spool._descriptor
        assert descriptor is not None
        os.close(descriptor)
        self.spool._descriptor = None

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.told]


class Away:
    """A store that cannot be reached, and counts who tried."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lanes = store.lanes
        self.away = True
        self.tried = 0

    async def apply(self, batch: Sequence[Command], lane: int = 0) -> list[Answer | Exception]:
        if self.away:
            self.tried += len(batch)
            raise StoreUnavailable("away")
        return await self._store.apply(batch, lane)


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


async def spooled(node: Node, keeper: Keeper, count: int = 3) -> list[bytes]:
    """Let calls in and put their ends into a spool."""
    calls = [await node.hold(2 * CENT) for _ in range(count)]
    for request_id in calls:
        assert await keeper.spool.put(node.settlement(request_id, CENT))
    return calls


async def all_booked_once(node: Node, calls: Sequence[bytes]) -> None:
    for request_id in calls:
        assert await node.usage(request_id) == ("exact", CENT, 0)
    assert await node.balance() == ((100 - len(calls)) * CENT, 0, 0)
    assert not [check for check in await audit(node.store) if not check.ok and check.name != "prices"]


async def test_what_a_call_said_of_itself_is_kept_and_a_line_of_an_older_version_is_read(
    node: Node, tmp_path: Path
) -> None:
    keeper = Keeper(tmp_path / "spool")
    told, plain = await node.hold(2 * CENT), await node.hold(2 * CENT)
    fields = {"session": "5fe5", "agent": "a1", "parent_agent": "a0", "held_nanos": 7, "tries": '[{"status":529}]'}
    assert await keeper.spool.put(msgspec.structs.replace(node.settlement(told, CENT), **fields))
    assert await keeper.spool.put(node.settlement(plain, CENT))
    keeper.die()
    (path,) = files(tmp_path / "spool")
    first, second = path.read_bytes().splitlines()
    older = msgspec.json.decode(second.partition(b" ")[2])
    data = msgspec.json.encode({name: value for name, value in older.items() if name not in fields})
    path.write_bytes(b"%b\n%08x %b\n" % (first, zlib.crc32(data), data))
    heir = Keeper(tmp_path / "spool")
    assert await heir.deliver(node.ledger)
    sql = f"SELECT {', '.join(fields)} FROM usage WHERE request_id = ?"
    assert await node.rows(sql, told) == [tuple(fields.values())]
    assert await node.rows(sql, plain) == [(None,) * len(fields)]
    await all_booked_once(node, [told, plain])


async def test_what_is_put_in_is_on_disk_and_booked_once_when_it_is_delivered(node: Node, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "spool")
    calls = await spooled(node, keeper)
    (path,) = files(tmp_path / "spool")
    assert path.read_bytes().count(b"\n") == len(keeper.spool.waiting) == 3
    assert oct(path.stat().st_mode)[-3:] == "600"
    assert oct(path.parent.stat().st_mode)[-3:] == "700"
    assert await keeper.deliver(node.ledger)
    assert {settle.request_id for settle, _ in keeper.booked} == set(calls)
    assert keeper.spool.waiting == {}
    assert path.read_bytes() == b""
    assert await keeper.deliver(node.ledger)
    assert len(keeper.booked) == 3
    await all_booked_once(node, calls)
    keeper.spool.close()
    assert files(tmp_path / "spool") == []
    assert keeper.events == ["settles_spooled"]


async def test_what_was_booked_after_all_is_not_booked_again(node: Node, tmp_path: Path) -> None:
    """The answer of the first try may have been lost."""
    keeper = Keeper(tmp_path / "spool")
    calls = await spooled(node, keeper)
    await node.ledger.settle(node.settlement(calls[0], CENT))
    await keeper.deliver(node.ledger)
    assert len(keeper.booked) == 2
    await all_booked_once(node, calls)


async def test_while_the_books_are_away_all_of_it_waits_and_few_are_tried(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other commands must not stand behind thousands that are bound to fail."""
    monkeypatch.setattr(spool_module, "_PORTION", 2)
    keeper, away = Keeper(tmp_path / "spool"), Away(node.store)
    ledger = Ledger(away)  # type: ignore[arg-type]
    calls = await spooled(node, keeper, 7)
    with pytest.raises(StoreUnavailable):
        await keeper.deliver(ledger)
    assert away.tried == 2
    assert list(keeper.spool.waiting) == calls
    away.away = False
    await keeper.deliver(ledger)
    await all_booked_once(node, calls)


async def test_those_that_come_at_once_are_synced_together(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    monkeypatch.setattr(os, "fdatasync", syncs.append)
    keeper = Keeper(tmp_path / "spool")
    calls = [await node.hold(CENT) for _ in range(50)]
    assert all(await asyncio.gather(*(keeper.spool.put(node.settlement(call, CENT)) for call in calls)))
    assert len(syncs) <= 2
    assert len(keeper.spool.waiting) == 50
    keeper.die()
    heir = Keeper(tmp_path / "spool")
    await heir.deliver(node.ledger)
    await all_booked_once(node, calls)


async def test_a_full_spool_takes_no_more(node: Node, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "spool", most=2)
    settles = [node.settlement(await node.hold(CENT), CENT) for _ in range(5)]
    taken = await asyncio.gather(*map(keeper.spool.put, settles))
    assert taken == [True, True, False, False, False]
    assert keeper.events.count("spool_full") == 3
    await keeper.deliver(node.ledger)
    assert await keeper.spool.put(settles[2])


# trouble with the disk


async def test_where_nothing_can_be_written_nothing_is_kept(node: Node, tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("in the way")
    keeper = Keeper(tmp_path / "spool")
    await keeper.spool.open()
    assert keeper.events == ["spool_not_durable"]
    assert not await keeper.spool.put(node.settlement(await node.hold(CENT), CENT))
    assert keeper.spool.waiting == {}
    assert await keeper.deliver(node.ledger)
    (tmp_path / "spool").unlink()
    assert await keeper.spool.put(node.settlement(await node.hold(CENT), CENT))


@pytest.mark.parametrize("can_be_cut_back", [True, False])
async def test_a_line_that_was_not_written_in_whole_spoils_no_other(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, can_be_cut_back: bool
) -> None:
    """As on a full disk."""
    keeper = Keeper(tmp_path / "spool")
    calls = await spooled(node, keeper, 1)
    write = os.write

    def fail(*_: Any) -> None:
        raise OSError("no")

    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
        if not can_be_cut_back:
            full.setattr(os, "ftruncate", fail)
        refused = await node.hold(2 * CENT)
        assert not await keeper.spool.put(node.settlement(refused, CENT))
    calls += await spooled(node, keeper, 1)
    keeper.die()
    heir = Keeper(tmp_path / "spool")
    await heir.deliver(node.ledger)
    await node.ledger.settle(node.settlement(refused, 0, kind="waived"))
    for request_id in calls:
        assert await node.usage(request_id) == ("exact", CENT, 0)
    assert await node.usage(refused) == ("waived", 0, 0)
    assert heir.events == ([] if can_be_cut_back else ["spool_line_unreadable"])


async def test_a_sync_that_fails_is_no_promise(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError("input/output error")

    keeper = Keeper(tmp_path / "spool")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        assert not await keeper.spool.put(node.settlement(await node.hold(CENT), CENT))
    assert keeper.events == ["spool_not_durable"]
    (path,) = files(tmp_path / "spool")
    assert path.read_bytes() == b""


# after a death


async def test_the_file_of_a_dead_process_is_taken_over_and_taken_away(node: Node, tmp_path: Path) -> None:
    dead = Keeper(tmp_path / "spool")
    calls = await spooled(node, dead)
    dead.die()
    heir = Keeper(tmp_path / "spool")
    assert await heir.deliver(node.ledger)
    assert len(heir.booked) == 3
    assert files(tmp_path / "spool") == []
    await all_booked_once(node, calls)


KILLED = """
import asyncio, sys
from pathlib import Path
import msgspec
from farebox.billing.ledger import Settle
from farebox.books.spool import Spool

async def main():
    spool = Spool(Path(sys.argv[1]), alert=lambda *_, **__: None)
    for line in sys.stdin.buffer:
        assert await spool.put(msgspec.json.decode(line, type=Settle))
        print("kept", flush=True)

asyncio.run(main())
"""


async def test_what_a_killed_process_had_kept_is_booked_by_the_next(node: Node, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, tmp_path / "spool", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    calls = [await node.hold(2 * CENT) for _ in range(5)]
    heir = Keeper(tmp_path / "spool")
    for request_id in calls:
        process.stdin.write(msgspec.json.encode(node.settlement(request_id, CENT)) + b"\n")
        assert await process.stdout.readline() == b"kept\n"
    await heir.deliver(node.ledger)
    assert heir.booked == []  # it lives, and keeps its file
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await heir.deliver(node.ledger)
    assert len(heir.booked) == 5
    await all_booked_once(node, calls)


@pytest.mark.parametrize("cut", [1, 10, 100])
async def test_a_torn_last_line_was_never_answered_for_and_is_passed_over(node: Node, tmp_path: Path, cut: int) -> None:
    dead = Keeper(tmp_path / "spool")
    calls = await spooled(node, dead)
    (path,) = files(tmp_path / "spool")
    dead.die()
    path.write_bytes(path.read_bytes()[:-cut])
    heir = Keeper(tmp_path / "spool")
    assert await heir.deliver(node.ledger)
    assert {settle.request_id for settle, _ in heir.booked} == set(calls[:2])
    assert heir.events == []
    assert files(tmp_path / "spool") == []


@pytest.mark.parametrize("damage", [b"00000000 {", b"nonsense", b"\xff\xfe", b"zz "])
async def test_a_damaged_line_is_told_and_kept_and_spoils_no_other(node: Node, tmp_path: Path, damage: bytes) -> None:
    dead = Keeper(tmp_path / "spool")
    calls = await spooled(node, dead)
    (path,) = files(tmp_path / "spool")
    dead.die()
    lines = path.read_bytes().split(b"\n")
    lines[1] = damage + lines[1][len(damage) :]
    path.write_bytes(b"\n".join(lines))
    heir = Keeper(tmp_path / "spool")
    assert await heir.deliver(node.ledger)
    assert {settle.request_id for settle, _ in heir.booked} == {calls[0], calls[2]}
    assert [(event, facts["line"]) for event, facts in heir.told] == [("spool_line_unreadable", 2)]
    assert files(tmp_path / "spool") == [path.with_suffix(".rejected")]
    assert await heir.deliver(node.ledger)
    assert len(heir.told) == 1


async def test_what_the_books_refuse_is_told_and_kept(node: Node, tmp_path: Path) -> None:
    """The spool of another installation may lie here by mistake."""
    dead = Keeper(tmp_path / "spool")
    calls = await spooled(node, dead, 1)
    assert await dead.spool.put(node.settlement(bytes(16), CENT))
    (path,) = files(tmp_path / "spool")
    dead.die()
    heir = Keeper(tmp_path / "spool")
    await heir.deliver(node.ledger)
    assert heir.events == ["settlement_refused"]
    assert files(tmp_path / "spool") == [path.with_suffix(".rejected")]
    await all_booked_once(node, calls)


async def test_what_comes_too_late_is_told_with_its_loss(node: Node, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "spool")
    (request_id,) = await spooled(node, keeper, 1)
    await node.ledger.settle(node.settlement(request_id, 0, kind="recovered"))
    await keeper.deliver(node.ledger)
    assert keeper.booked == []
    assert [(event, facts.get("cost_nanos")) for event, facts in keeper.told[1:]] == [("settled_too_late", CENT)]
    assert await node.balance() == (100 * CENT, 0, 0)


async def test_two_that_find_a_file_at_once_book_it_once(node: Node, tmp_path: Path) -> None:
    dead = Keeper(tmp_path / "spool")
    calls = await spooled(node, dead, 20)
    dead.die()
    heirs = [Keeper(tmp_path / "spool") for _ in range(4)]
    await asyncio.gather(*(heir.deliver(node.ledger) for heir in heirs))
    assert sum(len(heir.booked) for heir in heirs) == 20
    assert [heir.events for heir in heirs] == [[]] * 4
    assert files(tmp_path / "spool") == []
    await all_booked_once(node, calls)


async def test_a_file_is_not_taken_from_a_process_that_lives(node: Node, tmp_path: Path) -> None:
    alive, other = Keeper(tmp_path / "spool"), Keeper(tmp_path / "spool")
    calls = await spooled(node, alive)
    await other.deliver(node.ledger)
    assert other.booked == []
    (path,) = files(tmp_path / "spool")
    with path.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    await alive.deliver(node.ledger)
    await all_booked_once(node, calls)


async def test_a_dead_process_s_file_waits_as_long_as_the_books_are_away(node: Node, tmp_path: Path) -> None:
    dead = Keeper(tmp_path / "spool")
    calls = await spooled(node, dead)
    dead.die()
    heir, away = Keeper(tmp_path / "spool"), Away(node.store)
    ledger = Ledger(away)  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await heir.deliver(ledger)
    assert len(files(tmp_path / "spool")) == 1
    away.away = False
    await heir.deliver(ledger)
    await all_booked_once(node, calls)


# the one process that serves an SQLite file


async def open_alone(path: Path, told: list[str]) -> Any:
    def tell(event: str, **_: object) -> None:
        told.append(event)

    return await open_books(
        f"sqlite:///{path}/farebox.db",
        plans=PLANS,
        clock=steady_clock(),
        spool=path / "spool",
        lease_s=30,
        warn=tell,
        alert=tell,
    )


async def test_on_sqlite_the_spool_is_delivered_before_holds_are_given_back(tmp_path: Path) -> None:
    dead = Keeper(tmp_path / "spool")
    async with open_node(f"sqlite:///{tmp_path}/farebox.db") as node:
        calls = await spooled(node, dead)
        orphan = await node.hold(CENT)
        dead.die()
    told: list[str] = []
    books = await open_alone(tmp_path, told)
    await books.close()
    assert told == ["holds_recovered"]
    async with open_node(f"sqlite:///{tmp_path}/farebox.db") as node:
        assert await node.usage(orphan) == ("recovered", 0, 0)
        for request_id in calls:
            assert await node.usage(request_id) == ("exact", CENT, 0)


async def test_on_sqlite_nothing_starts_while_a_spool_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls would be given back as free, though their answers were delivered."""
    dead = Keeper(tmp_path / "spool")
    async with open_node(f"sqlite:///{tmp_path}/farebox.db") as node:
        (request_id,) = await spooled(node, dead, 1)
        dead.die()
    real = os.open

    def refuse(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith(".spool"):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **more)

    told: list[str] = []
    with monkeypatch.context() as unreadable:
        unreadable.setattr(os, "open", refuse)
        with pytest.raises(StoreUnavailable, match="cannot be read"):
            await open_alone(tmp_path, told)
    assert told == ["spool_file_unreadable"]
    books = await open_alone(tmp_path, told)
    await books.close()
    async with open_node(f"sqlite:///{tmp_path}/farebox.db") as node:
        assert await node.usage(request_id) == ("exact", CENT, 0)


async def test_of_several_lines_about_a_call_the_last_one_counts(node: Node, tmp_path: Path) -> None:
    """Its process could not deliver what it had spooled, and died before it could book it as free."""
    dead = Keeper(tmp_path / "spool")
    first, second = await spooled(node, dead, 2)
    assert await dead.spool.put(node.settlement(first, CENT, kind="waived", waive=True))
    dead.die()
    heir = Keeper(tmp_path / "spool")
    assert await heir.deliver(node.ledger)
    assert await node.usage(first) == ("waived", 0, 0)
    assert await node.usage(second) == ("exact", CENT, 0)
    assert len(heir.booked) == 2
    assert files(tmp_path / "spool") == []


async def test_what_is_free_and_had_been_charged_is_given_back_once(node: Node, tmp_path: Path) -> None:
    """Its end was not delivered, since nobody could tell. The line stays until its customer has the money."""
    dead = Keeper(tmp_path / "spool")
    paid, free = [await node.hold(CENT) for _ in range(2)]
    for request_id, waive in ((paid, False), (free, True)):
        await node.ledger.settle(node.settlement(request_id, CENT, waive=waive, kind="waived" if waive else "exact"))
        assert await dead.spool.put(node.settlement(request_id, CENT, kind="waived", waive=True))
    dead.die()

    class NoTransfers(Away):
        async def apply(self, batch: Sequence[Command], lane: int = 0) -> list[Answer | Exception]:
            self.away = any(isinstance(command, Transfer) for command in batch)
            return await super().apply(batch, lane)

    heir = Keeper(tmp_path / "spool")
    with pytest.raises(StoreUnavailable):
        await heir.deliver(Ledger(NoTransfers(node.store)))  # type: ignore[arg-type]
    assert len(files(tmp_path / "spool")) == 1
    for _ in range(2):
        assert await heir.deliver(node.ledger)
    assert heir.booked == []
    assert [(event, facts["nanos"]) for event, facts in heir.told] == [("charge_refunded", CENT)]
    assert await node.rows("SELECT amount_nanos FROM transfer WHERE code = 'refund'") == [(CENT,)]
    assert await node.balance() == (100 * CENT, 0, 0)
    assert files(tmp_path / "spool") == []
