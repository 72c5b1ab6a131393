"""How many jobs are open and how much memory their texts take, in all and of each member.

Both have a limit, so that memory has. A member may have as much as is still free: the more it has, the less
is left for it, and whoever comes new always finds room (Choudhury and Hahne, Dynamic queue length thresholds,
1998). Nobody has to say how many members there will be.
"""

from dataclasses import dataclass, field
from typing import Literal

from coordinator.core.jobs import JobId, MemberId

Full = Literal["", "own", "all"]


@dataclass(slots=True)
class Crowd:
    """`bytes_max`: of the texts of all that are open."""

    jobs_max: int
    bytes_max: int
    bytes: int = 0
    _open: dict[JobId, tuple[MemberId, int]] = field(default_factory=dict)
    _own: dict[MemberId, tuple[int, int]] = field(default_factory=dict)  # jobs, bytes

    def enter(self, job: JobId, member: MemberId, size: int) -> None:
        jobs, taken = self._own.get(member, (0, 0))
        self._open[job], self._own[member] = (member, size), (jobs + 1, taken + size)
        self.bytes += size

    def leave(self, job: JobId) -> None:
        if (known := self._open.pop(job, None)) is None:
            return
        member, size = known
        jobs, taken = self._own[member]
        self.bytes -= size
        if jobs > 1:
            self._own[member] = jobs - 1, taken - size
        else:
            del self._own[member]

    def full(self, member: MemberId, size: int, *, stored: bool) -> Full:
        """Whether one more of this size has no room, and by whose doing. Interactive jobs have a limit of
        their own for each member, so that stored ones do not shut their member out of asking.
        """
        free, free_bytes = self.jobs_max - len(self._open), self.bytes_max - self.bytes
        if free <= 0 or size > free_bytes:
            return "all"
        jobs, taken = self._own.get(member, (0, 0))
        if stored and (jobs >= free or taken + size > free_bytes):
            return "own"
        return ""

    @property
    def half(self) -> bool:
        """Whether half of either is taken: what can wait outside does so then."""
        return 2 * len(self._open) >= self.jobs_max or 2 * self.bytes >= self.bytes_max

    def __len__(self) -> int:
        return len(self._open)
