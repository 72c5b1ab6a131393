"""What a part has left: kept with the entry that pays it, so that after a crash both are there or neither."""

from dataclasses import asdict, dataclass
from typing import Any

import orjson

from coordinator.core.course import PartDone
from coordinator.finetunes.curve import Point
from potluck.v1 import work_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """`artifacts`: digests, of a segment the adapter and the state, of a share the delta. `lines`: of the
    training file, of a share. `valid_*`: of an evaluation, over `valid_tokens` tokens that count.
    """

    part: int
    worker: str
    at: float
    first_step: int = 0
    steps: int = 0
    tokens: int = 0
    artifacts: tuple[str, ...] = ()
    points: tuple[Point, ...] = ()
    valid_loss: float | None = None
    valid_accuracy: float | None = None
    valid_tokens: int = 0

    @property
    def done(self) -> PartDone:
        """As the state machine hears of it."""
        return PartDone(
            part=self.part,
            first_step=self.first_step,
            steps=self.steps,
            tokens=self.tokens,
            artifact=self.artifacts,
            valid_loss=self.valid_loss,
            valid_tokens=self.valid_tokens,
        )

    def to_bytes(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Made":
        known: dict[str, Any] = orjson.loads(data)
        points = tuple(Point(**point) for point in known.pop("points"))
        return cls(**{**known, "artifacts": tuple(known["artifacts"])}, points=points)


def made_of(
    trained: work_pb2.Trained, *, part: int, worker: str, at: float, points: tuple[Point, ...], tokens: int
) -> Made:
    """`tokens`: those that are paid."""
    artifacts = (trained.adapter.sha256, trained.state.sha256)
    said = trained.HasField("valid_loss")
    return Made(
        part=part,
        worker=worker,
        at=at,
        first_step=trained.first_step,
        steps=trained.steps,
        tokens=tokens,
        artifacts=tuple(sha256 for sha256 in artifacts if sha256),
        points=points,
        valid_loss=trained.valid_loss if said else None,
        valid_accuracy=trained.valid_accuracy if said and trained.HasField("valid_accuracy") else None,
        valid_tokens=trained.valid_target_tokens if said else 0,
    )
