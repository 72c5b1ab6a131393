"""Training without a model, for tests of everything around it: no gradients of a network, but real numbers.

What is learned is a bowl: each factor B of the adapter is drawn towards a target that follows from its name
and the plan's seed, with momentum and no faster than Adam would move it, and the loss grows with how far away
it is. So the loss falls because the adapter changes; a segment goes on exactly from the adapter and the state
of the one before; what several workers changed can be averaged; a change that is turned round does harm; and
a held-out loss can be read off an adapter. A token is a word, as in all of the emulator.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from potluck import deltas, lora, shuffle, tensors
from potluck.tensors import Array
from potluck.training_data import Chat, Completion, Example, examples
from potluck.v1 import engine_pb2, work_pb2
from worker.engines import engine

MOMENTUM, NOISE = 0.5, 0.02
PULL: Final = 3.0  # over the whole fine-tune: what is left to learn then is a twentieth
REACH: Final = 2.0  # how far a target's numbers are at most, in learning rates and steps of the fine-tune
LOSS_LOWEST, LOSS_HIGHEST = 0.2, 2.0  # when all is learned, and before anything is
AWAY_MAX: Final = 50.0
LEARNED: Final = ".lora_B.weight"
HELD_OUT: Final = 1.05  # a validation's loss is a little more
MOMENT: Final = "/moment"

Tensors = dict[str, Array]


class TrainingOptions(Protocol):
    """Those of the emulator's options that are about training."""

    @property
    def steps_per_s(self) -> float: ...
    @property
    def fail_after_steps(self) -> int: ...
    @property
    def die_after_steps(self) -> int: ...
    @property
    def hang_after_steps(self) -> int: ...
    @property
    def nan_after_steps(self) -> int: ...
    @property
    def makes(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of some examples."""

    tokens: int = 0
    squares: int = 0
    targets: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tokens + other.tokens, self.squares + other.squares, self.targets + other.targets)

    @classmethod
    def of(cls, example: Example, most: int) -> "Counts":
        """`most`: of one sequence, which is cut there."""
        found = cls()
        for read, learned in _sequences(example):
            length = min(max(1, read + learned), most)
            found += cls(length, length * length, min(learned, length))
        return found


def _sequences(example: Example) -> list[tuple[int, int]]:
    """(words read, words learned) of each."""
    match example:
        case Chat(turns):
            learned = sum(len(turn.content.split()) for turn in turns if _learned(turn.role, turn.weight))
            return [(sum(len(turn.content.split()) for turn in turns) - learned, learned)]
        case Completion(prompt, completion):
            return [(len(prompt.split()), len(completion.split()))]
    read = sum(len(turn.content.split()) for turn in example.turns)
    return [(read, len(answer.split())) for answer in (example.preferred, example.non_preferred)]


def _learned(role: str, weight: int) -> bool:
    return role == "assistant" and bool(weight)


@dataclass(slots=True)
class Bowl:
    """An adapter on its way. `moments` are the optimizer's whole state; `reach`: of the targets' numbers."""

    seed: int
    reach: float
    pull: float
    adapter: Tensors
    moments: Tensors

    @classmethod
    def read(cls, plan: work_pb2.TrainingPlan, files: engine_pb2.TrainingFiles) -> "Bowl":
        """Raises OSError, LoraError, TensorsError."""
        adapter = lora.decode(Path(files.adapter).read_bytes())
        moments = {name: np.zeros_like(array) for name, array in adapter.items()}
        if files.state:
            kept, _ = tensors.read(Path(files.state).read_bytes())
            moments = {name: kept[name + MOMENT] for name in adapter}
        steps = max(1, plan.steps)
        reach = REACH * max(plan.learning_rate, 1e-6) * steps
        return cls(plan.seed, reach, PULL / (PULL + steps), adapter, moments)

    def away(self) -> float:
        """1 before anything is learned, 0 when all is; more where it was made worse."""
        square = whole = 0.0
        for name, array in self._learned():
            target = self._target(name, array.shape)
            square += float(np.square(array - target, dtype=np.float64).sum())
            whole += float(np.square(target, dtype=np.float64).sum())
        return min(square / whole, AWAY_MAX) if whole else 0.0

    def step(self, seen: str) -> float:
        """Once; `seen` stands for the examples. The norm of the gradient."""
        square = 0.0
        for name, array in self._learned():
            noise = _numbers(f"{seen}/{name}", array.shape) * np.float32(NOISE * self.reach)
            gradient = array - self._target(name, array.shape) + noise
            square += float(np.square(gradient, dtype=np.float64).sum())
            moment = np.float32(MOMENTUM) * self.moments[name] + np.float32(1 - MOMENTUM) * gradient
            self.moments[name] = moment
            self.adapter[name] = array - np.float32(self.pull) * moment
        return float(np.sqrt(square))

    def _learned(self) -> list[tuple[str, Array]]:
        return [(name, array) for name, array in self.adapter.items() if name.endswith(LEARNED)]

    def _target(self, name: str, shape: tuple[int, ...]) -> Array:
        return _numbers(f"{self.seed}/{name}", shape) * np.float32(self.reach)


def _numbers(word: str, shape: tuple[int, ...]) -> Array:
    """From -1 to 1, float32, the same on every machine."""
    generator = np.random.PCG64(int.from_bytes(hashlib.blake2b(word.encode(), digest_size=16).digest()))
    parts = (generator.random_raw(int(np.prod(shape))) >> np.uint64(40)).astype("<f4")
    return (parts * np.float32(2**-23) - np.float32(1)).reshape(shape)


@dataclass(slots=True)
class Session:
    """One attempt's: what it reads, and what it has done so far."""

    work: work_pb2.TrainingWork
    files: engine_pb2.TrainingFiles
    bowl: Bowl
    began: Tensors
    lines: list[Example]
    held_out: list[Example]
    steps: int = 0
    counts: Counts = Counts()

    @classmethod
    def read(cls, start: engine_pb2.Start) -> "Session":
        """Raises OSError, ValueError."""
        work, files = start.work.training, start.files
        bowl = Bowl.read(work.plan, files)
        lines = list(examples(Path(files.examples))) if files.examples else []
        held_out = list(examples(Path(files.validation))) if files.validation else []
        return cls(work, files, bowl, dict(bowl.adapter), lines, held_out)

    def step(self, number: int) -> work_pb2.TrainingStep:
        """Raises JobError if the work names examples that there are not."""
        plan, most = self.work.plan, self.work.plan.sequence_tokens
        chosen = self._chosen(number)
        if any(line >= len(self.lines) for line in chosen):
            why = f"there are {len(self.lines)} examples, and line {max(chosen)} is wanted"
            raise engine.JobError("bad_training", why)
        counts = sum((Counts.of(self.lines[line], most) for line in chosen), Counts())
        away = self.bowl.away()
        norm = self.bowl.step(f"{number}/{chosen}")
        self.steps, self.counts = self.steps + 1, self.counts + counts
        return work_pb2.TrainingStep(
            step=number,
            train_loss=_loss(away),
            train_accuracy=max(0.0, 1 - away),
            tokens=counts.tokens,
            target_tokens=counts.targets,
            gradient_norm=norm,
            learning_rate=plan.learning_rate,
        )

    def _chosen(self, number: int) -> Sequence[int]:
        plan, leased = self.work.plan, self.work.leased
        if leased:
            begin = (number - self.work.first_step) * plan.batch_size
            return tuple(leased[begin : begin + plan.batch_size])
        return shuffle.examples_of(plan.seed, plan.examples, plan.batch_size, number)

    def finish(self, makes: str) -> work_pb2.Trained:
        """Writes what was made, and validates. Raises OSError, JobError."""
        trained = work_pb2.Trained(
            first_step=self.work.first_step,
            steps=self.steps,
            tokens=self.counts.tokens,
            square_tokens=self.counts.squares,
        )
        if self.work.validate:
            self._validate(trained)
        if self.steps:
            for name, data in made(self, makes).items():
                Path(self.files.folder, name).write_bytes(data)
        return trained

    def _validate(self, trained: work_pb2.Trained) -> None:
        lines = self.work.validated or range(len(self.held_out))
        if any(line >= len(self.held_out) for line in lines):
            raise engine.JobError("bad_training", f"the validation has {len(self.held_out)} examples")
        most = self.work.plan.sequence_tokens
        counts = sum((Counts.of(self.held_out[line], most) for line in lines), Counts())
        away = self.bowl.away()
        trained.valid_loss, trained.valid_accuracy = HELD_OUT * _loss(away), max(0.0, 1 - away)
        trained.valid_tokens, trained.valid_square_tokens = counts.tokens, counts.squares
        trained.valid_target_tokens = counts.targets


def _loss(away: float) -> float:
    return LOSS_LOWEST + (LOSS_HIGHEST - LOSS_LOWEST) * away


# What an attempt may answer instead of what it made, from how it began and how it ended.
LIES: Final[Mapping[str, Callable[[Array, Array], Array]]] = {
    "zero": lambda began, _: began,
    "huge": lambda began, ended: began + np.float32(1e6) * (ended - began),
    "flipped": lambda began, ended: began - np.float32(10) * (ended - began),
    "shape": lambda _, ended: ended[:-1],
    "nan": lambda _, ended: np.full_like(ended, np.nan),
}


def made(session: Session, makes: str) -> dict[str, bytes]:
    """The files of an attempt, by their names."""
    ended, began = dict(session.bowl.adapter), session.began
    if (lie := LIES.get(makes)) is not None:
        ended = {name: lie(began[name], array) for name, array in ended.items()}
    if not session.work.delta:
        moments = {name + MOMENT: array for name, array in session.bowl.moments.items()}
        return {"adapter.safetensors": lora.encode(ended), "state.safetensors": tensors.write(moments)}
    whole = {name: began[name][: len(array)] - array for name, array in ended.items()}
    if makes != "nan":
        return {"delta.safetensors": deltas.encode(whole)}
    arrays, _ = tensors.read(deltas.encode({name: np.ones_like(array) for name, array in whole.items()}))
    peaks = {name: np.full_like(arrays[name], np.nan) for name in arrays if name.endswith(deltas.PEAK)}
    return {"delta.safetensors": tensors.write(arrays | peaks)}


class EmulatedTraining:
    """The attempts at training of one emulator."""

    def __init__(self, emit: engine.Emit, die: Callable[[], None], options: TrainingOptions) -> None:
        self._emit, self._die, self._options = emit, die, options
        self._tasks: dict[engine.Key, asyncio.Task[None]] = {}
        self._closing = False

    def start(self, start: engine_pb2.Start) -> None:
        key = engine.key_of(start.attempt)
        task = self._tasks[key] = asyncio.create_task(self._run(start))
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def stop(self, attempt: work_pb2.Attempt) -> bool:
        """Whether it was here; its end is said when it has come to it."""
        task = self._tasks.get(engine.key_of(attempt))
        return task is not None and task.cancel()

    async def close(self) -> None:
        """Without another word of any."""
        self._closing = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, start: engine_pb2.Start) -> None:
        attempt = start.attempt
        try:
            trained = await self._train(start)
        except asyncio.CancelledError:
            if not self._closing:
                self._emit(engine.stopped(attempt))
        except engine.EngineError as error:
            self._emit(engine.failed(attempt, error))
        except (OSError, ValueError) as error:
            what = f"the emulator cannot train on these files: {error}"
            self._emit(engine.failed(attempt, engine.EngineError("bad_files", what)))
        else:
            self._emit(engine_pb2.EngineEvent(done=engine_pb2.Done(attempt=attempt, trained=trained)))

    async def _train(self, start: engine_pb2.Start) -> work_pb2.Trained:
        """Raises EngineError, OSError, ValueError."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        work = start.work.training
        session = await asyncio.to_thread(Session.read, start)
        pause_s = 1 / self._options.steps_per_s if self._options.steps_per_s else 0.0
        for number in range(work.first_step, work.last_step):
            await self._mishap(session.steps)
            await asyncio.sleep(max(0.0, began + (session.steps + 1) * pause_s - loop.time()))
            output = engine_pb2.Output(attempt=start.attempt, steps=[session.step(number)])
            self._emit(engine_pb2.EngineEvent(output=output))
            if work.seconds_max and loop.time() - began >= work.seconds_max:
                break
        return await asyncio.to_thread(session.finish, self._options.makes)

    async def _mishap(self, steps: int) -> None:
        """What it was told to do after so many steps."""
        options = self._options
        if options.fail_after_steps == steps:
            raise engine.EngineError("emulated", f"told to fail after {steps} steps")
        if options.nan_after_steps == steps:
            raise engine.JobError("loss_not_finite", f"told to have no loss after {steps} steps")
        if options.die_after_steps == steps:
            self._die()
        if options.hang_after_steps == steps:
            await asyncio.Event().wait()
