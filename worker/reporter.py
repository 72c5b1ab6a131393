"""What is seen of a daemon from outside: its state file, and what the service manager is told."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from worker.claims import Claims
from worker.core import Core
from worker.membership import Membership
from worker.notify import Notifier
from worker.owner import Owner
from worker.serving import Serving
from worker.snapshot import WITHDRAWN, Rate, attempt_now, card_now, model_now
from worker.state import State, WorkerState

STATE_S: Final = 1.0  # how old the state file may be


class Reporter:
    """`dirty`: something has changed since the file was written. `process`: this daemon, by pid and start."""

    def __init__(
        self,
        *,
        folder: Path,
        process: tuple[int, float],
        membership: Membership,
        core: Core,
        owner: Owner,
        serving: Serving,
        claims: Claims,
        now: Callable[[], float],
    ) -> None:
        self.state: State = "starting"
        self.dirty = True
        self.attempts_served = 0
        self._why = ""
        self._folder, self._process, self._membership, self._now = folder, process, membership, now
        self._core, self._owner, self._serving, self._claims = core, owner, serving, claims
        self._started_at = now()
        self._rate = Rate()
        self._notify = Notifier.from_environ(os.environ)
        self._log = structlog.get_logger("worker").bind(worker=membership.name)

    # --- what happens ---

    def ready(self) -> None:
        self._notify.ready()

    def stopping(self) -> None:
        self._notify.stopping()

    def connecting(self) -> None:
        self._move("draining" if self._core.draining else "connecting", self._why)

    def connected(self) -> None:
        self._move("draining" if self._core.draining else "sharing", self._core.draining)

    def lost(self, why: str) -> None:
        """Logged once, not with every try."""
        if self.state != "connecting" or why != self._why:
            self._log.warning(f"not connected: {why}", action="disconnected")
        self._move(self.state, why)

    def draining(self, why: str) -> None:
        self._move("draining", why)

    def stopped(self) -> None:
        self._move("stopped", self._why)

    def _move(self, state: State, why: str) -> None:
        self._notify.status(f"{state}: {why}" if why else state)
        self.state, self._why, self.dirty = state, why, True

    # --- what is seen of it ---

    async def run(self) -> None:
        """Keeps the state file fresh, until cancelled."""
        while True:
            self._notify.alive()
            if self.dirty or self._rate.moving or self._owner.seen.cards:
                self.dirty = False
                self.save()
            await asyncio.sleep(STATE_S)

    def save(self) -> None:
        try:
            self._claims.earnings.save()
            self.snapshot().save(self._folder)
        except OSError as error:
            self._log.warning("the state file cannot be written", action="state_failed", why=str(error))

    def snapshot(self) -> WorkerState:
        member, verdict = self._membership, self._owner.verdict
        paused = self._core.paused if self.state in {"starting", "connecting", "sharing"} else ""
        pid, process_started = self._process
        now = WorkerState(
            pid=pid,
            process_started=process_started,
            state="paused" if paused else self.state,
            why=paused or self._why,
            next_change=verdict.next_change,
            notes=verdict.notes,
            worker_id=member.worker_id,
            name=member.name,
            pool=member.pool,
            member=member.member,
            started_at=self._started_at,
            updated_at=self._now(),
            attempts_served=self.attempts_served,
            tokens_served=self._core.attempts.tokens_delivered,
            receipts_waiting=self._claims.waiting,
            receipts_countersigned=self._claims.countersigned,
            earned=self._claims.earnings.today(),
        )
        if self.state == "stopped":
            return now
        serving = self._serving
        services = [*serving.supervisor.models.values(), *serving.supervisor.beside]
        models = tuple(model_now(service, serving.in_pool) for service in services)
        tokens = self._core.attempts.tokens_produced()
        update = {
            "threads": serving.threads,
            "attempts": tuple(attempt_now(attempt) for attempt in self._core.attempts.running()),
            "models": models,
            "tokens_per_s": self._rate.look(tokens, asyncio.get_running_loop().time()),
            "cards": tuple(card_now(card) for card in self._owner.seen.cards),
        }
        if now.state == "sharing" and models and all(model.state == WITHDRAWN for model in models):
            update["why"] = "nothing that the pool has; `potluck models` lists what to name with --models"
        return now.model_copy(update=update)
