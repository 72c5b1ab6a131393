"""The caller's jobs, live; and one job: who tried it, how long it took, what it cost, what was signed."""

from collections.abc import Hashable
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.auth import Caller
from coordinator.api.errors import ApiError
from coordinator.api.pool_jobs import WantedJobs, refuse_everybody, wanted_of
from coordinator.core.jobs import JobId, JobState, Kind
from coordinator.dashboard.asking import ask
from coordinator.dashboard.batches import BatchPages, add_batches
from coordinator.dashboard.finetunes import FinetunePages, add_finetunes
from coordinator.dashboard.form import without_blanks
from coordinator.dashboard.live import Fragment
from coordinator.dashboard.page import Site
from coordinator.dashboard.parts import Parts
from coordinator.dashboard.submitting import add_submitting
from coordinator.dashboard.wholes import add_wholes
from coordinator.records import Scope
from coordinator.views import queue

LISTED: Final = 25
LIST_S: Final = 2.0
RECEIPTS_S: Final = 10  # after its end in which a job's receipts may still come


def add_jobs(site: Site, router: APIRouter) -> None:
    add_wholes(site, router)
    add_submitting(site, router)
    pages = JobPages(site, add_finetunes(site, router), add_batches(site, router))
    site.live.add(Fragment("jobs", pages.version_of_list, pages.show_list, every_s=LIST_S))
    site.live.add(Fragment("job", pages.version, pages.show))
    site.add(router, "GET", "/jobs", pages.list)
    site.add(router, "GET", "/jobs/{job_id}", pages.page)
    site.add(router, "POST", "/jobs/{job_id}/cancel", pages.cancel, scopes=(Scope.INFERENCE,))


class JobPages:
    def __init__(self, site: Site, finetunes: FinetunePages, batches: BatchPages) -> None:
        self._site, self._context = site, site.desk.context
        self._finetunes, self._batches, self._parts = finetunes, batches, Parts(site)
        self._jobs = self._parts.jobs

    # -- all of them

    async def list(self, request: Request, caller: Caller) -> Response:
        """The newest are kept fresh; an older page is what it is."""
        if (tidied := without_blanks(request)) is not None:
            return tidied
        wanted = wanted_of(request)
        refuse_everybody(caller, wanted)
        older = "" if wanted.before is None else await self._list(caller, wanted)
        return await self._site.page(
            request,
            caller,
            "jobs.html",
            see=() if older else ("wholes", f"jobs:{_written(wanted)}"),
            older=older,
            wanted=wanted,
            states=[state.value for state in JobState],
            kinds=[kind.value for kind in Kind],
        )

    def version_of_list(self, caller: Caller, argument: str) -> Hashable:
        return self._context.changes.version(None if _read(caller, argument).everybody else caller.member.id)

    async def show_list(self, caller: Caller, argument: str) -> str:
        return await self._list(caller, _read(caller, argument))

    async def _list(self, caller: Caller, wanted: WantedJobs) -> str:
        pool = self._context.pool
        found = await self._jobs.page(caller, wanted, LISTED)
        for job in found["data"]:
            live = pool.live(job["id"])
            job["place"] = {} if live is None else queue(pool, live).get("queue", {})
        asked = {
            "state": wanted.state.value if wanted.state else "",
            "kind": wanted.kind.value if wanted.kind else "",
            "all": "true" if wanted.everybody else "",
        }
        return self._site.text(
            "fragments/jobs.html",
            jobs=found["data"],
            more=found["has_more"],
            asked={name: value for name, value in asked.items() if value},
            everybody=wanted.everybody,
        )

    # -- one of them

    async def page(self, request: Request, caller: Caller) -> Response:
        """A fine-tune and a batch are found by their own ids, too, and before they have a job."""
        asked = request.path_params["job_id"]
        if asked.startswith("ftjob-"):
            return await self._finetunes.page(request, caller, asked)
        if asked.startswith("batch_"):
            return await self._batches.page(request, caller, asked)
        store = self._context.store
        if (finetune := await store.finetune_of(JobId(asked))) is not None:
            return await self._finetunes.page(request, caller, finetune.id)
        if (batch := await store.batch_of(JobId(asked))) is not None:
            return await self._batches.page(request, caller, batch.id)
        job = await self._jobs.find(caller, asked)
        return await self._site.page(request, caller, "job.html", see=(f"job:{job.id}",), job=job)

    def version(self, caller: Caller, argument: str) -> Hashable:
        """Nothing of others' jobs."""
        job_id, engine, now = JobId(argument), self._context.pool.engine, self._context.pool.now()
        if (live := self._context.pool.live(job_id)) is not None:
            job, attempt = live.job, live.job.attempt
            waits = int(now / LIST_S) if job.state is JobState.QUEUED else 0
            state = "" if attempt is None else attempt.state
            known: tuple[Any, ...] = (
                job.state,
                len(job.attempts),
                state,
                live.output.so_far,
                live.stage,
                waits,
            )
        elif (whole := engine.wholes.get(job_id)) is not None:
            job, known = whole.job, (whole.job.state, whole.job.settlements)
        elif (recent := engine.recent.get(job_id)) is not None:
            job, known = recent, (min(RECEIPTS_S, int(now - (recent.ended_at or now))),)
        else:
            return None
        return known if job.member == caller.member.id or caller.admin else None

    async def show(self, caller: Caller, job_id: str) -> str:
        try:
            job = await self._jobs.find(caller, job_id)
        except ApiError:
            return ""
        body = await self._jobs.body(caller, job)
        return self._site.text(
            "fragments/job.html",
            job=body,
            workers=self._parts.workers(attempt.worker for attempt in job.attempts),
            **await self._parts.ledger(caller, job),
        )

    async def cancel(self, request: Request, _caller: Caller) -> Response:
        answer = await ask(self._jobs.cancel, request)
        if answer["cancelled"]:
            said = {"good": f"{answer['id']} was cancelled. What had come until then is charged."}
        else:
            said = {"bad": f"{answer['id']} had ended already."}
        return self._site.html("notice.html", said)


def _written(wanted: WantedJobs) -> str:
    """STATE.KIND.WHO, as a fragment's argument."""
    state = wanted.state.value if wanted.state else ""
    kind = wanted.kind.value if wanted.kind else ""
    return f"{state}.{kind}.{'all' if wanted.everybody else 'mine'}"


def _read(caller: Caller, argument: str) -> WantedJobs:
    """What is not understood asks for nothing."""
    words = [*argument.split("."), "", ""]
    state = next((state for state in JobState if state == words[0]), None)
    kind = next((kind for kind in Kind if kind == words[1]), None)
    return WantedJobs(state, kind, words[2] == "all" and caller.admin)
