"""What an entry is told to each of its parties: the words alone, without a database."""

from dataclasses import replace

import pytest
from fixtures_store import NOW

from coordinator.core import details, entries
from coordinator.core.entries import Payment
from coordinator.core.jobs import AccountId, Attempt, AttemptState, Job, JobId, Kind, MemberId, WorkerId
from coordinator.core.ledger import COMMONS, LINES, Account, Bucket, Code, Entry
from coordinator.core.pricing import Demand, Segment, Shape, Tariff, Training
from coordinator.movements import Known
from coordinator.wording import NOTE_CHARS_MAX, Telling

ALICE, BOB, CAROL = AccountId("acc_alice"), AccountId("acc_bob"), AccountId("acc_carol")
JOB = JobId("job_1")
KNOWN = Known(
    members={ALICE: "alice", BOB: "bob", CAROL: "carol"},
    workers={"wrk_rig": "rig"},
    tries={
        (JOB, 1): (BOB, "rig"),
        (JOB, 2): (ALICE, "attic"),
        (JOB, 3): (BOB, "cellar"),
        (JOB, 4): (CAROL, "barn"),
    },
)


def told(entry: Entry, reader: AccountId, job_why: str = "") -> str:
    return Telling(entry, reader, KNOWN, job_why).words()


def new_job() -> Job:
    owners = {1: BOB, 2: ALICE, 3: BOB, 4: CAROL}
    attempts = tuple(
        Attempt(
            number=n,
            worker=WorkerId(f"w{n}"),
            owner=owner,
            assigned_at=NOW,
            state=AttemptState.LOST,
            tokens=10 * n,
        )
        for n, owner in owners.items()
    )
    return Job(
        id=JOB,
        kind=Kind.CHAT,
        model="tiny",
        member=MemberId("mem_alice"),
        account=ALICE,
        created_at=NOW,
        quote=1_000,
        hold=1_000,
        prompt_tokens=7,
        max_tokens=99,
        attempts=attempts,
    )


def worked(*tries: int, held: tuple[int, ...] = (), settled: bool = False) -> Entry:
    """A job whose attempts delivered ten tokens times their number each; those of alice's own are free."""
    job = new_job()
    segments = [Segment(n, 0, 0, 10 * n) for n in tries]
    demand = Demand(Kind.CHAT, Shape(1, 0, 0), (7,), 99)
    paid = [
        Payment(n, job.attempts[n - 1].owner, 100, 2, Bucket.HELD if n in held else Bucket.MAIN)
        for n in tries
        if job.attempts[n - 1].owner != ALICE
    ]
    said = details.of_work(job, demand, Tariff(), segments, tries[-1] if tries else None, paid)
    return entries.settle(job, 3, paid, said) if settled else entries.close(job, paid, said)


def test_several_attempts_are_told_to_each_owner_alone() -> None:
    """The one who asked sees the whole; owners their own workers, and not who else there was."""
    entry = worked(1, 2, 3, 4)
    assert told(entry, ALICE) == "asked tiny: 7 tokens in, 100 out, 20 of them by your own machines"
    assert told(entry, BOB) == (
        "served 40 tokens of tiny for alice's job job_1 (attempt 1 on rig, attempt 3 on cellar)"
    )
    assert told(entry, CAROL) == "served 40 tokens of tiny for alice's job job_1 (attempt 4 on barn)"
    assert Telling(entry, BOB, KNOWN).counterparties() == ["alice", "commons"]
    assert Telling(entry, CAROL, KNOWN).counterparties() == ["alice", "commons"]
    assert Telling(entry, ALICE, KNOWN).counterparties() == ["bob", "carol", "commons"]
    assert Telling(entry, COMMONS, KNOWN).counterparties() == ["alice", "bob", "carol"]


def test_what_is_held_back_says_until_when() -> None:
    """And by whom, where it is more than one worker; it is told again when it is free."""
    assert told(worked(1, held=(1,)), BOB).endswith("(attempt 1 on rig), held back until rig is proven")
    both = told(worked(1, 3, held=(1, 3)), BOB)
    assert both.endswith(", held back until rig and cellar are proven")
    assert "held back" not in told(worked(1, held=(1,)), ALICE)
    freed = entries.release(WorkerId("wrk_rig"), BOB, 98)
    assert told(freed, BOB) == "no longer held back: rig is proven"


def test_own_machines_are_free_and_a_part_of_a_long_job_is_a_part() -> None:
    assert told(worked(2), ALICE) == "asked tiny on your own machines: 7 tokens in, 20 out, free"
    assert told(worked(1, settled=True), ALICE) == "asked tiny, part 3 of job_1: 7 tokens in, 10 out"
    assert told(worked(1, settled=True), BOB).startswith("served 10 tokens of tiny for alice's job job_1")
    assert told(worked(1, settled=True), COMMONS) == "fee for alice's job job_1"


@pytest.mark.parametrize(
    ("training", "asked", "served"),
    [
        (
            Training("sft", 9, 400, 9_000),
            "trained tiny, part 3 of job_1: 400 tokens",
            "trained tiny with 400 tokens",
        ),
        (
            Training("dpo", 9, 400, 9_000, 90, 800),
            "trained tiny, part 3 of job_1: 400 tokens, 90 read to evaluate",
            "trained tiny with 400 tokens, 90 read to evaluate",
        ),
        (
            Training("sft", 9, 0, 0, 90, 800),
            "evaluated tiny, part 3 of job_1: 90 tokens",
            "evaluated tiny with 90 tokens",
        ),
    ],
)
def test_a_part_of_a_fine_tune_says_what_was_trained_and_read(
    training: Training, asked: str, served: str
) -> None:
    job = replace(new_job(), kind=Kind.FINETUNE)
    demand = Demand(Kind.FINETUNE, Shape(1, 0, 0), (64,), training=training)
    paid = [Payment(1, BOB, 100, 2)]
    segments = [Segment(1, 0, 0, training.tokens)] if training.tokens else []
    entry = entries.settle(job, 3, paid, details.of_work(job, demand, Tariff(), segments, 1, paid))
    assert told(entry, ALICE) == asked
    assert told(entry, BOB) == f"{served} for alice's job job_1.3 (attempt 1 on a worker)"
    assert told(entry, COMMONS) == "fee for alice's job job_1"


def test_what_returns_says_why() -> None:
    """A crash, a failure, a cancellation before anything was delivered."""
    why = "the coordinator restarted while it ran; nothing was charged"
    assert told(entries.close(new_job(), [], details.of_refund(new_job(), why)), ALICE) == f"returned: {why}"
    assert told(worked(), ALICE, "alice cancelled it") == "returned: alice cancelled it"
    assert told(worked(), ALICE) == "returned: nothing was delivered"
    assert told(worked(1), ALICE, "alice cancelled it").endswith("10 out (alice cancelled it)")


def test_an_account_that_asked_and_served_is_told_both() -> None:
    """No rule makes such an entry; were there one, neither side hides the other."""
    job = new_job()
    entry = entries.close(job, [Payment(2, ALICE, 100, 2)], details.written(model="tiny"))
    assert told(entry, ALICE) == "asked tiny: job job_1; served tiny for alice's job job_1"


def test_a_closed_account_from_all_sides() -> None:
    """Who lent its line answers for the debt, up to the line; anything left goes to the commons."""
    debtor, saver = Account(CAROL, 500, -200), Account(CAROL, 500, 300, held=7)
    debt = entries.retire(debtor, BOB, 300, details.written(why="moved away"))
    assert told(debt, CAROL) == "account closed: moved away"
    assert told(debt, BOB) == "account of carol closed: the debt that you answer for"
    left = entries.retire(saver, BOB, 300)
    assert told(left, BOB) == "account of carol closed: the credit line that you lent is back"
    assert told(left, COMMONS) == "account of carol closed: what was left"
    owing = entries.retire(Account(CAROL, 500, -200), LINES, 0)
    assert told(owing, COMMONS) == "account of carol closed: a debt that nobody answers for"


@pytest.mark.parametrize("said", ["{}", "[]", "", "no JSON", '{"why": 5, "note": null, "model": 7}'])
def test_no_entry_is_without_words(said: str) -> None:
    """Whatever its details say, or do not, and whoever is not known any more."""
    job = new_job()
    made = [
        entries.hold(job, said),
        entries.settle(job, 1, [Payment(1, BOB, 100, 2)], said),
        entries.close(job, [Payment(1, BOB, 100, 2)], said),
        entries.close(job, [], said),
        entries.grant("c", BOB, 5, said),
        entries.transfer("c", ALICE, BOB, 5, said),
        entries.transfer("c", BOB, BOB, 5, said),
        entries.line("c", LINES, BOB, 5, said),
        entries.line("c", ALICE, BOB, -5, said),
        entries.opening(BOB, 5),
        entries.release(WorkerId("wrk_gone"), BOB, 5, said),
        entries.retire(Account(BOB, 5, 5), ALICE, 5, said),
    ]
    assert {entry.code for entry in made} == set(Code)
    for entry in made:
        for reader in {posting.account for posting in entry.postings}:
            for known in (KNOWN, Known()):
                telling = Telling(entry, reader, known)
                words = telling.words()
                assert words[0].islower(), words
                assert "None" not in words
                assert reader not in telling.counterparties()


def test_a_note_stays_on_its_line_and_within_bounds() -> None:
    """Another member wrote it: it neither breaks the list nor fills the screen."""
    entry = entries.transfer("c", ALICE, BOB, 5, details.written(note="a\n\tb" + "c" * 1_000))
    words = told(entry, BOB)
    assert words.startswith("received from alice: a bccc")
    assert len(words) <= len("received from alice: ") + NOTE_CHARS_MAX
    assert told(replace(entry, details=details.written(note=" \n ")), BOB) == "received from alice"
