"""The pool's sampler is fixed for ever by these vectors, draws from softmax, and filters in the pool's
order.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.noise import hash64, stream
from worker.engines.sampling import Sampler, gumbel, hashes, logprobs

VECTORS = [
    ((0, 0, 0, 0), 0x22870B5A7417F5C0),
    ((0, 0, 0, 1), 0x94163565E02BF2C7),
    ((0, 0, 1, 0), 0xD3C903728DEEFDE8),
    ((0, 1, 0, 0), 0xD378DB0C6962CCE9),
    ((1, 0, 0, 0), 0xC48DF5CECB1511B6),
    ((2**64 - 1, 127, 131071, 49151), 0xDFCE53B1CD41F2F4),
    ((0x706F746C75636B31, 0, 0, 0), 0x238275BC38FCBE91),
]
LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40)


@pytest.mark.parametrize(("counters", "expected"), VECTORS)
def test_the_hash_is_what_it_was(counters: tuple[int, int, int, int], expected: int) -> None:
    assert hash64(*counters) == expected


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 127),
    st.integers(0, 2**20),
    st.lists(st.integers(0, 2**20), min_size=1),
)
def test_many_ids_at_once_hash_like_one_by_one(seed: int, choice: int, position: int, ids: list[int]) -> None:
    together = hashes(stream(seed, choice, position), np.array(ids))
    assert [int(value) for value in together] == [hash64(seed, choice, position, item) for item in ids]


def test_the_noise_is_what_it_was() -> None:
    values = gumbel(hashes(stream(7, 0, 3), np.arange(4)))
    assert values == pytest.approx(
        [-0.04241081282230355, 1.5219705747943861, -0.18608906188329888, 0.6733755302268274], rel=1e-12
    )
    assert np.isfinite(gumbel(np.array([0, 2**64 - 1], dtype=np.uint64))).all()


def test_a_sampled_answer_is_what_it_was() -> None:
    logits = np.linspace(-4, 4, 100, dtype=np.float32)
    sampler = Sampler(seed=42, choice=1, temperature=0.8, top_k=50, top_p=0.95)
    assert [sampler.pick(logits, position) for position in range(8)] == [77, 89, 94, 90, 75, 88, 95, 87]


@given(
    LOGITS,
    st.integers(0, 2**32),
    st.integers(0, 1000),
    st.floats(0.05, 3),
    st.integers(0, 50),
    st.floats(0.01, 1),
)
def test_pick_is_the_definition(
    values: list[float], seed: int, position: int, temperature: float, top_k: int, top_p: float
) -> None:
    """Against the slow way: sort everything, filter, add the noise of every id."""
    logits = np.array(values, dtype=np.float32)
    scaled = logits.astype(np.float64) / temperature
    order = sorted(range(len(values)), key=lambda index: (-scaled[index], index))
    kept = order[:top_k] if top_k else order
    weights = np.exp(scaled[kept] - scaled.max())
    if top_p < 1:
        sums = np.cumsum(weights)
        kept = kept[: int(np.searchsorted(sums, top_p * weights.sum())) + 1]
    noise = gumbel(hashes(stream(seed, 0, position), np.arange(len(values))))
    expected = max(kept, key=lambda index: (scaled[index] + noise[index], -index))
    assert Sampler(seed, 0, temperature, top_k, top_p).pick(logits, position) == expected


def test_samples_follow_softmax() -> None:
    logits = np.array([0.0, 1.0, 2.0, -1.0], dtype=np.float32)
    draws = 20_000
    sampler = Sampler(seed=5, choice=0)
    counts = np.bincount([sampler.pick(logits, position) for position in range(draws)], minlength=4)
    weights = np.exp(logits.astype(np.float64))
    expected = weights / weights.sum() * draws
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 21.1, f"p < 1e-4: {counts} where {expected} was expected"


def test_temperature_zero_is_argmax_and_ties_go_to_the_lowest_id() -> None:
    logits = np.array([1.0, 3.0, 3.0, 2.0], dtype=np.float32)
    assert Sampler(1, 0, 0.0).pick(logits, 0) == 1
    assert Sampler(1, 0, 1.0, top_k=1).pick(logits, 0) == 1
    assert Sampler(1, 0, 1.0, top_p=1e-9).pick(logits, 0) == 1


def test_choices_and_positions_have_noise_of_their_own() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    picks = {Sampler(1, choice).pick(logits, position) for choice in range(8) for position in range(8)}
    assert len(picks) > 50


def test_a_flat_distribution_over_a_large_vocabulary_needs_the_whole_nucleus() -> None:
    logits = np.zeros(50_000, dtype=np.float32)
    picks = [Sampler(1, 0, 1.0, top_p=0.5).pick(logits, position) for position in range(200)]
    assert max(picks) < 25_000
    assert max(picks) > 20_000


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = np.array([0.0, np.log(3), -np.inf], dtype=np.float32)
    value, top = logprobs(logits, 0, 2)
    assert value == pytest.approx(np.log(0.25))
    assert [index for index, _ in top] == [1, 0]
    assert top[0][1] == pytest.approx(np.log(0.75))
    assert logprobs(logits, 1, 0)[1] == []
