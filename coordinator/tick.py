"""The one writer: load -> plan -> commit -> send -> tell.

It wakes on events. Whatever arrives while a commit runs is in the next one, so that many settlements share
one sync of the disk. It is the only one that numbers and hashes ledger entries. Nothing is sent and nobody
is told before what was decided is safe; if the disk refuses, the same batch is tried again until it is taken.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from coordinator.clock import rfc3339
from coordinator.core.engine import Engine
from coordinator.core.jobs import Job, JobId
from coordinator.core.ledger import Recorded, copy, record
from coordinator.core.messages import Effects, Send
from coordinator.records import Batch, ReceiptRow, RecordedReceipt
from coordinator.store import Store
from coordinator.store_errors import LeadershipLost, StoreConflict, StoreError
from potluck import chain
from potluck.chain import GENESIS

log = structlog.get_logger(__name__)

IDLE_S = 1.0
RETRY_S_MAX = 2.0
RECEIPTS_S = 0.25
PROBE_S = 10.0  # an idle pool learns so late that its disk has become full


@dataclass(slots=True)
class Chain:
    """The end of the ledger's hash chain."""

    number: int = 0
    hash: str = GENESIS

    def extend(self, effects: Effects, at: str) -> list[Recorded]:
        records = []
        for entry in effects.entries:
            recorded = record(self.number + 1, at, entry, self.hash)
            self.number, self.hash = recorded.number, recorded.hash
            records.append(recorded)
        return records


@dataclass(slots=True)
class ReceiptChain:
    """The end of the receipts' own chain. Each receipt is signed by the pool in its place."""

    sign: Callable[[bytes], bytes]
    number: int = 0
    hash: str = GENESIS

    def extend(self, receipts: Sequence[ReceiptRow], at: str) -> list[RecordedReceipt]:
        recorded = []
        for receipt in receipts:
            number, previous = self.number + 1, self.hash
            covered = chain.receipt_bytes(
                number=number,
                at=at,
                worker=receipt.worker_id,
                body=receipt.body,
                signature=receipt.signature,
                state=receipt.state.value,
                previous=previous,
            )
            countersignature = self.sign(chain.countersigned(chain.hash_of(covered)))
            self.number, self.hash = number, chain.receipt_hash(covered, countersignature)
            recorded.append(
                RecordedReceipt(
                    number=number,
                    at=at,
                    receipt=receipt,
                    previous=previous,
                    hash=self.hash,
                    countersignature=countersignature,
                )
            )
        return recorded


@dataclass(slots=True)
class Extras:
    """What travels with the next batch without the core knowing: texts of stored jobs, receipts and answers
    to them."""

    requests: dict[JobId, bytes] = field(default_factory=dict)
    results: dict[JobId, bytes] = field(default_factory=dict)
    receipts: list[ReceiptRow] = field(default_factory=list)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)  # for whatever was posted until now

    def __bool__(self) -> bool:
        return bool(self.requests or self.results or self.receipts or self.waiting)

    @property
    def urgent(self) -> bool:
        """Receipts are evidence: a few times a second they go along, and no other hold waits for them."""
        return bool(self.requests or self.results or self.waiting)


@dataclass(slots=True)
class Ticker:
    engine: Engine
    store: Store
    chain: Chain
    receipts: ReceiptChain
    now: Callable[[], float]
    send: Callable[[Send], None]
    tell: Callable[[Job], None]
    acknowledge: Callable[[RecordedReceipt], None]
    result_of: Callable[[Job], bytes | None]  # of a stored job that ended
    on_trouble: Callable[[str], None]  # the disk refuses a commit: called once when it begins
    timed: Callable[[str, float], None] = lambda _part, _seconds: None  # what a turn took, by its parts
    changed: Callable[[Iterable[Job]], None] = lambda _: None  # jobs that are on the disk as they are now
    trouble: str = ""  # why nothing can be committed just now
    extras: Extras = field(default_factory=Extras)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _receipts_at: float = 0.0
    _tried_at: float = 0.0  # to write: by a commit or a probe
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; a commit that has begun is always finished."""
        while True:
            await self._wait()
            await self.turn()
            if self.now() - self._tried_at >= PROBE_S:
                await self._probe()

    async def committed(self) -> None:
        """Return when all that the core has decided until now is on the disk."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.extras.waiting.append(waiter)
        self.wake()
        await waiter

    async def turn(self) -> None:
        """One tick. Also called on its own at start and at the end."""
        self._wake.clear()
        began = self.now()
        effects = self.engine.tick(began)
        self.timed("plan", self.now() - began)
        extras = self._extras()
        for job in effects.closed:
            if (result := self.result_of(job)) is not None:
                extras.results[job.id] = result
        batch = self._batch(effects, extras)
        if effects.durable or extras:
            began = self.now()
            await self._commit(batch)
            self.timed("commit", self.now() - began)
            self.changed(batch.jobs)
        for send in effects.sends:
            self.send(send)
        for waiter in extras.waiting:
            if not waiter.done():
                waiter.set_result(None)
        for job in effects.closed:
            self.tell(job)
        for receipt in batch.receipts:  # last: nobody waits for these
            self.acknowledge(receipt)

    def _extras(self) -> Extras:
        """What travels with this batch: all there is, but receipts only when it is their time."""
        now = self.now()
        extras, self.extras = self.extras, Extras()
        if now < self._receipts_at:
            extras.receipts, self.extras.receipts = [], extras.receipts
        else:
            self._receipts_at = now + RECEIPTS_S
        return extras

    async def _wait(self) -> None:
        """Until something happened, or until time alone may have changed something."""
        timeout = self.engine.rules.sweep_s if self.engine.busy() else IDLE_S
        if self.extras:
            timeout = min(timeout, RECEIPTS_S)
        timeout = max(0.0, min(timeout, self.engine.due() - self.now()))
        if not self.engine.effects and not self.extras.urgent:
            try:
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            except TimeoutError:
                return

    def _batch(self, effects: Effects, extras: Extras) -> Batch:
        accounts, at = self.engine.book.accounts, rfc3339(self.now())
        return Batch(
            records=self.chain.extend(effects, at),
            accounts=[copy(accounts[a]) for a in sorted(effects.accounts)],
            jobs=list(effects.jobs.values()),
            receipts=self.receipts.extend(extras.receipts, at),
            standings=effects.standings,
            requests=extras.requests,
            results=extras.results,
        )

    async def _commit(self, batch: Batch) -> None:
        pause, told = 0.1, False
        while True:
            try:
                if not told or not await self.store.holds(batch):
                    await self.store.commit(batch)
            except LeadershipLost:
                raise
            except StoreConflict:
                # Memory and disk disagree: a bug, or a second writer. Stop; the disk is the truth.
                log.critical("the books refuse a batch", action="commit_conflict")
                raise
            except StoreError as error:
                self._refused(error)
                if not told:
                    self.on_trouble(self.trouble)
                    told = True
                await self.sleep(pause)
                pause = min(pause * 2, RETRY_S_MAX)
            else:
                self._taken()
                return

    async def _probe(self) -> None:
        """Whether a commit would be taken, when there was none for a while: nobody is let in for nothing.

        What runs goes on: the disk may be back before it ends.
        """
        try:
            await self.store.probe()
        except StoreError as error:
            self._refused(error)
        else:
            self._taken()

    def _refused(self, error: StoreError) -> None:
        self._tried_at = self.now()
        if not self.trouble:
            log.error("commit refused", action="commit_refused", why=str(error))
            self.trouble = str(error)

    def _taken(self) -> None:
        self._tried_at = self.now()
        if self.trouble:
            log.info("commits work again", action="commit_recovered")
            self.trouble = ""
