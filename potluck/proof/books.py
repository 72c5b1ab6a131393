"""The accounts as the entries of an export make them, each entry held against the rules of the pool.

What a member can check without trusting the pool: that money and credit lines have two sides in every entry,
that nobody is below the floor at any, that each job's hold was made once, paid out of and closed once, and
that ids follow from their causes, so that nothing can be paid twice.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from potluck.proof.charges import Recomputed, recomputed
from potluck.proof.lines import EntryLine, Fault, shown

COMMONS: Final = "commons"
LINES: Final = "lines"  # lends for the pool; it has no money and no floor
MAIN, RESERVED, HELD, CREDIT_LINE = "main", "reserved", "held", "credit_line"
CODES: Final = ("hold", "settle", "close", "grant", "transfer", "line", "release", "retire")
PART_DIGITS_MAX: Final = 9
BUCKETS: Final = {MAIN: 0, RESERVED: 1, HELD: 2, CREDIT_LINE: 3}


@dataclass(slots=True)
class JobMoney:
    """What the ledger says of one job. `payees`: microcredits by account, without the fee."""

    payer: str
    left: int  # of its hold
    settled: set[int] = field(default_factory=set)  # the parts of it that were paid, by their numbers
    closed_by: int = 0  # the number of its close; 0 while the hold is open
    charge: int = 0
    refunded: bool = False  # its close pays nobody
    payees: dict[str, int] = field(default_factory=dict)
    payments: Counter[str] = field(default_factory=Counter)  # by account: each pays an attempt
    attempts: Mapping[int, str] | None = None  # the account that each paid attempt's pay went to, as below
    tokens: Mapping[int, int] | None = None  # by attempt, where the close is in clear
    amounts: Mapping[int, int] | None = None  # as above


@dataclass(slots=True)
class Totals:
    """Of all entries; amounts in microcredits."""

    closed: int = 0
    charged: int = 0
    fees: int = 0
    granted: int = 0
    transferred: int = 0
    recomputed: int = 0  # charges in clear that came out the same
    not_recomputed: int = 0  # charges in clear whose details do not hold what it takes


@dataclass(slots=True)
class Books:
    """`account`: whose details must be here in clear. `openings`: first lines, which count from the start."""

    account: str
    owners: Mapping[str, str]  # account by worker
    openings: Mapping[str, int]
    buckets: dict[str, list[int]] = field(default_factory=dict)
    opened: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)  # of entries without a job; those of jobs follow from `jobs`
    jobs: dict[str, JobMoney] = field(default_factory=dict)
    parts: dict[str, JobMoney] = field(
        default_factory=dict
    )  # of jobs that are done in parts, by the part's id
    totals: Totals = field(default_factory=Totals)

    def take(self, entry: EntryLine) -> None:
        """Raises Fault, naming the entry."""
        try:
            self._balances(entry)
            if entry.code not in CODES:
                raise _Wrong(f"has the code {shown(entry.code)}, which is none of {', '.join(CODES)}")
            if entry.job is None:
                if entry.id in self.ids:
                    raise _Wrong("has an id that an entry before has taken")
                self.ids.add(entry.id)
            getattr(self, f"_{entry.code}")(entry)
            self._move(entry)
            if entry.code == "retire":
                self._emptied(entry)
        except _Wrong as wrong:
            raise Fault("entry", entry.number, f"{shown(entry.id)} {wrong}") from None

    def _balances(self, entry: EntryLine) -> None:
        money = lines = 0
        mine = entry.code == "grant"  # grants are in the open
        for account, bucket, amount in entry.postings:
            if bucket not in BUCKETS:
                raise _Wrong(f"posts to a bucket `{shown(bucket)}`, and there is none")
            if bucket == CREDIT_LINE:
                lines += amount
            else:
                money += amount
            mine = mine or account == self.account
        if len(entry.postings) < 2 or money or lines:
            raise _Wrong(f"does not balance: money adds up to {money}, credit lines to {lines}, not to zero")
        if mine and entry.details is None:
            raise _Wrong("should have its details in clear, and shows only a digest")

    def _move(self, entry: EntryLine) -> None:
        """Raises _Wrong if an account ends below its floor, or a bucket below zero."""
        touched = {}
        for account, bucket, amount in entry.postings:
            held = self.buckets.get(account)
            if held is None:
                held = self.buckets[account] = [0, 0, 0, 0]
            held[BUCKETS[bucket]] += amount
            touched[account] = held
        if entry.code == "line" and entry.id.endswith("/open/line"):
            self.opened.add(entry.postings[1][0])
        for account, (main, reserved, held_back, lent) in touched.items():
            if account == LINES:
                if main or reserved or held_back:
                    raise _Wrong("gives money to the account that only lends credit lines")
                continue
            later = 0 if account in self.opened else self.openings.get(account, 0)  # as older pools wrote it
            line = lent + later
            if reserved < 0 or held_back < 0 or line < 0:
                raise _Wrong(f"leaves {shown(account)} with less than nothing reserved, held or lent to it")
            if main < -line:
                raise _Wrong(f"leaves {shown(account)} at {main} microcredits, below its floor of {-line}")

    def _emptied(self, entry: EntryLine) -> None:
        account = entry.id.partition("/retire")[0]
        if any(self.buckets.get(account, ())):
            raise _Wrong(f"closes {shown(account)} and leaves something in it")

    # -- one rule for each code: the id follows from the cause, the postings have the code's shape

    def _hold(self, entry: EntryLine) -> None:
        job = _job(entry, "hold")
        (payer, source, less), (other, bucket, more), *rest = entry.postings
        if rest or payer != other or (source, bucket) != (MAIN, RESERVED) or more <= 0 or less != -more:
            raise _Wrong("is no hold: a hold moves credits of one account from main to reserved")
        if job in self.jobs:
            raise _Wrong("is the second hold of its job")
        self.jobs[job] = JobMoney(payer, more)

    def _settle(self, entry: EntryLine) -> None:
        money = self._open(entry)
        number = _part(entry)
        job = _job(entry, f"settle/{number}")
        if number in money.settled:
            raise _Wrong(f"pays part {number} of its job a second time")
        money.settled.add(number)
        payer, bucket, less = entry.postings[0]
        if (payer, bucket) != (money.payer, RESERVED) or less >= 0:
            raise _Wrong("is no settlement: it must pay out of its own job's hold")
        part = self.parts[f"{job}.{number}"] = JobMoney(payer, -less)
        self._pay(money, -less, entry.postings[1:])
        part.payees, part.payments = _payees(entry.postings[1:]), _payments(entry.postings[1:])
        part.closed_by, part.charge, part.left = entry.number, -less, 0
        if self._mine(entry):
            self._recompute(entry, part, -less, settles=True)

    def _close(self, entry: EntryLine) -> None:
        money = self._open(entry)
        _job(entry, "close")
        (payer, source, less), (other, bucket, back), *paid = entry.postings
        if payer != money.payer or other != payer or (source, bucket) != (RESERVED, MAIN) or back < 0:
            raise _Wrong("is no close: it must return the rest of its own job's hold")
        left = money.left
        if -less > left:
            raise _Wrong(f"takes {-less} microcredits out of a hold of which {left} are left")
        if -less < left:
            raise _Wrong(f"leaves {left + less} microcredits of the hold in it for ever")
        self._pay(money, left - back, paid)
        money.left, money.closed_by, money.refunded = 0, entry.number, not paid
        self.totals.closed += 1
        if self._mine(entry):
            self._recompute(entry, money, left)

    def _recompute(self, entry: EntryLine, money: JobMoney, left: int, *, settles: bool = False) -> None:
        """`settles`: a part's charge leaves the hold, and nothing is returned yet."""
        assert entry.details is not None  # `_balances` has seen it
        try:
            found = recomputed(entry.details, payer=money.payer, left=left, owners=self.owners)
        except ValueError as error:
            raise _Wrong(str(error)) from None
        if found is None:
            self.totals.not_recomputed += 1
            return
        if settles:
            del found.postings[1]
        _same_postings(entry, found)
        money.tokens, money.amounts, money.attempts = found.tokens, found.amounts, found.attempts
        self.totals.recomputed += 1

    def _grant(self, entry: EntryLine) -> None:
        amount = _two(entry, "grant", MAIN)
        if entry.postings[0][0] != COMMONS:
            raise _Wrong("grants what is not the commons'")
        self.totals.granted += amount

    def _transfer(self, entry: EntryLine) -> None:
        self.totals.transferred += _two(entry, "transfer", MAIN)

    def _line(self, entry: EntryLine) -> None:
        if entry.id.endswith(("/lend/line", "/end/line")):
            self._invitation(entry)
            return
        _two(entry, "line", CREDIT_LINE, below=True)
        lender, to = entry.postings[0][0], entry.postings[1][0]
        if entry.id.endswith("/open/line") and (entry.id != f"{to}/open/line" or lender != LINES):
            raise _Wrong("is no opening: the pool lends an account its first line")

    def _invitation(self, entry: EntryLine) -> None:
        """The line waits among the pool's until the invitation ends; it may be none, or the pool's own."""
        _cause(entry, "line")
        (source, from_bucket, less), (to, bucket, more), *rest = entry.postings
        waits = (to if entry.id.endswith("/lend/line") else source) == LINES
        lines = (from_bucket, bucket) == (CREDIT_LINE, CREDIT_LINE) and less == -more <= 0
        if rest or not waits or not lines:
            raise _Wrong("is no line of an invitation: it waits with the account that lends for the pool")

    def _release(self, entry: EntryLine) -> None:
        worker = _cause(entry, "release").partition("/")[0]
        (account, source, less), (other, bucket, more), *rest = entry.postings
        if rest or account != other or (source, bucket) != (HELD, MAIN) or more <= 0 or less != -more:
            raise _Wrong("is no release: it moves credits of one account from held to main")
        if self.owners.get(worker) != account:
            raise _Wrong(f"releases earnings of {shown(worker)}, which is no worker of that account")

    def _retire(self, entry: EntryLine) -> None:
        """All of one account to the commons; a debt to whoever lent its line, with that line."""
        account, _, number = entry.id.partition("/retire")
        if not account or not (number == "" or (number[0] == "/" and number[1:].isdecimal())):
            raise _Wrong("has an id that does not follow from its cause: it should end in /retire")
        others = {a for a, _, _ in entry.postings} - {account, COMMONS, LINES}
        if len(others) > (number == "") or (number and any(a == LINES for a, _, _ in entry.postings)):
            raise _Wrong("closes an account and moves what others have")
        gains = {(a, b): amount for a, b, amount in entry.postings}
        if gains.get((account, CREDIT_LINE), 0) > 0 or gains.get((account, HELD), 0) > 0:
            raise _Wrong("closes an account and gives it something")
        for lender in others:
            owed, lent = -gains.get((lender, MAIN), 0), gains.get((lender, CREDIT_LINE), 0)
            if not 0 <= owed <= lent or {b for a, b in gains if a == lender} - {MAIN, CREDIT_LINE}:
                raise _Wrong(f"makes {shown(lender)} answer for more than the line that comes back")

    # -- what they share

    def _open(self, entry: EntryLine) -> JobMoney:
        money = self.jobs.get(entry.job or "")
        if money is None:
            raise _Wrong("has no hold before it")
        if money.closed_by:
            raise _Wrong(f"comes after the close of its job, entry {money.closed_by}")
        return money

    def _pay(self, money: JobMoney, charge: int, paid: list[list[Any]]) -> None:
        """The charge goes to those who worked, and the fee to the commons."""
        if charge > money.left:
            raise _Wrong(f"charges {charge} microcredits to a hold of which {money.left} are left")
        for account, bucket, amount in paid:
            if amount <= 0 or bucket not in (MAIN, HELD):
                raise _Wrong("takes something from an account that is not its payer's")
            if account == COMMONS:
                self.totals.fees += amount
        for account, amount in _payees(paid).items():
            money.payees[account] = money.payees.get(account, 0) + amount
        money.payments += _payments(paid)
        money.left -= charge
        money.charge += charge
        self.totals.charged += charge

    def _mine(self, entry: EntryLine) -> bool:
        return any(posting[0] == self.account for posting in entry.postings)


class _Wrong(Exception):  # noqa: N818 -- becomes a Fault that names the entry
    """The end of a sentence that begins with the entry's id."""


def _job(entry: EntryLine, cause: str) -> str:
    if entry.job is None or entry.id != f"{entry.job}/{cause}":
        raise _Wrong(f"has an id that does not follow from its cause: it should be JOB/{cause}")
    return entry.job


def _part(entry: EntryLine) -> int:
    number = entry.id.rpartition("/")[2]
    if not (
        number.isascii() and number.isdecimal() and 0 < len(number) <= PART_DIGITS_MAX and number[0] != "0"
    ):
        raise _Wrong("has an id that does not follow from its cause: it should be JOB/settle/PART")
    return int(number)


def _payees(paid: list[list[Any]]) -> dict[str, int]:
    """Microcredits by account, without the fee."""
    found: dict[str, int] = {}
    for account, _, amount in paid:
        if account != COMMONS:
            found[account] = found.get(account, 0) + amount
    return found


def _payments(paid: list[list[Any]]) -> Counter[str]:
    """How many by account, without the fee."""
    return Counter(account for account, _, _ in paid if account != COMMONS)


def _cause(entry: EntryLine, code: str) -> str:
    if entry.job is not None or not entry.id.endswith(f"/{code}"):
        raise _Wrong(f"has an id that does not follow from its cause: it should end in /{code}")
    return entry.id.removesuffix(f"/{code}")


def _two(entry: EntryLine, code: str, wanted: str, *, below: bool = False) -> int:
    """What moves from the first account to the second. `below`: it may be less than nothing."""
    _cause(entry, code)
    (source, from_bucket, less), (to, bucket, more), *rest = entry.postings
    wrong = rest or source == to or (from_bucket, bucket) != (wanted, wanted) or less != -more
    if wrong or more == 0 or (more < 0 and not below):
        raise _Wrong(f"is no {code}: it must move {wanted} from one account to another")
    return int(more)


def _same_postings(entry: EntryLine, found: Recomputed) -> None:
    if entry.postings == found.postings:
        return
    for place, (given, right) in enumerate(zip(entry.postings, found.postings, strict=False)):
        if given != right:
            raise _Wrong(
                f"does not charge what its details cost: posting {place} moves {given[2]} microcredits"
                f" ({shown(given[0])} {given[1]}) where {right[2]} are right ({shown(right[0])} {right[1]})"
            )
    raise _Wrong(
        f"has {len(entry.postings)} postings where its details make {len(found.postings)}: somebody is paid"
        " too much or not at all"
    )
