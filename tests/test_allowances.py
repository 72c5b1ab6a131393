"""What may be sent, lent and taken back; and that inventing members never lets a family owe more."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core import entries
from coordinator.core.allowances import (
    borrowed,
    commons_share,
    handed_on,
    left_today,
    lendable,
    lowest_line,
    owed,
    sendable,
)
from coordinator.core.jobs import AccountId
from coordinator.core.ledger import COMMONS, LINES, Account, Book, Bucket, IdConflict, Overdrawn

ROOT, OUTSIDE = AccountId("acc_root"), AccountId("acc_outside")
LINE = 1_000


def account(main: int, line: int = 0) -> Account:
    return Account(AccountId("acc_x"), credit_line=line, main=main)


def test_only_what_is_there_is_sent_and_a_line_is_not() -> None:
    assert [sendable(account(main, 500)) for main in (-200, 0, 300)] == [0, 0, 300]


def test_only_what_of_a_line_is_neither_lent_nor_owed_is_lent() -> None:
    """Earned money adds nothing: it is no line."""
    assert [lendable(account(main, 500)) for main in (-500, -200, 0, 300)] == [0, 300, 500, 500]


def test_a_line_is_shortened_to_what_is_owed_and_to_what_a_member_lent() -> None:
    assert owed(account(-300, 500)) == 300
    assert lowest_line(account(-300, 500), 0) == 300
    assert lowest_line(account(-300, 500), 400) == 400
    assert lowest_line(account(10, 500), 0) == 0
    assert borrowed(account(0, 300), 400) == 300  # the rest was lent on


def test_the_commons_bears_what_no_lender_answers_for() -> None:
    assert commons_share(account(-300, 500), 100) == 200
    assert commons_share(account(-300, 500), 500) == commons_share(account(5, 500), 0) == 0


def test_the_days_limit_is_never_negative() -> None:
    assert (left_today(0, 10), left_today(10, 10), left_today(11, 10)) == (10, 0, 0)


@given(st.lists(st.integers(0, 100), max_size=8), st.integers(0, 500))
def test_loans_that_are_handed_on_never_exceed_the_claim(loans: list[int], claim: int) -> None:
    shares = handed_on(loans, claim)
    assert all(0 <= share <= loan for share, loan in zip(shares, loans, strict=True))
    assert sum(shares) == min(claim, sum(loans))


def test_an_invitations_line_goes_to_one_place_only() -> None:
    """Accepted or returned: the second has the first's id, whichever comes first."""
    book = Book({a: Account(a) for a in (ROOT, OUTSIDE, LINES, COMMONS)})
    book.post(entries.opening(ROOT, LINE))
    for first, second in ((OUTSIDE, ROOT), (ROOT, OUTSIDE)):
        invite = f"inv_{first}"
        book.post(entries.set_aside(invite, ROOT, 100))
        book.post(entries.ended(invite, first, 100))
        with pytest.raises(IdConflict):
            book.post(entries.ended(invite, second, 100))
    assert (book.accounts[ROOT].credit_line, book.accounts[OUTSIDE].credit_line) == (LINE - 100, 100)


@dataclass
class Family:
    """One account with a line from the pool, and all that it ever invited, each with who lent how much."""

    book: Book
    loans: dict[AccountId, tuple[AccountId, int]] = field(default_factory=dict)
    closed: set[AccountId] = field(default_factory=set)
    waiting: dict[str, tuple[AccountId, int]] = field(default_factory=dict)
    made: int = 0

    @property
    def alive(self) -> list[AccountId]:
        return [a for a in (ROOT, *self.loans) if a not in self.closed]

    def invite(self, by: AccountId, amount: int) -> None:
        self.made += 1
        invite = f"inv_{self.made}"
        self.book.post(entries.set_aside(invite, by, min(amount, lendable(self.book.accounts[by]))))
        self.waiting[invite] = by, min(amount, self.book.entries[f"{invite}/lend/line"].postings[1].amount)

    def end(self, invite: str, *, accept: bool) -> None:
        by, amount = self.waiting.pop(invite)
        to = by
        if accept:
            to = AccountId(f"acc_{invite}")
            self.book.accounts[to] = Account(to)
            self.loans[to] = by, amount
        self.book.post(entries.ended(invite, to, amount))

    def close(self, who: AccountId) -> None:
        """As `Membership` does it: invitations back, retire, loans handed on."""
        for invite in [i for i, (by, _) in self.waiting.items() if by == who]:
            self.end(invite, accept=False)
        lender, lent = self.loans.get(who, (LINES, 0))
        retired = entries.retire(self.book.accounts[who], lender, lent)
        self.book.post(retired)
        self.closed.add(who)
        back = sum(
            p.amount for p in retired.postings if (p.account, p.bucket) == (lender, Bucket.CREDIT_LINE)
        )
        mine = [a for a, (by, _) in self.loans.items() if by == who and a not in self.closed]
        shares = handed_on([self.loans[a][1] for a in mine], lent - back if lent else 0)
        for heir, share in zip(mine, shares, strict=True):
            self.loans[heir] = (lender, share) if share else (LINES, 0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["invite", "accept", "return", "spend", "give", "close"]),
        st.integers(0, 7),
        st.integers(0, 7),
        st.integers(1, 700),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(STEPS)
def test_inventing_members_never_lets_a_family_owe_more(steps: list[tuple[str, int, int, int]]) -> None:
    """Whatever they invite, spend, send each other and close: what all may owe together, and what outsiders got
    of them, stays within the one line with which it began."""
    book = Book({a: Account(a) for a in (ROOT, OUTSIDE, COMMONS, LINES)})
    book.post(entries.opening(COMMONS, 10 * LINE))
    book.post(entries.opening(ROOT, LINE))
    family = Family(book)
    for number, (what, first, second, amount) in enumerate(steps):
        alive = family.alive
        if not alive:
            break
        who, other = alive[first % len(alive)], alive[second % len(alive)]
        if what == "invite":
            family.invite(who, amount)
        elif what in {"accept", "return"} and family.waiting:
            waiting = sorted(family.waiting)
            family.end(waiting[first % len(waiting)], accept=what == "accept")
        elif what == "spend" and book.accounts[who].available >= amount:
            book.post(entries.transfer(f"spent_{number}", who, OUTSIDE, amount))
        elif what == "give" and sendable(book.accounts[who]) >= amount:
            book.post(entries.transfer(f"given_{number}", who, other, amount))
        elif what == "close":
            family.close(who)
        lines = sum(book.accounts[a].credit_line for a in family.alive)
        assert lines + sum(line for _, line in family.waiting.values()) <= LINE
        assert book.accounts[OUTSIDE].main <= LINE
        assert all(book.accounts[a] == Account(a) for a in family.closed)
        assert book.total() == sum(a.credit_line for a in book.accounts.values()) == 0


def test_more_than_can_be_lent_is_refused_by_the_book_itself() -> None:
    book = Book({a: Account(a) for a in (ROOT, LINES)})
    book.post(entries.opening(ROOT, LINE))
    book.post(entries.set_aside("inv_1", ROOT, LINE))
    with pytest.raises(Overdrawn):
        book.post(entries.set_aside("inv_2", ROOT, 1))


def test_what_comes_to_a_closed_account_goes_to_the_commons() -> None:
    book = Book({a: Account(a) for a in (ROOT, COMMONS, LINES)})
    book.accounts[ROOT].main, book.accounts[ROOT].held, book.accounts[COMMONS].main = 5, 2, -7
    book.post(entries.leftover(book.accounts[ROOT], 1))
    assert book.accounts[ROOT] == Account(ROOT)
    assert book.accounts[COMMONS].main == 0
