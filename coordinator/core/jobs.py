"""A job's whole life, and an attempt's, in two tables.

Two rules. All that moves a job or an attempt between states stands in this file; and a pair of state and
event that the tables do not name raises `IllegalTransition` and changes nothing. The tables are total:
terminal states are listed with nothing in them. What is *decided* (retry or give up, whom to blame) is
policy and lives in `open_jobs`, so that the tables stay flat.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NewType

JobId = NewType("JobId", str)
WorkerId = NewType("WorkerId", str)
MemberId = NewType("MemberId", str)
AccountId = NewType("AccountId", str)

REFUSALS_KEPT = 12


class Kind(StrEnum):
    __hash__ = str.__hash__  # as quick as a text's: the planner looks kinds up ten thousand times a tick
    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    BATCH = "batch"  # a whole: no worker gets it, only its parts
    FINETUNE = "finetune"  # a whole, and each of its parts


WHOLES = frozenset({Kind.BATCH, Kind.FINETUNE})


class JobState(StrEnum):
    QUEUED = "queued"  # waits for a worker
    RUNNING = "running"  # an attempt holds it
    PAUSED = "paused"  # its member stopped it for a while
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # nobody could serve it in time


class JobEvent(StrEnum):
    ASSIGNED = "assigned"
    REQUEUED = "requeued"  # its attempt ended without an end of the job
    PAUSED = "paused"
    RESUMED = "resumed"
    SUCCEEDED = "succeeded"
    GAVE_UP = "gave_up"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


_J, _E = JobState, JobEvent
JOB_TRANSITIONS: dict[JobState, dict[JobEvent, JobState]] = {
    _J.QUEUED: {
        _E.ASSIGNED: _J.RUNNING,
        _E.PAUSED: _J.PAUSED,
        _E.GAVE_UP: _J.FAILED,
        _E.CANCELLED: _J.CANCELLED,
        _E.EXPIRED: _J.EXPIRED,
    },
    _J.RUNNING: {
        _E.REQUEUED: _J.QUEUED,
        _E.PAUSED: _J.PAUSED,
        _E.SUCCEEDED: _J.SUCCEEDED,
        _E.GAVE_UP: _J.FAILED,
        _E.CANCELLED: _J.CANCELLED,
        _E.EXPIRED: _J.EXPIRED,
    },
    _J.PAUSED: {_E.RESUMED: _J.QUEUED, _E.CANCELLED: _J.CANCELLED, _E.EXPIRED: _J.EXPIRED},
    _J.SUCCEEDED: {},
    _J.FAILED: {},
    _J.CANCELLED: {},
    _J.EXPIRED: {},
}
JOB_ENDED = frozenset(state for state, events in JOB_TRANSITIONS.items() if not events)


class AttemptState(StrEnum):
    ASSIGNED = "assigned"  # sent, not yet accepted
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REFUSED = "refused"  # the worker would not take it
    FAILED = "failed"  # the worker said that it could not
    LOST = "lost"  # silent for longer than its lease: fenced
    CANCELLED = "cancelled"  # the job ended or paused above it


class AttemptEvent(StrEnum):
    ACCEPTED = "accepted"
    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    FAILED = "failed"
    LOST = "lost"
    CANCELLED = "cancelled"


_A, _V = AttemptState, AttemptEvent
ATTEMPT_TRANSITIONS: dict[AttemptState, dict[AttemptEvent, AttemptState]] = {
    _A.ASSIGNED: {
        _V.ACCEPTED: _A.RUNNING,
        _V.SUCCEEDED: _A.SUCCEEDED,
        _V.REFUSED: _A.REFUSED,
        _V.FAILED: _A.FAILED,
        _V.LOST: _A.LOST,
        _V.CANCELLED: _A.CANCELLED,
    },
    _A.RUNNING: {
        _V.ACCEPTED: _A.RUNNING,  # said twice over a lossy line
        _V.SUCCEEDED: _A.SUCCEEDED,
        _V.FAILED: _A.FAILED,
        _V.LOST: _A.LOST,
        _V.CANCELLED: _A.CANCELLED,
    },
    _A.SUCCEEDED: {},
    _A.REFUSED: {},
    _A.FAILED: {},
    _A.LOST: {},
    _A.CANCELLED: {},
}
ATTEMPT_ENDED = frozenset(state for state, events in ATTEMPT_TRANSITIONS.items() if not events)


class IllegalTransition(Exception):  # noqa: N818 -- named for what happened, as the events are
    """The event cannot happen in this state: a bug in the caller, not in the world."""


@dataclass(frozen=True, slots=True)
class Loading:
    """How far a model is that a job waited for. `bytes_total` 0 and `eta_s` None: not known."""

    state: str  # downloading | loading
    bytes_done: int = 0
    bytes_total: int = 0
    eta_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One worker's try. `number` is the fence; times are seconds since the epoch."""

    number: int
    worker: WorkerId
    owner: AccountId  # who is paid for it
    assigned_at: float
    why: str = ""
    state: AttemptState = AttemptState.ASSIGNED
    ended_at: float | None = None
    tokens: int = 0  # output tokens delivered, by the coordinator's count
    paid: int = 0  # microcredits, known at the close
    held: bool = False  # what it was paid is held back: its worker was unproven


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the pool knows of one request without its text. Amounts are microcredits.

    `hold` is what was set aside (0 for a job that may only run on its member's own workers), `quote` the
    most it can cost. `only` limits it to certain workers; empty means any. `key` is the API key that asked,
    whose own limits count too. `attempts` are in the order of their numbers; of refused ones only the last
    few are kept here, the database has them all.

    A batch or a fine-tune is a whole, done in parts: jobs whose `whole` names it, each with its number `part`
    from 1. What a part is charged is settled out of the whole's hold, of which its own `hold` is a promise;
    `settled` of the whole is what its parts were charged so far, by so many `settlements`, and a
    batch's `output_tokens` are those of its parts that have ended.
    """

    id: JobId
    kind: Kind
    model: str
    member: MemberId
    account: AccountId
    created_at: float
    quote: int
    hold: int
    prompt_tokens: int
    max_tokens: int  # for each choice; 0 for an embedding
    choices: int = 1
    key: str = ""
    whole: JobId | None = None
    part: int = 0
    settled: int = 0
    settlements: int = 0
    stored: bool = False  # survives a restart of the coordinator; interactive answers do not
    own_only: bool = False  # may run on its member's own workers only
    only: frozenset[WorkerId] = frozenset()
    needs: frozenset[str] = frozenset()  # features that its worker must have; follows from the request
    expires_at: float | None = None
    state: JobState = JobState.QUEUED
    attempts: tuple[Attempt, ...] = ()
    charge: int | None = None  # known at the close
    output_tokens: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    why: str = ""  # of a job that ended without success
    code: str = ""  # a fixed word for the same
    # Not kept in the database:
    loading: Loading | None = None  # where the model was when it expired
    first_output_at: float | None = None  # known at the close

    @property
    def attempt(self) -> Attempt | None:
        """The newest attempt, ended or not."""
        return self.attempts[-1] if self.attempts else None

    @property
    def has_parts(self) -> bool:
        """Whose tokens are those of its parts: who adds up the tokens of jobs leaves it out."""
        return self.kind in WHOLES and self.whole is None

    @property
    def ended(self) -> bool:
        return self.state in JOB_ENDED


def part_id(whole: JobId, part: int) -> JobId:
    """Follows from its cause, so that a part is made once, whoever asks again."""
    return JobId(f"{whole}.{part}")


def move(job: Job, event: JobEvent, *, now: float, why: str = "", code: str = "") -> Job:
    """The job after the event; the only way a job changes state."""
    try:
        state = JOB_TRANSITIONS[job.state][event]
    except KeyError:
        raise IllegalTransition(f"job {job.id}: {event} while {job.state}") from None
    if state in JOB_ENDED:
        return replace(job, state=state, ended_at=now, why=why, code=code)
    if event is JobEvent.ASSIGNED and job.started_at is None:
        return replace(job, state=state, started_at=now)
    return replace(job, state=state)


def assign(job: Job, attempt: Attempt, *, now: float) -> Job:
    """`with_attempt` and `move` of a job that is given away, in one step: a tick does it for hundreds."""
    assert attempt.number == next_number(job), "attempts are numbered without gaps"
    if JobEvent.ASSIGNED not in JOB_TRANSITIONS[job.state]:
        raise IllegalTransition(f"job {job.id}: {JobEvent.ASSIGNED} while {job.state}")
    return replace(
        job,
        state=JOB_TRANSITIONS[job.state][JobEvent.ASSIGNED],
        attempts=(*_without_old_refusals(job.attempts), attempt),
        started_at=now if job.started_at is None else job.started_at,
    )


def move_attempt(attempt: Attempt, event: AttemptEvent, *, now: float, why: str | None = None) -> Attempt:
    """The attempt after the event; the only way an attempt changes state."""
    try:
        state = ATTEMPT_TRANSITIONS[attempt.state][event]
    except KeyError:
        raise IllegalTransition(f"attempt {attempt.number}: {event} while {attempt.state}") from None
    ended_at = now if state in ATTEMPT_ENDED else None
    return replace(attempt, state=state, ended_at=ended_at, why=attempt.why if why is None else why)


def next_number(job: Job) -> int:
    return job.attempts[-1].number + 1 if job.attempts else 1


def with_attempt(job: Job, attempt: Attempt) -> Job:
    """The job with its newest attempt replaced, or with a new one whose number is the next."""
    if job.attempts and attempt.number == job.attempts[-1].number:
        return replace(job, attempts=(*job.attempts[:-1], attempt))
    assert attempt.number == next_number(job), "attempts are numbered without gaps"
    return replace(job, attempts=(*_without_old_refusals(job.attempts), attempt))


def _without_old_refusals(attempts: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    """A refusal delivered nothing, and a job may meet many: the last REFUSALS_KEPT tell enough."""
    refused = [a.number for a in attempts if a.state is AttemptState.REFUSED]
    if len(refused) <= REFUSALS_KEPT:
        return attempts
    first = refused[-REFUSALS_KEPT]
    return tuple(a for a in attempts if a.state is not AttemptState.REFUSED or a.number >= first)
