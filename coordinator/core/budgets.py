"""What may still be used: tokens of the last minute, credits of this UTC day and of this UTC month.

The worst case is reserved before a job begins and settled to what it really was at its end. Who checks and
reserves without waiting in between can never exceed a limit, in whatever order jobs begin and end: at every
moment what was spent in a period plus what open jobs hold is within its limit. A charge belongs to the period
in which its job ended, and an open job counts in every period, so that the books alone tell the same.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from coordinator.core.jobs import Job, JobId, JobState

DAY_S = 86_400
MINUTE_S = 60.0
_MONTHS_TO_1970 = 12 * 1970
_DAYS_BEFORE = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)


class Limit(StrEnum):
    """The fields of `Limits`, as refusals and answers name them."""

    REQUESTS = "requests_per_minute"
    TOKENS = "tokens_per_minute"
    CONCURRENT = "concurrent_jobs"
    DAY = "credits_per_day"
    MONTH = "credits_per_month"


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit. Credits are microcredits."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_jobs: int | None = None
    credits_per_day: int | None = None
    credits_per_month: int | None = None

    def of(self, limit: Limit) -> int | None:
        value: int | None = getattr(self, limit.value)
        return value

    def within(self, outer: "Limits") -> "Limits":
        """Each at most what `outer` allows."""
        return Limits(*(_least(self.of(limit), outer.of(limit)) for limit in Limit))

    def __bool__(self) -> bool:
        return any(self.of(limit) is not None for limit in Limit)


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Bound:
    """Limits, and under which name what they limit is counted: the id of a member or of a key."""

    subject: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Exceeded:
    """What does not fit. `renews_at`: when it will, if others' use is what is in the way; else None."""

    bound: Bound
    limit: Limit
    allowed: int
    used: int  # with what open jobs hold
    wanted: int
    renews_at: float | None


@dataclass(frozen=True, slots=True)
class Spent:
    """Microcredits of ended jobs since the day and the month began, and what open ones hold."""

    day: int = 0
    month: int = 0
    held: int = 0


@dataclass(slots=True)
class _Taken:
    """Tokens of one job, counted at the moment of its submission."""

    at: float
    tokens: int


@dataclass(slots=True)
class _Reservation:
    subjects: tuple[str, ...]
    credits: int
    taken: _Taken


@dataclass(slots=True)
class _Meter:
    """What one subject used in the periods that run now."""

    spent_day: int = 0
    spent_month: int = 0
    held: int = 0
    tokens: int = 0
    taken: deque[_Taken] = field(default_factory=deque)

    def expire(self, now: float) -> None:
        """A minute later tokens count no more."""
        while self.taken and self.taken[0].at <= now - MINUTE_S:
            self.tokens -= self.taken.popleft().tokens

    def fits_at(self, tokens: int, allowed: int) -> float | None:
        """When so many tokens fit, if nobody takes any until then; None: never."""
        used = self.tokens
        for taken in self.taken:
            used -= taken.tokens
            if used + tokens <= allowed:
                return taken.at + MINUTE_S
        return None

    @property
    def idle(self) -> bool:
        return not (self.held or self.taken or self.spent_month)


@dataclass(slots=True)
class Budgets:
    """The meters of all members and keys. Nothing here waits: `refuse` and then `reserve` are one step."""

    meters: dict[str, _Meter] = field(default_factory=dict)
    reserved: dict[JobId, _Reservation] = field(default_factory=dict)
    _day: int = 0
    _month: int = 0
    _day_ends: float = 0.0

    def load(self, subject: str, spent: Spent, now: float) -> None:
        """What the books say was spent before this process began; open jobs are reserved one by one."""
        meter = self._meter(subject, now)
        meter.spent_day += spent.day
        meter.spent_month += spent.month

    def refuse_tokens(self, bounds: Iterable[Bound], tokens: int, now: float) -> Exceeded | None:
        """The first limit that so many tokens would exceed."""
        for bound in bounds:
            allowed = bound.limits.tokens_per_minute
            meter = self._meter(bound.subject, now)
            if allowed is not None and meter.tokens + tokens > allowed:
                fits_at = meter.fits_at(tokens, allowed)
                return Exceeded(bound, Limit.TOKENS, allowed, meter.tokens, tokens, fits_at)
        return None

    def refuse_credits(self, bounds: Iterable[Bound], amount: int, now: float) -> Exceeded | None:
        """The first limit that so many microcredits would exceed; nothing exceeds by 0."""
        for bound in bounds if amount else ():
            spent = self.spent(bound.subject, now)
            for limit, used in ((Limit.DAY, spent.day), (Limit.MONTH, spent.month)):
                allowed = bound.limits.of(limit)
                if allowed is not None and used + spent.held + amount > allowed:
                    renews_at = period_ends(limit, now)
                    return Exceeded(bound, limit, allowed, used + spent.held, amount, renews_at)
        return None

    def reserve(self, job: JobId, subjects: Sequence[str], tokens: int, amount: int, now: float) -> None:
        """Count the worst case of a job under each of these names, until `settle`."""
        assert job not in self.reserved, f"{job} is reserved already"
        taken = _Taken(now, tokens)
        self.reserved[job] = _Reservation(tuple(subjects), amount, taken)
        for subject in subjects:
            meter = self._meter(subject, now)
            meter.held += amount
            if tokens:
                meter.tokens += tokens
                meter.taken.append(taken)

    def settle(self, job: JobId, tokens: int, amount: int, ended_at: float, now: float) -> None:
        """The job ended: what it really took stays counted, the rest is free. Twice is as once."""
        reservation = self.reserved.pop(job, None)
        if reservation is None:
            return
        taken = reservation.taken
        assert 0 <= amount <= reservation.credits, f"{job} cost more than was reserved"
        counted = min(tokens, taken.tokens)
        for subject in reservation.subjects:
            meter = self._meter(subject, now)
            meter.held -= reservation.credits
            meter.spent_day += amount if day_of(ended_at) == self._day else 0
            meter.spent_month += amount if month_of(ended_at) == self._month else 0
            if taken.at > now - MINUTE_S:  # else it is counted no more
                meter.tokens -= taken.tokens - counted
        taken.tokens = counted

    def spent(self, subject: str, now: float) -> Spent:
        meter = self._meter(subject, now)
        return Spent(meter.spent_day, meter.spent_month, meter.held)

    def tokens(self, subject: str, now: float) -> tuple[int, float]:
        """Tokens counted in the last minute, and when none will be, if nothing is asked until then."""
        meter = self._meter(subject, now)
        return meter.tokens, meter.taken[-1].at + MINUTE_S if meter.taken else now

    def _meter(self, subject: str, now: float) -> _Meter:
        if now >= self._day_ends:
            self._turn(now)
        meter = self.meters.get(subject)
        if meter is None:
            meter = self.meters[subject] = _Meter()
        meter.expire(now)
        return meter

    def _turn(self, now: float) -> None:
        """Another day, perhaps another month: what was spent before counts no more."""
        day, month = day_of(now), month_of(now)
        for meter in self.meters.values():
            meter.expire(now)
            meter.spent_day = 0
            if month != self._month:
                meter.spent_month = 0
        self.meters = {name: meter for name, meter in self.meters.items() if not meter.idle}
        self._day, self._month, self._day_ends = day, month, period_ends(Limit.DAY, now)


def tokens_of(job: Job) -> int:
    """What an ended job counts for: nothing where it is the pool's failure, or nothing came of it."""
    if job.state is JobState.SUCCEEDED or (job.state is JobState.CANCELLED and job.output_tokens):
        return job.prompt_tokens + job.output_tokens
    return 0


def day_of(at: float) -> int:
    """Whole days since 1970; `at` is seconds since the epoch, which counts no leap seconds."""
    return int(at // DAY_S)


def month_of(at: float) -> int:
    """Whole months since the year 0 of the Gregorian calendar."""
    day = day_of(at)
    month = _MONTHS_TO_1970 + day * 4_800 // 146_097  # 400 years have so many months and days: nearly right
    while _first_day(month) > day:
        month -= 1
    while _first_day(month + 1) <= day:
        month += 1
    return month


def period_begins(limit: Limit, now: float) -> float:
    """When the day or the month began in UTC."""
    return float((day_of(now) if limit is Limit.DAY else _first_day(month_of(now))) * DAY_S)


def period_ends(limit: Limit, now: float) -> float:
    """When the next day or month begins in UTC: the budget is new from then on."""
    return float((day_of(now) + 1 if limit is Limit.DAY else _first_day(month_of(now) + 1)) * DAY_S)


def _first_day(month: int) -> int:
    """Days from 1970 to the first of the month."""
    year, index = divmod(month, 12)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 365 * (year - 1970) + _leaps(year) - _leaps(1970) + _DAYS_BEFORE[index] + (leap and index >= 2)


def _leaps(year: int) -> int:
    """Leap years before this one."""
    return (year - 1) // 4 - (year - 1) // 100 + (year - 1) // 400


def _least(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
