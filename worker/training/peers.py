"""Engines that compute one training together, on several cards of one machine: data parallel.

Each takes a part of a step's examples. Gradients and sums are added up before the step is done, so that it is
the step that one engine would have done alone, up to rounding, and all hold the same adapter afterwards. What
they agree on (that it is stopped, that its time is over) they agree on between steps: who left alone in the
middle of one would leave the others waiting.

They find each other by a file and speak over the loopback alone: no port of theirs is reachable from off the
machine. An adapter is small, so the processors exchange it; cards need no way to each other.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol

import torch
import torch.distributed

from worker.training.losses import Sums
from worker.training.packing import Unit, size_of

MEET_S_MAX: Final = 300.0  # until all have loaded the model
WAIT_S_MAX: Final = 600.0  # for the slowest, in one step
LOOPBACK: Final = "lo0" if sys.platform == "darwin" else "lo"


class Peers(Protocol):
    """`first`: who tells of the steps and writes what is made."""

    @property
    def first(self) -> bool: ...

    @property
    def alone(self) -> bool: ...

    def mine(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """Those of a step that are computed here."""

    def agree(self, flag: bool) -> bool:  # noqa: FBT001 -- what somebody wants, as all hear it
        """Whether anybody says so."""

    def add_up(self, sums: Sums, gradient: Any = None) -> Sums:
        """What all came to together; the gradient in its place."""


class Alone:
    first = alone = True

    def mine(self, units: Sequence[Unit]) -> Sequence[Unit]:
        return units

    def agree(self, flag: bool) -> bool:  # noqa: FBT001 -- as in Peers
        return flag

    def add_up(self, sums: Sums, gradient: Any = None) -> Sums:
        del gradient
        return sums


@dataclass(frozen=True, slots=True)
class Together:
    rank: int
    ranks: int

    @classmethod
    def meet(cls, file: Path, rank: int, ranks: int) -> "Together":
        """Returns when all are there. Raises RuntimeError if not all come."""
        os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK
        wait = timedelta(seconds=MEET_S_MAX)
        store = torch.distributed.FileStore(str(file), ranks)
        store.set_timeout(wait)
        torch.distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=WAIT_S_MAX)
        )
        torch.distributed.barrier()
        if rank == 0:
            with suppress(OSError):
                file.unlink()
        return cls(rank, ranks)

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return False

    def mine(self, units: Sequence[Unit]) -> Sequence[Unit]:
        return [units[place] for place in shares([size_of(unit) for unit in units], self.ranks)[self.rank]]

    def agree(self, flag: bool) -> bool:  # noqa: FBT001 -- as in Peers
        said = torch.tensor([int(flag)])
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
        return bool(said.item())

    def add_up(self, sums: Sums, gradient: Any = None) -> Sums:
        if gradient is not None:
            whole = gradient.to("cpu", copy=True)
            torch.distributed.all_reduce(whole)
            gradient.copy_(whole)
        loss, *counts = astuple(sums)
        said = torch.tensor([loss], dtype=torch.float64), torch.tensor(counts)
        for each in said:
            torch.distributed.all_reduce(each)
        return Sums(float(said[0].item()), *(int(count) for count in said[1]))


def shares(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Places of the sizes, for each part in their order: the largest first to whoever has least so far."""
    loads, found = [0] * parts, [list[int]() for _ in range(parts)]
    for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
        part = loads.index(min(loads))
        loads[part] += sizes[place]
        found[part].append(place)
    return [sorted(places) for places in found]
