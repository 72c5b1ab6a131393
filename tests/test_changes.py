"""When a list of jobs is looked at again: its owner's jobs changed, or some wait while others move."""

from dataclasses import replace

from fixtures_core import Pool, demand, job_of

from coordinator.changes import JobChanges
from coordinator.core.jobs import JobId, JobState, MemberId

ALICE, BOB = MemberId("a"), MemberId("b")


def test_a_list_changes_with_its_owners_jobs_and_with_the_line_while_one_waits() -> None:
    pool = Pool()
    changes = JobChanges(pool.engine)
    before = {who: changes.version(who) for who in (ALICE, BOB, None)}
    job = job_of(demand(), member=ALICE)
    changes.take([job])
    assert changes.version(ALICE) != before[ALICE]
    assert changes.version(None) != before[None]
    assert changes.version(BOB) == before[BOB]
    waits = changes.version(ALICE)
    pool.engine.queue[JobId("job_2")] = None  # another comes into the line
    assert changes.version(ALICE) != waits
    assert changes.version(BOB) == before[BOB], "nothing of that member waits"
    changes.take([replace(job, state=JobState.RUNNING)])
    runs = changes.version(ALICE)
    del pool.engine.queue[JobId("job_2")]
    assert changes.version(ALICE) == runs


def test_the_parts_of_a_whole_are_not_in_lists() -> None:
    changes = JobChanges(Pool().engine)
    before = changes.version(None)
    changes.take([job_of(demand(), whole=JobId("job_1"), part=1, name="job_1.1")])
    assert changes.version(None) == before


def test_what_waits_when_the_coordinator_begins_is_known() -> None:
    pool = Pool()
    wanted = demand()
    pool.engine.restore(job_of(wanted, member=ALICE), wanted, count=len, memory_bytes=0, now=0.0)
    changes = JobChanges(pool.engine)
    before = changes.version(ALICE)
    pool.engine.queue[JobId("job_2")] = None
    assert changes.version(ALICE) != before
