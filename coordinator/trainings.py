"""Who takes what workers say about training: the keeper of the pool's fine-tunes, as the wire knows it."""

from collections.abc import Sequence
from typing import Final, Protocol

from coordinator.core.jobs import Job
from potluck.pricing import Training
from potluck.v1 import work_pb2

NONE_HERE: Final = "no fine-tunes here"


class Trainings(Protocol):
    """Both are asked only while the worker holds the part, and once for each thing said. What they find wrong
    is the worker's fault.
    """

    def steps(self, job: Job, steps: Sequence[work_pb2.TrainingStep]) -> str:
        """The next steps of this part; empty, or what is wrong with them."""

    async def trained(self, job: Job, trained: work_pb2.Trained) -> Training | str:
        """What the part came to, its artifacts looked at; or what is wrong with it."""


class Nobody:
    """Trainings of a pool without fine-tunes."""

    def steps(self, job: Job, steps: Sequence[work_pb2.TrainingStep]) -> str:
        del job, steps
        return NONE_HERE

    async def trained(self, job: Job, trained: work_pb2.Trained) -> Training | str:
        del job, trained
        return NONE_HERE
