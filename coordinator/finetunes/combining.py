"""A round's updates put together: what becomes of the adapter, and whose update did not count. In threads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coordinator import aggregation
from coordinator.artifacts import ArtifactStore
from coordinator.core.course import Aggregate
from coordinator.finetunes.plan import Plan
from coordinator.finetunes.works import adapter_kept
from potluck import lora
from potluck.deltas import Packed
from potluck.lora import Shapes
from potluck.tensors import Array

Adapter = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Combined:
    """`adapter`: None if no update could be used. `momentum`: of the outer step; empty where it has none.

    `norms`: how long the updates were that counted.
    """

    adapter: Adapter | None
    momentum: Adapter = field(default_factory=dict)
    rejected: tuple[int, ...] = ()
    norms: tuple[float, ...] = ()


def combine(
    artifacts: ArtifactStore, action: Aggregate, of: Shapes, plan: Plan, norms: Sequence[float]
) -> Combined:
    """`norms`: of the rounds before. The updates passed the gate. Raises NoSuchArtifact, OSError."""
    packed = {part: Packed(artifacts.path(delta).read_bytes()) for part, delta, _ in action.parts}
    weights = {part: float(tokens) for part, _, tokens in action.parts}
    mean = aggregation.aggregate(packed, weights, norms)
    if not mean.delta:
        return Combined(None, rejected=mean.rejected)
    theta = lora.decode(artifacts.path(adapter_kept(action.adapter)).read_bytes(), of)
    momentum = lora.decode(artifacts.path(action.momentum).read_bytes(), of) if action.momentum else None
    lr, mu = aggregation.outer_step(plan.course().rounds, len(mean.norms))
    adapter, kept = aggregation.outer(theta, mean.delta, momentum, lr, mu)
    return Combined(adapter, kept, mean.rejected, tuple(mean.norms.values()))
