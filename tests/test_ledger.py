"""The book under arbitrary entries: zero in all, floors, retries, and a chain that shows every change."""

from copy import deepcopy
from dataclasses import replace

import pytest
from fixtures_core import demand, job_of
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.entries import Payment, close, grant, hold
from coordinator.core.jobs import AccountId, JobId
from coordinator.core.ledger import (
    COMMONS,
    Account,
    Book,
    Bucket,
    Code,
    Entry,
    IdConflict,
    Overdrawn,
    Posted,
    Posting,
    UnknownAccount,
    canonical,
    record,
)
from potluck.chain import GENESIS

A, B, C = (AccountId(f"acc_{n}") for n in "abc")
JOB = job_of(demand(), quote=1_000, hold=1_000)
CHECKED = settings(max_examples=200, deadline=None, derandomize=True)


def book(credit_line: int = 1_000) -> Book:
    accounts = {name: Account(name, credit_line) for name in (A, B, C)}
    return Book({**accounts, COMMONS: Account(COMMONS)})


def transfer(cause: str, payer: AccountId, payee: AccountId, amount: int, **fields: object) -> Entry:
    postings = (Posting(payer, Bucket.MAIN, -amount), Posting(payee, Bucket.MAIN, amount))
    return replace(Entry(f"{cause}/transfer", Code.TRANSFER, postings), **fields)  # type: ignore[arg-type]  # test


transfers = st.builds(
    transfer,
    cause=st.integers(0, 12).map(str),
    payer=st.sampled_from([A, B, C, COMMONS]),
    payee=st.sampled_from([A, B, C, COMMONS]),
    amount=st.integers(-1_500, 1_500),
)


@CHECKED
@given(st.lists(transfers, max_size=30))
def test_any_run_of_entries_sums_to_zero_and_never_breaks_a_floor(entries: list[Entry]) -> None:
    ledger = book()
    for entry in entries:
        before = deepcopy(ledger)
        known = ledger.entries.get(entry.id)
        poor: Overdrawn | None = None
        try:
            posted = ledger.post(entry)
        except Overdrawn as raised:
            poor = raised
        except IdConflict:
            assert known is not None
            assert known != entry
            assert ledger == before
        else:
            assert posted is (Posted.CREATED if known is None else Posted.EXISTS)
            assert ledger.entries[entry.id] == entry
            assert posted is Posted.CREATED or ledger == before, "a retry moves nothing"
        if poor is not None:
            assert ledger == before, "refused means unchanged"
            assert poor.needed > poor.available == before.accounts[poor.account].available
        assert ledger.total() == 0
        assert all(a.main >= -a.credit_line for a in ledger.accounts.values())


@CHECKED
@given(st.lists(st.tuples(st.integers(0, 300), st.sampled_from([A, B, C])), max_size=3), st.integers(0, 60))
def test_a_hold_and_its_close_pay_once_and_return_the_rest(
    shares: list[tuple[int, AccountId]], fee: int
) -> None:
    ledger = book()
    ledger.post(hold(JOB))
    assert ledger.accounts[A].reserved == 1_000
    assert ledger.accounts[A].balance == 0, "what lies in a hold is still the member's"
    assert ledger.accounts[A].available == 0, "but cannot be spent twice"
    paid = [Payment(n, who, amount, amount * fee // 1_000) for n, (amount, who) in enumerate(shares, 1)]
    entry = close(JOB, paid)
    assert ledger.post(entry) is Posted.CREATED
    assert ledger.post(entry) is Posted.EXISTS
    charge = sum(amount for amount, _ in shares)
    earned = {who: sum(p.amount - p.fee for p in paid if p.account == who) for who in (A, B, C)}
    assert ledger.accounts[A].reserved == 0
    assert ledger.accounts[A].main == earned[A] - charge
    assert [ledger.accounts[who].main for who in (B, C)] == [earned[B], earned[C]]
    assert ledger.accounts[COMMONS].main == sum(p.fee for p in paid)
    assert ledger.total() == 0


def test_paying_and_refunding_one_job_is_impossible() -> None:
    ledger = book()
    ledger.post(hold(JOB))
    ledger.post(close(JOB, [Payment(1, B, 500, 10)]))
    with pytest.raises(IdConflict, match="job_1/close"):
        ledger.post(close(JOB, []))
    assert ledger.accounts[B].main == 490


def test_the_floor_is_the_credit_line_to_the_last_microcredit() -> None:
    ledger = book(credit_line=1_000)
    ledger.post(transfer("t1", A, B, 1_000))
    assert ledger.accounts[A].available == 0
    with pytest.raises(Overdrawn, match="acc_a: 1 microcredits needed, 0 available") as poor:
        ledger.post(transfer("t2", A, B, 1))
    assert (poor.value.account, poor.value.needed, poor.value.available) == (A, 1, 0)
    assert "t2/transfer" not in ledger.entries, "the id is free for a later try"


def test_who_is_below_the_floor_already_may_still_receive() -> None:
    """A credit line that was lowered stops spending, not earning."""
    ledger = book()
    ledger.post(transfer("t1", A, B, 800))
    ledger.accounts[A].credit_line = 100
    ledger.post(transfer("t2", B, A, 50))
    assert ledger.accounts[A].main == -750


def test_other_buckets_never_fall_below_zero() -> None:
    with pytest.raises(AssertionError, match="reserved of acc_a fell below zero"):
        book().post(close(JOB, []))


def test_unknown_accounts_are_refused() -> None:
    with pytest.raises(UnknownAccount, match="acc_z"):
        book().post(transfer("t1", A, AccountId("acc_z"), 1))


def test_entries_must_balance_and_move_something() -> None:
    with pytest.raises(AssertionError, match="must balance"):
        Entry("x", Code.GRANT, (Posting(A, Bucket.MAIN, 1), Posting(B, Bucket.MAIN, -2)))
    with pytest.raises(AssertionError, match="from somewhere to somewhere"):
        Entry("x", Code.GRANT, (Posting(A, Bucket.MAIN, 0),))


def test_a_close_above_its_hold_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="charge 1001 outside its hold 1000"):
        close(JOB, [Payment(1, B, 1_001, 0)])


def test_a_close_leaves_out_empty_postings_and_names_the_bucket() -> None:
    entry = close(JOB, [Payment(1, B, 5, 5), Payment(2, C, 7, 0, Bucket.HELD)])
    assert entry.postings[2:] == (Posting(C, Bucket.HELD, 7), Posting(COMMONS, Bucket.MAIN, 5))
    assert close(JOB, []).postings == (Posting(A, Bucket.RESERVED, -1_000), Posting(A, Bucket.MAIN, 1_000))


def test_a_grant_comes_out_of_the_commons_down_to_its_floor() -> None:
    ledger = book()
    ledger.accounts[COMMONS].credit_line = 100
    ledger.post(grant("welcome-a", A, 100))
    assert (ledger.accounts[A].main, ledger.accounts[COMMONS].main) == (100, -100)
    with pytest.raises(Overdrawn):
        ledger.post(grant("welcome-b", B, 1))
    assert grant("welcome-a", A, 100).id == "welcome-a/grant"


def test_the_hash_covers_all_there_is() -> None:
    """Any other number, time, id, code, job, posting, detail or predecessor gives another hash."""
    entry = Entry("j/hold", Code.HOLD, (Posting(A, Bucket.MAIN, -5), Posting(B, Bucket.HELD, 5)), JobId("j"))
    first = record(1, "2026-01-01T00:00:00Z", entry, GENESIS)
    others = [
        record(2, first.at, entry, GENESIS),
        record(1, "2026-01-01T00:00:01Z", entry, GENESIS),
        record(1, first.at, entry, "1" * 64),
        *(
            record(1, first.at, changed, GENESIS)
            for changed in (
                replace(entry, id="k/hold"),
                replace(entry, code=Code.CLOSE),
                replace(entry, job=None),
                replace(entry, details='{"note":"x"}'),
                replace(entry, postings=(Posting(A, Bucket.MAIN, -6), Posting(B, Bucket.HELD, 6))),
                replace(entry, postings=(Posting(C, Bucket.MAIN, -5), Posting(B, Bucket.HELD, 5))),
                replace(entry, postings=(Posting(A, Bucket.RESERVED, -5), Posting(B, Bucket.HELD, 5))),
                replace(entry, postings=entry.postings[::-1]),
            )
        ),
    ]
    assert len({first.hash, *(o.hash for o in others)}) == 12
    assert record(1, first.at, entry, GENESIS) == first, "and the same gives the same"


def test_the_canonical_bytes_are_fixed() -> None:
    """Exports of years must verify: these bytes and this hash may never change."""
    entry = Entry(
        "j/hold", Code.HOLD, (Posting(A, Bucket.MAIN, -5), Posting(A, Bucket.RESERVED, 5)), JobId("j")
    )
    assert canonical(1, "2026-01-01T00:00:00Z", entry, GENESIS).decode() == (
        '{"at":"2026-01-01T00:00:00Z","code":"hold",'
        '"details":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",'
        '"id":"j/hold","job":"j","number":1,"postings":[["acc_a","main",-5],["acc_a","reserved",5]],'
        '"previous":"0000000000000000000000000000000000000000000000000000000000000000"}'
    )
    digest = record(1, "2026-01-01T00:00:00Z", entry, GENESIS).hash
    assert digest == "e106b8fdc30f2452bfb8f3d16aa1758912552aeeb098db59e17e10bd9d3a4680"


def test_a_change_anywhere_breaks_the_chain_after_it() -> None:
    chain, previous = [], GENESIS
    for number in range(1, 6):
        chain.append(record(number, "2026-01-01T00:00:00Z", transfer(f"t{number}", A, B, number), previous))
        previous = chain[-1].hash
    forged = record(2, chain[1].at, transfer("t2", A, B, 2_000), chain[1].previous)
    assert forged.hash != chain[2].previous, "the next entry names the hash that stood there"
