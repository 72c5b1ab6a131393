"""What an account may send, lend and give back, and who answers for loans whose lender has left.

Amounts are microcredits. A credit line is for asking: it is lent on by invitations, never sent.
"""

from collections.abc import Sequence

from coordinator.core.ledger import Account


def sendable(account: Account) -> int:
    """What it really has: earned or given, and not set aside for jobs."""
    return max(0, account.main)


def lendable(account: Account) -> int:
    """What of its line is neither lent already nor owed: money cannot be lent, nor a line that is used up."""
    return max(0, min(account.credit_line, account.available))


def owed(account: Account) -> int:
    """What open holds may still cost counts as owed."""
    return max(0, -account.main)


def borrowed(account: Account, lent: int) -> int:
    """That part of the line which a member lent; the pool's own part is lent on first."""
    return min(lent, account.credit_line)


def lowest_line(account: Account, lent: int) -> int:
    """How far the pool may shorten the line: not below what is owed, nor into what a member lent."""
    return max(owed(account), borrowed(account, lent))


def commons_share(account: Account, lent: int) -> int:
    """The most of its debt that falls to the commons when the account is closed."""
    return max(0, owed(account) - borrowed(account, lent))


def left_today(sent: int, day_max: int) -> int:
    """What may still be sent on a day on which `sent` was sent already."""
    return max(0, day_max - sent)


def handed_on(loans: Sequence[int], claim: int) -> list[int]:
    """How much of each loan of a closed account its own lender is owed from now on; the rest is the pool's.

    `claim`: what the closed account had borrowed and did not give back, since it had lent it on. So nobody
    gets back more than was lent.
    """
    shares = []
    for loan in loans:
        share = min(loan, claim)
        claim -= share
        shares.append(share)
    return shares
