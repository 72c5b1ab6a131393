"""What this worker takes on: which models in how many slots, for whom, and whether anything at all. Pure."""

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
    models: dict[str, Offer] = field(default_factory=dict)
    paused: str = ""
    draining: str = ""

    def refusal(self, event: Assigned, attempts: Attempts) -> Failure | None:
        """Nobody's fault, with its reason in words; None: the assignment is taken."""
        if self.draining:
            return _no("draining", f"this worker takes no more work: {self.draining}")
        if self.paused:
            return _no("paused", f"this worker is paused: {self.paused}")
        offer = self.models.get(event.model)
        if offer is None:
            return _no("model_not_served", f"this worker does not serve {event.model}")
        if unwanted := self.guests.refusal(event.kind, event.member):
            return _no("not_shared", unwanted)
        taken = sum(other.assigned.model == event.model for other in attempts.running())
        if taken >= offer.slots or len(attempts) >= self.attempts_max:
            return _no("busy", f"all {offer.slots} slots of {event.model} are taken")
        return None


def _no(code: str, why: str) -> Failure:
    return Failure(Fault.NONE, code, why)
