"""What each part of a fine-tune has to do, in the words of the wire, and what that may cost at the most."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from coordinator.artifacts import ArtifactStore, NoSuchArtifact
from coordinator.core.course import OpenEvaluate, OpenTrain
from coordinator.core.pricing import Training
from coordinator.finetunes.finetune import Data, gone
from coordinator.finetunes.lengths import Lengths
from coordinator.finetunes.plan import Plan
from potluck.shuffle import order, steps_in_epoch
from potluck.v1 import work_pb2

VALUE_BYTES: Final = 4  # float32
STATES: Final = 2  # of the optimizer, for each number
HEADER_BYTES: Final = 1 << 20  # names and shapes of tensors, and what else stands in a file


@dataclass(frozen=True, slots=True)
class Works:
    """`artifacts`: the store in which adapters and states lie; `files`: that of members' files."""

    plan: Plan
    training: Data
    validation: Data | None
    lengths: Lengths
    valid_lengths: Lengths | None
    artifacts: ArtifactStore
    files: ArtifactStore

    def of(self, action: OpenTrain | OpenEvaluate) -> work_pb2.Work:
        """Raises NoSuchArtifact."""
        return self._train(action) if isinstance(action, OpenTrain) else self._evaluate(action)

    def _train(self, action: OpenTrain) -> work_pb2.Work:
        work = work_pb2.TrainingWork(
            plan=self.plan.to_wire(),
            examples=self._file(self.training),
            adapter=self._artifact(adapter_sent(action.adapter)),
            first_step=action.first_step,
            last_step=action.last_step,
            leased=action.leased,
            delta=action.delta,
            seconds_max=action.seconds_max,
            validate=action.validate,
        )
        if action.state:
            work.state.CopyFrom(self._artifact(action.state))
        if action.validate and self.validation is not None:
            work.validation.CopyFrom(self._file(self.validation))
        return work_pb2.Work(training=work)

    def _evaluate(self, action: OpenEvaluate) -> work_pb2.Work:
        assert self.validation is not None, "nobody looks at what there is not"
        work = work_pb2.TrainingWork(
            plan=self.plan.to_wire(),
            examples=self._file(self.training),
            validation=self._file(self.validation),
            adapter=self._artifact(adapter_sent(action.adapter)),
            validate=True,
            validated=action.validated,
        )
        return work_pb2.Work(training=work)

    def bound(self, work: work_pb2.TrainingWork, steps: int | None = None) -> Training:
        """The most that so many of its steps can come to, or all of them, by the coordinator's own count."""
        plan = self.plan
        steps = work.last_step - work.first_step if steps is None else steps
        tokens = squares = valid = valid_squares = 0
        for some in self._lines(work, steps):
            more, more_squares = self.lengths.sums(plan.sequence_tokens, some)
            tokens, squares = tokens + more, squares + more_squares
        if work.validate and self.valid_lengths is not None:
            looked = list(work.validated) or None
            valid, valid_squares = self.valid_lengths.sums(plan.sequence_tokens, looked)
        return Training(
            method=plan.method,
            adapter_parameters=plan.parameters,
            tokens=tokens,
            square_tokens=squares,
            valid_tokens=valid,
            valid_square_tokens=valid_squares,
        )

    def may_teach_nothing(self, work: work_pb2.TrainingWork, steps: int) -> bool:
        """Whether each example of so many of its steps is cut: nothing may be left in it to learn."""
        most = self.plan.sequence_tokens
        lines = ((some, self._count(some)) for some in self._lines(work, steps))
        return all(self.lengths.cut(most, some) == count for some, count in lines)

    def bytes_max(self, work: work_pb2.TrainingWork) -> int:
        """Of all files that an attempt may send back."""
        if work.last_step <= work.first_step:
            return 0
        numbers = self.plan.parameters
        if work.delta:
            return 2 * numbers + 2 * HEADER_BYTES  # a byte each, and the scales
        return (1 + STATES) * VALUE_BYTES * numbers + 2 * HEADER_BYTES

    def _count(self, lines: Sequence[int] | None) -> int:
        return self.lengths.examples if lines is None else len(lines)

    def _lines(self, work: work_pb2.TrainingWork, steps: int) -> Iterator[Sequence[int] | None]:
        """That so many of its steps take, in pieces; None: all of the file."""
        if work.leased:
            yield work.leased[: steps * self.plan.batch_size]
        elif steps:
            yield from self._epochs(work.first_step, work.first_step + steps)

    def _epochs(self, first: int, last: int) -> Iterator[Sequence[int] | None]:
        """The lines that these steps take, epoch by epoch; None: all of them."""
        plan = self.plan
        each = steps_in_epoch(plan.examples, plan.batch_size)
        for epoch in range(first // each, -(-last // each)):
            begin, end = max(first - epoch * each, 0), min(last - epoch * each, each)
            if (begin, end) == (0, each):
                yield None
            else:
                places = order(plan.seed, epoch, plan.examples)
                yield places[begin * plan.batch_size : end * plan.batch_size]

    def _file(self, data: Data) -> work_pb2.Artifact:
        """A worker that cannot have it would be blamed."""
        if not self.files.where(data.sha256).is_file():
            raise NoSuchArtifact(gone(data))
        return work_pb2.Artifact(sha256=data.sha256, bytes=data.bytes)

    def _artifact(self, sha256: str) -> work_pb2.Artifact:
        return work_pb2.Artifact(sha256=sha256, bytes=self.artifacts.size(sha256))


# The state machine knows an adapter by one name. In rounds it stands for two artifacts: float32, which rounds
# are added to, and what workers get of it, bfloat16.
_JOINT: Final = "/"


def named(kept: str, sent: str) -> str:
    return f"{kept}{_JOINT}{sent}"


def adapter_kept(name: str) -> str:
    """The digest of the most exact form."""
    return name.partition(_JOINT)[0]


def adapter_sent(name: str) -> str:
    return name.rpartition(_JOINT)[2]


def digests(names: Sequence[str]) -> set[str]:
    return {digest for name in names for digest in name.split(_JOINT) if digest}
