"""What each step of a training takes and at which rate, and how much is computed at once: numbers alone."""

import math
from typing import Any

import pytest
from fixtures_training import plan
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.v1 import work_pb2
from worker.training.memory import FREE_PART, TOKENS_MAX, TOKENS_MIN, Cost, Room, free_bytes
from worker.training.plan import check, examples_of, learning_rate
from worker.training.precision import LossScale, Precision, precision

CHECKED = settings(max_examples=200, deadline=None, derandomize=True)
GB = 1 << 30


def work(first: int = 0, last: int = 10, **changes: Any) -> work_pb2.TrainingWork:
    given = {"learning_rate": 1.0, "steps": 10, "warmup_steps": 4, "batch_size": 4, "examples": 40} | changes
    leased, delta = given.pop("leased", ()), given.pop("delta", False)
    return work_pb2.TrainingWork(
        plan=plan(**given), first_step=first, last_step=last, leased=leased, delta=delta
    )


def rates(of: work_pb2.TrainingWork) -> list[float]:
    return [learning_rate(of, step) for step in range(of.first_step, of.last_step)]


def test_the_rate_warms_up_and_then_follows_its_schedule() -> None:
    warm = [0.2, 0.4, 0.6, 0.8]
    assert rates(work(schedule="constant")) == pytest.approx([*warm, *[1.0] * 6])
    assert rates(work(schedule="linear")) == pytest.approx([*warm, *(1 - i / 6 for i in range(6))])
    assert rates(work(schedule="cosine")) == pytest.approx(
        [*warm, *((1 + math.cos(math.pi * i / 6)) / 2 for i in range(6))]
    )


@given(
    st.integers(0, 60),
    st.integers(1, 50),
    st.integers(0, 60),
    st.sampled_from(["constant", "linear", "cosine"]),
)
@CHECKED
def test_no_step_is_for_nothing(warmup: int, steps: int, step: int, schedule: str) -> None:
    """Above zero and at most the plan's, beyond the last step as well: rounds may come to need more."""
    rate = learning_rate(work(warmup_steps=warmup, steps=steps, schedule=schedule), step)
    assert 0 < rate <= 1


def test_a_share_warms_up_by_itself_at_the_rate_of_its_steps() -> None:
    """Its Adam moments begin at zero, wherever in the fine-tune it stands."""
    given: dict[str, Any] = {"schedule": "linear", "warmup_steps": 0, "batch_size": 1, "leased": range(4)}
    share, plain = rates(work(4, 8, delta=True, **given)), rates(work(4, 8, **given))
    assert plain == pytest.approx([0.6, 0.5, 0.4, 0.3])
    assert share == pytest.approx([0.2, 1 / 3, 0.4, 0.3])


def test_each_epoch_takes_each_example_once_and_shares_take_theirs_in_order() -> None:
    chain = work(0, 20, examples=38, steps=20)
    check(chain, 512)
    epochs = [
        [line for step in steps for line in examples_of(chain, step)] for steps in (range(10), range(10, 20))
    ]
    assert all(sorted(epoch) == list(range(38)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    share = work(7, 10, leased=[5, 1, 9, 2, 8, 3, 30, 31, 4])
    check(share, 512)
    assert [list(examples_of(share, step)) for step in (7, 8, 9)] == [[5, 1, 9, 2], [8, 3, 30, 31], [4]]


# -- memory

COST = Cost.of("cuda", kept=3 << 20, layers=32, hidden=4096, item_bytes=2)  # as of an 8B


def test_layers_that_compute_again_keep_their_inputs_alone() -> None:
    assert COST.plain > 3 << 20
    assert 32 * 4096 * 2 < COST.thin < COST.plain / 5
    one = Cost.of("cpu", kept=10, layers=1, hidden=8, item_bytes=4)
    assert one.thin <= one.plain


def test_a_card_with_room_saves_nothing_and_computes_as_much_as_is_useful() -> None:
    room = Room.of(COST, 64 * GB, "cuda")
    assert room == Room(16384, 65536, 16384)
    assert not room.checkpoints(16384)
    assert room.checkpoints(16385)


def test_a_card_without_room_computes_again_rather_than_little_at_once() -> None:
    room = Room.of(COST, 4 * GB, "cuda")
    assert (room.plain, room.packed) == (1024, room.thin)
    assert room.thin >= 2048
    assert Room.of(COST, 8 * GB, "cuda").packed == 2048, "an eighth of the most is efficient without"


def test_a_processor_is_quick_with_little() -> None:
    small = Cost.of("cpu", kept=1 << 20, layers=30, hidden=576, item_bytes=4)
    assert Room.of(small, 8 * GB, "cpu").packed == TOKENS_MAX["cpu"]


@given(st.integers(0, 1 << 40), st.sampled_from(["cpu", "mps", "cuda"]), st.integers(1, 1 << 24))
@CHECKED
def test_what_is_decided_fits(free: int, device: str, kept: int) -> None:
    cost = Cost.of(device, kept=kept, layers=32, hidden=4096, item_bytes=2)
    room = Room.of(cost, free, device)
    assert room.plain * cost.plain <= free
    assert room.thin * cost.thin <= free
    assert room.plain <= room.thin
    assert room.packed <= min(TOKENS_MAX[device], room.thin)
    assert all(
        size == 0 or (size >= TOKENS_MIN and size & (size - 1) == 0) for size in (room.plain, room.thin)
    )


def test_a_little_more_or_less_memory_decides_the_same() -> None:
    """So that a segment that goes on where another ended rounds as the other would have."""
    assert len({Room.of(COST, 20 * GB + (extra << 20), "cuda") for extra in range(-400, 400, 20)}) == 1


def test_too_much_all_the_same_is_halved() -> None:
    assert Room(1024, 4096, 2048).halved() == Room(512, 2048, 1024)


def test_below_the_owners_cap_or_a_part_of_what_is_free() -> None:
    given = {"used": 3 * GB, "device_free": 10 * GB, "fixed": GB}
    assert free_bytes("cpu", cap=6 * GB, **given) == 2 * GB
    assert free_bytes("cpu", cap=0, **given) == 4 * GB
    assert free_bytes("cuda", cap=0, **given) == int(10 * GB * FREE_PART["cuda"]) - GB
    assert free_bytes("cpu", cap=GB, **given) == 0


# -- precision


def test_sixteen_bits_multiply_in_their_own_and_float16_is_scaled() -> None:
    assert precision("float32") == Precision()
    assert precision("bfloat16") == Precision(autocast="bfloat16")
    assert precision("float16") == Precision(autocast="float16", scaled=True)


def test_the_loss_scale_gives_way_at_once_and_comes_back_slowly() -> None:
    scale = LossScale()
    assert scale.overflowed()
    assert (scale.value, scale.good_steps) == (LossScale.FIRST / 2, 0)
    for _ in range(LossScale.GROWTH_STEPS):
        scale.went_well()
    assert (scale.value, scale.good_steps) == (LossScale.FIRST, 0)
    tries = 0
    while scale.overflowed():
        tries += 1
    assert tries < 30, "then it is not the scale that is wrong"
