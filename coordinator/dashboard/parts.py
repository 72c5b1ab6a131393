"""The parts of a batch or a fine-tune, and what its job moved: what both pages show below."""

from dataclasses import dataclass, field
from typing import Any, Final

from coordinator.api.auth import Caller
from coordinator.api.errors import ApiError
from coordinator.api.pool_jobs import Jobs
from coordinator.api.pool_statement import line_body
from coordinator.core.jobs import Job
from coordinator.dashboard.page import Site
from coordinator.movements import Wanted

SHOWN: Final = 20
LINES: Final = 25  # of the ledger


@dataclass(slots=True)
class Parts:
    site: Site
    jobs: Jobs = field(init=False)

    def __post_init__(self) -> None:
        self.jobs = Jobs(self.site.desk)

    async def of(self, caller: Caller, job_id: str) -> dict[str, Any]:
        """For the templates; nothing of a job that never was, since it was refused before."""
        empty: dict[str, Any] = {"job_id": job_id, "parts": [], "more_parts": False, "workers": {}}
        try:
            whole = await self.jobs.find(caller, job_id)
        except ApiError:
            return empty | {"lines": [], "more_lines": False, "own": True}
        page = await self.jobs.page_of_parts(caller, whole, SHOWN)
        return {
            "job_id": job_id,
            "parts": page["data"],
            "more_parts": page["has_more"],
            "workers": self.workers(try_["worker"] for part in page["data"] for try_ in part["attempts"]),
            **await self.ledger(caller, whole),
        }

    async def ledger(self, caller: Caller, job: Job) -> dict[str, Any]:
        """What moved in its member's account because of it."""
        moved = Wanted(job=job.whole or job.id, holds=True)
        page = await self.site.desk.context.store.movements(job.account, moved, limit=LINES)
        lines = [line_body(movement, job.account, page.known) for movement in page.movements]
        return {"lines": lines, "more_lines": page.has_more, "own": job.member == caller.member.id}

    def workers(self, ids: Any) -> dict[str, str]:
        """Their names, as far as they are still here."""
        fleet = self.site.desk.context.pool.engine.fleet
        known = {worker: fleet.workers.get(worker) or fleet.departed.get(worker) for worker in ids}
        return {worker: found.name for worker, found in known.items() if found is not None}
