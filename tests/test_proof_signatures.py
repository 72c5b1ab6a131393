"""Signatures are checked in other processes, in order, and here where there are none."""

import os
import signal

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from potluck.proof.signatures import GROUP, Check, Signatures

KEY = Ed25519PrivateKey.generate()
RAW = KEY.public_key().public_bytes_raw()
MESSAGE = b"the books"
GOOD = KEY.sign(MESSAGE)


def check(number: int, signature: bytes = GOOD) -> Check:
    return Check("receipt", number, "it is not signed", RAW, MESSAGE, signature)


def filled(signatures: Signatures, wrong: set[int]) -> None:
    for number in range(1, 3 * GROUP + 1):
        signatures.add(check(number, bytes(64) if number in wrong else GOOD))


@pytest.mark.parametrize(("expected", "processes"), [(10, 2), (10_000, 1), (10_000, 2)])
def test_the_first_wrong_one_is_named_wherever_it_is_checked(expected: int, processes: int) -> None:
    with Signatures(expected, processes) as signatures:
        filled(signatures, {GROUP + 7, 2 * GROUP + 1})
        fault = signatures.settle()
        assert fault is not None
        assert (fault.kind, fault.number) == ("receipt", GROUP + 7)
        assert signatures.checked == 3 * GROUP
    with Signatures(expected, processes) as signatures:
        filled(signatures, set())
        assert signatures.settle() is None


def test_processes_that_are_killed_are_done_without() -> None:
    """What they had not answered is checked here, and nothing is missed."""
    with Signatures(10_000, 2) as signatures:
        signatures.add(check(1, bytes(64)))
        for number in range(2, 2 * GROUP + 1):  # two groups: both processes are started, and no more will be
            signatures.add(check(number))
        assert signatures._executor is not None
        for pid in list(signatures._executor._processes):
            os.kill(pid, signal.SIGTERM)
        filled(signatures, set())
        fault = signatures.settle()
        assert fault is not None
        assert fault.number == 1


@pytest.mark.parametrize("key", [b"", bytes(31), b"\xff" * 32])
def test_a_key_that_is_none_fits_no_signature(key: bytes) -> None:
    with Signatures(1) as signatures:
        signatures.add(Check("head", 1, "it is not signed", key, MESSAGE, GOOD))
        assert signatures.settle() is not None
