"""What a member is told of a fine-tune while it is trained: the curve, events, checkpoints."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from coordinator.core.course import Checkpointed, OpenEvaluate, OpenTrain
from coordinator.core.jobs import Job
from coordinator.finetunes.checkpoints import Checkpoints
from coordinator.finetunes.curve import Curve, Live, Point, metrics, point_of
from coordinator.finetunes.disk import Disk
from coordinator.finetunes.finetune import Checkpoint
from coordinator.finetunes.journal import PAGE, Journal
from coordinator.finetunes.made import Made
from coordinator.finetunes.plan import Plan
from coordinator.store import Store
from coordinator.training_store import TrainingStore
from potluck.v1 import work_pb2

TRAIN_LOSS: Final = "train_loss"


@dataclass(slots=True)
class Telling:
    """`validated`: the adapter of each open evaluation. `right`: of the one that is validated, tokens that
    were foreseen, of how many.
    """

    finetune_id: str
    plan: Plan
    journal: Journal
    checkpoints: Checkpoints
    store: Store
    artifacts: TrainingStore
    disk: Disk
    now: Callable[[], float]
    show: Callable[[list[Checkpoint]], Awaitable[None]]  # those that may be asked from now on
    curve: Curve = field(default_factory=Curve)
    validated: dict[int, str] = field(default_factory=dict)
    right: dict[str, tuple[float, int]] = field(default_factory=dict)

    async def take_up(self, ended: Sequence[Made]) -> None:
        """After a restart: go on behind the last step that an event told of."""
        self.curve.settle(point for made in ended for point in made.points)
        self.curve.told = -1
        for event in await self.store.finetune_events(self.finetune_id, limit=PAGE):
            if event.data is not None and TRAIN_LOSS in event.data:
                self.curve.told = int(event.data["step"]) - 1
                break
        if not self.plan.rounds:
            self._tell(self.curve.untold(self.curve.settled))

    # -- parts -----------------------------------------------------------------------------------

    def opened(self, action: OpenTrain | OpenEvaluate) -> None:
        if isinstance(action, OpenEvaluate):
            self.validated[action.part] = action.adapter

    def heard(self, job: Job, worker: str, steps: Sequence[work_pb2.TrainingStep]) -> None:
        """Steps of a part under way; those of a chain are events at once."""
        assert job.attempt is not None, "somebody has it"
        live = self.curve.live.get(job.part)
        if live is None or live.attempt != job.attempt.number:  # what another has said was for nothing
            live = self.curve.live[job.part] = Live(job.attempt.number, worker)
        points = [point_of(step) for step in steps]
        live.add(points, self.now())
        self.curve.measure()
        if not self.plan.rounds:
            self._tell(self.curve.untold(points))

    def ended(self, part: int, made: Made | None) -> None:
        """`made`: what it has left, if it stays. The points of a share wait for the others of its round."""
        self.curve.live.pop(part, None)
        adapter = self.validated.pop(part, "")
        if made is None:
            return
        if made.valid_accuracy is not None and adapter:
            right, tokens = self.right.get(adapter, (0.0, 0))
            right += made.valid_accuracy * made.valid_tokens
            self.right = {adapter: (right, tokens + made.valid_tokens)}
        if not self.plan.rounds:
            self._tell(self.curve.settle(made.points))

    def combined(self, round_: int, shares: Sequence[Made], rejected: Sequence[int]) -> None:
        """A round was put together: its points are the means of its shares."""
        self._tell(self.curve.settle(point for share in shares for point in share.points))
        by = {share.part: share.worker for share in shares}
        named = ", ".join(sorted(set(by.values())))
        self.journal.say(f"Round {round_}: {len(shares)} shares were put together, of {named}.")
        for part in rejected:
            who = by.get(part, "a worker")
            message = f"Round {round_}: what {who} sent changes the same as another share, and did not count."
            self.journal.say(message, level="warn")

    # -- checkpoints -----------------------------------------------------------------------------

    async def checkpoint(self, said: Checkpointed, sha256: str, *, first: bool) -> None:
        """`first`: it is what training begins with, and worth nothing but its loss."""
        losses = self._losses(said)
        if not first:
            point = self.curve.at(said.step - 1)
            known = {} if point is None else {k: v for k, v in metrics(point).items() if k in LISTED}
            size = self.artifacts.artifacts.size(sha256)
            found = {"step": said.step, **known, **losses}
            if self.checkpoints.add(said.step, sha256, size, self.now(), found):
                self.journal.say(f"Checkpoint created at step {said.step}/{self.plan.steps}.")
            listed = list(self.checkpoints.listed)
            await self.disk.insist(lambda: self.store.put_finetune_checkpoints(self.finetune_id, listed))
            await self.show(listed)
        if losses:
            self.curve.look(said.step, losses)
            message = f"Step {said.step}/{self.plan.steps}: validation loss={said.valid_loss:.4f}"
            self.journal.say(message, data={"step": said.step, **losses})

    def _losses(self, said: Checkpointed) -> dict[str, float]:
        """By the OpenAI API's names; `full_...` where all of the validation file was read."""
        right, tokens = self.right.pop(said.adapter, (0.0, 0))
        if said.valid_loss is None:
            return {}
        found = {"valid_loss": said.valid_loss}
        if tokens:
            found["valid_mean_token_accuracy"] = right / tokens
        full = {f"full_{name}": value for name, value in found.items()} if said.full else {}
        return {**found, **full}

    def _tell(self, points: Sequence[Point]) -> None:
        for point in points:
            message = f"Step {point.step + 1}/{self.plan.steps}: training loss={point.loss:.4f}"
            self.journal.say(message, data=metrics(point))


LISTED: Final = (TRAIN_LOSS, "train_mean_token_accuracy")  # of a step, with its checkpoint
