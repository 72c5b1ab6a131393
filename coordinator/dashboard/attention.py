"""Fragments of every page: the pool's pulse and the caller's balance; and what needs attention."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from fastapi import APIRouter

from coordinator.api.auth import Caller
from coordinator.dashboard.live import Fragment, everybody
from coordinator.dashboard.page import Site
from coordinator.notices.board import Board
from coordinator.pool import Pool
from coordinator.records import MemberState
from potluck.credits import rounded

LOW_PERMILLE: Final = 100  # of the credit line is left


@dataclass(frozen=True, slots=True)
class Callout:
    """`level`: bad, warn or info. `path`: where one does something about it."""

    level: str
    words: str
    path: str = ""
    link: str = ""


def add_attention(site: Site, _router: APIRouter) -> None:
    pool, pulse, board = site.desk.context.pool, site.desk.context.pulse, site.desk.context.board

    def beat(_caller: Caller, _argument: str) -> tuple[int, int, int, int, str]:
        point = pulse.latest
        rate = f"{pulse.tokens_per_s():.0f}"
        return point.sharing, point.enrolled, point.running, point.waiting, rate

    async def show_beat(caller: Caller, argument: str) -> str:
        sharing, enrolled, running, waiting, rate = beat(caller, argument)
        return site.text(
            "fragments/pulse.html",
            sharing=sharing,
            enrolled=enrolled,
            running=running,
            waiting=waiting,
            rate=rate,
        )

    def balance(caller: Caller, _argument: str) -> Hashable:
        return tuple(pool.accounts.balance(caller.member.account).values())

    async def show_balance(caller: Caller, _argument: str) -> str:
        return site.text("fragments/balance.html", balance=pool.accounts.balance(caller.member.account))

    def announced(_caller: Caller, _argument: str) -> Hashable:
        return board.shown(site.desk.context.clock.now())

    async def show_announced(caller: Caller, argument: str) -> str:
        return site.text("fragments/announcement.html", announcement=announced(caller, argument))

    def callouts(caller: Caller, _argument: str) -> Hashable:
        return tuple(attention(pool, board, caller))

    async def show_callouts(caller: Caller, _argument: str) -> str:
        return site.text("fragments/attention.html", callouts=attention(pool, board, caller))

    site.live.add(Fragment("pulse", beat, show_beat, whose=everybody))
    site.live.add(Fragment("balance", balance, show_balance))
    site.live.add(Fragment("attention", callouts, show_callouts))
    site.live.add(Fragment("announcement", announced, show_announced, whose=everybody))


def attention(pool: Pool, board: Board, caller: Caller) -> list[Callout]:
    """What the caller should know, the worst first."""
    return [
        *_of_the_pool(pool, caller),
        *_of_terms(board, caller),
        *_of_workers(pool, caller),
        *_of_credits(pool, caller),
    ]


def _of_terms(board: Board, caller: Caller) -> list[Callout]:
    if (terms := board.owed(caller.member.id)) is None:
        return []
    words = "This pool has terms of use." if terms.version == 1 else "The pool's terms of use have changed."
    return [Callout("info", words, "/terms", "Read and accept them")]


def _of_the_pool(pool: Pool, caller: Caller) -> list[Callout]:
    found = []
    if pool.accounts.trouble:
        found.append(
            Callout("bad", "The pool cannot write its books: no job starts until it can. Its log says why.")
        )
    if caller.admin and (total := pool.engine.book.total()):
        words = f"The ledger is off by {rounded(total)} credits. Run `potluck coordinator check`."
        found.append(Callout("bad", words, "/ledger", "Ledger"))
    if not any(worker.sharing for worker in pool.engine.fleet.workers.values()):
        found.append(
            Callout("warn", "Nobody shares a machine just now: jobs wait.", "/workers", "Enrol a worker")
        )
    return found


def _of_workers(pool: Pool, caller: Caller) -> list[Callout]:
    found = []
    fleet = pool.engine.fleet
    for worker in map(fleet.workers.__getitem__, fleet.by_account.get(caller.member.account, ())):
        if not worker.connected:
            words = f"Your worker {worker.name} is away."
            found.append(Callout("warn", words, f"/workers/{worker.id}", "Look at it"))
        if (pause := pool.pauses.of(worker.id)) is not None and not pause.by_owner:
            words = f"Your worker {worker.name} is paused: {pool.pauses.words(pause)}."
            found.append(Callout("warn", words, f"/workers/{worker.id}", "Look at it"))
        for served in worker.models.values():
            if served.state == "failed":
                words = f"Your worker {worker.name} cannot serve {served.name}: {served.why or 'it failed'}."
                found.append(Callout("warn", words, f"/workers/{worker.id}", "Look at it"))
    return found


def _of_credits(pool: Pool, caller: Caller) -> list[Callout]:
    found = []
    if caller.member.state is MemberState.FROZEN:
        found.append(Callout("bad", f"Your account is frozen: {caller.member.why or 'ask an admin'}."))
    have = pool.accounts.balance(caller.member.account)
    if have["available"] * 1_000 <= have["credit_line"] * LOW_PERMILLE:
        words = f"{rounded(have['available'])} credits are left to you. Share a machine, or let jobs end."
        found.append(Callout("warn", words, "/credits#earn", "How do I earn?"))
    return found
