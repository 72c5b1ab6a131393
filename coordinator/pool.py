"""The pool as the API sees it: submit, quote, cancel, and views of what is going on.

It joins the core (decisions), the ticker (durability) and the relay (delivery), and turns the core's refusals
into sentences. Amounts are microcredits.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from coordinator import training_store, translate
from coordinator.accounts import Accounts
from coordinator.answers import Answers
from coordinator.artifacts import ArtifactStore
from coordinator.bounds import bounds_of, check_model, owner_of, refusal_of
from coordinator.chatwork import callable_names, counts_of, needs
from coordinator.core.budgets import Budgets, Exceeded, tokens_of
from coordinator.core.engine import Engine, Impossible
from coordinator.core.jobs import Job, JobId, JobState, Kind, MemberId, WorkerId
from coordinator.core.ledger import Overdrawn
from coordinator.core.live import Live
from coordinator.core.messages import Send, SendAck
from coordinator.core.output import Piece
from coordinator.core.pricing import Demand, Shape, Tariff, quote
from coordinator.door import Door, impossible
from coordinator.earned import Earned
from coordinator.giving import Giving
from coordinator.invitations import Invitations
from coordinator.membership import Membership
from coordinator.outgoing import Outgoing
from coordinator.pauses import Pauses
from coordinator.receipts import Receipts
from coordinator.records import ApiKey, Member, ReceiptRow
from coordinator.refusal import Refusal, credits_of
from coordinator.relay import JobEvent, Relay, ended
from coordinator.sessions import Sessions
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.submission import Submission, Ticket, Wanted, job_id_of
from coordinator.tick import Ticker
from coordinator.tokens import TokenCounter
from coordinator.traces import Traces, Untraced
from coordinator.training_store import TrainingStore
from coordinator.trainings import Nobody, Trainings
from coordinator.transcripts import Transcripts
from coordinator.vocabularies import Vocabularies
from potluck.catalogue import Catalogue, ModelEntry
from potluck.v1 import session_pb2, work_pb2

NOBODY = frozenset({WorkerId("nobody")})
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Pool:
    engine: Engine
    store: Store
    settings: Settings
    sessions: Sessions
    counter: TokenCounter
    vocabularies: Vocabularies
    catalogue: Callable[[], Catalogue]
    public_key: str
    sign: Callable[[bytes], bytes]  # in the pool's name
    now: Callable[[], float]
    ticker: Ticker = field(init=False)  # the composition root ties the knot
    receipts: Receipts = field(init=False)
    accounts: Accounts = field(init=False)
    giving: Giving = field(init=False)
    invitations: Invitations = field(init=False)
    membership: Membership = field(init=False)
    door: Door = field(init=False)
    answers: Answers = field(init=False)
    outgoing: Outgoing = field(init=False)
    pauses: Pauses = field(init=False)  # of workers, from afar
    training_store: TrainingStore = field(init=False)
    training: Trainings = field(default_factory=Nobody)  # the composition root knows who
    relay: Relay = field(default_factory=Relay)
    transcripts: Transcripts = field(default_factory=Transcripts)
    budgets: Budgets = field(default_factory=Budgets)
    works: dict[JobId, work_pb2.Work] = field(default_factory=dict)
    names: dict[MemberId, str] = field(default_factory=dict)
    hardware: dict[WorkerId, session_pb2.Hardware] = field(default_factory=dict)
    loads: dict[WorkerId, session_pb2.MachineLoad] = field(default_factory=dict)  # of connected workers
    job_ended: asyncio.Event = field(default_factory=asyncio.Event)
    earned: Earned = field(default_factory=Earned)
    traces: Traces = field(default_factory=Untraced)
    followers: list[Callable[[Job], None]] = field(default_factory=list)  # told of each job's end

    def __post_init__(self) -> None:
        self.engine.names = self.names

        def keep(row: ReceiptRow) -> None:
            self.ticker.extras.receipts.append(row)

        self.answers = Answers(self.transcripts)
        self.door = Door(self.engine, self.settings.queue_jobs_max, self.settings.queue_bytes_max, self.now)
        self.outgoing = Outgoing(
            self.engine, self.sessions, self.works, self.names, self.now, lambda: self.ticker, self.traces
        )
        self.pauses = Pauses(self.store, self.sessions, self.names, self.now)
        self.training_store = TrainingStore(ArtifactStore(self.settings.folder / training_store.FOLDER))
        self.followers += [lambda job: self.training_store.ended(job.id), self.earned.ended]
        self.receipts = Receipts(self.engine, self.store, self.outgoing.acknowledge, keep, since=self.now())
        self.accounts = Accounts(self.engine, self.store, lambda: self.ticker, self.now)
        self.giving = Giving(self.accounts, self.settings.transfer_day_max)
        self.invitations = Invitations(self.accounts, self.settings.invite_credit_line, self.sign)
        self.membership = Membership(self.accounts, self.invitations, self.end_jobs, self.expel)

    # -- jobs --------------------------------------------------------------------------------------

    def demand(self, s: Submission) -> Demand:
        """What is to be priced. Each input of an embedding is a prompt of its own."""
        prompts = s.prompts or (s.prompt_tokens,)
        return Demand(s.kind, self.shape(s.model), prompts, s.max_tokens, max(1, s.choices), exact=s.exact)

    def quote(self, submission: Submission) -> int:
        """Raises Refusal if the key is not for this model."""
        check_model(submission.key, submission.name, submission.model)
        return quote(self.demand(submission), self.tariff)

    async def submit(self, submission: Submission) -> Ticket:
        """Set the worst case aside and queue the job. Raises Refusal; nothing is held then."""
        s = submission
        check_model(s.key, s.name, s.model)
        self.accounts.check_open()
        job_id = job_id_of(s)
        if s.idempotency_key is not None and (known := await self._known(job_id)) is not None:
            return self._replay(known, s)
        self.names[s.member.id] = s.member.name
        self.accounts.know(s.member.account)
        job = self.job_of(s, job_id)
        with self.door.open_to(job, s):
            self._admit(job, self.demand(s), s)
        self._keep(job, s)
        events = self._follow(job) if s.stored else self.relay.follow(job_id)
        return Ticket(job_id, job.quote, replayed=False, events=events)

    def job_of(self, s: Submission, job_id: JobId) -> Job:
        """As it is before anything happened to it."""
        demand = self.demand(s)
        worst, own_only = quote(demand, self.tariff), s.workers == "mine"
        return Job(
            id=job_id,
            kind=s.kind,
            model=s.model,
            member=s.member.id,
            account=s.member.account,
            created_at=self.now(),
            quote=worst,
            hold=0 if own_only else worst,
            prompt_tokens=demand.prompt_tokens,
            max_tokens=s.max_tokens,
            choices=demand.choices,
            key="" if s.key is None else s.key.id,
            stored=s.stored,
            own_only=own_only,
            only=self.only(s.workers, s.member),
            needs=needs(s.work),
            expires_at=None if s.wait_s is None else self.now() + s.wait_s,
        )

    def queue(self, job: Job, s: Submission) -> None:
        """Queue what is paid for elsewhere, whatever the limits. Raises Impossible, Overdrawn or NoRoom."""
        self.enter(job, self.demand(s))
        self._keep(job, s)

    def enter(self, job: Job, demand: Demand) -> None:
        entry = self.catalogue().get(job.model)
        assert entry is not None, "the API resolves models before it submits"
        count, memory = self._count(job.model), _memory(entry)
        self.engine.submit(job, demand, count=count, memory_bytes=memory, now=self.now())

    def _keep(self, job: Job, s: Submission) -> None:
        self.works[job.id] = s.work
        self.door.crowd.enter(job.id, job.member, s.work.ByteSize())
        self.traces.queued(job)
        if s.stored:
            self.answers.expect(job.id, s.name)
            self.ticker.extras.requests[job.id] = s.work.SerializeToString()
        self.ticker.wake()

    def cancel(self, job_id: str, why: str) -> bool:
        """False: the job had ended already, or never was."""
        cancelled = self.engine.cancel(JobId(job_id), self.now(), why)
        if cancelled:
            self.ticker.wake()
        return cancelled

    def end_jobs(self, member: MemberId, why: str) -> None:
        """Cancel all that the member has open; what was delivered is paid."""
        wholes, lives = self.engine.wholes.values(), self.engine.lives.values()
        for job in [*(whole.job for whole in wholes), *(live.job for live in lives)]:
            if job.member == member:
                self.cancel(job.id, why)

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, let running answers end for a while, then return the holds of what is left."""
        self.accounts.closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while any(not live.job.stored for live in self.engine.lives.values()):
                    self.job_ended.clear()
                    await self.job_ended.wait()
        why = "the coordinator was stopped; nothing was charged"
        for live in list(self.engine.lives.values()):
            if not live.job.stored:
                self.engine.give_up(live.job.id, self.now(), why, "shutting_down")

    def restore(self, job: Job, work: work_pb2.Work) -> None:
        """Take a stored job up again after a restart. It starts over: what it had delivered was not kept."""
        counts = counts_of(self.counter, job.model, work)
        exact = self.counter.exact(job.model)
        if sum(counts) != job.prompt_tokens:
            # Counted otherwise then, with a tokenizer that is not there yet. The hold is for that count, and
            # no other division of it costs less than equal parts.
            share, rest = divmod(job.prompt_tokens, len(counts))
            counts = tuple(share + (index < rest) for index in range(len(counts)))
            exact = True
        demand = Demand(job.kind, self.shape(job.model), counts, job.max_tokens, job.choices, exact=exact)
        job = replace(job, needs=needs(work))
        self.works[job.id] = work
        self.door.crowd.enter(job.id, job.member, work.ByteSize())
        self.answers.expect(job.id, work.adapter.name or job.model)
        entry = self.catalogue().get(job.model)
        memory = _memory(entry) if entry is not None else 0
        self.engine.restore(job, demand, count=self._count(job.model), memory_bytes=memory, now=self.now())

    def _admit(self, job: Job, demand: Demand, s: Submission) -> None:
        """Check every limit and reserve what the job may take, without a wait in between."""
        now, bounds = self.now(), bounds_of(s.member, s.key, self.settings)
        tokens = demand.prompt_tokens + job.max_tokens * job.choices
        if over := self.budgets.refuse_tokens(bounds, tokens, now):
            raise self.over(over, s.member, s.key)
        try:
            try:
                if over := self.budgets.refuse_credits(bounds, job.hold, now):
                    raise self.over(over, s.member, s.key)
                self.enter(job, demand)
            except (Overdrawn, Refusal) as short:
                job = replace(job, hold=0, own_only=True)
                try:  # too poor for others' machines; one's own cost nothing
                    self.enter(job, demand)
                except Impossible:
                    raise short if isinstance(short, Refusal) else self.too_poor(job, short) from None
        except Impossible as reason:
            raise impossible(reason) from None
        self.budgets.reserve(job.id, [bound.subject for bound in bounds], tokens, job.hold, now)

    def over(self, over: Exceeded, member: Member, key: ApiKey | None) -> Refusal:
        return refusal_of(over, owner_of(over.bound, over.limit, member, key), self.now())

    def too_poor(self, job: Job, short: Overdrawn) -> Refusal:
        have = self.accounts.balance(job.account)
        less = "Ask for fewer epochs" if job.kind is Kind.FINETUNE else "Lower max_tokens"
        message = (
            f"This can cost up to {credits_of(job.quote)} credits, and {credits_of(short.available)} are "
            f"available (balance {credits_of(have['balance'])}, reserved {credits_of(have['reserved'])}, "
            f"credit line {credits_of(have['credit_line'])}). {less}, wait for running jobs, or"
            " earn by serving: `potluck coordinator join-token`, then `potluck worker join` on your machine."
            " Your own workers serve you for free."
        )
        extra = {"potluck": {"cost": job.quote, **have}}
        return Refusal(402, "insufficient_credits", message, type="insufficient_credits", extra=extra)

    async def _known(self, job_id: JobId) -> Job | None:
        """The job that has this id. Memory is asked once more after the database: meanwhile another request
        under the same Idempotency-Key may have made the job, and even ended it.
        """
        return self._in_memory(job_id) or await self.store.job(job_id) or self._in_memory(job_id)

    def _in_memory(self, job_id: JobId) -> Job | None:
        live = self.engine.lives.get(job_id)
        return self.engine.recent.get(job_id) if live is None else live.job

    def _replay(self, known: Job, s: Submission) -> Ticket:
        same = (known.kind, known.model, known.quote, known.max_tokens, known.choices, known.stored)
        if same != (s.kind, s.model, self.quote(s), s.max_tokens, max(1, s.choices), s.stored):
            message = f"This Idempotency-Key was used for another request (job {known.id})."
            raise Refusal(409, "idempotency_conflict", message)
        if not known.stored:
            message = (
                f"This Idempotency-Key was used already (job {known.id}, {known.state}). Interactive answers"
                " are not kept, so it cannot be answered again."
            )
            raise Refusal(409, "idempotency_replay", message, extra={"potluck": {"job_id": known.id}})
        return Ticket(known.id, known.quote, replayed=True, events=self._follow(known))

    async def _follow(self, job: Job) -> AsyncIterator[JobEvent]:
        """Of a stored job: from now on, or only its end. Made when somebody reads it."""
        if job.id in self.engine.lives:
            async for event in self.relay.follow(job.id):
                yield event
        else:
            now = self.engine.recent.get(job.id) or await self.store.job(job.id)
            yield ended(now or job)

    def only(self, wanted: Wanted, member: Member) -> frozenset[WorkerId]:
        """The workers that may see it; empty: any."""
        if isinstance(wanted, tuple):
            named = {w.name: w.id for w in self.engine.fleet.workers.values()}
            return frozenset(named.get(word, WorkerId(word)) for word in wanted)
        if wanted == "trusted" and self.engine.rules.proof.needed:
            proven = (w for w in self.engine.fleet.workers.values() if w.standing.proven_at is not None)
            own = (w for w in self.engine.fleet.workers.values() if w.account == member.account)
            return frozenset(w.id for w in (*proven, *own)) or NOBODY
        return frozenset()  # any; in a pool of friends every worker is trusted

    # -- workers -------------------------------------------------------------------------------------

    def expel(self, worker_id: WorkerId) -> None:
        """The worker was revoked: fence what it runs and close its stream."""
        self.engine.remove(worker_id, self.now())
        self.sessions.expel(worker_id, "this worker was revoked; ask the pool's admin")
        self.ticker.wake()

    def named_by(self, worker_id: WorkerId) -> frozenset[str]:
        """The artifacts that the work of its attempts names: those it may have beside the catalogue's."""
        worker = self.engine.fleet.workers.get(worker_id)
        works = [self.works.get(job_id) for job_id, _ in worker.running] if worker else []
        return frozenset().union(*(translate.digests(work) for work in works if work is not None))

    def deliver(self, job_id: JobId, pieces: Sequence[Piece]) -> None:
        """Output that the core has taken, to whoever waits for it."""
        if (transcript := self.transcripts.open.get(job_id)) is not None:
            outputs = transcript.read(pieces)
            self.relay.outputs(job_id, outputs)
            self.answers.outputs(job_id, outputs)
            return
        self.relay.pieces(job_id, pieces)
        self.answers.pieces(job_id, pieces)

    def begin_transcript(self, job: Job, prompt: work_pb2.RenderedPrompt) -> None:
        """An attempt has said how its model writes, before anything was delivered."""
        if (work := self.works.get(job.id)) is not None and work.HasField("chat"):
            names = callable_names(work)
            self.transcripts.begin(job, translate.form(prompt), names, self._count(job.model))

    def deliver_vectors(self, job_id: JobId, vectors: list[list[float]]) -> None:
        self.relay.vectors(job_id, vectors)
        self.answers.vectors(job_id, vectors)

    # -- the ticker's hands --------------------------------------------------------------------------

    def send(self, send: Send) -> None:
        self.outgoing.send(send)
        if not isinstance(send, SendAck):  # an attempt has begun or ended
            self.training_store.prune(self.engine.holds)

    def tell(self, job: Job) -> None:
        self.works.pop(job.id, None)
        self.door.crowd.leave(job.id)
        charge, ended_at, now = job.charge or 0, job.ended_at or self.now(), self.now()
        self.budgets.settle(job.id, tokens_of(job), charge, ended_at, now)
        self.relay.closed(job, self.transcripts.reasoning_tokens(job))
        self.transcripts.open.pop(job.id, None)
        for follow in self.followers:
            follow(job)
        self.job_ended.set()
        log.info(
            "job ended", action="job_ended", job=job.id, state=job.state.value, charge=job.charge, why=job.why
        )

    def storage_trouble(self, why: str) -> None:
        """Nothing can be committed: end what waits, with a reason. Its holds close when the disk is back."""
        for live in list(self.engine.lives.values()):
            if live.job.stored:
                continue
            job = replace(live.job, state=JobState.FAILED, code="storage_unavailable", why=why)
            self.engine.give_up(live.job.id, self.now(), why, "storage_unavailable")
            self.relay.closed(job)

    def live(self, job_id: str) -> Live | None:
        return self.engine.lives.get(JobId(job_id))

    # -- helpers ---------------------------------------------------------------------------------------

    @property
    def tariff(self) -> Tariff:
        return self.engine.rules.tariff

    def shape(self, model: str) -> Shape:
        entry = self.catalogue().get(model)
        assert entry is not None, f"{model} is not in the catalogue"
        shape = entry.shape
        return Shape(shape.active_parameters, shape.head_parameters, shape.attention)

    def _count(self, model: str) -> Callable[[str], int]:
        return partial(self.counter.count_text, model)


def _memory(entry: ModelEntry) -> int:
    """The least memory that any variant of the model needs."""
    return min((v.memory_bytes for v in entry.variants), default=0)
