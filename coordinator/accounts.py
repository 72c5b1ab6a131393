"""The accounts as the API sees them: balances, and entries of no job. Amounts are microcredits."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from coordinator.core import entries
from coordinator.core.engine import Engine
from coordinator.core.jobs import AccountId
from coordinator.core.ledger import Account, Entry, IdConflict, Posted
from coordinator.core.standing import missing
from coordinator.refusal import Refusal, credits_of
from coordinator.store import Store
from coordinator.tick import Ticker


@dataclass(slots=True)
class Accounts:
    engine: Engine
    store: Store
    ticker: Callable[[], Ticker]  # made after the pool
    now: Callable[[], float]
    closing: bool = False  # the coordinator stops: nothing new begins
    deciding: asyncio.Lock = field(default_factory=asyncio.Lock)  # for what looks before it writes

    def know(self, account: AccountId) -> None:
        """Members may be newer than this process; their first entry finds the account here."""
        self.engine.book.accounts.setdefault(account, Account(account))

    def account(self, account_id: AccountId) -> Account:
        """As it is at this moment."""
        return self.engine.book.accounts.get(account_id) or Account(account_id)

    def balance(self, account_id: AccountId) -> dict[str, Any]:
        account = self.account(account_id)
        return {
            "account": account.id,
            "balance": account.balance,
            "reserved": account.reserved,
            "held": account.held,
            "credit_line": account.credit_line,
            "available": account.available,
            **({"held_why": self.held_why(account.id)} if account.held else {}),
        }

    def held_why(self, account_id: AccountId) -> str:
        """What must happen before the held earnings of this account are free; a clause for each worker."""
        fleet, proof, now = self.engine.fleet, self.engine.rules.proof, self.now()
        clauses = []
        for worker in (*fleet.workers.values(), *fleet.departed.values()):
            if worker.account != account_id or not (held := worker.standing.held):
                continue
            why = missing(worker.standing, proof, now) or "free within a minute"
            if worker.id in fleet.departed:
                why = "it left before it was proven; an admin may vouch for it"
            clauses.append(f"{credits_of(held)} of {worker.name}: {why}")
        return "; ".join(clauses)

    async def open(self, account: AccountId, line: int) -> None:
        """A new account is in the book from now on, and has its credit line when this returns."""
        self.know(account)
        if line:
            await self.record(entries.opening(account, line))

    async def record(self, entry: Entry) -> Posted:
        """Write an entry that belongs to no job, and wait until it is on the disk.

        Raises IdConflict if its cause had another effect before, Overdrawn, or Refusal while the pool
        cannot write.
        """
        known, posted = await self.decide(entry.id, lambda: entry)
        if known != entry:
            raise IdConflict(entry.id)
        return posted

    async def decide(self, entry_id: str, make: Callable[[], Entry]) -> tuple[Entry, Posted]:
        """As `record`, of an entry that is made at the moment of writing: nothing can come in between.

        What was written under this id before is answered instead, and `make` is not asked.
        """
        self.check_open()
        if (known := await self.posted(entry_id)) is not None:
            return known, Posted.EXISTS
        entry = make()
        assert entry.id == entry_id
        posted = self.engine.post(entry)
        await self.ticker().committed()
        return entry, posted

    async def posted(self, entry_id: str) -> Entry | None:
        """The entry of this id, once it is on the disk."""
        if entry_id not in self.engine.book.entries and (known := await self.store.entry(entry_id)):
            return known.entry
        if (fresh := self.engine.book.entries.get(entry_id)) is not None:
            await self.ticker().committed()
        return fresh

    @property
    def trouble(self) -> bool:
        """Whether nothing can be written just now."""
        return self.closing or bool(self.ticker().trouble)

    def check_open(self) -> None:
        """Raises Refusal while nothing new can be taken."""
        if self.closing:
            message = "The coordinator is shutting down; try again in a moment."
            raise Refusal(503, "shutting_down", message, type="server_error", retry_after_s=5)
        if trouble := self.ticker().trouble:
            message = f"The pool cannot write its books just now: {trouble}"
            raise Refusal(503, "storage_unavailable", message, type="server_error", retry_after_s=10)
