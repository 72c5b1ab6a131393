"""The one writer on a real database: nothing leaves before it is safe, and nothing is lost when it cannot be."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from coordinator.core import entries
from coordinator.core.engine import Engine
from coordinator.core.fleet import Fleet, Served, Worker
from coordinator.core.jobs import Job, JobId, JobState, Kind
from coordinator.core.ledger import Book
from coordinator.core.messages import Send, SendAssign, SendCancel
from coordinator.core.output import Piece
from coordinator.core.pricing import Demand, Shape, Tariff, quote
from coordinator.core.receipts import ReceiptState
from coordinator.core.rules import Rules
from coordinator.records import Batch, EnrolledWorker, Issued, Member, ReceiptRow, RecordedReceipt, Role
from coordinator.store import Store
from coordinator.store_errors import StoreConflict, StoreFull, StoreUnavailable
from coordinator.tick import RECEIPTS_S, Chain, ReceiptChain, Ticker

OPENED = 2  # entries that lend the lines of alice and bob
NOW = 1_800_000_000.0
SHAPE = Shape(1_000_000, 100_000, 1_000)


@dataclass
class World:
    """A ticker over a real store, with everything it would send or tell written down."""

    store: Store
    ticker: Ticker
    member: Member
    worker: EnrolledWorker
    sent: list[Send] = field(default_factory=list)
    told: list[Job] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        return self.ticker.engine

    def submit(self, number: int, tokens: int = 3) -> Job:
        demand = Demand(Kind.CHAT, SHAPE, (10,), tokens, 1)
        worst = quote(demand, Tariff())
        job = Job(
            id=JobId(f"job_{number}"),
            kind=Kind.CHAT,
            model="tiny",
            member=self.member.id,
            account=self.member.account,
            created_at=NOW,
            quote=worst,
            hold=worst,
            prompt_tokens=10,
            max_tokens=tokens,
        )
        self.engine.submit(job, demand, count=len, memory_bytes=0, now=NOW)
        return job


async def _world(url: str) -> World:
    store = await Store.open(url, NOW)
    if not await store.members():
        await store.create_own_accounts(0)
        for name in ("alice", "bob"):
            await store.create_member(name, Role.MEMBER, 10**9, "first", NOW)
        await _enrol(store)
    alice, _bob = await store.members()
    (worker,) = await store.workers()
    loaded = await store.load()
    book = Book({a.id: a for a in loaded.accounts}, {e.id: e for e in loaded.entries})
    engine = Engine(Rules(), book, Fleet())
    for account, line in await store.unopened():
        engine.post(entries.opening(account, line))
    sent: list[Send] = []
    told: list[Job] = []
    troubles: list[str] = []
    ticker = Ticker(
        engine=engine,
        store=store,
        chain=Chain(loaded.last_number, loaded.last_hash),
        receipts=ReceiptChain(bytes, loaded.last_receipt_number, loaded.last_receipt_hash),
        now=lambda: NOW,
        send=sent.append,
        tell=told.append,
        acknowledge=lambda row: None,
        result_of=lambda job: None,
        on_trouble=troubles.append,
    )
    await ticker.turn()
    return World(store, ticker, alice, worker, sent, told, troubles)


async def _enrol(store: Store) -> None:
    """Bob's worker, through a join token as in life."""
    bob = await store.member_by_name("bob")
    assert bob is not None
    await store.create_join_token(bob.id, digest="d" * 64, uses=1, expires_at=NOW + 60, now=NOW)
    await store.enrol_worker(
        token_digest="d" * 64,
        name="rig",
        receipt_key=b"r" * 32,
        tls_key=b"t" * 64,
        issue=lambda worker: Issued(pem=b"", serial="01", not_before=NOW, not_after=NOW + 60),
        now=NOW,
    )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await _world(f"sqlite:///{tmp_path / 'pool.db'}")
    try:
        yield made
    finally:
        await made.store.close()


def connect(world: World) -> None:
    row = world.worker
    worker = Worker(row.id, row.name, row.member, row.account)
    world.engine.fleet.enrol(worker)
    served = [Served("tiny", "emulator", frozenset({Kind.CHAT}))]
    world.engine.connect(worker.id, served, slots=4, memory_bytes=0, running=(), now=NOW)


async def test_an_assignment_leaves_only_after_its_hold_is_on_disk(world: World) -> None:
    """When `send` runs, the database already knows the hold and the attempt."""
    connect(world)
    job = world.submit(1)
    await world.ticker.turn()
    assert [type(s) for s in world.sent] == [SendAssign]
    stored = await world.store.job(job.id)
    assert stored is not None
    assert stored.state is JobState.RUNNING
    loaded = await world.store.load()
    assert sum(a.reserved for a in loaded.accounts) == job.hold


async def test_a_full_disk_holds_everything_back_and_loses_nothing(world: World) -> None:
    """The same batch is tried until the disk takes it; nothing is sent before, and trouble is told once."""
    connect(world)
    job = world.submit(1)
    refusals = 3
    commit = world.store.commit

    async def full(batch: object) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            assert not world.sent
            raise StoreFull("the disk is full")
        await commit(batch)  # type: ignore[arg-type]  # the ticker's own batch

    world.store.commit = full  # type: ignore[method-assign]  # a fault injected at the border of the disk
    world.ticker.sleep = lambda _: asyncio.sleep(0)
    await world.ticker.turn()
    assert world.ticker.on_trouble.__self__ == ["the disk is full"]  # type: ignore[attr-defined]  # list.append
    assert world.ticker.trouble == ""
    assert len(world.sent) == 1
    assert (await world.store.load()).last_number == OPENED + 1
    assert await world.store.job(job.id) is not None


async def test_books_that_disagree_stop_the_writer(world: World) -> None:
    """A batch that does not continue the chain is a bug or a second writer: the ticker ends, the disk stands."""
    connect(world)
    world.submit(1)
    world.ticker.chain.number = 7
    with pytest.raises(StoreConflict):
        await world.ticker.run()
    assert (await world.store.load()).last_number == OPENED


async def test_a_restart_returns_the_hold_of_what_it_cut_off(world: World, tmp_path: Path) -> None:
    """A process that dies after the commit leaves a hold; the next one returns it, once, on the same chain."""
    connect(world)
    world.submit(1)
    await world.ticker.turn()
    await world.store.close()
    again = await _world(f"sqlite:///{tmp_path / 'pool.db'}")
    world.store = again.store  # closed by the fixture
    connect(again)
    for job in (await again.store.load()).open_jobs:
        again.engine.abandon(job, NOW)
    await again.ticker.turn()
    loaded = await again.store.load()
    assert [a.reserved for a in loaded.accounts if a.reserved] == []
    assert sum(a.main + a.reserved + a.held for a in loaded.accounts) == 0
    assert loaded.last_number == OPENED + 2
    assert [(job.state, job.charge) for job in again.told] == [(JobState.FAILED, 0)]
    assert await again.store.verify() == []


async def test_results_and_receipts_travel_with_the_close(world: World) -> None:
    """A stored answer is on disk no later than its charge."""
    connect(world)
    world.ticker.result_of = lambda job: b'{"answer": 1}'
    job = world.submit(1)
    await world.ticker.turn()
    piece = Piece(0, 0, "abc", (1, 2, 3), "length")
    world.engine.frame(world.worker.id, job.id, 1, 1, [piece], None, NOW)
    rows: list[RecordedReceipt] = []
    world.ticker.acknowledge = rows.append
    await world.ticker.turn()
    assert await world.store.result(job.id) == b'{"answer": 1}'
    ended = await world.store.job(job.id)
    assert ended is not None
    assert ended.state is JobState.SUCCEEDED
    assert [j.id for j in world.told] == [job.id]


async def test_receipts_go_along_when_it_is_their_time_and_not_with_every_hold(world: World) -> None:
    """Signing and recording them would be in the way of somebody's first token."""
    connect(world)
    rows: list[RecordedReceipt] = []
    world.ticker.acknowledge = rows.append
    job = world.submit(1)
    await world.ticker.turn()
    receipt = ReceiptRow(
        job_id=job.id,
        attempt=1,
        worker_id=world.worker.id,
        body=b"{}",
        signature=bytes(64),
        state=ReceiptState.MATCHED,
        why="",
    )
    world.ticker.extras.receipts.append(receipt)
    held = world.submit(2)
    await world.ticker.turn()
    assert rows == []
    assert await world.store.job(held.id) is not None
    world.ticker.now = lambda: NOW + RECEIPTS_S
    world.submit(3)
    await world.ticker.turn()
    assert [recorded.receipt for recorded in rows] == [receipt]


async def test_the_ticker_wakes_when_the_grace_of_a_closed_stream_ends(world: World) -> None:
    """No sweep comes, and nobody wakes it: the instant that the engine names does."""
    loop = asyncio.get_running_loop()
    began, cancelled = loop.time(), asyncio.Event()
    world.ticker.now = lambda: NOW + loop.time() - began
    world.engine.rules = Rules(sweep_s=1_000_000.0)
    connect(world)
    world.submit(1)
    await world.ticker.turn()
    world.ticker.send = lambda send: cancelled.set() if isinstance(send, SendCancel) else None
    world.engine.disconnect(world.worker.id, world.ticker.now())
    running = asyncio.create_task(world.ticker.run())
    await asyncio.wait_for(cancelled.wait(), 30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_commit_whose_answer_was_lost_is_not_made_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection broke behind the commit: the chain on the disk says that it was taken."""
    connect(world)
    await world.ticker.turn()
    commit, made = world.store.commit, []

    async def cut(batch: Batch) -> None:
        made.append(batch)
        await commit(batch)
        raise StoreUnavailable("the connection is gone")

    monkeypatch.setattr(world.store, "commit", cut)
    job = world.submit(1)
    await world.ticker.turn()
    assert len(made) == 1
    assert world.troubles == ["the connection is gone"]
    assert world.ticker.trouble == ""
    assert (await world.store.load()).last_number == OPENED + 1
    stored = await world.store.job(job.id)
    assert stored is not None
    assert await world.store.verify() == []
