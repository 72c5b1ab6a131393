"""What the daemon's parts look like in the state file."""

from potluck.v1 import session_pb2
from worker.attempt import RunningAttempt
from worker.state import ModelNow, RunningFor
from worker.supervisor import ModelService


def attempt_now(running: RunningAttempt) -> RunningFor:
    return RunningFor(
        job_id=running.id.job_id,
        attempt=running.id.number,
        model=running.assigned.model,
        member=running.assigned.member,
        tokens=running.tokens,
        since=running.started_at,
    )


def model_now(service: ModelService) -> ModelNow:
    return ModelNow(
        name=service.choice.entry.name,
        engine=service.choice.engine,
        state=session_pb2.ModelState.Name(service.state).removeprefix("MODEL_STATE_").lower(),
        why=service.why,
        bytes_done=service.bytes_done,
        bytes_total=service.bytes_total,
        memory_bytes=0 if service.host is None else service.host.memory_bytes(),
    )
