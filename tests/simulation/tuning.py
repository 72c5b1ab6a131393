"""Fine-tunes inside the simulated pool: the state machine, what the shell does for it, and workers that train.

`made` says which examples each adapter and delta was trained on, how often; nobody else knows. The disk has
what was written before it was carried out (`kept`), and what a part came to together with its settlement.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.core.course import (
    Action,
    Aggregate,
    Aggregated,
    Began,
    Course,
    Event,
    Fail,
    Finish,
    OpenEvaluate,
    OpenTrain,
    PartDone,
    PartFailed,
    steps_of,
)
from coordinator.core.jobs import Job, JobId, JobState, Kind
from coordinator.core.pricing import Demand, Shape, Training, quote
from coordinator.core.rules import Rules
from coordinator.core.tuning import Tuning
from coordinator.core.tunings import begin, restored
from potluck.shuffle import examples_of

LONGEST = 16
ADAPTER = 50_000  # parameters
Order = OpenTrain | OpenEvaluate


@dataclass
class FineTune:
    """One of them: its examples are as long as their numbers say."""

    whole: JobId
    course: Course
    shape: Shape
    machine: Tuning = field(init=False)
    kept: dict[str, Any] = field(init=False)  # on the disk
    begun: bool = False
    made: dict[str, Counter[int]] = field(default_factory=lambda: {"a0": Counter()})
    orders: dict[JobId, Order] = field(default_factory=dict)
    results: dict[JobId, PartDone] = field(default_factory=dict)
    on_disk: dict[JobId, PartDone] = field(default_factory=dict)
    waiting: list[tuple[float, Event]] = field(default_factory=list)  # what the machine is yet to hear
    verdict: Finish | Fail | None = None
    stopped: bool = False

    def __post_init__(self) -> None:
        self.machine = begin(self.course, "a0")
        self.kept = self.machine.snapshot()

    def lengths(self, lines: Counter[int] | tuple[int, ...] | range) -> tuple[int, int]:
        """Tokens, and the sum of the squares of the sequences' lengths."""
        each = [2 + line % (LONGEST - 2) for line in Counter(lines).elements()]
        return sum(each), sum(length**2 for length in each)

    def lines(self, order: OpenTrain, steps: int) -> Counter[int]:
        """What the first so many steps of a part train."""
        course, done = self.course, Counter[int]()
        if order.delta:
            return Counter(order.leased[: steps * course.batch_size])
        for step in range(order.first_step, order.first_step + steps):
            done.update(examples_of(course.seed, course.examples, course.batch_size, step))
        return done

    def demand(self, order: Order) -> Demand:
        """At its most."""
        if isinstance(order, OpenEvaluate):
            bound = Training("sft", ADAPTER, 0, 0, *self.lengths(order.validated))
        else:
            lines = self.lines(order, order.last_step - order.first_step)
            bound = Training("sft", ADAPTER, *self.lengths(lines))
        return Demand(Kind.FINETUNE, self.shape, (LONGEST,), training=bound)

    def worst(self, rules: Rules) -> int:
        """The quote of the whole: an upper bound for each part is rounded up, so a little for each of them."""
        course = self.course
        trained = Training("sft", ADAPTER, *self.lengths(self._each(range(course.examples), course.epochs)))
        times = course.samples_max
        sampled = Training("sft", ADAPTER, 0, 0, *self.lengths(self._each(course.sample, times)))
        whole = Training("sft", ADAPTER, 0, 0, *self.lengths(range(course.validation)))
        of = (
            Demand(Kind.FINETUNE, self.shape, (LONGEST,), training=bound)
            for bound in (trained, sampled, whole)
        )
        return sum(quote(demand, rules.tariff) for demand in of) + 10_000

    def _each(self, lines: range | tuple[int, ...], times: int) -> Counter[int]:
        return Counter(dict.fromkeys(lines, times))

    def name(self, part: JobId, attempt: int) -> str:
        """What an attempt made has a name of its own, as bytes have: who was fenced may go on and make another."""
        order = self.orders[part]
        return f"{'d' if isinstance(order, OpenTrain) and order.delta else 'a'}{order.part}.{attempt}"

    # -- as a worker does it

    def steps(self, part: JobId) -> int:
        """What there is to do; an evaluation counts as one."""
        order = self.orders[part]
        return 1 if isinstance(order, OpenEvaluate) else order.last_step - order.first_step

    def train(self, part: JobId, attempt: int, steps: int) -> tuple[PartDone, Training]:
        """So many steps of it are done: what an honest worker says of them."""
        order = self.orders[part]
        if isinstance(order, OpenEvaluate):
            loss = 9.0 / (1 + self.made[order.adapter].total())
            read = self.lengths(order.validated)
            return PartDone(part=order.part, valid_loss=loss, valid_tokens=read[0]), Training(
                "", 0, 0, 0, *read
            )
        lines, name = self.lines(order, steps), self.name(part, attempt)
        self.made[name] = lines if order.delta else self.made[order.adapter] + lines
        tokens, squares = self.lengths(lines)
        artifact = (name,) if order.delta else (name, f"s{order.part}")
        done = PartDone(
            part=order.part, first_step=order.first_step, steps=steps, tokens=tokens, artifact=artifact
        )
        return done, Training("", 0, tokens, squares)

    # -- as the shell does it

    def believed(self, part: JobId, done: PartDone, said: Training) -> Training:
        """No more than the steps that it did can have had."""
        order = self.orders[part]
        if isinstance(order, OpenEvaluate):
            return said
        tokens, squares = self.lengths(self.lines(order, done.steps))
        return replace(said, tokens=min(said.tokens, tokens), square_tokens=min(said.square_tokens, squares))

    def ended(self, part: Job) -> Event:
        """What the machine hears of a part's end."""
        if part.state is JobState.SUCCEEDED:
            return self.results[part.id]
        return PartFailed(part=part.part, code=part.code, why=part.why)

    def restart(self) -> None:
        """Memory is gone. Parts that are paid are told, heard of before or not."""
        self.machine = restored(self.course, json.loads(json.dumps(self.kept)))
        self.results = dict(self.on_disk)
        self.waiting = [(0.0, Began(resumed=True, ended=tuple(self.on_disk.values())))]

    def hear(self, now: float) -> list[Action]:
        """What it says to what is due, written down already."""
        due = [event for at, event in self.waiting if at <= now]
        self.waiting = [(at, event) for at, event in self.waiting if at > now]
        actions: list[Action] = []
        for event in due:
            actions += self.machine.handle(event, now)
        self.kept = self.machine.snapshot()
        return actions

    def aggregate(self, asked: Aggregate, at: float) -> None:
        name = f"b{asked.round}"
        parts = (self.made[delta] for _, delta, _ in asked.parts)
        self.made[name] = sum(parts, self.made[asked.adapter])
        self.waiting.append((at, Aggregated(round=asked.round, adapter=name)))

    def trained_once(self) -> bool:
        """No example's training is paid more often than there are epochs; of one that went well, each as often."""
        every = Counter(dict.fromkeys(range(self.course.examples), self.course.epochs))
        paid = Counter[int]()
        for part, done in self.results.items():
            order = self.orders[part]
            if isinstance(order, OpenTrain):
                paid += self.lines(order, done.steps)
        if isinstance(self.verdict, Finish):
            return paid == self.made[self.verdict.adapter] == every
        return paid <= every


def drawn(rng: random.Random, whole: JobId, shape: Shape) -> FineTune:
    examples, epochs, batch_size = rng.randint(1, 24), rng.randint(1, 2), rng.randint(1, 5)
    workers = rng.choice([1, 2, 3])
    course = Course(
        examples=examples,
        epochs=epochs,
        batch_size=batch_size,
        steps=steps_of(examples, epochs, batch_size, workers),
        seed=7,
        workers=workers,
        local_steps=rng.randint(1, 4),
        validation=rng.choice([0, 5, 40]),
        segment_s=5.0,
        round_s=30.0,
    )
    return FineTune(whole, course, shape)
