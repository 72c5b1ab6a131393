"""What this worker takes on: which models in how many slots, for whom, and whether anything at all. Pure.

Training has engines of its own, beside those that serve, and one attempt at it runs at a time, whatever the
model. What is asked of an adapter goes to an engine of its own where there is one.
"""

from dataclasses import dataclass, field

from worker.attempts import Attempts
from worker.messages import Assigned, Failure, Fault, Role
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
    models: dict[tuple[str, Role], Offer] = field(default_factory=dict)
    paused: str = ""
    draining: str = ""

    def engine_of(self, event: Assigned) -> str:
        """Of what was offered."""
        return self.models[self._key(event)].engine

    def _key(self, event: Assigned) -> tuple[str, Role]:
        if event.trains:
            return event.model, Role.TRAIN
        apart = event.model, Role.ADAPT
        return apart if event.adapts and apart in self.models else (event.model, Role.SERVE)

    def refusal(self, event: Assigned, attempts: Attempts) -> Failure | None:
        """Nobody's fault, with its reason in words; None: the assignment is taken."""
        if self.draining:
            return _no("draining", f"this worker takes no more work: {self.draining}")
        if self.paused:
            return _no("paused", f"this worker is paused: {self.paused}")
        key = self._key(event)
        offer = self.models.get(key)
        if offer is None:
            does = "train" if event.trains else "serve"
            return _no("model_not_served", f"this worker does not {does} {event.model}")
        if unwanted := self.guests.refusal(event.kind, event.member):
            return _no("not_shared", unwanted)
        others = [other.assigned for other in attempts.running()]
        trained = [other.model for other in others if other.trains]
        if event.trains and trained:
            return _no("busy", f"this worker trains {trained[0]} already")
        taken = sum(self._key(other) == key for other in others)
        if taken >= offer.slots or len(attempts) >= self.attempts_max:
            return _no("busy", f"all {offer.slots} slots of {event.model} are taken")
        return None


def _no(code: str, why: str) -> Failure:
    return Failure(Fault.NONE, code, why)
