"""Pauses of workers that are asked for from afar: who may ask, and who may take one back.

The owner of a worker may pause it and take any such pause back. Admins may pause any worker, and take back
what an admin asked for; not what its owner did. The owner's own word on the machine is not ours to know: the
worker keeps it, and it goes first.
"""

from dataclasses import dataclass

from coordinator.core.jobs import MemberId


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPause:
    """`number` tells it from another one. `until`: when it ends by itself; None: when it is taken back."""

    number: int
    member: MemberId  # who asked
    by_owner: bool
    until: float | None = None
    why: str = ""

    def over(self, now: float) -> bool:
        return self.until is not None and now >= self.until


def refusal(in_force: AskedPause | None, *, owner: bool) -> str:
    """Why others than the owner may neither replace nor take back what is in force; empty if they may.

    An admin's pause in the place of the owner's would be one that admins could take back.
    """
    if owner or in_force is None or not in_force.by_owner:
        return ""
    return "its owner paused it, and only its owner may take that back"


def words(pause: AskedPause, name: str) -> str:
    """As the machine and everybody is told."""
    who = "its owner paused it from afar" if pause.by_owner else f"the admin {name} paused it"
    return f"{who}: {pause.why}" if pause.why else who
