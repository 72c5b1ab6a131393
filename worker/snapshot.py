"""What the daemon's parts look like in the state file."""

from typing import Final

from potluck.v1 import session_pb2
from worker.attempt import RunningAttempt
from worker.state import ModelNow, RunningFor
from worker.supervisor import ModelService

WITHDRAWN: Final = "withdrawn"


def attempt_now(running: RunningAttempt) -> RunningFor:
    return RunningFor(
        job_id=running.id.job_id,
        attempt=running.id.number,
        model=running.assigned.model,
        member=running.assigned.member,
        tokens=running.tokens,
        since=running.started_at,
    )


def model_now(service: ModelService, in_pool: frozenset[str] | None) -> ModelNow:
    """`in_pool`: the names of the pool's models, None before it said so. A model that left the catalogue
    stays in memory, since it may come back, but nobody can ask for it.
    """
    withdrawn = in_pool is not None and service.choice.entry.name not in in_pool
    state = session_pb2.ModelState.Name(service.state).removeprefix("MODEL_STATE_").lower()
    return ModelNow(
        name=service.choice.entry.name,
        engine=service.choice.engine,
        state=WITHDRAWN if withdrawn else state,
        why="the pool's catalogue does not have it any more" if withdrawn else service.why,
        bytes_done=service.bytes_done,
        bytes_total=service.bytes_total,
        memory_bytes=0 if service.host is None else service.host.memory_bytes(),
    )
