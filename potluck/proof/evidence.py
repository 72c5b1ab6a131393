"""Workers' receipts against the ledger: who signed what, and whether the money went where the work was done.

A receipt is evidence and moves nothing. What can be told from an export: that each is signed by its worker
and by the pool, that no attempt has two that count, that what the pool calls `matched` or `void` fits the
close of the job. How many tokens really arrived is known to the payer, the payee and the pool alone, so that
part is checked where the close is in clear.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from potluck.proof.books import JobMoney
from potluck.proof.lines import Fault, ReceiptLine, Said, decoded, shown

MATCHED, LATE, REFUSED, VOID = "matched", "late", "refused", "void"
STATES: Final = (MATCHED, LATE, REFUSED, VOID)
EXACT_ENGINES: Final = frozenset({"torch", "emulator"})  # they count token ids; others' text is counted
SLACK_PERMILLE: Final = 250  # between an engine's own count and the count of its text
SLACK_TOKENS: Final = 8
BODY_BYTES_MAX: Final = 4_096


@dataclass(slots=True)
class Evidence:
    """`owners`: account by worker. Counts are of receipts, and of paid attempts without any."""

    owners: Mapping[str, str]
    jobs: Mapping[str, JobMoney]
    parts: Mapping[str, JobMoney]
    states: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(STATES, 0)))
    free: int = 0  # matched, for a job that had no hold: it ran on its member's own workers
    unpaid: int = 0  # matched, but the job came to nothing later and was refunded, or is still open
    seen: set[tuple[str, int, str]] = field(default_factory=set)
    counted: dict[tuple[str, int], str] = field(default_factory=dict)  # the worker of each attempt
    witnessed: Counter[tuple[str, str]] = field(default_factory=Counter)  # attempts by (job, account)

    def take(self, receipt: ReceiptLine) -> None:
        """Raises Fault, naming the receipt, which must have been found right by itself."""
        assert receipt.said is not None
        try:
            self._take(receipt, receipt.said)
        except ValueError as error:
            raise Fault("receipt", receipt.number, str(error)) from None

    def missing(self) -> int:
        """Paid attempts of closed jobs of which no receipt is here: lost, under way, or never signed."""
        return sum(
            self._missing(job, money)
            for job, money in chain(self.jobs.items(), self.parts.items())
            if money.closed_by and not money.settled  # whose parts have receipts of their own
        )

    def _missing(self, job: str, money: JobMoney) -> int:
        """Where the close only shows its amounts, an account's receipts are counted against its payments."""
        if money.attempts is None:
            return sum(max(0, n - self.witnessed[job, account]) for account, n in money.payments.items())
        workers = ((account, self.counted.get((job, n), "")) for n, account in money.attempts.items())
        return sum(self.owners.get(worker) != account for account, worker in workers)

    def _take(self, receipt: ReceiptLine, said: Said) -> None:
        if receipt.state not in STATES:
            raise ValueError(f"its state `{shown(receipt.state)}` is none of {', '.join(STATES)}")
        job, attempt, worker, engine, claimed = said
        key = (job, attempt, receipt.worker)
        if key in self.seen:
            raise ValueError(f"{_named(receipt, job, attempt)} was recorded before: a receipt counts once")
        self.seen.add(key)
        self.states[receipt.state] += 1
        if receipt.state == REFUSED:
            return
        if worker != receipt.worker:
            raise ValueError(f"it is kept as {shown(receipt.worker)}'s and speaks of {shown(worker)}")
        other = self.counted.setdefault((job, attempt), receipt.worker)
        if other != receipt.worker:
            raise ValueError(
                f"attempt {attempt} of {shown(job)} was {shown(other)}'s by a receipt before, and cannot be"
                f" {shown(worker)}'s too"
            )
        owner = self.owners[receipt.worker]
        self.witnessed[job, owner] += 1
        money = self.jobs.get(job) or self.parts.get(job)
        if receipt.state == VOID and money is not None and not (money.closed_by and money.refunded):
            what = "is not closed" if not money.closed_by else f"was charged by entry {money.closed_by}"
            raise ValueError(f"it is void, as of a job that came to nothing, but {shown(job)} {what}")
        if receipt.state == MATCHED:
            self._matched(job, attempt, owner, claimed, money, exact=engine in EXACT_ENGINES)

    def _matched(
        self, job: str, attempt: int, owner: str, claimed: int, money: JobMoney | None, *, exact: bool
    ) -> None:
        if money is None:
            whole = self.jobs.get(job.rpartition(".")[0])
            if whole is None:
                self.free += 1
            else:  # a part that came to nothing in the end
                self.unpaid += owner != whole.payer
            return
        if not money.closed_by or (money.refunded and not money.payees):
            self.unpaid += owner != money.payer
            return
        if money.tokens is not None and money.amounts is not None:
            arrived = money.tokens.get(attempt, 0)
            most = arrived if exact else arrived + arrived * SLACK_PERMILLE // 1_000 + SLACK_TOKENS
            if claimed > most:
                raise ValueError(
                    f"it is matched and claims {claimed} tokens for attempt {attempt} of {shown(job)}, but"
                    f" entry {money.closed_by} counts {arrived}"
                )
            owed = money.amounts.get(attempt, 0) > 0
        else:
            owed = exact and claimed > 0
        if owed and owner not in (money.payer, *money.payees):
            raise ValueError(
                f"it is matched, but entry {money.closed_by}, the close of {shown(job)}, does not pay"
                f" {shown(owner)}, who did the work"
            )


def said_of(body: str) -> Said:
    """Raises ValueError if it is no receipt.

    The rest of the body is covered by the worker's signature, and nothing here depends on it.
    """
    if len(body) > BODY_BYTES_MAX or not body.isascii():
        raise ValueError(f"its body is no ASCII text of at most {BODY_BYTES_MAX} bytes")
    value = decoded(body)
    if isinstance(value, dict):
        job, worker, engine = value.get("job_id"), value.get("worker_id"), value.get("engine")
        attempt, tokens = value.get("attempt"), value.get("output_tokens")
        if (
            isinstance(job, str)
            and isinstance(worker, str)
            and isinstance(engine, str)
            and type(attempt) is int
            and type(tokens) is int
            and attempt >= 0
            and tokens >= 0
        ):
            return Said(job, attempt, worker, engine, tokens)
    raise ValueError("its body is no receipt: it names no job, attempt, worker, engine and tokens")


def _named(receipt: ReceiptLine, job: str, attempt: int) -> str:
    return f"the receipt of {shown(receipt.worker)} for attempt {attempt} of {shown(job)}"
