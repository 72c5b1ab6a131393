"""What this worker takes on: which models in how many slots, for whom, and whether anything at all. Pure.

Training has engines of its own, beside those that serve, and one attempt at it runs at a time, whatever the
model.
"""

from dataclasses import dataclass, field

from worker.attempts import Attempts
from worker.messages import Assigned, Failure, Fault
from worker.policy import Guests


@dataclass(frozen=True, slots=True)
class Offer:
    engine: str
    slots: int


@dataclass(slots=True)
class Offers:
    """`paused` and `draining` say why nothing is taken, or are empty."""

    guests: Guests
    attempts_max: int
    models: dict[tuple[str, bool], Offer] = field(default_factory=dict)  # by name, and whether to be trained
    paused: str = ""
    draining: str = ""

    def engine_of(self, event: Assigned) -> str:
        """Of what was offered."""
        return self.models[event.model, event.trains].engine

    def refusal(self, event: Assigned, attempts: Attempts) -> Failure | None:
        """Nobody's fault, with its reason in words; None: the assignment is taken."""
        if self.draining:
            return _no("draining", f"this worker takes no more work: {self.draining}")
        if self.paused:
            return _no("paused", f"this worker is paused: {self.paused}")
        offer = self.models.get((event.model, event.trains))
        if offer is None:
            does = "train" if event.trains else "serve"
            return _no("model_not_served", f"this worker does not {does} {event.model}")
        if unwanted := self.guests.refusal(event.kind, event.member):
            return _no("not_shared", unwanted)
        alike = [other.assigned for other in attempts.running() if other.assigned.trains == event.trains]
        if event.trains and alike:
            return _no("busy", f"this worker trains {alike[0].model} already")
        taken = sum(other.model == event.model for other in alike)
        if taken >= offer.slots or len(attempts) >= self.attempts_max:
            return _no("busy", f"all {offer.slots} slots of {event.model} are taken")
        return None


def _no(code: str, why: str) -> Failure:
    return Failure(Fault.NONE, code, why)
