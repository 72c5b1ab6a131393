"""Updates of a round: what a worker sent is what it changed, to within half a step of int8, or it is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from potluck import deltas, tensors
from potluck.deltas import BLOCK, DeltaError

CHECKED = settings(max_examples=200, deadline=None, derandomize=True)
shapes = arrays.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=40)
values = arrays.arrays(np.float32, shapes, elements=st.floats(-(2.0**100), 2.0**100, width=32))


def blocks(array: Any) -> Any:
    flat = array.astype(np.float64).ravel()
    return np.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)


@given(st.dictionaries(st.sampled_from("abc"), values, min_size=1))
@CHECKED
def test_a_value_is_off_by_half_a_step_of_its_block_at_most(delta: dict[str, Any]) -> None:
    """The float16 of the scale adds 1/2048 of the block's largest value, or a step of the smallest such scale."""
    got = deltas.decode(deltas.encode(delta))
    assert got.keys() == delta.keys()
    for name, array in delta.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == np.float32
        largest = np.abs(blocks(array)).max(axis=1, initial=0)
        floor = np.abs(array).max(initial=0) * np.finfo(np.float16).tiny
        allowed = np.maximum(largest * (0.5 / 127 + 2**-10), floor) + 1e-45
        assert (np.abs(blocks(got[name]) - blocks(array)).max(axis=1, initial=0) <= allowed).all()


@given(st.floats(1e-20, 1e20))
@CHECKED
def test_its_precision_does_not_depend_on_its_size(size: float) -> None:
    """Changes of a tiny learning rate survive."""
    array = (np.random.default_rng(3).normal(size=(5, 100)) * size).astype(np.float32)
    got = deltas.decode(deltas.encode({"a": array}))["a"]
    assert np.linalg.norm((got - array) / size) < 0.01 * np.linalg.norm(array / size)


def test_nothing_stays_nothing() -> None:
    zero = np.zeros((3, 50), np.float32)
    np.testing.assert_array_equal(deltas.decode(deltas.encode({"a": zero}))["a"], zero)


def test_the_same_change_is_the_same_bytes_and_about_a_byte_a_value() -> None:
    rng = np.random.default_rng(1)
    delta = {name: rng.normal(size=(64, 200)).astype(np.float32) for name in ("b", "a")}
    data = deltas.encode(delta)
    assert data == deltas.encode(dict(reversed(delta.items())))
    assert len(data) < 2 * 64 * 200 * (1 + 2.5 / BLOCK) + 1024


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_sent(bad: float) -> None:
    with pytest.raises(DeltaError, match="not finite"):
        deltas.encode({"a": np.array([1, bad], np.float32)})


Parts = dict[str, Any]
GOOD: Parts = {
    "a": np.ones((2, 100), np.int8),
    "a/scales": np.ones(2, np.float16),
    "a/peak": np.ones(1, np.float32),
}
BAD: dict[str, tuple[Callable[[Parts], Parts], str]] = {
    "nothing": (lambda parts: {}, "nothing else"),
    "no scales": (lambda parts: {k: v for k, v in parts.items() if k != "a/scales"}, "nothing else"),
    "no values": (lambda parts: {k: v for k, v in parts.items() if k != "a"}, "nothing else"),
    "scales of another": (
        lambda parts: {"a": parts["a"], "b/scales": parts["a/scales"], "a/peak": parts["a/peak"]},
        "a/scales is missing",
    ),
    "one too much": (lambda parts: parts | {"b/peak": parts["a/peak"]}, "nothing else"),
    "floats": (lambda parts: parts | {"a": np.ones((2, 100), np.float32)}, "a is F32; I8 is needed"),
    "wide scales": (lambda parts: parts | {"a/scales": np.ones(2, np.float32)}, "F16 is needed"),
    "too few scales": (lambda parts: parts | {"a/scales": np.ones(1, np.float16)}, "a scale for each"),
    "two peaks": (lambda parts: parts | {"a/peak": np.ones(2, np.float32)}, "one peak"),
    "peak NaN": (lambda parts: parts | {"a/peak": np.full(1, np.nan, np.float32)}, "no size"),
    "peak infinite": (lambda parts: parts | {"a/peak": np.full(1, np.inf, np.float32)}, "no size"),
    "peak below zero": (lambda parts: parts | {"a/peak": np.full(1, -1, np.float32)}, "no size"),
    "scale NaN": (lambda parts: parts | {"a/scales": np.full(2, np.nan, np.float16)}, "from 0 to 1"),
    "scale huge": (lambda parts: parts | {"a/scales": np.full(2, 2, np.float16)}, "from 0 to 1"),
    "scale below zero": (lambda parts: parts | {"a/scales": np.full(2, -1, np.float16)}, "from 0 to 1"),
    "-128": (lambda parts: parts | {"a": np.full((2, 100), -128, np.int8)}, "below -127"),
}


def test_the_parts_that_the_next_test_spoils_are_good() -> None:
    np.testing.assert_allclose(deltas.decode(tensors.write(GOOD))["a"], np.full((2, 100), 1 / 127), rtol=1e-6)


@pytest.mark.parametrize(("spoil", "why"), BAD.values(), ids=BAD)
def test_anything_else_is_refused_with_a_sentence(spoil: Callable[[Parts], Parts], why: str) -> None:
    with pytest.raises(DeltaError, match=why):
        deltas.decode(tensors.write(spoil(dict(GOOD))))


def test_an_adapter_is_no_delta() -> None:
    with pytest.raises(DeltaError):
        deltas.decode(tensors.write({"a": np.ones((2, 2), np.float32)}))


@given(st.data())
@CHECKED
def test_damaged_bytes_are_refused_or_still_finite(data: st.DataObject) -> None:
    """Whatever a worker sends ends as a DeltaError or as numbers that can be judged, never in a traceback."""
    good = bytearray(tensors.write(GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    try:
        got = deltas.decode(bytes(good[:cut] if data.draw(st.booleans()) else good))
    except DeltaError:
        return
    assert all(np.isfinite(array).all() for array in got.values())
