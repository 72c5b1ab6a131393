"""Any interleaving of what members, workers, the network and crashes can do to the books, on a real SQLite file.

Real store, real ticker, real signed receipts; only the workers' output is made up, so that the test knows what
the pool does not: what each attempt really produced.
"""

import asyncio
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fixtures_core import MODEL, SHAPE
from fixtures_store import NOW, new_database, url_in
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from coordinator.core import entries
from coordinator.core.engine import Engine, Impossible
from coordinator.core.fleet import Fleet, Served, Worker
from coordinator.core.jobs import AccountId, Attempt, Job, JobId, Kind, WorkerId
from coordinator.core.ledger import COMMONS, LINES, Book, Entry, Overdrawn, Posted
from coordinator.core.output import Piece
from coordinator.core.pricing import Demand, Tariff, quote
from coordinator.core.rules import Rules
from coordinator.core.standing import Proof
from coordinator.receipts import Receipts
from coordinator.records import EnrolledWorker, Issued, Member, ReceiptRow, RecordedReceipt, Role
from coordinator.store import Store
from coordinator.tick import Chain, ReceiptChain, Ticker
from potluck.receipts import ReceiptBody, sign
from potluck.v1 import session_pb2

LINE = 3_000_000
MEMBERS = ("ann", "ben", "cem")
T = TypeVar("T")
Fence = tuple[JobId, int]


class Books(RuleBasedStateMachine):
    """Three members; ann and ben own a worker each. One step is one thing that happens."""

    running: Any = Bundle("running")  # fences that a worker was given and has not been told to stop
    claims: Any = Bundle("claims")  # signed receipts, sent or not, once or many times
    movements: Any = Bundle("movements")  # entries of accounts that were posted before

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="potluck-stateful-"))
        self.loop = asyncio.new_event_loop()
        self.now, self.jobs, self.causes = NOW, 0, 0
        self.keys = {name: Ed25519PrivateKey.generate() for name in ("ann", "ben")}
        self.demands: dict[JobId, Demand] = {}
        self.truth: dict[tuple[JobId, int, WorkerId], int] = defaultdict(int)
        self.ended: dict[JobId, int] = {}  # charge of each job, from its first end on
        self.wait(self.found())

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    async def found(self) -> None:
        await new_database(self.folder / "potluck.db")
        self.store = await Store.open(url_in(self.folder), self.now)
        await self.store.create_own_accounts(LINE)
        self.members: dict[str, Member] = {}
        for name in MEMBERS:
            self.members[name], _ = await self.store.create_member(name, Role.MEMBER, LINE, "key", self.now)
        self.workers: dict[str, EnrolledWorker] = {}
        for name, key in self.keys.items():
            digest = sha256(name.encode()).hexdigest()
            owner = self.members[name].id
            await self.store.create_join_token(owner, digest=digest, uses=1, expires_at=NOW + 60, now=NOW)
            self.workers[name], _ = await self.store.enrol_worker(
                token_digest=digest,
                name=name,
                receipt_key=key.public_key().public_bytes_raw(),
                tls_key=digest.encode(),
                issue=lambda worker: Issued(pem=b"", serial=worker, not_before=NOW, not_after=NOW + 60),
                now=NOW,
            )
        await self.begin()

    async def begin(self) -> None:
        """A coordinator starts on what the disk holds."""
        loaded = await self.store.load()
        book = Book({a.id: a for a in loaded.accounts}, {e.id: e for e in loaded.entries})
        rules = Rules(proof=Proof(needed=True, jobs=1, age_s=5.0), attempts_max=50, wait_s=20.0, prove_s=1.0)
        self.engine = Engine(rules, book, Fleet())
        self.ticker = Ticker(
            engine=self.engine,
            store=self.store,
            chain=Chain(loaded.last_number, loaded.last_hash),
            receipts=ReceiptChain(lambda m: m[:64], loaded.last_receipt_number, loaded.last_receipt_hash),
            now=lambda: self.now,
            send=lambda send: None,
            tell=self.told,
            acknowledge=self.recorded,
            result_of=lambda job: None,
            on_trouble=lambda why: None,
        )
        self.receipts = Receipts(
            self.engine,
            self.store,
            lambda row, recorded: None,
            self.keep,
            since=self.now,
        )
        for row in self.workers.values():
            worker = Worker(row.id, row.name, row.member, row.account, standing=loaded.standings[row.id])
            self.engine.fleet.enrol(worker)
            self.receipts.keys[row.id] = row.receipt_key
            self.connect(row.id)
        for account, line in await self.store.unopened():
            self.engine.post(entries.opening(account, line))
        for job in loaded.open_jobs:
            if job.stored:
                demand = self.demands[job.id]
                self.engine.restore(job, demand, count=len, memory_bytes=0, now=self.now)
            else:
                self.engine.abandon(job, self.now)
        await self.ticker.turn()

    def keep(self, row: ReceiptRow) -> None:
        self.ticker.extras.receipts.append(row)

    def recorded(self, recorded: RecordedReceipt) -> None:
        self.receipts.recorded(recorded)

    def told(self, job: Job) -> None:
        assert job.id not in self.ended, "each job ends once"
        assert job.charge is not None
        self.ended[job.id] = job.charge

    def connect(self, worker: WorkerId, running: tuple[Fence, ...] = ()) -> None:
        served = [Served(MODEL, "emulator", frozenset({Kind.CHAT}), slots=2)]
        self.engine.connect(worker, served, slots=2, memory_bytes=0, running=running, now=self.now)

    def new_fences(self) -> Any:
        """What the plan just gave to workers."""
        found = [
            (job_id, number)
            for worker in self.engine.fleet.workers.values()
            for job_id, number in sorted(worker.running)
            if not self.truth.get((job_id, number, worker.id))
        ]
        return multiple(*found)

    def attempt(self, fence: Fence) -> Attempt | None:
        """The attempt behind the fence while it holds its job."""
        live = self.engine.lives.get(fence[0])
        if live is None or live.job.attempt is None or live.job.attempt.number != fence[1]:
            return None
        return live.job.attempt

    # -- what members do

    @rule(
        target=running,
        who=st.sampled_from(MEMBERS),
        tokens=st.integers(1, 6),
        prompt=st.integers(1, 400),
        stored=st.booleans(),
        own=st.integers(0, 5).map(lambda n: n == 0),
    )
    def submit(self, who: str, tokens: int, prompt: int, stored: bool, own: bool) -> Any:
        demand = Demand(Kind.CHAT, SHAPE, (prompt,), tokens, 1)
        worst, member = quote(demand, Tariff()), self.members[who]
        self.jobs += 1
        job = Job(
            id=JobId(f"job_{self.jobs}"),
            kind=Kind.CHAT,
            model=MODEL,
            member=member.id,
            account=member.account,
            created_at=self.now,
            quote=worst,
            hold=0 if own else worst,
            prompt_tokens=prompt,
            max_tokens=tokens,
            stored=stored,
            own_only=own,
        )
        self.demands[job.id] = demand
        try:
            self.engine.submit(job, demand, count=len, memory_bytes=0, now=self.now)
        except (Overdrawn, Impossible):
            return multiple()
        self.wait(self.ticker.turn())
        return self.new_fences()

    @rule(fence=running)
    def cancel(self, fence: Fence) -> None:
        self.engine.cancel(fence[0], self.now, "asked")

    @rule(
        target=movements,
        kind=st.sampled_from(["transfer", "grant", "line"]),
        giver=st.sampled_from(MEMBERS),
        taker=st.sampled_from(MEMBERS),
        amount=st.integers(1, LINE * 2),
    )
    def move(self, kind: str, giver: str, taker: str, amount: int) -> Any:
        self.causes += 1
        source, to, cause = self.members[giver].account, self.members[taker].account, f"mov_{self.causes}"
        if kind == "grant":
            entry = entries.grant(cause, to, amount)
        elif kind == "line":
            entry = entries.line(cause, source, to, amount)
        else:
            entry = entries.transfer(cause, source, to, amount)
        try:
            self.engine.post(entry)
        except Overdrawn:
            return multiple()
        return entry

    @rule(entry=movements)
    def move_again(self, entry: Entry) -> None:
        """A retry, perhaps after a restart: it is answered, and moves nothing (see Accounts.record)."""
        if entry.id in self.engine.book.entries:
            assert self.engine.post(entry) is Posted.EXISTS
        elif (known := self.wait(self.store.entry(entry.id))) is not None:
            assert known.entry == entry

    # -- what workers do

    def held_now(self) -> list[Fence]:
        """The attempts that hold a job now."""
        return sorted(f for worker in self.engine.fleet.workers.values() for f in worker.running)

    @precondition(lambda self: self.held_now())
    @rule(pick=st.integers(0, 9), tokens=st.integers(1, 8))
    def frame(self, pick: int, tokens: int) -> None:
        """The next output of whoever holds a job, often to its end."""
        fences = self.held_now()
        fence = fences[pick % len(fences)]
        attempt, live = self.attempt(fence), self.engine.lives[fence[0]]
        assert attempt is not None
        choice = live.output.choices[0]
        done = choice.tokens + choice.open_ids
        tokens = min(tokens, live.job.max_tokens - done)
        ends = "length" if done + tokens == live.job.max_tokens else ""
        piece = Piece(0, choice.length, "x" * tokens, tuple(range(tokens)), ends)
        self.truth[(*fence, attempt.worker)] += tokens
        self.engine.frame(attempt.worker, *fence, live.output.sequence + 1, [piece], None, self.now)

    @rule(fence=running, worker=st.sampled_from(["ann", "ben"]), number=st.integers(1, 3))
    def frame_of_another(self, fence: Fence, worker: str, number: int) -> None:
        """It would fit exactly, if only the attempt were this worker's and current: nobody earns by it."""
        attempt, row = self.attempt(fence), self.workers[worker]
        if attempt is None or (attempt.worker, attempt.number) == (row.id, number):
            return
        output = self.engine.lives[fence[0]].output
        piece = Piece(0, output.choices[0].length, "y", (1,), "stop")
        taken = self.engine.frame(row.id, fence[0], number, output.sequence + 1, [piece], None, self.now)
        assert not taken

    @rule(fence=running, sequence=st.integers(0, 9), offset=st.integers(0, 30))
    def frame_out_of_order(self, fence: Fence, sequence: int, offset: int) -> None:
        if (attempt := self.attempt(fence)) is None:
            return
        output = self.engine.lives[fence[0]].output
        if (sequence, offset) == (output.sequence + 1, output.choices[0].length):
            return
        piece = Piece(0, offset, "y", (1,), "stop")
        assert not self.engine.frame(attempt.worker, *fence, sequence, [piece], None, self.now)

    @rule(fence=running, fault=st.sampled_from(["job", "worker", "none"]))
    def fail(self, fence: Fence, fault: str) -> None:
        if (attempt := self.attempt(fence)) is not None:
            self.engine.failed(attempt.worker, *fence, fault, "x", "it could not", self.now)

    @rule(target=claims, fence=running, worker=st.sampled_from(["ann", "ben"]), more=st.integers(-2, 3))
    def sign(self, fence: Fence, worker: str, more: int) -> session_pb2.Receipt:
        row = self.workers[worker]
        body = ReceiptBody(
            job_id=fence[0],
            attempt=fence[1],
            worker_id=row.id,
            model=MODEL,
            engine="emulator",
            prompt_tokens=1,
            output_tokens=max(0, self.truth.get((*fence, row.id), 0) + more),
            started_at=1,
            ended_at=2,
            output_sha256="0" * 64,
        ).encode()
        return session_pb2.Receipt(body=body, signature=sign(self.keys[worker], body))

    @rule(claim=claims, forged=st.booleans())
    def send_receipt(self, claim: session_pb2.Receipt, forged: bool) -> None:
        """In time, late, twice, or with a signature that is not the worker's."""
        body = ReceiptBody.decode(claim.body)
        if forged:
            claim = session_pb2.Receipt(body=claim.body, signature=bytes(64))
        self.wait(self.receipts.receive(WorkerId(body.worker_id), claim))

    # -- what happens to all of them

    @rule(target=running, worker=st.sampled_from(["ann", "ben"]), forgetful=st.booleans())
    def blink(self, worker: str, forgetful: bool) -> Any:
        """A stream breaks and comes back, with what ran on it or without."""
        row = self.workers[worker]
        self.engine.disconnect(row.id, self.now)
        ran = () if forgetful else tuple(self.engine.fleet.workers[row.id].running)
        self.connect(row.id, ran)
        self.wait(self.ticker.turn())
        return self.new_fences()

    @rule(target=running, seconds=st.sampled_from([0.3, 1.0, 5.0, 25.0, 40.0]))
    def time_passes(self, seconds: float) -> Any:
        self.now += seconds
        self.wait(self.ticker.turn())
        return self.new_fences()

    @rule()
    def commit(self) -> None:
        self.wait(self.ticker.turn())

    @rule(target=running, fence=consumes(running))
    def crash(self, fence: Fence) -> Any:
        """Memory is lost, with all that was not committed; the disk is the truth."""
        del fence  # makes crashes rarer: each takes one from the bundle

        async def again() -> None:
            await self.store.close()
            self.store = await Store.open(url_in(self.folder), self.now)
            await self.begin()

        self.wait(again())
        return self.new_fences()

    # -- what must hold

    @invariant()
    def money_and_lines_sum_to_zero(self) -> None:
        accounts = self.engine.book.accounts
        assert self.engine.book.total() == 0
        assert sum(account.credit_line for account in accounts.values()) == 0

    @invariant()
    def nobody_is_below_the_floor(self) -> None:
        for account in self.engine.book.accounts.values():
            assert account.reserved >= 0
            assert account.held >= 0
            assert account.id == LINES or account.main >= -account.credit_line >= -10 * LINE

    @invariant()
    def reserved_is_what_open_holds_hold(self) -> None:
        holds: dict[AccountId, int] = defaultdict(int)
        for live in self.engine.lives.values():
            holds[live.job.account] += live.job.hold
        for account in self.engine.book.accounts.values():
            assert account.reserved == holds[account.id]

    @invariant()
    def nobody_is_paid_for_work_that_did_not_happen(self) -> None:
        for job in self.engine.recent.values():
            assert job.charge is not None
            assert job.charge <= job.hold <= job.quote
            assert sum(a.paid for a in job.attempts) <= job.charge
            for attempt in job.attempts:
                assert attempt.tokens <= self.truth.get((job.id, attempt.number, attempt.worker), 0)
                assert not attempt.paid or attempt.tokens

    @invariant()
    def held_is_what_unproven_workers_earned(self) -> None:
        held: dict[AccountId, int] = defaultdict(int)
        for worker in self.engine.fleet.workers.values():
            held[worker.account] += worker.standing.held
        for account in self.engine.book.accounts.values():
            assert account.held == held[account.id]

    def teardown(self) -> None:
        """Once more to the disk; the audit recomputes all of it, chains, sums and holds."""

        async def end() -> None:
            await self.ticker.turn()
            assert await self.store.verify() == []
            loaded = {account.id: account for account in (await self.store.load()).accounts}
            assert loaded == self.engine.book.accounts
            closes = [r.entry.job for r in await self.store.recorded() if r.entry.id.endswith("/close")]
            assert len(closes) == len(set(closes)), "each job is closed by one entry"
            assert loaded[COMMONS].main >= -LINE
            await self.store.close()

        try:
            self.wait(end())
        finally:
            self.loop.close()
            shutil.rmtree(self.folder)


TestBooks = Books.TestCase
TestBooks.settings = settings(
    max_examples=25,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
