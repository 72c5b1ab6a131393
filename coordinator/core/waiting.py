"""A queued job as the planner sees it, and which workers may take it at all."""

from dataclasses import dataclass

from coordinator.core.fleet import Served, Worker
from coordinator.core.jobs import AccountId, JobId, Kind, WorkerId

Narrow = tuple[frozenset[str], frozenset[WorkerId], AccountId | None]
FEATURES = {  # in words
    "tools": "tool calls",
    "json_schema": "structured output (JSON Schema)",
    "lora": "support for adapters (LoRA)",
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued job as the planner sees it."""

    id: JobId
    kind: Kind
    model: str
    account: AccountId
    context_tokens: int  # prompt and output together
    asker: str = ""  # the member's name
    own_only: bool = False
    only: frozenset[WorkerId] = frozenset()
    needs: frozenset[str] = frozenset()  # of Served.features
    refused_by: frozenset[WorkerId] = frozenset()
    numerics: str = ""  # of what was delivered already: an equal class goes on identically

    @property
    def narrow(self) -> Narrow | None:
        """What leaves it few workers; None if any will do."""
        if not (self.needs or self.only or self.own_only):
            return None
        return self.needs, self.only, self.account if self.own_only else None


def allowed(job: Waiting, worker: Worker, served: Served) -> str:
    """Empty, or why this worker may not take this job."""
    if job.only and worker.id not in job.only:
        return "the job names other workers"
    if worker.account != job.account:
        if job.own_only:
            return "the job may run on its member's own workers only"
        if not worker.guests.welcome(job.asker):
            return "its owner does not share it with you"
    if worker.id in job.refused_by:
        return "it could not do this job before"
    if served.context_tokens and job.context_tokens > served.context_tokens:
        return f"needs a context of {job.context_tokens} tokens, it has {served.context_tokens}"
    if job.needs and (lacking := served.lacks(job.needs)):
        return f"it has no {in_words(lacking)}"
    return ""


def in_words(lacking: list[str]) -> str:
    return " and no ".join(FEATURES.get(feature, feature) for feature in lacking)
