"""What may be written into the book: one function for each kind of entry.

Each derives the entry's id from its cause, so that doing it again is answered instead of done. `details` is
JSON for people; the amounts stand in the postings alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.core.jobs import AccountId, Job, JobId, WorkerId, part_id
from coordinator.core.ledger import COMMONS, LINES, Account, Bucket, Code, Entry, Posting

NOTHING = "{}"
OPENED = "/open/line"  # what ends the id of the entry that lends an account its first line


@dataclass(frozen=True, slots=True)
class Payment:
    """What one attempt earned: `amount` is gross, the fee is taken from it."""

    attempt: int
    account: AccountId
    amount: int
    fee: int
    bucket: Bucket = Bucket.MAIN


def hold(job: Job, details: str = NOTHING) -> Entry:
    """Set the worst case aside before any work leaves."""
    postings = (
        Posting(job.account, Bucket.MAIN, -job.hold),
        Posting(job.account, Bucket.RESERVED, job.hold),
    )
    return Entry(f"{job.id}/hold", Code.HOLD, postings, job.id, details)


def settle(job: Job, part: int, payments: Iterable[Payment], details: str = NOTHING) -> Entry:
    """Pay one part of a whole, once, out of the whole's hold; `job` is the whole as it was before."""
    paid = tuple(payments)
    charge = sum(p.amount for p in paid)
    assert 0 < charge <= job.hold - job.settled, f"{job.id}: {charge} is more than is left of its hold"
    postings = [Posting(job.account, Bucket.RESERVED, -charge), *_earned(paid)]
    return Entry(f"{job.id}/settle/{part}", Code.SETTLE, tuple(postings), job.id, details)


def worked(entry: Entry) -> JobId | None:
    """The job whose attempts an entry pays: of a settlement the part."""
    if entry.job is None or entry.code is not Code.SETTLE:
        return entry.job
    return part_id(entry.job, int(entry.id.rpartition("/")[2]))


def close(job: Job, payments: Iterable[Payment], details: str = NOTHING) -> Entry:
    """End the hold, once: workers paid, fee to the commons, the rest returned. No payments means a refund.

    What was settled along the way has left the hold already.
    """
    paid = tuple(payments)
    left, charge = job.hold - job.settled, sum(p.amount for p in paid)
    assert 0 <= charge <= left, f"{job.id}: charge {charge} outside its hold {left}"
    postings = [
        Posting(job.account, Bucket.RESERVED, -left),
        Posting(job.account, Bucket.MAIN, left - charge),
        *_earned(paid),
    ]
    return Entry(f"{job.id}/close", Code.CLOSE, tuple(postings), job.id, details)


def _earned(paid: tuple[Payment, ...]) -> list[Posting]:
    """The workers' parts, then the fee."""
    postings = [Posting(p.account, p.bucket, p.amount - p.fee) for p in paid if p.amount - p.fee]
    if fee := sum(p.fee for p in paid):
        postings.append(Posting(COMMONS, Bucket.MAIN, fee))
    return postings


def grant(cause: str, account: AccountId, amount: int, details: str = NOTHING) -> Entry:
    """Out of the commons, in the open; the commons has a floor like everybody."""
    return Entry(f"{cause}/grant", Code.GRANT, _moved(COMMONS, account, Bucket.MAIN, amount), None, details)


def transfer(cause: str, sender: AccountId, to: AccountId, amount: int, details: str = NOTHING) -> Entry:
    """From one member to another: money, not contribution."""
    return Entry(f"{cause}/transfer", Code.TRANSFER, _moved(sender, to, Bucket.MAIN, amount), None, details)


def line(cause: str, lender: AccountId, to: AccountId, amount: int, details: str = NOTHING) -> Entry:
    """Lend a credit line, or take a part of it back (`amount` below zero)."""
    postings = _moved(lender, to, Bucket.CREDIT_LINE, amount)
    return Entry(f"{cause}/line", Code.LINE, postings, None, details)


def opening(account: AccountId, amount: int) -> Entry:
    """The first line of an account, lent by the pool."""
    return line(f"{account}/open", LINES, account, amount)


def set_aside(invite: str, lender: AccountId, amount: int, details: str = NOTHING) -> Entry:
    """The line of an invitation leaves whoever lends it, and waits with the pool's lines for its end."""
    return line(f"{invite}/lend", lender, LINES, amount, details)


def ended(invite: str, to: AccountId, amount: int, details: str = NOTHING) -> Entry:
    """The line set aside goes to who accepted the invitation, or back to who lent it.

    Both have one id: whichever is written first, the other can never be.
    """
    return line(f"{invite}/end", LINES, to, amount, details)


def release(worker: WorkerId, account: AccountId, amount: int, details: str = NOTHING) -> Entry:
    """What a worker earned while it was unproven; once for each worker, since after it nothing is held."""
    postings = (Posting(account, Bucket.HELD, -amount), Posting(account, Bucket.MAIN, amount))
    return Entry(f"{worker}/release", Code.RELEASE, postings, None, details)


def retire(account: Account, lender: AccountId, lent: int, details: str = NOTHING) -> Entry:
    """Close an account: whoever lent its line answers for its debt, anything left goes to the commons.

    The lender cannot fall below the floor by it: the debt was never more than the line that comes back.
    `lent` is that part of the line which `lender` gave; the rest was the pool's. A debt goes to the lender
    up to that part, beyond it to the commons.
    """
    assert not account.reserved, "an account with open holds is not closed"
    lent = min(lent, account.credit_line)
    debt = min(max(0, -account.main), lent)
    postings = [
        Posting(account.id, Bucket.MAIN, -account.main),
        Posting(lender, Bucket.MAIN, -debt),
        Posting(COMMONS, Bucket.MAIN, account.main + debt + account.held),
        Posting(account.id, Bucket.HELD, -account.held),
        Posting(account.id, Bucket.CREDIT_LINE, -account.credit_line),
        Posting(lender, Bucket.CREDIT_LINE, lent),
        Posting(LINES, Bucket.CREDIT_LINE, account.credit_line - lent),
    ]
    moved = tuple(p for p in postings if p.amount) or tuple(postings[:2])
    return Entry(f"{account.id}/retire", Code.RETIRE, moved, None, details)


def leftover(account: Account, number: int, details: str = NOTHING) -> Entry:
    """What came to a closed account afterwards (a job it had served ended later) goes to the commons, too.

    `number` counts from 1 for each account.
    """
    assert account.main >= 0, "a closed account has no line to owe on"
    postings = (
        Posting(account.id, Bucket.MAIN, -account.main),
        Posting(account.id, Bucket.HELD, -account.held),
        Posting(COMMONS, Bucket.MAIN, account.main + account.held),
    )
    return Entry(
        f"{account.id}/retire/{number}", Code.RETIRE, tuple(p for p in postings if p.amount), None, details
    )


def _moved(source: AccountId, to: AccountId, bucket: Bucket, amount: int) -> tuple[Posting, Posting]:
    return Posting(source, bucket, -amount), Posting(to, bucket, amount)
