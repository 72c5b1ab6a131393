"""Double entry in microcredits. Entries are never changed; corrections are entries.

Every account has four buckets. `main` is what can be spent, `reserved` what lies in open holds, `held`
what an unproven worker earned and may not spend yet: these are money. `credit_line` is how far main may fall
below zero; it is lent, by a member or by the pool, so that it too has two sides. The balance that a member
sees is main + reserved; what is available is main + credit line. The sum of all money is zero at every
moment, and so is the sum of all credit lines: `lines`, which lends for the pool, holds their minus.

An entry's id is derived from its cause (`<job>/hold`, `<job>/close`), so that a retry repeats it: paying
twice, or paying and refunding one job, is impossible by construction (after TigerBeetle's transfers).
"""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from coordinator.core.jobs import AccountId, JobId
from potluck.chain import digest, entry_bytes, hash_of

COMMONS = AccountId("commons")
LINES = AccountId("lines")  # lends what the pool lends; it has no money and no floor


class Bucket(StrEnum):
    MAIN = "main"
    RESERVED = "reserved"
    HELD = "held"
    CREDIT_LINE = "credit_line"


MONEY = (Bucket.MAIN, Bucket.RESERVED, Bucket.HELD)


class Code(StrEnum):
    HOLD = "hold"
    SETTLE = "settle"  # a part of a long job is paid, out of its hold
    CLOSE = "close"
    GRANT = "grant"
    TRANSFER = "transfer"
    LINE = "line"  # a credit line was lent, changed or given back
    RELEASE = "release"  # what a worker earned while it was unproven is free
    RETIRE = "retire"  # an account was closed


@dataclass(frozen=True, slots=True)
class Posting:
    account: AccountId
    bucket: Bucket
    amount: int  # microcredits; positive credits the account


@dataclass(frozen=True, slots=True)
class Entry:
    """One balanced movement. `details` is JSON for people and is covered by the hash through its digest."""

    id: str
    code: Code
    postings: tuple[Posting, ...]
    job: JobId | None = None
    details: str = "{}"

    def __post_init__(self) -> None:
        assert len(self.postings) >= 2, "an entry moves something from somewhere to somewhere"
        assert sum(p.amount for p in self.postings if p.bucket in MONEY) == 0, "an entry must balance"
        lent = sum(p.amount for p in self.postings if p.bucket is Bucket.CREDIT_LINE)
        assert lent == 0, "what one may owe, another answers for"


@dataclass(frozen=True, slots=True)
class Recorded:
    """An entry in its place in the chain."""

    number: int  # from 1, without gaps
    at: str  # RFC 3339 UTC
    entry: Entry
    previous: str  # hash of the entry before; chain.GENESIS before the first
    hash: str


@dataclass(slots=True)
class Account:
    """A cached sum of postings, and the floor under it."""

    id: AccountId
    credit_line: int = 0
    main: int = 0
    reserved: int = 0
    held: int = 0

    @property
    def balance(self) -> int:
        return self.main + self.reserved

    @property
    def available(self) -> int:
        return self.main + self.credit_line


def copy(account: Account) -> Account:
    """As `dataclasses.replace`, which takes five times as long: each entry copies what it moves."""
    return Account(account.id, account.credit_line, account.main, account.reserved, account.held)


class Posted(StrEnum):
    CREATED = "created"
    EXISTS = "exists"  # same id, same content: the retry is answered, nothing moves


class IdConflict(Exception):  # noqa: N818 -- named for what happened
    """Same id, other content: a bug in how ids are derived."""


class Overdrawn(Exception):  # noqa: N818 -- named for what happened
    """The account would fall below its floor."""

    def __init__(self, account: AccountId, needed: int, available: int) -> None:
        super().__init__(f"{account}: {needed} microcredits needed, {available} available")
        self.account, self.needed, self.available = account, needed, available


class UnknownAccount(Exception):  # noqa: N818 -- named for what happened
    """A posting names an account that the book does not know."""


@dataclass(slots=True)
class Book:
    """All accounts, and the ids that are taken: of the entries of open jobs, and of the newest others.

    The database holds them all and repeats the uniqueness. Whoever posts an entry whose id is not of an open
    job asks there first, so that a retry after long is answered, too.
    """

    accounts: dict[AccountId, Account] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    others: deque[str] = field(default_factory=deque)  # ids that are no job's
    others_max: int = 20_000

    def post(self, entry: Entry) -> Posted:
        """Apply the entry, or change nothing and raise Overdrawn, IdConflict or UnknownAccount."""
        if (known := self.entries.get(entry.id)) is not None:
            if known != entry:
                raise IdConflict(entry.id)
            return Posted.EXISTS
        changed: dict[AccountId, Account] = {}
        for posting in entry.postings:
            if (after := changed.get(posting.account)) is None:
                if (before := self.accounts.get(posting.account)) is None:
                    raise UnknownAccount(posting.account)
                after = changed[posting.account] = copy(before)
            bucket = posting.bucket.value
            setattr(after, bucket, getattr(after, bucket) + posting.amount)
        for account_id, after in changed.items():
            _check_floor(self.accounts[account_id], after)
        for account_id, after in changed.items():
            account = self.accounts[account_id]
            account.credit_line, account.main = after.credit_line, after.main
            account.reserved, account.held = after.reserved, after.held
        self.entries[entry.id] = entry
        if entry.job is None:
            self.others.append(entry.id)
            if len(self.others) > self.others_max:
                del self.entries[self.others.popleft()]
        return Posted.CREATED

    def forget(self, job: JobId, part_of: JobId | None = None, part: int = 0) -> None:
        """The entries of a job that ended long ago. What a part was paid stands under its whole's name."""
        for cause in ("hold", "close"):
            self.entries.pop(f"{job}/{cause}", None)
        if part_of is not None:
            self.entries.pop(f"{part_of}/settle/{part}", None)

    def total(self) -> int:
        """All money; 0 at every moment."""
        return sum(a.main + a.reserved + a.held for a in self.accounts.values())


def _check_floor(before: Account, after: Account) -> None:
    """Nobody sinks below the floor, whether money left or the line was shortened. Raises Overdrawn."""
    assert after.reserved >= 0, f"reserved of {after.id} fell below zero"
    assert after.held >= 0, f"held of {after.id} fell below zero"
    sinks = after.available < before.available or after.credit_line < before.credit_line
    if after.id != LINES and sinks and (after.available < 0 or after.credit_line < 0):
        raise Overdrawn(after.id, before.available - after.available, before.available)


def canonical(number: int, at: str, entry: Entry, previous: str) -> bytes:
    """The bytes that an entry's hash covers."""
    return entry_bytes(
        number=number,
        at=at,
        id=entry.id,
        code=entry.code.value,
        job=entry.job,
        postings=[(p.account, p.bucket.value, p.amount) for p in entry.postings],
        details_sha256=digest(entry.details),
        previous=previous,
    )


def record(number: int, at: str, entry: Entry, previous: str) -> Recorded:
    """Put the entry at the end of the chain."""
    return Recorded(number, at, entry, previous, hash_of(canonical(number, at, entry, previous)))
