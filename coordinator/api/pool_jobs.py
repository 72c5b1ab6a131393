"""Pool routes about jobs: submit one whose answer is kept, list, show, cancel, fetch the answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import contract, prepare
from coordinator.api.answers import generation, work
from coordinator.api.auth import Caller
from coordinator.api.desk import Desk, idempotency_key
from coordinator.api.errors import ApiError, Json
from coordinator.api.finetune_bodies import job_body as finetune_body
from coordinator.api.pool_account import JobRequest
from coordinator.api.query import boolean, integer, only, word
from coordinator.api.routing import add, new_router
from coordinator.api.running import refused
from coordinator.api.shapes import batch_body, job_body, receipt_body
from coordinator.core.jobs import WHOLES, Job, JobId, JobState, Kind
from coordinator.records import Scope
from coordinator.refusal import Refusal
from coordinator.texts import DAY_S
from coordinator.views import queue, timing

LISTED_MAX = 100
ASKER = (Scope.INFERENCE, Scope.READ)  # who asks must see what came of it
LISTED = 20
PARTS_MAX = 10**9 - 1  # the largest number that a query may name


def jobs_router(desk: Desk) -> APIRouter:
    routes, router = Jobs(desk), new_router("Jobs")
    add(
        router,
        "POST",
        "/pool/v1/jobs",
        routes.create,
        answer=work.NewJob,
        body=JobRequest,
        status=202,
        repeatable=True,
        errors=(402, 404, 409),
    )
    add(
        router,
        "GET",
        "/pool/v1/jobs",
        routes.list,
        answer=contract.list_of(work.JobBody, has_more=contract.YES_NO),
        query=(
            contract.limit(LISTED, LISTED_MAX),
            contract.text("before", "The last job of the page before."),
            contract.choice("state", JobState, "Only those."),
            contract.choice("kind", Kind, "Only those."),
            contract.flag("all", "Everybody's; for admins."),
        ),
    )
    add(router, "GET", "/pool/v1/jobs/{job_id}", routes.show, answer=work.OneJob)
    add(
        router,
        "GET",
        "/pool/v1/jobs/{job_id}/parts",
        routes.parts,
        answer=contract.list_of(work.JobPart, has_more=contract.YES_NO),
        query=(
            contract.limit(LISTED, LISTED_MAX),
            contract.number("before", PARTS_MAX, "The last part of the page before."),
        ),
    )
    add(
        router,
        "GET",
        "/pool/v1/jobs/{job_id}/result",
        routes.result,
        answer=contract.one_of(
            generation.ChatCompletion, generation.TextCompletion, generation.EmbeddingList
        ),
        errors=(409,),
    )
    add(router, "POST", "/pool/v1/jobs/{job_id}/cancel", routes.cancel, answer=work.CancelledJob)
    return router


@dataclass(frozen=True, slots=True)
class WantedJobs:
    """Which jobs are listed. `before`: the last one of the page before."""

    state: JobState | None = None
    kind: Kind | None = None
    everybody: bool = False
    before: str | None = None


def wanted_of(request: Request) -> WantedJobs:
    """By the query. Raises ApiError 400."""
    state = word(request, "state", [state.value for state in JobState])
    kind = word(request, "kind", [kind.value for kind in Kind])
    return WantedJobs(
        None if state is None else JobState(state),
        None if kind is None else Kind(kind),
        boolean(request, "all"),
        request.query_params.get("before"),
    )


class Jobs:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, request: Request) -> Response:
        """Submit a job that runs without a waiting client: `{id, quote}`. Its request and answer are kept."""
        context = self._desk.context
        caller = await self._desk.auth.work(request)
        key = idempotency_key(request)
        wanted = await self._desk.read(request, JobRequest)
        refuse_unkept(wanted.request, within="request")
        submissions = await prepare.submissions_of(
            context, caller, Kind(wanted.kind), wanted.request, key=key
        )
        if len(submissions) > 1:
            message = "request.prompt: a stored job has one prompt; submit one job for each."
            raise ApiError(400, "unsupported_parameter", message, param="request.prompt")
        stored = replace(submissions[0], stored=True, idempotency_key=key)
        try:
            ticket = await context.pool.submit(stored)
        except Refusal as refusal:
            raise refused(refusal) from None
        await context.pool.ticker.committed()  # nobody waits for it: what was taken must outlive us
        where = {"x-potluck-job-id": ticket.job_id, "location": f"/pool/v1/jobs/{ticket.job_id}"}
        headers = {**where, **self._desk.rates(caller)}
        return Json({"id": ticket.job_id, "quote": ticket.quote}, 202, headers)

    async def list(self, request: Request) -> Response:
        """The caller's jobs, newest first: `?limit&before&state&kind`; `{data, has_more}`.

        Admins: `?all=true`.
        """
        caller = await self._desk.auth.look(request, *ASKER)
        only(request, ("limit", "before", "state", "kind", "all"))
        limit = integer(request, "limit", LISTED, LISTED_MAX)
        return Json(await self.page(caller, wanted_of(request), limit))

    async def page(self, caller: Caller, wanted: WantedJobs, limit: int) -> dict[str, Any]:
        """What `list` answers. Raises ApiError 400, 403."""
        refuse_everybody(caller, wanted)
        found = await self._desk.context.store.jobs(
            member=None if wanted.everybody else caller.member.id,
            state=wanted.state,
            kind=wanted.kind,
            limit=limit + 1,
            before=await self._before(caller, wanted.before),
        )
        names = await self._names(caller, found)
        data = [job_body(job, names[job.member]) for job in found[:limit]]
        return {"data": data, "has_more": len(found) > limit}

    async def parts(self, request: Request) -> Response:
        """The parts of a batch's or fine-tune's job, the last first: `?limit&before` (a number)."""
        caller = await self._desk.auth.look(request, *ASKER)
        whole = await self.find(caller, request.path_params["job_id"])
        only(request, ("limit", "before"))
        limit = integer(request, "limit", LISTED, LISTED_MAX)
        before = integer(request, "before", 0, PARTS_MAX) or None
        return Json(await self.page_of_parts(caller, whole, limit, before))

    async def page_of_parts(
        self, caller: Caller, whole: Job, limit: int, before: int | None = None
    ) -> dict[str, Any]:
        found = await self._desk.context.store.newest_parts(whole.id, limit=limit + 1, before=before)
        name = (await self._names(caller, [whole]))[whole.member]
        data = [{"part": part.part, **job_body(part, name)} for part in found[:limit]]
        return {"data": data, "has_more": len(found) > limit}

    async def show(self, request: Request) -> Response:
        """One job with its attempts and receipts: who tried, what each delivered, claimed and was paid.

        While it waits for a worker, `queue` says where it stands, when it may start, and why it waits.
        `timing` says for how long it waited, read and wrote, in seconds. Of a batch, `batch` is what
        /v1/batches says, of a fine-tune `finetune` what /v1/fine_tuning/jobs does.
        """
        caller = await self._desk.auth.look(request, *ASKER)
        return Json(await self.body(caller, await self.find(caller, request.path_params["job_id"])))

    async def body(self, caller: Caller, job: Job) -> dict[str, Any]:
        """What `show` answers."""
        context = self._desk.context
        body = job_body(job, (await self._names(caller, [job]))[job.member])
        body["timing"] = timing(context.pool, job)
        if (live := context.pool.live(job.id)) is not None:
            body |= queue(context.pool, live)
            body["output_tokens"] = live.output.so_far
        if job.kind is Kind.BATCH and (batch := await context.store.batch_of(job.id)) is not None:
            body["batch"] = batch_body(context.batches.now(batch))
        if job.kind is Kind.FINETUNE and (finetune := await context.store.finetune_of(job.id)) is not None:
            finetune = context.finetunes.now(finetune)
            progress = context.finetunes.progress(finetune)
            body["finetune"] = finetune_body(finetune, progress, context.settings.pool_name)
        receipts = await context.store.receipts_of(job.id)
        return body | {"receipts": [receipt_body(receipt) for receipt in receipts]}

    async def result(self, request: Request) -> Response:
        """The answer of a stored job, as the OpenAI route would have given it.

        Of a cancelled one it is what had come until then, since that was paid: `usage.potluck.state` says so.
        """
        caller = await self._desk.auth.look(request, *ASKER)
        job = await self.find(caller, request.path_params["job_id"])
        if job.kind in WHOLES:
            where = "batch.output_file_id" if job.kind is Kind.BATCH else "finetune.result_files"
            message = f"What {job.id} left is in files: `{where}` of the job names them."
            raise ApiError(409, "result_is_a_file", message, retry=False)
        if not job.stored:
            message = f"{job.id} was interactive: its answer went to whoever asked and is kept nowhere."
            raise ApiError(404, "result_not_kept", message)
        if not job.ended:
            message = f"{job.id} is {job.state.value}; ask again when it has ended."
            raise ApiError(409, "job_not_finished", message, retry=False)
        context = self._desk.context
        result, days = await context.store.result(job.id), context.settings.file_days
        if result is None and job.ended_at is not None and job.ended_at <= context.clock.now() - days * DAY_S:
            message = f"{job.id} ended long ago: its answer was kept for {days} days, and is gone."
            raise ApiError(404, "result_not_kept", message)
        if job.state not in (JobState.SUCCEEDED, JobState.CANCELLED) or result is None:
            why = job.why or "it left no answer"
            raise ApiError(
                409, job.code or "job_failed", f"{job.id} has {job.state.value}: {why}.", retry=False
            )
        return Response(result, media_type="application/json")

    async def cancel(self, request: Request) -> Response:
        """End the job: `{id, state, cancelled}`. What was delivered until then is charged."""
        caller = await self._desk.auth.look(request, Scope.INFERENCE)
        job = await self.find(caller, request.path_params["job_id"])
        pool = self._desk.context.pool
        if cancelled := pool.cancel(job.id, f"{caller.member.name} cancelled it"):
            await pool.ticker.committed()
        state = JobState.CANCELLED if cancelled else job.state
        return Json({"id": job.id, "state": state.value, "cancelled": cancelled})

    async def _before(self, caller: Caller, text: str | None) -> JobId | None:
        """Where the page begins: a job that the caller may see, or an empty page would look like the end."""
        if text is None:
            return None
        job = await self._desk.context.store.job(JobId(text[:64]))
        if job is None or (job.member != caller.member.id and not caller.admin):
            raise ApiError(400, "invalid_value", f"before: you have no job {text[:64]}.", param="before")
        return job.id

    async def find(self, caller: Caller, job_id: str) -> Job:
        """Others' jobs look as if they were not there. Raises ApiError 404."""
        asked = JobId(job_id[:64])
        pool = self._desk.context.pool
        open_job = pool.live(asked) or pool.engine.wholes.get(asked)  # newer than the books
        job = open_job.job if open_job is not None else await self._desk.context.store.job(asked)
        if job is None or (job.member != caller.member.id and not caller.admin):
            raise ApiError(404, "job_not_found", f"You have no job {asked}.")
        return job

    async def _names(self, caller: Caller, found: Sequence[Job]) -> dict[Any, str]:
        if all(job.member == caller.member.id for job in found):
            return {caller.member.id: caller.member.name}
        return {member.id: member.name for member in await self._desk.context.store.members()}


def refuse_everybody(caller: Caller, wanted: WantedJobs) -> None:
    """Raises ApiError 403 for a member who wants to see others' jobs."""
    if wanted.everybody and not caller.admin:
        raise ApiError(403, "admin_needed", "Only an admin may list everybody's jobs.", param="all")


def refuse_unkept(wanted: dict[str, Any], *, within: str) -> None:
    """What the kept answer of a stored job cannot show is refused by name."""
    asked = {
        "stream": bool(wanted.get("stream")),
        "logprobs": wanted.get("logprobs") not in (None, False),
        "echo": bool(wanted.get("echo")),
        "encoding_format": wanted.get("encoding_format") == "base64",
    }
    for name, unsupported in asked.items():
        if unsupported:
            message = f"{within}.{name}: a stored job does not support it; ask the interactive route instead."
            raise ApiError(400, "unsupported_parameter", message, param=f"{within}.{name}")
