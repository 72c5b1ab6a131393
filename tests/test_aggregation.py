"""A round's updates put together: what is no update is refused, and one wrong one of four changes little."""

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest

from coordinator.aggregation import (
    FEW_ROUNDS,
    LONG,
    Mean,
    aggregate,
    gate,
    outer,
    outer_step,
    plain,
)
from potluck import deltas

Array = npt.NDArray[np.float32]
Tensors = dict[str, Array]
SHAPES = {"layer.lora_A": (4, 30), "layer.lora_B": (20, 4)}


def random_tensors(seed: int, size: float = 1e-3) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: (size * rng.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


def times(delta: Tensors, factor: float) -> Tensors:
    return {name: np.float32(factor) * array for name, array in delta.items()}


def flat(delta: Tensors) -> npt.NDArray[np.float64]:
    return np.concatenate([delta[name].astype(np.float64).reshape(-1) for name in sorted(delta)])


def cosine(one: Tensors, other: Tensors) -> float:
    a, b = flat(one), flat(other)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def length(delta: Tensors) -> float:
    return float(np.linalg.norm(flat(delta)))


def away(one: Tensors, other: Tensors) -> float:
    """How far, in lengths of the other."""
    return float(np.linalg.norm(flat(one) - flat(other)) / np.linalg.norm(flat(other)))


def honest(count: int, noise: float = 1.0) -> dict[int, Tensors]:
    """What different shares teach: something in common, and as much of their own."""
    common = random_tensors(0)
    made = {}
    for part in range(1, count + 1):
        own = random_tensors(part)
        made[part] = {name: common[name] + np.float32(noise) * own[name] for name in SHAPES}
    return made


def mean_of(made: dict[int, Tensors]) -> Tensors:
    return plain(made, dict.fromkeys(made, 1.0))


def even(made: dict[int, Tensors]) -> Mean:
    return aggregate(made, dict.fromkeys(made, 100.0))


# -- the gate


def test_an_update_of_this_adapter_passes() -> None:
    assert gate(random_tensors(1), random_tensors(2)) == ""


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layer.lora_A": None}, "it has other tensors than the adapter: layer.lora_A"),
        ({"more": np.zeros((1, 1), np.float32)}, "it has other tensors than the adapter: more"),
        ({"layer.lora_A": np.zeros((4, 31), np.float32)}, "layer.lora_A is [4, 31], and [4, 30] is needed"),
        ({"layer.lora_B": np.full((20, 4), np.nan, np.float32)}, "layer.lora_B is not finite"),
        ({"layer.lora_B": np.full((20, 4), np.inf, np.float32)}, "layer.lora_B is not finite"),
        ({"layer.lora_B": np.full((20, 4), 1.5, np.float32)}, "layer.lora_B moved by 1.5; 1 is the most"),
    ],
)
def test_what_is_no_update_of_it_is_refused_with_the_reason(
    change: dict[str, Array | None], why: str
) -> None:
    delta = {name: array for name, array in (random_tensors(1) | change).items() if array is not None}
    assert gate(delta, random_tensors(2)) == why


def test_an_update_that_changes_nothing_is_none() -> None:
    assert gate(times(random_tensors(1), 0.0), random_tensors(2)) == "nothing was changed"


# -- putting together


def test_equal_honest_workers_are_averaged() -> None:
    made = honest(3)
    assert cosine(even(made).delta, mean_of(made)) > 0.999
    assert even(made).rejected == ()
    assert even(made).norms == pytest.approx({part: length(delta) for part, delta in made.items()})


def test_one_alone_is_taken_as_it_is() -> None:
    made = {7: random_tensors(1)}
    assert length(times(even(made).delta, 1.0)) == pytest.approx(length(made[7]))
    assert cosine(even(made).delta, made[7]) == pytest.approx(1.0)


def test_nothing_makes_nothing() -> None:
    assert aggregate({}, {}) == Mean({}, (), {})


@pytest.mark.parametrize("seed", range(5))
def test_one_of_four_with_its_sign_flipped_and_ten_times_as_large_changes_little(seed: int) -> None:
    """Where the plain mean goes the other way."""
    made = {part: delta for part, delta in honest(4 + seed).items() if part > seed}
    liar = max(made)
    right = mean_of({part: delta for part, delta in made.items() if part != liar})
    made[liar] = times(made[liar], -10.0)
    robust = even(made).delta
    assert cosine(robust, right) > 0.85
    assert 0.4 * length(right) < length(robust) < 1.1 * length(right)
    spoilt = mean_of(made)
    assert cosine(spoilt, right) < 0
    assert away(robust, right) < 0.65
    assert away(spoilt, right) > 2.0


def test_two_of_eight_that_agree_with_each_other_change_little() -> None:
    made = honest(8)
    right = mean_of({part: delta for part, delta in made.items() if part < 7})
    for part in (7, 8):
        made[part] = times(made[part], -10.0)
    assert cosine(even(made).delta, right) > 0.8
    assert away(even(made).delta, right) < 0.35, "shortened alone, they would halve what the others learned"


def test_who_is_too_long_is_shortened_to_the_median_and_of_two_to_the_shorter() -> None:
    made = honest(3)
    made[2] = times(made[2], 100.0)
    assert length(even(made).delta) < 1.2 * length(mean_of(honest(3)))
    pair = {1: honest(2)[1], 2: times(honest(2)[2], 1_000.0)}
    assert length(even(pair).delta) < 1.2 * length(pair[1])


def test_a_majority_that_makes_itself_long_is_held_to_the_rounds_before() -> None:
    made = {part: times(delta, 100.0) for part, delta in honest(2).items()}
    usual = length(honest(1)[1])
    bound = aggregate(made, dict.fromkeys(made, 1.0), previous_norms=[usual, usual, usual]).delta
    assert length(bound) <= 3.0 * usual * 1.01


def test_a_copy_counts_once() -> None:
    """Also one that is a little longer, or a little different."""
    made = honest(3)
    copied = {name: array + 0.01 * random_tensors(9)[name] for name, array in made[1].items()}
    made[4] = times(copied, 2.0)
    assert even(made).rejected == (4,)
    assert cosine(even(made).delta, even(honest(3)).delta) > 0.999


def test_what_is_zero_is_rejected_and_if_all_is_there_is_nothing() -> None:
    made = honest(2) | {3: times(random_tensors(1), 0.0)}
    assert even(made).rejected == (3,)
    assert even({3: made[3]}) == Mean({}, (3,), {})


def test_who_trained_more_tokens_counts_for_more_and_nobody_for_everything() -> None:
    made = honest(3, noise=3.0)
    few = aggregate(made, {1: 100.0, 2: 100.0, 3: 100.0}).delta
    some = aggregate(made, {1: 190.0, 2: 100.0, 3: 100.0}).delta
    all_of_it = aggregate(made, {1: 1e12, 2: 100.0, 3: 100.0}).delta
    assert cosine(few, made[1]) < cosine(some, made[1]) < cosine(all_of_it, made[1])
    twice = aggregate(made, {1: 200.0, 2: 100.0, 3: 100.0}).delta
    assert cosine(all_of_it, twice) == pytest.approx(1.0)


def test_the_order_in_which_they_came_changes_nothing() -> None:
    made = honest(5)
    turned = dict(reversed(made.items()))
    for name, array in even(made).delta.items():
        assert np.array_equal(array, even(turned).delta[name])


def test_large_updates_never_lie_side_by_side_in_full() -> None:
    """As they come they are int8; beside them, what is made of them and a few tensors at a time."""
    rng = np.random.default_rng(1)
    shape, count = (256, 256), 24
    names = [f"layer{n}" for n in range(count)]
    whole = count * shape[0] * shape[1] * 4
    packed = {
        part: deltas.Packed(
            deltas.encode({n: (1e-3 * rng.standard_normal(shape)).astype(np.float32) for n in names})
        )
        for part in range(6)
    }
    tracemalloc.start()
    try:
        made = aggregate(packed, dict.fromkeys(packed, 1.0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(made.delta) == count
    assert peak < 1.7 * whole, "six of them would be six times that"


# -- the outer step


def test_without_momentum_the_update_is_taken_off() -> None:
    theta, delta = random_tensors(1), random_tensors(2)
    moved, momentum = outer(theta, delta, None, 1.0, 0.0)
    assert momentum == {}
    for name in SHAPES:
        assert np.array_equal(moved[name], theta[name] - delta[name])
        assert moved[name].dtype == np.float32


def test_momentum_is_nesterovs() -> None:
    """As torch's SGD: buf = mu * buf + g; d = g + mu * buf; p -= lr * d."""
    theta = {"w": np.array([1.0], np.float32)}
    one, two = {"w": np.array([0.1], np.float32)}, {"w": np.array([0.2], np.float32)}
    first, momentum = outer(theta, one, None, 0.7, 0.9)
    assert first["w"] == pytest.approx([1.0 - 0.7 * (0.1 + 0.9 * 0.1)])
    second, momentum = outer(first, two, momentum, 0.7, 0.9)
    assert momentum["w"] == pytest.approx([0.9 * 0.1 + 0.2])
    assert second["w"] == pytest.approx(first["w"] - 0.7 * (0.2 + 0.9 * 0.29))


def test_long_fine_tunes_have_momentum() -> None:
    assert outer_step(LONG - 1, 2) == (FEW_ROUNDS, 0.0)
    assert outer_step(LONG - 1, 1) == (1.0, 0.0), "a single update is no mean"
    assert outer_step(LONG, 2) == (0.7, 0.9)
