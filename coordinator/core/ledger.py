"""Double entry in microcredits. Entries are never changed; corrections are entries.

Every account has three buckets. `main` is what can be spent, `reserved` what lies in open holds, `held`
what an unproven worker earned and may not spend yet. The balance that a member sees is main + reserved;
what is available is main + credit line. The sum over all buckets of all accounts is zero at every moment.

An entry's id is derived from its cause (`<job>/hold`, `<job>/close`), so that a retry repeats it: paying
twice, or paying and refunding one job, is impossible by construction (after TigerBeetle's transfers).
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from coordinator.core.jobs import AccountId, Job, JobId

COMMONS = AccountId("commons")
GENESIS = "0" * 64


class Bucket(StrEnum):
    MAIN = "main"
    RESERVED = "reserved"
    HELD = "held"


class Code(StrEnum):
    HOLD = "hold"
    CLOSE = "close"
    GRANT = "grant"
    TRANSFER = "transfer"


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
        assert sum(p.amount for p in self.postings) == 0, "an entry must balance"


@dataclass(frozen=True, slots=True)
class Recorded:
    """An entry in its place in the chain."""

    number: int  # from 1, without gaps
    at: str  # RFC 3339 UTC
    entry: Entry
    previous: str  # hash of the entry before, or GENESIS
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
    """All accounts, and the ids that are taken. `recent` holds the entries of open jobs and a tail of closed
    ones; the database holds them all and repeats the uniqueness."""

    accounts: dict[AccountId, Account] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)

    def post(self, entry: Entry) -> Posted:
        """Apply the entry, or change nothing and raise Overdrawn, IdConflict or UnknownAccount."""
        if (known := self.entries.get(entry.id)) is not None:
            if known != entry:
                raise IdConflict(entry.id)
            return Posted.EXISTS
        changes: dict[tuple[AccountId, Bucket], int] = {}
        for posting in entry.postings:
            key = (posting.account, posting.bucket)
            changes[key] = changes.get(key, 0) + posting.amount
        for (account_id, bucket), amount in changes.items():
            account = self.accounts.get(account_id)
            if account is None:
                raise UnknownAccount(account_id)
            if amount >= 0:
                continue
            after = getattr(account, bucket.value) + amount
            if bucket is Bucket.MAIN and after < -account.credit_line:
                raise Overdrawn(account_id, -amount, account.available)
            assert bucket is Bucket.MAIN or after >= 0, f"{bucket} of {account_id} fell below zero"
        for (account_id, bucket), amount in changes.items():
            account = self.accounts[account_id]
            setattr(account, bucket.value, getattr(account, bucket.value) + amount)
        self.entries[entry.id] = entry
        return Posted.CREATED

    def total(self) -> int:
        return sum(a.main + a.reserved + a.held for a in self.accounts.values())


@dataclass(frozen=True, slots=True)
class Payment:
    """What one attempt earned: `amount` is gross, the fee is taken from it."""

    attempt: int
    account: AccountId
    amount: int
    fee: int
    bucket: Bucket = Bucket.MAIN


def hold(job: Job) -> Entry:
    """Set the worst case aside before any work leaves."""
    postings = (
        Posting(job.account, Bucket.MAIN, -job.hold),
        Posting(job.account, Bucket.RESERVED, job.hold),
    )
    return Entry(f"{job.id}/hold", Code.HOLD, postings, job.id)


def close(job: Job, payments: Iterable[Payment], details: str = "{}") -> Entry:
    """End the hold, once: workers paid, fee to the commons, the rest returned. No payments means a refund."""
    paid = tuple(payments)
    charge = sum(p.amount for p in paid)
    assert 0 <= charge <= job.hold, f"{job.id}: charge {charge} outside its hold {job.hold}"
    postings = [
        Posting(job.account, Bucket.RESERVED, -job.hold),
        Posting(job.account, Bucket.MAIN, job.hold - charge),
    ]
    postings += [Posting(p.account, p.bucket, p.amount - p.fee) for p in paid if p.amount - p.fee]
    if fee := sum(p.fee for p in paid):
        postings.append(Posting(COMMONS, Bucket.MAIN, fee))
    return Entry(f"{job.id}/close", Code.CLOSE, tuple(postings), job.id, details)


def grant(cause: str, account: AccountId, amount: int, details: str = "{}") -> Entry:
    """Out of the commons, in the open; the commons has a floor like everybody."""
    postings = (Posting(COMMONS, Bucket.MAIN, -amount), Posting(account, Bucket.MAIN, amount))
    return Entry(f"{cause}/grant", Code.GRANT, postings, None, details)


def canonical(number: int, at: str, entry: Entry, previous: str) -> bytes:
    """The bytes that an entry's hash covers: compact JSON with sorted keys; details by their digest only."""
    content = {
        "number": number,
        "at": at,
        "id": entry.id,
        "code": entry.code.value,
        "job": entry.job,
        "postings": [[p.account, p.bucket.value, p.amount] for p in entry.postings],
        "details": hashlib.sha256(entry.details.encode()).hexdigest(),
        "previous": previous,
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def record(number: int, at: str, entry: Entry, previous: str) -> Recorded:
    """Put the entry at the end of the chain."""
    digest = hashlib.sha256(canonical(number, at, entry, previous)).hexdigest()
    return Recorded(number, at, entry, previous, digest)
