"""Drives the state machine of one fine-tune: what happens goes in, what it wants done is carried out.

What it decided is on the disk before it is carried out, so that after a crash nothing that was paid is lost
or done twice: parts that were paid are told once more, all others are opened anew under new numbers.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from coordinator.artifacts import ArtifactStore, NoSuchArtifact
from coordinator.core import tunings
from coordinator.core.course import (
    Action,
    Aggregate,
    Aggregated,
    Began,
    CancelPart,
    Checkpointed,
    Event,
    Fail,
    Finish,
    OpenEvaluate,
    OpenTrain,
    PartDone,
    PartFailed,
    Ticked,
)
from coordinator.core.jobs import Job, JobId, JobState, part_id
from coordinator.core.tuning import Tuning
from coordinator.core.wholes import NoRoom
from coordinator.finetunes import combining
from coordinator.finetunes.base import Base
from coordinator.finetunes.checkpoints import Checkpoints
from coordinator.finetunes.disk import Disk
from coordinator.finetunes.finetune import Checkpoint, Finetune
from coordinator.finetunes.journal import Journal
from coordinator.finetunes.lengths import Lengths
from coordinator.finetunes.made import Made
from coordinator.finetunes.plan import Plan
from coordinator.finetunes.telling import Telling
from coordinator.finetunes.works import Works, adapter_kept, digests, named
from coordinator.parts import Parts
from coordinator.refusal import Refusal
from coordinator.store import Store
from potluck import lora
from potluck.lora import Shapes

PARTS_READ: Final = 200
NORMS_KEPT: Final = 64

Open = OpenTrain | OpenEvaluate
Release = Callable[[set[str]], Awaitable[None]]
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Driver:
    """`made`: what parts have left whose end was not heard of yet. `waiting`: parts that are to be opened."""

    finetune_id: str
    job: JobId
    plan: Plan
    shapes: Shapes
    works: Works
    parts: Parts
    store: Store
    disk: Disk
    telling: Telling
    wake: Callable[[], None]
    release: Release  # what it needs no more
    tuning: Tuning | None = None
    verdict: Finish | Fail | None = None
    trained_tokens: int = 0
    made: dict[JobId, Made] = field(default_factory=dict)
    shares: dict[int, Made] = field(default_factory=dict)  # of the round, until it is put together
    seen: set[str] = field(default_factory=set)  # digests of all that was made
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=NORMS_KEPT))  # of updates, of rounds
    _events: deque[Event] = field(default_factory=deque)
    _waiting: deque[Open] = field(default_factory=deque)

    # -- begin and go on -------------------------------------------------------------------------

    async def take_up(self) -> None:
        """From the beginning, or after a restart from where it was."""
        course = self.plan.course()
        kept = await self.disk.insist(lambda: self.store.finetune_snapshot(self.finetune_id))
        if not kept:
            adapter = await self._first_adapter()
            self.tuning = tunings.begin(course, adapter)
            self.seen.update(digests([adapter]))
            await self.handle(Began())
            return
        ended = await self.disk.insist(self.ended)
        for made in ended:
            self._count(made)
        await self.disk.insist(lambda: self.telling.take_up(ended))
        known = json.loads(kept)
        self.norms.extend(known["norms"])
        self.tuning = tunings.restored(course, known["tuning"])
        self.seen.update(digests([self.tuning.first]))
        await self.handle(Began(resumed=True, ended=tuple(made.done for made in ended)))

    async def ended(self) -> list[Made]:
        """What the parts have left that were paid, in the order of their numbers."""
        found: list[Made] = []
        after = 0
        while page := await self.store.parts(self.job, after=after, limit=PARTS_READ):
            after = page[-1].part
            left = await self.store.results(part.id for part in page if part.state is JobState.SUCCEEDED)
            found += [Made.from_bytes(left[part.id]) for part in page if part.id in left]
        return found

    async def _first_adapter(self) -> str:
        """Made once, from the seed: every worker begins with these bytes."""
        initial = await asyncio.to_thread(lora.initial, self.shapes, self.plan.seed)
        return await self._keep_adapter(initial)

    async def _keep_adapter(self, adapter: combining.Adapter) -> str:
        """Its name: in rounds workers get it rounded."""
        store = self.parts.pool.training_store
        data = await asyncio.to_thread(lora.encode, adapter)
        kept = (await self.disk.insist(lambda: store.put(data))).sha256
        if not self.plan.rounds:
            return kept
        rounded = await asyncio.to_thread(lambda: lora.encode(adapter, bfloat16=True))
        return named(kept, (await self.disk.insist(lambda: store.put(rounded))).sha256)

    # -- the machine -----------------------------------------------------------------------------

    async def turn(self) -> None:
        """All that has happened since, and what time alone brings."""
        while self._events and self.verdict is None:
            await self.handle(self._events.popleft())
        if self.verdict is None:
            await self.handle(Ticked())
        await self.disk.insist(self.telling.journal.write)

    async def handle(self, event: Event) -> None:
        tuning, needed = self._machine, self.artifacts
        actions = tuning.handle(event, self.parts.pool.now())
        if actions or not isinstance(event, Ticked):
            snapshot = json.dumps({"tuning": tuning.snapshot(), "norms": list(self.norms)})
            await self.disk.insist(lambda: self.store.put_finetune_snapshot(self.finetune_id, snapshot))
        for action in actions:
            await self._carry_out(action)
        await self.release(needed - self.artifacts)

    @property
    def begun(self) -> bool:
        """Whether a worker has or had one of its parts."""
        if self.trained_tokens or self.telling.curve.live:
            return True
        lives, whole = self.parts.pool.engine.lives, self.parts.whole(self.job)
        return whole is not None and any(
            part in lives and lives[part].holder is not None for part in whole.parts
        )

    @property
    def _machine(self) -> Tuning:
        assert self.tuning is not None, "it was taken up"
        return self.tuning

    async def _carry_out(self, action: Action) -> None:
        match action:
            case OpenTrain() | OpenEvaluate():
                self._waiting.append(action)
            case CancelPart(part, why):
                self._cancel(part, why)
            case Aggregate():
                await self._aggregate(action)
            case Checkpointed():
                first = action.adapter == self._machine.first
                await self.telling.checkpoint(action, adapter_kept(action.adapter), first=first)
            case Finish() if not self.trained_tokens:
                self.verdict = Fail(code="nothing_learned", why=self._nothing_learned, adapter=None)
            case Finish() | Fail():
                self.verdict = action

    @property
    def _nothing_learned(self) -> str:
        return (
            "Of every example, the answers begin behind the cut, so that nothing was learned. Give more than"
            f" {self.plan.sequence_tokens:,} sequence_tokens, or shorter examples"
        )

    def _cancel(self, part: int, why: str) -> None:
        """One that nobody has seen yet ends here."""
        for action in [one for one in self._waiting if one.part == part]:
            self._waiting.remove(action)
            self.hear(PartFailed(part=part, code="cancelled", why=why))
        self.parts.pool.cancel(part_id(self.job, part), why)

    # -- parts -----------------------------------------------------------------------------------

    def open_waiting(self) -> None:
        """As far as the pool has room for them."""
        while self._waiting and not self.parts.busy():
            self._open(self._waiting.popleft())

    def _open(self, action: Open) -> None:
        if (whole := self.parts.whole(self.job)) is None:
            return  # it has ended meanwhile
        try:
            work = self.works.of(action)
            bound = self.works.bound(work.training)
            part = self.parts.submit_training(whole.job, action.part, work, bound, self.plan.sequence_tokens)
        except Refusal as refusal:  # nobody could do it now; another time somebody may
            self.hear(PartFailed(part=action.part, code=refusal.code, why=refusal.message))
        except NoRoom:
            why = "what was set aside for it is used up"
            self.hear(PartFailed(part=action.part, code="insufficient_credits", why=why, retryable=False))
        except NoSuchArtifact as error:
            self.hear(PartFailed(part=action.part, code="artifact_gone", why=str(error), retryable=False))
        else:
            self.parts.pool.training_store.expect(part.id, self.works.bytes_max(work.training))
            self.telling.opened(action)

    def part_ended(self, part: Job) -> None:
        """Told when it is on the disk."""
        made = self.made.pop(part.id, None)
        if part.state is not JobState.SUCCEEDED:
            made = None
        self.telling.ended(part.part, made)
        if made is not None:
            self._count(made)
            self.hear(made.done)
        else:
            self.hear(PartFailed(part=part.part, code=part.code or part.state.value, why=part.why))

    def _count(self, made: Made) -> None:
        self.trained_tokens += made.tokens
        self.seen.update(made.artifacts)
        if made.steps and self.plan.rounds:
            self.shares[made.part] = made

    def hear(self, event: Event) -> None:
        self._events.append(event)
        self.wake()

    @property
    def artifacts(self) -> set[str]:
        """Digests of what must stay for it to go on, what the machine has not heard of yet included."""
        names = [] if self.tuning is None else list(self.tuning.artifacts)
        names += [name for made in self.made.values() for name in made.artifacts]
        for event in self._events:
            match event:
                case PartDone():
                    names += event.artifact
                case Aggregated():
                    names += [event.adapter, event.momentum]
        return digests(names)

    # -- rounds ----------------------------------------------------------------------------------

    async def _aggregate(self, action: Aggregate) -> None:
        """Put a round's updates together, in a thread: it is a few seconds of arithmetic."""
        store = self.parts.pool.training_store
        found = await asyncio.to_thread(
            combining.combine, store.artifacts, action, self.shapes, self.plan, list(self.norms)
        )
        self.norms.extend(found.norms)
        adapter, momentum = action.adapter, action.momentum
        if found.adapter is not None:
            adapter = await self._keep_adapter(found.adapter)
        if found.momentum:
            data = await asyncio.to_thread(lora.encode, found.momentum)
            momentum = (await self.disk.insist(lambda: store.put(data))).sha256
        shares = [self.shares[part] for part, *_ in action.parts if part in self.shares]
        self.telling.combined(action.round, shares, found.rejected)
        self.shares.clear()
        self.hear(Aggregated(round=action.round, adapter=adapter, momentum=momentum, rejected=found.rejected))


async def driver_of(
    finetune: Finetune,
    base: Base,
    parts: Parts,
    store: Store,
    files: ArtifactStore,
    disk: Disk,
    journal: Journal,
    wake: Callable[[], None],
    release: Release,
    show: Callable[[list[Checkpoint]], Awaitable[None]],
) -> Driver:
    """Of one that was paid: what it needs is on the disk. It is not taken up yet."""
    plan, pool = finetune.plan, parts.pool
    assert plan is not None, "it was planned before it was paid"
    kept = await disk.insist(lambda: store.finetune_lengths(finetune.id))
    assert kept is not None, "they were written before it was paid"
    listed = await disk.insist(lambda: store.finetune_checkpoints(finetune.id))
    training, valid = kept
    works = Works(
        plan,
        finetune.training,
        finetune.validation,
        Lengths.from_bytes(training),
        None if valid is None else Lengths.from_bytes(valid),
        pool.training_store.artifacts,
        files,
    )
    checkpoints = Checkpoints.of(plan.steps / plan.epochs, listed)
    telling = Telling(
        finetune.id, plan, journal, checkpoints, store, pool.training_store, disk, pool.now, show
    )
    shapes = base.shapes(plan.rank, plan.targets)
    return Driver(finetune.id, finetune.job, plan, shapes, works, parts, store, disk, telling, wake, release)
