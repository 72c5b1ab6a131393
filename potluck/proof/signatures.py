"""Many Ed25519 signatures, checked on all cores while the file is still being read.

A check costs about 0.1 ms, two are due for each receipt, so they go in groups to processes of their own;
few of them stay in this one. What is in flight is bounded.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from types import TracebackType
from typing import Final, NamedTuple, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from potluck.proof.lines import Fault

GROUP: Final = 1_000
ALONE_MAX: Final = 2_000  # starting processes costs as much as so many checks
AHEAD: Final = 3  # groups in flight for each process
PROCESSES_MAX: Final = 16


class Check(NamedTuple):
    """One signature, and whose fault it is if it is wrong."""

    kind: str
    number: int
    what: str
    key: bytes
    message: bytes
    signature: bytes


class Signatures:
    """A context manager; `settle` waits for all checks. `expected`: about how many there will be."""

    def __init__(self, expected: int, processes: int | None = None) -> None:
        wanted = min(processes or _cores(), PROCESSES_MAX)
        self._processes = wanted if expected > ALONE_MAX and wanted > 1 else 0
        self._executor: ProcessPoolExecutor | None = None
        self._waiting: list[Check] = []
        self._flying: deque[Future[list[int]]] = deque()
        self._groups: deque[list[Check]] = deque()
        self._faults: list[Fault] = []
        self.checked = 0

    def __enter__(self) -> Self:
        if self._processes:
            # Not forked: threads of whoever calls this would be copied half-way.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._processes, mp_context=context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def add(self, check: Check) -> None:
        self.checked += 1
        self._waiting.append(check)
        if len(self._waiting) >= GROUP:
            self._send()

    def settle(self) -> Fault | None:
        """The first signature that is wrong, in the order in which they were added."""
        self._send()
        while self._flying:
            self._land()
        return self._faults[0] if self._faults else None

    @property
    def failed(self) -> bool:
        """Whether one is known to be wrong already: going on is of no use."""
        return bool(self._faults)

    def _send(self) -> None:
        group, self._waiting = self._waiting, []
        if not group:
            return
        if self._executor is None:
            self._blame(group, wrong(_bare(group)))
            return
        try:
            flying = self._executor.submit(wrong, _bare(group))
        except BrokenProcessPool as error:
            flying = Future()
            flying.set_exception(error)
        self._flying.append(flying)
        self._groups.append(group)
        while len(self._flying) > self._processes * AHEAD:
            self._land()

    def _land(self) -> None:
        """Where processes cannot be had or were killed, this one does their work: slower, not worse."""
        group = self._groups.popleft()
        try:
            found = self._flying.popleft().result()
        except BrokenProcessPool:
            found = wrong(_bare(group))
        self._blame(group, found)

    def _blame(self, group: list[Check], found: list[int]) -> None:
        self._faults += [Fault(group[i].kind, group[i].number, group[i].what) for i in found]


def wrong(checks: Sequence[tuple[bytes, bytes, bytes]]) -> list[int]:
    """The places of those signatures (key, message, signature) that do not fit."""
    return [place for place, (key, *signed) in enumerate(checks) if not _fits(key, *signed)]


def _fits(key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        _public_key(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=1_024)
def _public_key(raw: bytes) -> Ed25519PublicKey:
    """A pool has few keys and many signatures. Raises ValueError if these bytes are none."""
    return Ed25519PublicKey.from_public_bytes(raw)


def _bare(group: Sequence[Check]) -> list[tuple[bytes, bytes, bytes]]:
    return [(check.key, check.message, check.signature) for check in group]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
