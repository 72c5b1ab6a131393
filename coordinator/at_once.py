"""How many calls of one kind a worker may have open."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from coordinator.core.jobs import WorkerId
from coordinator.unwelcome import Unwelcome


@dataclass(slots=True)
class AtOnce:
    """`what`: of many, in words."""

    most: int
    what: str
    _open: Counter[WorkerId] = field(default_factory=Counter)

    @contextmanager
    def counted(self, worker: WorkerId) -> Iterator[None]:
        """Raises Unwelcome."""
        if self._open[worker] >= self.most:
            raise Unwelcome(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"a worker may have {self.most} {self.what} at once"
            )
        self._open[worker] += 1
        try:
            yield
        finally:
            self._open[worker] -= 1
            if not self._open[worker]:
                del self._open[worker]
