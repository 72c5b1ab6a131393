"""The jobs behind one request, from submission to their end, whatever the client does meanwhile.

Usually it is one job; several prompts in one completion request are several. Each takes a place among the
concurrent jobs of its member and of its key. A client that goes away cancels them, and pays for what was
produced until then.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

from starlette.types import Receive

from coordinator.api.auth import Caller
from coordinator.api.context import Context
from coordinator.api.errors import ApiError
from coordinator.api.limits import Gauge
from coordinator.api.usage import Usage
from coordinator.bounds import owner_of, too_many_jobs
from coordinator.core.budgets import Limit
from coordinator.core.jobs import JobState, Loading
from coordinator.refusal import Refusal
from coordinator.relay import Closed, JobEvent
from coordinator.submission import Submission, Ticket

GONE = "the client went away"

# What a job ended with, as a status. Anything else is a 500: the pool's fault, not the member's.
STATUS_BY_CODE = {
    "context_length_exceeded": 400,
    "context_too_long": 400,
    "invalid_request": 400,
    "no_worker_could_serve": 400,
    "unsupported": 400,
    "no_worker_available": 503,
    "model_loading": 503,
    "shutting_down": 503,
    "storage_unavailable": 503,
}
RETRY_AFTER_S = 5.0
CONCURRENCY_RETRY_AFTER_S = 1.0
HEEDED_S_MAX = 60.0


def refused(refusal: Refusal) -> ApiError:
    return ApiError(
        refusal.status,
        refusal.code,
        refusal.message,
        param=refusal.param,
        kind=refusal.type,
        retry_after_s=refusal.retry_after_s,
        # What is in conflict stays so, and a limit without a time to come back at never has the room.
        retry=False if refusal.status == 409 or _never_fits(refusal) or _far_off(refusal) else None,
        extra=refusal.extra,
    )


def _never_fits(refusal: Refusal) -> bool:
    return refusal.status == 429 and refusal.retry_after_s is None


def _far_off(refusal: Refusal) -> bool:
    """OpenAI's clients do not wait that long: they would come back at once, and again."""
    return refusal.retry_after_s is not None and refusal.retry_after_s > HEEDED_S_MAX


def failed(closed: Closed, job_id: str) -> ApiError:
    """A job that ended without success. What was delivered is charged: nothing tries it again by itself."""
    extra: dict[str, Any] = {"potluck": {"charge": closed.charge, "job_id": job_id}}
    if closed.loading is not None:
        extra["loading"] = _loading(closed.loading)
    why = closed.why or "no reason was given"
    if closed.state is JobState.CANCELLED:
        return ApiError(400, "job_cancelled", f"The job was cancelled: {why}.", retry=False, extra=extra)
    code = closed.code or "job_failed"
    status = 503 if closed.state is JobState.EXPIRED else STATUS_BY_CODE.get(code, 500)
    if status == 503:
        message = f"{why[:1].upper()}{why[1:].rstrip('.')}."
        return ApiError(status, code, message, retry_after_s=RETRY_AFTER_S, extra=extra)
    return ApiError(status, code, f"The job could not be done: {why}.", retry=False, extra=extra)


def _loading(loading: Loading) -> dict[str, Any]:
    """How far the model is; `eta_s` only where it is known."""
    said = {
        "state": loading.state,
        "bytes_done": loading.bytes_done,
        "bytes_total": loading.bytes_total,
    }
    return said if loading.eta_s is None else {**said, "eta_s": round(loading.eta_s, 1)}


class Running:
    """Jobs that were submitted together, as a context: leaving it ends them."""

    def __init__(self, context: Context, gauge: Gauge, caller: Caller, received_at: float) -> None:
        self._context, self._gauge, self._caller = context, gauge, caller
        self.rates: dict[str, str] = {}  # headers that say how much of the limits is left
        self._received_at = received_at
        self._submitted_at = received_at
        self._tickets: list[Ticket] = []
        self._closed: dict[int, Closed] = {}
        self._places = 0
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls,
        context: Context,
        gauge: Gauge,
        caller: Caller,
        submissions: Sequence[Submission],
        received_at: float,
    ) -> Self:
        """Submit all, or none: a refusal cancels those before it. Raises ApiError."""
        running = cls(context, gauge, caller, received_at)
        running._take(len(submissions))
        try:
            for submission in submissions:
                running._tickets.append(await context.pool.submit(submission))
        except Refusal as refusal:
            running._end("another prompt of the same request was refused")
            raise refused(refusal) from None
        except BaseException:
            running._end(GONE)
            raise
        running._submitted_at = context.clock.now()
        return running

    def _take(self, wanted: int) -> None:
        """A place for each job, of everybody whose limit counts, or none. Raises ApiError."""
        for bound in self._caller.bounds:
            allowed = bound.limits.concurrent_jobs
            if allowed is not None and not self._gauge.fits(bound.subject, allowed, wanted):
                owner = owner_of(bound, Limit.CONCURRENT, self._caller.member, self._caller.key)
                message = too_many_jobs(owner, allowed, self._gauge.open(bound.subject), wanted)
                code, after_s = "too_many_concurrent_jobs", CONCURRENCY_RETRY_AFTER_S
                raise ApiError(429, code, message, retry_after_s=after_s)
        for bound in self._caller.bounds:
            self._gauge.take(bound.subject, wanted)
        self._places = wanted

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        self._end(GONE)

    def _end(self, why: str) -> None:
        """A replay shows another request's job, which lives on with that one."""
        for index, ticket in enumerate(self._tickets):
            if index not in self._closed and not ticket.replayed:
                self._context.pool.cancel(ticket.job_id, why)
        if self._places:
            for bound in self._caller.bounds:
                self._gauge.give(bound.subject, self._places)
            self._places = 0

    def watch(self, receive: Receive) -> None:
        """Cancel when the client goes away. The jobs' own last events then end whoever reads them."""

        async def wait() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            for ticket in self._tickets:
                if not ticket.replayed:
                    self._context.pool.cancel(ticket.job_id, GONE)

        self._tasks.append(asyncio.create_task(wait()))

    @property
    def job_ids(self) -> tuple[str, ...]:
        return tuple(ticket.job_id for ticket in self._tickets)

    @property
    def headers(self) -> dict[str, str]:
        """What is known before the first byte; `overhead_ms` is added when it is sent."""
        headers = {"x-potluck-job-id": self._tickets[0].job_id, **self.rates}
        if self._tickets[0].replayed:
            headers["x-potluck-replayed"] = "true"
        return headers

    def overhead_ms(self, heard_at: float) -> str:
        """Time spent in the coordinator before the first byte, without waiting for a worker, in milliseconds.

        It is the time from the arrival of the request's head to the end of its submission (authentication,
        the body, token counting, the quote), plus the time from `heard_at`, when the event that
        the answer begins with reached the API, until now.
        """
        now = self._context.clock.now()
        return f"{(self._submitted_at - self._received_at + now - heard_at) * 1_000:.2f}"

    @property
    def usage(self) -> Usage:
        """Sums over the jobs; complete once all have closed."""
        closed = self._closed.values()
        reasoned = [c.reasoning_tokens for c in closed if c.reasoning_tokens is not None]
        return Usage(
            prompt_tokens=sum(c.prompt_tokens for c in closed),
            output_tokens=sum(c.output_tokens for c in closed),
            charge=sum(c.charge for c in closed),
            job_ids=self.job_ids,
            reasoning_tokens=sum(reasoned) if reasoned else None,
        )

    async def events(self) -> AsyncIterator[tuple[int, JobEvent]]:
        """(index of the job, event) until all have closed. Raises ApiError when one ends without success."""
        source = _alone(self._tickets[0]) if len(self._tickets) == 1 else self._together()
        async for index, event in source:
            if isinstance(event, Closed):
                self._closed[index] = event
                if event.state is not JobState.SUCCEEDED:
                    raise failed(event, self._tickets[index].job_id)
                if len(self._closed) == len(self._tickets):
                    return
            else:
                yield index, event

    async def _together(self) -> AsyncIterator[tuple[int, JobEvent]]:
        """Events of several jobs as they come; each waits until its own is taken: nothing piles up here."""
        queue: asyncio.Queue[tuple[int, JobEvent] | Exception] = asyncio.Queue(maxsize=len(self._tickets))

        async def forward(index: int, ticket: Ticket) -> None:
            try:
                async for event in ticket.events:
                    await queue.put((index, event))
            except Exception as error:  # raised again where the events are read
                await queue.put(error)

        for index, ticket in enumerate(self._tickets):
            self._tasks.append(asyncio.create_task(forward(index, ticket)))
        while True:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            yield item


async def _alone(ticket: Ticket) -> AsyncIterator[tuple[int, JobEvent]]:
    async for event in ticket.events:
        yield 0, event
