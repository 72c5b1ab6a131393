"""What the daemon's parts look like in the state file."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from potluck.v1 import session_pb2
from worker.attempt import RunningAttempt
from worker.policy import Card
from worker.served import served_model
from worker.service import ModelService
from worker.state import CardNow, ModelNow, RunningFor

RATE_S: Final = 5.0  # over which a speed is shown


@dataclass(slots=True)
class Rate:
    """Tokens per second over the last few seconds."""

    looks: deque[tuple[float, int]] = field(default_factory=deque)
    moving: bool = False

    def look(self, tokens: int, now: float) -> float:
        """`tokens`: all so far."""
        self.looks.append((now, tokens))
        while now - self.looks[0][0] > RATE_S and len(self.looks) > 1:
            self.looks.popleft()
        began, before = self.looks[0]
        self.moving = tokens > before
        return max(0, tokens - before) / (now - began) if now > began else 0.0


WITHDRAWN: Final = "withdrawn"


def attempt_now(running: RunningAttempt) -> RunningFor:
    return RunningFor(
        job_id=running.id.job_id,
        attempt=running.id.number,
        model=running.assigned.model,
        member=running.assigned.member,
        tokens=running.tokens,
        steps_done=running.steps_done,
        steps=running.assigned.steps,
        since=running.started_at,
    )


def model_now(service: ModelService, in_pool: frozenset[str] | None) -> ModelNow:
    """`in_pool`: the names of the pool's models, None before it said so. A model that left the catalogue
    stays in memory, since it may come back, but nobody can ask for it.
    """
    served = served_model(service)
    withdrawn = in_pool is not None and served.name not in in_pool
    state = session_pb2.ModelState.Name(served.state).removeprefix("MODEL_STATE_").lower()
    return ModelNow(
        name=served.name,
        engine=served.engine,
        state=WITHDRAWN if withdrawn else state,
        why="the pool's catalogue does not have it any more" if withdrawn else served.why,
        bytes_done=served.bytes_done,
        bytes_total=served.bytes_total,
        eta_s=served.eta_ms / 1000,
        memory_bytes=0 if service.host is None else service.host.memory_bytes(),
    )


def card_now(card: Card) -> CardNow:
    return CardNow(index=card.index, temperature_c=card.temperature_c, power_w=card.power_w)
