"""What each account gave and took by work lately: a flow that fades, not a fortune.

Counted from closes and settlements alone: what an account earned by serving others, minus what it was
charged. Transfers, grants and credit lines are money and count for nothing here. Everything fades with one
half-life: what was given long ago buys no place for ever, and an old debt is forgotten.

Accounts whose credit line was lent by a member are that member's relatives. Work among relatives counts for
nothing, or a member could pay accounts of its own invention. And a relative stands in its lender's line until
it has given people outside `proven` more than it took: see `flow_of`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.core.jobs import AccountId
from coordinator.core.ledger import COMMONS, LINES, MONEY, Bucket, Code, Entry

WORK = (Code.SETTLE, Code.CLOSE)
CHAIN_MAX = 64  # lenders of lenders that are followed
ACCOUNTS_MAX = 100_000  # remembered; beyond it, those whose count has faded are forgotten
FADED = 0.5  # microcredits


@dataclass(slots=True)
class Contributions:
    """Amounts are microcredits, as floats because they fade; times seconds."""

    half_life_s: float = 7 * 86_400.0
    proven: int = 100_000_000
    lenders: dict[AccountId, AccountId] = field(default_factory=dict)
    now: float = 0.0  # of the newest tick; work is counted at this moment
    _lent: dict[AccountId, int] = field(default_factory=dict)
    _borrowers: dict[AccountId, dict[AccountId, None]] = field(default_factory=dict)
    _sums: dict[AccountId, tuple[float, float]] = field(default_factory=dict)  # value and its moment

    def lend(self, lender: AccountId, to: AccountId, amount: int) -> None:
        """The lender answers for so much more (or less) of the account's line."""
        lent = self._lent.get(to, 0) + amount
        if lent > 0:
            self._lent[to], self.lenders[to] = lent, lender
            self._borrowers.setdefault(lender, {})[to] = None
        else:
            self.part(to)

    def part(self, account: AccountId) -> None:
        """Nobody answers for the account any more."""
        self._lent.pop(account, None)
        if (lender := self.lenders.pop(account, None)) is not None:
            self._borrowers[lender].pop(account, None)

    def take(self, entry: Entry) -> None:
        """Learn what an entry says about work done, or about who lent to whom; of other entries nothing."""
        if entry.code in WORK:
            payer = entry.postings[0].account
            for p in entry.postings:
                if p.bucket in MONEY:
                    self.worked(payer, p.account, p.amount, self.now)
        elif entry.code is Code.LINE:
            lines = [p for p in entry.postings if p.bucket is Bucket.CREDIT_LINE]
            lender = min(lines, key=lambda p: p.amount)
            borrower = max(lines, key=lambda p: p.amount)
            if self.lenders.get(lender.account) == borrower.account:  # given back
                lender, borrower = borrower, lender
            if LINES not in (lender.account, borrower.account):
                self.lend(lender.account, borrower.account, borrower.amount)
        elif entry.code is Code.RETIRE:
            self.part(AccountId(entry.id.removesuffix("/retire")))

    def worked(self, payer: AccountId, account: AccountId, amount: int, at: float) -> None:
        """Of a charge paid by `payer`, `account` got so much (the payer itself: minus what left it)."""
        if account == COMMONS or not amount:
            return
        if account != payer and self._eldest(account) == self._eldest(payer):
            account = payer  # what stayed in the family has not left it
        value, since = self._sums.get(account, (0.0, at))
        moment = max(at, since)
        self._sums[account] = (
            value * self._faded(moment - since) + amount * self._faded(moment - at),
            moment,
        )
        if len(self._sums) > ACCOUNTS_MAX:
            self._forget()

    def of(self, account: AccountId) -> float:
        """Given minus taken by this account alone."""
        value, since = self._sums.get(account, (0.0, self.now))
        return value * self._faded(max(0.0, self.now - since))

    def flow_of(self, account: AccountId) -> AccountId:
        """In whose line the account stands: its own, or its lender's while it is unproven."""
        for _ in range(CHAIN_MAX):
            lender = self.lenders.get(account)
            if lender is None or self.of(account) >= self.proven:
                break
            account = lender
        return account

    def of_flow(self, flow: AccountId) -> float:
        """Given minus taken by all who stand in this line."""
        if not self._borrowers.get(flow):
            return self.of(flow) if flow in self._sums else 0.0
        total, open_ends = 0.0, [flow]
        seen = {flow}
        while open_ends:
            account = open_ends.pop()
            total += self.of(account)
            for borrower in self._borrowers.get(account, ()):
                if borrower not in seen and self.of(borrower) < self.proven:
                    seen.add(borrower)
                    open_ends.append(borrower)
        return total

    def of_flows(self, flows: Iterable[AccountId]) -> dict[AccountId, float]:
        """`of_flow` of each; quick for those who stand alone, which most do."""
        sums, borrowers, now, half_life_s = self._sums, self._borrowers, self.now, self.half_life_s
        nets = {}
        for flow in flows:
            if borrowers.get(flow):
                nets[flow] = self.of_flow(flow)
            elif (found := sums.get(flow)) is None:
                nets[flow] = 0.0
            else:
                value, since = found
                nets[flow] = value * 2.0 ** ((since - now) / half_life_s) if now > since else value
        return nets

    def _eldest(self, account: AccountId) -> AccountId:
        for _ in range(CHAIN_MAX):
            if (lender := self.lenders.get(account)) is None:
                break
            account = lender
        return account

    def _faded(self, after_s: float) -> float:
        return float(2.0 ** (-after_s / self.half_life_s))

    def _forget(self) -> None:
        for account in [a for a in self._sums if abs(self.of(a)) < FADED]:
            del self._sums[account]
