"""Wholes: jobs that are done in parts, a batch line by line, a fine-tune segment by segment.

A whole has the one hold; a part has a promise of some of it, and what it is charged is settled out of it. So
what is settled and what is promised to open parts are never more than the hold together, and each part is
paid once, because the entry that pays it carries its number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from coordinator.core import details, entries, jobs
from coordinator.core.earnings import Earnings
from coordinator.core.jobs import Job, JobEvent, JobId, Kind


class NoRoom(Exception):  # noqa: N818 -- named for what happened
    """The whole has ended, or what it may still spend is less than the part could cost."""


@dataclass(slots=True)
class Whole:
    """`parts`: the open ones, each with what it is promised, in microcredits."""

    job: Job
    parts: dict[JobId, int] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """What new parts may be promised."""
        return self.job.hold - self.job.settled - sum(self.parts.values())


@dataclass(slots=True)
class Wholes(Earnings):
    wholes: dict[JobId, Whole] = field(default_factory=dict)

    def open_whole(self, job: Job) -> None:
        """Set its worst case aside. Raises Overdrawn and changes nothing."""
        assert job.kind in jobs.WHOLES, f"{job.id} is no whole"
        if job.hold:
            self._post(entries.hold(job, details.of_hold(job)))
        self.restore_whole(job)
        self.effects.jobs[job.id] = job

    def restore_whole(self, job: Job) -> None:
        """After a restart: its hold stands, and its parts follow as jobs of their own."""
        self.wholes[job.id] = Whole(job)

    def change_whole(self, whole_id: JobId, event: JobEvent, now: float) -> None:
        """Begun, paused or resumed; its parts are the shell's affair."""
        whole = self.wholes[whole_id]
        whole.job = jobs.move(whole.job, event, now=now)
        self.effects.jobs[whole_id] = whole.job

    def close_whole(
        self, whole_id: JobId, event: JobEvent, now: float, *, why: str = "", code: str = ""
    ) -> Job:
        """End it: what its parts did not take is returned. None of them may be open."""
        whole = self.wholes[whole_id]
        assert not whole.parts, f"{whole_id} is closed before its parts"
        job = whole.job
        if job.hold:
            self._post(entries.close(job, [], details.of_rest(job, why)))
        del self.wholes[whole_id]
        job = jobs.move(replace(job, charge=job.settled), event, now=now, why=why, code=code)
        self._remember(job)
        return job

    def _promise(self, part: Job) -> None:
        """Raises NoRoom."""
        assert part.whole is not None
        whole = self.wholes.get(part.whole)
        if whole is None:
            raise NoRoom(f"{part.whole} has ended")
        if part.hold > whole.left:
            raise NoRoom(
                f"{part.id} may cost {part.hold} microcredits, {whole.left} are left of {part.whole}"
            )
        whole.parts[part.id] = part.hold

    def _pay(self, job: Job, paid: Sequence[entries.Payment], said: str) -> None:
        """The one entry that ends a job: its close, or for a part its settlement, if there is any charge."""
        if job.whole is None:
            if job.hold:
                self._post(entries.close(job, paid, said))
            return
        whole = self.wholes[job.whole]
        del whole.parts[job.id]
        if charge := sum(p.amount for p in paid):
            self._post(entries.settle(whole.job, job.part, paid, said))
            settled, settlements = whole.job.settled + charge, whole.job.settlements + 1
            whole.job = replace(whole.job, settled=settled, settlements=settlements)
        written = 0 if job.kind is Kind.FINETUNE else job.output_tokens  # which trains, and writes nothing
        if charge or written:
            whole.job = replace(whole.job, output_tokens=whole.job.output_tokens + written)
            self.effects.jobs[whole.job.id] = whole.job
