"""The entries of accounts: credit lines have a lender, settlements leave the hold, a retired account leaves none."""

from dataclasses import replace

import pytest
from fixtures_core import demand, job_of
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.entries import Payment, close, hold, line, opening, release, retire, settle, transfer
from coordinator.core.jobs import AccountId, WorkerId, part_id
from coordinator.core.ledger import COMMONS, LINES, Account, Book, Bucket, Overdrawn, Posted

A, B, C = (AccountId(f"acc_{n}") for n in "abc")
JOB = job_of(demand(), quote=1_000, hold=1_000)
CHECKED = settings(max_examples=300, deadline=None, derandomize=True)


def book(*lines: int) -> Book:
    """Accounts a, b, c with these lines, lent by the pool; a commons that owes nothing and may owe much."""
    made = Book({name: Account(name) for name in (A, B, C, COMMONS, LINES)})
    made.post(opening(COMMONS, 10_000))
    for name, amount in zip((A, B, C), lines, strict=False):
        made.post(opening(name, amount))
    return made


def lines_of(made: Book) -> int:
    return sum(account.credit_line for account in made.accounts.values())


def test_a_line_is_lent_by_somebody_who_then_has_it_no_more() -> None:
    """So that ten invented members may owe no more together than the one who invented them."""
    made = book(1_000)
    made.post(line("inv_1", A, B, 600))
    assert (made.accounts[A].available, made.accounts[B].available) == (400, 600)
    with pytest.raises(Overdrawn, match="acc_a: 401 microcredits needed, 400 available"):
        made.post(line("inv_2", A, C, 401))
    assert lines_of(made) == 0
    assert made.total() == 0


def test_what_is_owed_cannot_be_lent() -> None:
    made = book(1_000)
    made.post(transfer("t", A, B, 700))
    with pytest.raises(Overdrawn):
        made.post(line("inv_1", A, C, 301))
    assert made.post(line("inv_1", A, C, 300)) is Posted.CREATED
    made.post(transfer("back", B, A, 700))
    with pytest.raises(Overdrawn):
        made.post(line("inv_2", A, C, 701))  # money is no line: what is lent must be lent to begin with


def test_a_line_is_taken_back_down_to_what_is_owed() -> None:
    made = book(1_000)
    made.post(transfer("t", A, B, 400))
    made.post(line("lin_1", LINES, A, -600))
    with pytest.raises(Overdrawn):
        made.post(line("lin_2", LINES, A, -1))
    assert made.accounts[A].credit_line == 400


def test_settlements_leave_the_hold_and_the_close_returns_the_rest() -> None:
    made, job = book(1_000), JOB
    made.post(hold(job))
    for number, amount in ((1, 300), (2, 200)):
        entry = settle(job, number, [Payment(1, B, amount, 10)])
        assert entry.id == f"job_1/settle/{number}"
        made.post(entry)
        job = replace(job, settled=job.settled + amount, settlements=number)
    assert made.accounts[A].reserved == 500
    made.post(close(job, [Payment(2, C, 100, 0)]))
    assert (made.accounts[A].main, made.accounts[A].reserved) == (-600, 0)
    assert [made.accounts[who].main for who in (B, C, COMMONS)] == [480, 100, 20]
    made.forget(job.id)
    for number in (1, 2):
        made.forget(part_id(job.id, number), job.id, number)
    assert not [cause for cause in made.entries if cause.startswith("job_1")]


def test_settlements_and_close_never_exceed_the_hold() -> None:
    job = replace(JOB, settled=900, settlements=3)
    with pytest.raises(AssertionError, match="101 is more than is left of its hold"):
        settle(job, 4, [Payment(1, B, 101, 0)])
    with pytest.raises(AssertionError, match="charge 101 outside its hold 100"):
        close(job, [Payment(1, B, 101, 0)])
    with pytest.raises(AssertionError):
        settle(job, 4, [])


def test_what_was_held_is_released_once() -> None:
    made = book(1_000)
    made.post(hold(JOB))
    made.post(close(JOB, [Payment(1, B, 500, 10, Bucket.HELD)]))
    assert (made.accounts[B].held, made.accounts[B].available) == (490, 0)
    entry = release(WorkerId("wrk_1"), B, 490)
    assert made.post(entry) is Posted.CREATED
    assert made.post(entry) is Posted.EXISTS
    assert (made.accounts[B].held, made.accounts[B].available) == (0, 490)


@CHECKED
@given(
    own=st.integers(0, 1_000),
    lent=st.integers(0, 1_000),
    extra=st.integers(0, 500),
    spent=st.integers(-2_000, 1_500),
    held=st.integers(0, 300),
)
def test_whoever_lent_the_line_answers_for_the_debt(
    own: int, lent: int, extra: int, spent: int, held: int
) -> None:
    """The retired account is empty, nobody falls below a floor by it, and the lender gets the line back.

    b has `lent` from a and `extra` from the pool, and spent or earned something.
    """
    made = book(own + lent, extra, 5_000)
    made.post(line("inv_1", A, B, lent))
    spent = min(spent, lent + extra)
    made.post(transfer("t", B, C, spent) if spent >= 0 else transfer("t", C, B, -spent))
    made.accounts[C].main -= held
    made.accounts[B].held += held
    before = made.accounts[A].main
    made.post(retire(made.accounts[B], A, lent))
    gone = made.accounts[B]
    assert (gone.main, gone.reserved, gone.held, gone.credit_line) == (0, 0, 0, 0)
    assert made.accounts[A].main == before - min(max(0, spent), lent)
    assert made.accounts[A].credit_line == own + lent
    assert made.accounts[A].available >= own
    assert made.total() == lines_of(made) == 0


def test_an_account_with_open_holds_is_not_closed() -> None:
    made = book(1_000)
    made.post(hold(JOB))
    with pytest.raises(AssertionError, match="open holds"):
        retire(made.accounts[A], LINES, 0)


def test_an_account_that_never_moved_can_be_closed_too() -> None:
    made = book()
    assert made.post(retire(made.accounts[A], LINES, 0)) is Posted.CREATED


def test_ids_of_other_causes_are_forgotten_in_turn() -> None:
    """Bounded memory: the database is asked for older ones."""
    made = book(1_000)
    made.others_max = 5
    for number in range(20):
        made.post(transfer(f"t{number}", A, B, 1))
    assert len(made.entries) == len(made.others) == 5
    assert made.post(transfer("t19", A, B, 1)) is Posted.EXISTS
