"""The pool's settings that the core needs."""

from dataclasses import dataclass, field

from coordinator.core.offers import Policy
from coordinator.core.pricing import Tariff
from coordinator.core.standing import Proof


@dataclass(frozen=True, slots=True)
class Rules:
    """Times in seconds."""

    tariff: Tariff = field(default_factory=Tariff)
    proof: Proof = field(default_factory=Proof)
    policy: Policy = field(default_factory=Policy)
    attempts_max: int = 12  # that failed or were lost; what is given back by nobody's fault does not count
    number_max: int = 1_000  # of any attempt: bounds the rows of a stored job that is refused for hours
    job_faults_max: int = 2  # workers that must call a job impossible before it is believed
    wait_s: float = 60.0  # of an interactive job, for a worker or for a model that loads
    crowd_s: float = 30.0  # an interactive job that would wait longer for others is not let in
    refused_pause_s: float = 1.0  # before a busy worker is asked again for the same job; doubles each time
    refused_pause_s_max: float = 60.0
    sweep_s: float = 0.25
    prove_s: float = 60.0  # how often it is looked whether time alone has proven a worker
    start_s_max: float = 1_800.0  # signs of life keep an attempt without output that long, no longer
    stored_start_s_max: float = 21_600.0  # as above, of a stored job, for which a model may be downloaded
    recent_max: int = 20_000  # closed jobs remembered for receipts
