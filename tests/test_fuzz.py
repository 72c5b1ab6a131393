"""Parsers of bytes from outside return or refuse, by the errors that they name: a little of `scripts/fuzz` each time."""

import random

import pytest
from fuzz_targets import FOUND, TARGETS, Target, mutants
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = 12


def holds(target: Target, data: bytes) -> None:
    try:
        target.parse(data)
    except target.refuses:
        return


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_takes_what_it_should(name: str) -> None:
    """Or nothing that is made of its seeds would get far."""
    target = TARGETS[name]
    for seed in target.seeds:
        target.parse(target.seal(seed))


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_returns_or_refuses_whatever_it_is_given(name: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None)
    @given(
        st.one_of(st.binary(max_size=200), st.integers(0, 2**32).map(lambda seed: nth(TARGETS[name], seed)))
    )
    def check(data: bytes) -> None:
        holds(TARGETS[name], data)

    check()


def nth(target: Target, seed: int) -> bytes:
    return next(mutants(target, random.Random(seed)))


@pytest.mark.parametrize(
    ("name", "data"),
    # By number: some are made with fresh keys, and each process of the tests must have the same names.
    [
        pytest.param(name, data, id=f"{name} {n}")
        for name, finds in FOUND.items()
        for n, data in enumerate(finds)
    ],
)
def test_what_was_found_once_holds(name: str, data: bytes) -> None:
    holds(TARGETS[name], data)
