"""What the coordinator decides of a fine-tune by arithmetic alone: what "auto" becomes, what each part may cost
by its own count, and which checkpoints are kept.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.artifacts import ArtifactStore
from coordinator.finetunes.checkpoints import NEWEST, Checkpoints
from coordinator.finetunes.finetune import Data
from coordinator.finetunes.lengths import Lengths
from coordinator.finetunes.plan import Plan, Wanted, batch_for, epochs_for, planned
from coordinator.finetunes.works import Works
from coordinator.records import FileId
from potluck.shuffle import examples_of
from potluck.v1 import work_pb2

COUNTS = [10, 20, 30, 40, 50, 60, 70]  # tokens of each example
MOST = 45  # of a sequence
NOWHERE = ArtifactStore(Path("/none"))


def plan_of(examples: int = len(COUNTS), **more: Any) -> Plan:
    wanted = Wanted(**{"method": "sft", "seed": 5, **more})
    return planned(
        wanted,
        examples=examples,
        tokens=lambda most: sum(min(count, most) for count in COUNTS),
        validation=0,
        targets=("q_proj",),
        parameters=100,
        context_tokens=1_024,
        checkpoint_s=90.0,
    )


def works_of(**more: Any) -> Works:
    lengths = Lengths(np.array([[count] for count in COUNTS], np.uint32))
    plan = plan_of(epochs=2, batch_size=2, sequence_tokens=MOST, **more)
    return Works(plan, Data(FileId("file-1"), "0" * 64, 9), None, lengths, None, NOWHERE, NOWHERE)


def cut(lines: tuple[int, ...]) -> list[int]:
    return [min(COUNTS[line], MOST) for line in lines]


# -- what "auto" becomes


@pytest.mark.parametrize(
    ("examples", "epochs", "batch_size"),
    [
        (10, 10, 1),
        (12, 9, 1),
        (33, 4, 1),
        (34, 3, 1),
        (64, 3, 2),
        (300, 3, 8),
        (5_000, 3, 32),
        (20_000, 1, 32),
    ],
)
def test_few_examples_are_seen_often_and_in_small_batches(
    examples: int, epochs: int, batch_size: int
) -> None:
    assert (epochs_for(examples), batch_for(examples)) == (epochs, batch_size)


def test_what_is_asked_for_stands_and_the_rest_follows() -> None:
    plan = plan_of(epochs=4, batch_size=2, rank=8, multiplier=3.0)
    assert (plan.steps, plan.warmup_steps, plan.alpha) == (16, 1, 16.0)
    assert plan.learning_rate == pytest.approx(6e-4)
    assert plan.sequence_tokens == 1_024
    assert plan_of(learning_rate=1e-3).multiplier == pytest.approx(5.0)
    assert (plan_of().beta, plan_of(method="dpo").beta, plan_of(method="dpo", beta=0.5).beta) == (0, 0.1, 0.5)
    assert (plan_of(alpha=3.0).alpha, plan_of(checkpoint_s=5.0).checkpoint_s) == (3.0, 5.0)
    assert plan_of(epochs=50, batch_size=1, examples=1_000).warmup_steps == 100


# -- what a part may cost


def test_a_segment_costs_its_own_steps_cut_and_across_epochs() -> None:
    """Four steps an epoch, the last of one example."""
    works = works_of()
    for first, last in ((0, 1), (3, 4), (2, 6), (0, 8), (5, 8)):
        tokens = [count for step in range(first, last) for count in cut(examples_of(5, len(COUNTS), 2, step))]
        bound = works.bound(work_pb2.TrainingWork(first_step=first, last_step=last))
        assert (bound.tokens, bound.square_tokens) == (sum(tokens), sum(count * count for count in tokens))


def test_who_ends_early_is_believed_no_more_than_its_steps() -> None:
    work = work_pb2.TrainingWork(first_step=0, last_step=8)
    assert works_of().bound(work, 1).tokens == sum(cut(examples_of(5, len(COUNTS), 2, 0)))
    leased = work_pb2.TrainingWork(first_step=0, last_step=2, leased=[6, 0, 1])
    assert works_of(workers=2).bound(leased).tokens == 45 + 10 + 20
    assert works_of(workers=2).bound(leased, 1).tokens == 45 + 10


def test_only_where_every_example_is_cut_may_nothing_be_learned() -> None:
    works = works_of(workers=2)
    for lines, steps, may in (
        ([4, 5], 1, True),
        ([4, 3], 1, False),
        ([4, 5, 0], 1, True),
        ([4, 5, 0], 2, False),
    ):
        work = work_pb2.TrainingWork(first_step=0, last_step=steps, leased=lines)
        assert works.may_teach_nothing(work, steps) == may
    assert not works_of().may_teach_nothing(work_pb2.TrainingWork(first_step=0, last_step=4), 4)


# -- checkpoints


def test_the_first_of_each_epochs_end_stays_and_the_newest_few() -> None:
    kept = Checkpoints(steps=10.0)
    for step in range(4, 44, 4):
        assert kept.add(step, f"{step:064}", 1, 0.0, {})
    assert [one.step for one in kept.listed] == [12, 20, 32, 36, 40]
    assert [one.step for one in kept.listed][-NEWEST:] == [32, 36, 40]
    assert not kept.add(40, f"{40:064}", 1, 0.0, {"valid_loss": 1.0})
    assert kept.listed[-1].metrics == {"valid_loss": 1.0}
    assert Checkpoints.of(10.0, kept.listed).number == 10
