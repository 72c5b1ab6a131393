"""A piece of a fine-tune from its first step to its last, with the validation that may follow.

The loss of a step is a mean over all its target tokens, however its examples are spread over micro-batches,
so memory decides nothing but how long it takes. A step that runs out of memory is computed again from its
start in micro-batches of half the size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.numpy import save_file

from potluck import deltas
from potluck.deltas import DeltaError
from potluck.v1 import engine_pb2, work_pb2
from worker.engines.engine import EngineError, JobError
from worker.training import plan
from worker.training.adapter import Adapter
from worker.training.lines import Lines
from worker.training.losses import Sums
from worker.training.memory import Room
from worker.training.moments import Moments
from worker.training.packing import Unit, learns, micro_batches, size_of
from worker.training.passes import Passes
from worker.training.peers import Peers
from worker.training.precision import LossScale
from worker.training.reading import Reader

ADAPTER_NAME: Final = "adapter.safetensors"
DELTA_NAME: Final = "delta.safetensors"
STATE_NAME: Final = "state.safetensors"
VALIDATION_UNITS: Final = 256  # are read at once


class StoppedError(Exception):
    """The attempt is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Shell:
    """What is around a training: whom it tells of a step, when it must stop, and the time."""

    say: Callable[[work_pb2.TrainingStep], None]
    unwanted: Callable[[], bool]
    clock: Callable[[], float]


class Training:
    def __init__(
        self,
        work: work_pb2.TrainingWork,
        files: engine_pb2.TrainingFiles,
        *,
        passes: Passes,
        adapter: Adapter,
        reader: Reader,
        room: Room,
        scale: LossScale | None,
        shell: Shell,
        peers: Peers,
    ) -> None:
        """Raises EngineError, OSError."""
        self._work, self._files = work, files
        self._passes, self._adapter, self._reader = passes, adapter, reader
        self._room, self._scale, self._shell, self._peers = room, scale, shell, peers
        self._begun_s = shell.clock()
        self._moments = Moments(adapter, work.plan)
        if files.state:
            self._moments.load(Path(files.state), work.first_step, scale)
        self._start = adapter.values.detach().clone() if work.delta else None

    def run(self) -> work_pb2.Trained:
        """Raises EngineError, StoppedError, OSError."""
        trained = work_pb2.Trained(first_step=self._work.first_step)
        if self._work.first_step < self._work.last_step:
            self._train(trained)
            if self._peers.first:
                self._save(self._work.first_step + trained.steps)
        if self._work.validate:
            self._validate(trained)
        return trained

    def _train(self, trained: work_pb2.Trained) -> None:
        work = self._work
        with Lines(Path(self._files.examples)) as lines:
            if len(lines) != work.plan.examples:
                raise JobError(
                    "bad_examples",
                    f"the plan is for {work.plan.examples} examples, the file has {len(lines)}",
                )
            for step in range(work.first_step, work.last_step):
                units = self._units(lines, plan.examples_of(work, step))
                done = self._step(step, [unit for unit in units if learns(unit)])
                trained.steps += 1
                trained.tokens += done.tokens
                trained.square_tokens += done.square_tokens
                late = work.seconds_max and self._shell.clock() - self._begun_s >= work.seconds_max
                if self._peers.agree(bool(late)):
                    return

    def _units(self, lines: Lines, places: Sequence[int]) -> list[Unit]:
        found = []
        for place in places:
            try:
                found.append(self._reader.read(lines[place], self._work.plan.method))
            except JobError as error:
                raise JobError(error.code, f"example {place + 1}: {error}") from None
        return found

    def _step(self, step: int, units: Sequence[Unit]) -> Sums:
        """One step of the optimizer. Where nothing is left to learn, nothing changes."""
        rate = plan.learning_rate(self._work, step)
        if not self._peers.alone and self._peers.agree(self._shell.unwanted()):
            raise StoppedError
        sums, norm = self._gradient(step, units)
        if units:
            self._moments.step(norm, rate)
        if self._peers.first:
            self._shell.say(_told(step, sums, norm, rate))
        return sums

    def _gradient(self, step: int, units: Sequence[Unit]) -> tuple[Sums, float]:
        """What the step came to, and its gradient's norm; the gradient itself lies with the adapter."""
        while True:
            try:
                sums = self._accumulate(step, units)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._give_way(units)
                continue
            sums = self._peers.add_up(sums, self._adapter.values.grad)
            if self._scale is not None:
                self._adapter.values.grad.mul_(1 / self._scale.value)
            norm = self._moments.gradient_norm()
            if math.isfinite(norm):
                if self._scale is not None:
                    self._scale.went_well()
                return sums, norm
            if self._scale is None or not self._scale.overflowed():
                raise _not_finite(f"the gradient of step {step} is {norm}")

    def _accumulate(self, step: int, units: Sequence[Unit]) -> Sums:
        pairs = self._work.plan.method == plan.DPO
        count = len(units) if pairs else sum(len(tokens.targets) for unit in units for tokens in unit)
        scale = self._scale.value if self._scale is not None else 1.0
        self._moments.begin()
        sums = Sums()
        for batch in micro_batches(self._peers.mine(units), self._room.packed):
            self._heed()
            tokens = self._fitting(batch)
            done = self._passes.learn(batch, count, scale, checkpoints=self._room.checkpoints(tokens))
            if not math.isfinite(done.loss):
                raise _not_finite(f"the loss of step {step} is {done.loss}")
            sums.add(done)
        return sums

    def _fitting(self, batch: Sequence[Unit]) -> int:
        """How many tokens it has. Raises EngineError if there is no room for them."""
        tokens = sum(map(size_of, batch))
        if tokens > max(self._room.plain, self._room.thin):
            raise _no_memory(f"an example of {tokens} tokens does not fit into this worker's memory")
        return tokens

    def _give_way(self, units: Sequence[Unit]) -> None:
        """Smaller micro-batches from now on. Raises EngineError if they are as small as they can be."""
        longest = max(map(size_of, units), default=0)
        self._room = self._room.halved()
        if max(self._room.plain, self._room.thin) < longest:
            raise _no_memory(f"the memory was not enough to train on an example of {longest} tokens")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _heed(self) -> None:
        """Who has peers ends with them, between steps."""
        if self._peers.alone and self._shell.unwanted():
            raise StoppedError

    def _validate(self, trained: work_pb2.Trained) -> None:
        if not self._files.validation:
            raise JobError("bad_plan", "this training cannot be done: there is no file for its validation")
        sums = Sums()
        with Lines(Path(self._files.validation)) as lines:
            places = self._work.validated or range(len(lines))
            for begin in range(0, len(places), VALIDATION_UNITS):
                units = self._units(lines, places[begin : begin + VALIDATION_UNITS])
                for batch in self._judged(self._peers.mine([unit for unit in units if learns(unit)])):
                    sums.add(batch)
        sums = self._peers.add_up(sums)
        if not sums.count:
            raise JobError("bad_examples", "nothing of the validation's answers is left once they are cut")
        if not math.isfinite(sums.loss):
            raise _not_finite("the loss of the validation is not finite")
        trained.valid_loss, trained.valid_accuracy = sums.mean, sums.accuracy
        trained.valid_tokens, trained.valid_square_tokens = sums.tokens, sums.square_tokens
        trained.valid_target_tokens = sums.count

    def _judged(self, units: Sequence[Unit]) -> Iterator[Sums]:
        """Sorted by length, so that long ones are together; forward alone needs less than was measured."""
        waiting = sorted(units, key=size_of)
        while waiting:
            batch = next(iter(micro_batches(waiting, self._room.packed)))
            self._heed()
            try:
                self._fitting(batch)
                yield self._passes.judge(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._give_way(batch)
                continue
            waiting = waiting[len(batch) :]

    def _save(self, next_step: int) -> None:
        """Raises OSError, EngineError."""
        folder = Path(self._files.folder)
        if self._start is None:
            arrays = self._adapter.arrays(self._adapter.values)
            save_file(arrays, folder / ADAPTER_NAME, metadata={"format": "pt"})
            self._moments.save(folder / STATE_NAME, next_step, self._scale)
            return
        changed = self._adapter.arrays(self._start - self._adapter.values.detach())
        try:
            (folder / DELTA_NAME).write_bytes(deltas.encode(changed))
        except DeltaError as error:
            raise _not_finite(f"the adapter is not finite after step {next_step - 1}: {error}") from None


def _told(step: int, sums: Sums, norm: float, rate: float) -> work_pb2.TrainingStep:
    return work_pb2.TrainingStep(
        step=step,
        train_loss=sums.mean,
        train_accuracy=sums.accuracy,
        tokens=sums.tokens,
        target_tokens=sums.target_tokens,
        gradient_norm=norm,
        learning_rate=rate,
    )


def is_out_of_memory(error: Exception) -> bool:
    """The allocator of CPUs has no class of its own for it, but words: on Linux and on Windows."""
    words = ("can't allocate memory", "not enough memory")
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


def _not_finite(why: str) -> JobError:
    return JobError(
        "loss_not_finite",
        f"{why}: the training has diverged; a lower learning rate may help, or other examples",
    )


def _no_memory(why: str) -> EngineError:
    return EngineError("out_of_memory", why, fault=work_pb2.FAULT_WORKER)
