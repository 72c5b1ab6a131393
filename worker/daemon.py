"""The worker daemon: holds the core, the link, the engines and the receipts together, and decides nothing.

`feed` gives an event to the core and carries out what it asks for; everything else here brings events.
"""

import asyncio
import os
import secrets
import time
from collections.abc import Coroutine, Sequence
from typing import Any, assert_never

import structlog

from potluck.v1 import session_pb2
from potluck.version import version
from worker import checks, wire
from worker.addresses import Addresses
from worker.artifacts import ArtifactClient
from worker.claims import Claims
from worker.core import Core
from worker.limits import Limits
from worker.link import Link
from worker.membership import utc_now
from worker.messages import (
    Close,
    CloseEngines,
    Completed,
    DrainAsked,
    EngineProduced,
    Event,
    ForgetReceipt,
    Instruction,
    OpenEngines,
    Paused,
    ReceiptAcknowledged,
    ReceiptKept,
    Reconnect,
    Resumed,
    SendAccepted,
    SendFrame,
    SendHeartbeat,
    SendReceipt,
    SendRefused,
    SendResult,
    SignReceipt,
    StartEngine,
    StopEngine,
    Ticked,
)
from worker.observe.machine import Machine
from worker.owner import Owner
from worker.policy import Verdict
from worker.renewal import Renewal
from worker.reporter import Reporter
from worker.rules import guests_of, rules_of
from worker.serving import Serving
from worker.settings import Places, Settings
from worker.signals import stop_signals
from worker.state import process_start
from worker.traces import traces_of
from worker.workplace import Workplace


class Daemon:
    def __init__(self, *, settings: Settings, places: Places) -> None:
        """Must be made inside the running loop. Raises WorkerError if this home cannot start a worker."""
        self.settings, self.places = settings, places
        workplace = Workplace(places)
        self.membership = member = workplace.membership
        self._workplace = workplace
        self._log = structlog.get_logger("worker").bind(worker=member.name)
        self._loop = asyncio.get_running_loop()
        self._offset = time.time() - self._loop.time()
        self._session_id = secrets.token_hex(8)
        self._catalogue = b""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stops = 0
        if workplace.warning:
            self._log.warning(workplace.warning, action="journal_set_aside")
        guests = guests_of(settings.sharing, member.member)
        self.core = Core(worker_id=member.worker_id, limits=Limits(), guests=guests)
        tls_key = workplace.identity.tls_key_pem()
        self._addresses = Addresses.of(member)
        self._renewal = Renewal(
            membership=member,
            identity=workplace.identity,
            certificate=workplace.certificate,
            folder=places.worker,
            now=utc_now,
        )
        self._traces = traces_of()
        self._claims = Claims(workplace, places, on_kept=lambda attempt: self.feed(ReceiptKept(attempt)))
        self._serving = Serving(
            settings=settings,
            places=places,
            artifacts=ArtifactClient(self._addresses, tls_key, self._renewal),
            now=self.now,
            emit=self.feed,
            know=self._claims.earnings.know,
            handed=self._traces.handed,
        )
        process = (os.getpid(), process_start(os.getpid()))
        self._owner = self._owner_of(process)
        self._reporter = Reporter(
            folder=places.worker,
            process=process,
            membership=member,
            core=self.core,
            owner=self._owner,
            serving=self._serving,
            claims=self._claims,
            now=self.now,
        )
        self._link = Link(
            addresses=self._addresses,
            tls_key=tls_key,
            renewal=self._renewal,
            reporter=self._reporter,
            hello=self._hello,
            feed=self.feed,
            on_welcome=self._welcomed,
            on_message=self._hear,
        )

    def _owner_of(self, process: tuple[int, float]) -> Owner:
        settings = self.settings
        rules = rules_of(settings.sharing, settings.hours, settings.idle, settings.caps)
        has_cards = bool(self._serving.machine.cards)
        return Owner(
            rules=rules,
            machine=Machine(rules, settings.caps.gpus, has_cards=has_cards),
            folder=self.places.worker,
            process=process,
            on_verdict=self._obey,
            on_drain=self.drain,
        )

    # --- its life ---

    async def run(self) -> None:
        """Returns when drained. Raises WorkerError if going on is of no use."""
        try:
            if self.settings.ray or self.settings.ray_address:
                self._serving.open_site()
            await self._owner.begin()
            for attempt in self._claims.restore():
                self.feed(ReceiptKept(attempt))
            self._log.info(
                f"{self.membership.name} of {self.membership.member} shares with {self.membership.pool}",
                action="started",
                cores=self._serving.machine.cores,
                threads=self._serving.threads,
                engines=", ".join(self._serving.engines),
                receipts_waiting=self._claims.waiting,
            )
            parts = (
                self._claims.run(),
                self._stay_connected(),
                self._renewal.run(),
                self._serving.run(),
                self._reporter.run(),
                self._owner.run(),
            )
            for part in parts:
                self._go(part)
            with stop_signals(self._loop, self.stop_asked):
                self._reporter.ready()
                await self._finished
        finally:
            await self._end()

    async def _stay_connected(self) -> None:
        await self._link.run()
        self._finish()

    def _go(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A part that fails ends the daemon: half a worker would only take attempts and lose them."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._finished.done():
            self._finished.set_exception(error)

    def _finish(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)

    async def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._serving.close()
        await self._claims.close()
        self._reporter.stopped()
        self._reporter.save()
        self._workplace.release()
        await asyncio.to_thread(self._traces.close)

    def now(self) -> float:
        """Seconds since the epoch on a clock that never jumps."""
        return self._loop.time() + self._offset

    # --- events in, instructions out ---

    def feed(self, event: Event) -> None:
        if isinstance(event, EngineProduced):
            self._traces.produced(event.attempt)
        for instruction in self.core.handle(event, self.now()):
            self._perform(instruction)
        self._reporter.dirty = True
        wake_at = self.core.wake_at()
        if wake_at != self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = wake_at
            self._timer = None if wake_at is None else self._loop.call_at(wake_at - self._offset, self._wake)

    def _wake(self) -> None:
        self._timer_at = None
        self.feed(Ticked())

    def _perform(self, instruction: Instruction) -> None:
        match instruction:
            case SendAccepted() | SendRefused() | SendFrame() | SendResult():
                if isinstance(instruction, SendResult):
                    self._traces.ended(instruction.attempt, instruction.outcome)
                    self._reporter.attempts_served += isinstance(instruction.outcome, Completed)
                self._link.send(wire.message_to(instruction))
            case SendHeartbeat():
                self._beat()
            case SendReceipt(attempt):
                if (receipt := self._claims.message(attempt)) is not None:
                    self._link.send(receipt)
            case SignReceipt(attempt, body):
                self._claims.sign(attempt, body)
            case ForgetReceipt(attempt):
                self._claims.forget(attempt)
            case StartEngine(assigned):
                self._traces.started(assigned)
                self._serving.supervisor.start(assigned)  # first: somebody waits for its first token
                self._claims.earnings.started(assigned)
                doing = "training for" if assigned.trains else "serving"
                self._log.info(
                    f"{doing} {assigned.member}",
                    action="attempt_started",
                    job=assigned.attempt.job_id,
                    attempt=assigned.attempt.number,
                    model=assigned.model,
                )
            case StopEngine(attempt, model, why):
                fields = {"job": attempt.job_id, "attempt": attempt.number}
                self._log.info(f"stopped: {why}", action="attempt_stopped", **fields)
                self._serving.supervisor.stop(attempt, model)
                self._traces.ended(attempt, None)
            case CloseEngines(why):
                self._log.info(f"paused: {why}", action="paused")
                self._go(self._serving.supervisor.pause(why))
            case OpenEngines():
                self._log.info("sharing again", action="resumed")
                self._go(self._serving.supervisor.resume())
            case Reconnect(why):
                self._link.abandon(why)
            case Close(why):
                self._close(why)
            case _:
                assert_never(instruction)

    def _close(self, why: str) -> None:
        self._log.info(f"finished: {why}", action="drained")
        self._reporter.draining(why)
        if not self._link.close():
            self._finish()

    # --- what the coordinator hears and says ---

    def _hello(self) -> session_pb2.Hello:
        return session_pb2.Hello(
            protocol=wire.PROTOCOL,
            version=version(),
            session_id=self._session_id,
            hardware=self._serving.hardware(),
            models=self._serving.supervisor.served(),
            running=wire.running_to(self.core.running()),
            slots=self.core.limits.attempts_max,  # what each model takes at once stands with the model
            bundles=True,
            sharing=wire.sharing_to(self.settings.sharing),
        )

    def _beat(self) -> None:
        heartbeat = session_pb2.Heartbeat(
            running=self.core.busy(),
            models=self._serving.supervisor.served(),
            draining=bool(self.core.draining),
            state="draining" if self.core.draining else "paused" if self.core.paused else "sharing",
            why=self.core.draining or self.core.paused,
            attempts=wire.running_to(self.core.running()),
            load=self._serving.load.now(),
            next_change_ms=wire.moment_to(self._owner.verdict.next_change),
            sharing=wire.sharing_to(self.settings.sharing),
            pause_lifted=self._owner.lifted,
        )
        self._link.send(session_pb2.WorkerMessage(heartbeat=heartbeat))
        for progress in self._serving.supervisor.progress():
            self._link.send(session_pb2.WorkerMessage(progress=progress))

    def _learn(self, coordinators: Sequence[str], url: str = "") -> None:
        """Kept, so that a start finds the pool although the coordinator that it joined at is gone."""
        told = self.membership.welcomed_at(url)
        if coordinators and self._addresses.learn(coordinators):
            told = told.model_copy(update={"coordinators": tuple(self._addresses.known)})
        if told != self.membership:
            told.save(self.places.worker)
            self.membership = self._renewal.membership = told
            where = ", ".join((*told.coordinators, *told.urls))
            self._log.info("the pool can be found at", action="coordinators", at=where)

    def _welcomed(self, welcome: session_pb2.Welcome) -> None:
        self._learn(welcome.coordinators, welcome.url)
        self._owner.ask(wire.asked_from(welcome.pause))
        if welcome.catalogue and welcome.catalogue != self._catalogue:
            self._catalogue = welcome.catalogue
            checks.remember(self.places, welcome.catalogue)
            self._go(self._serving.serve(welcome.catalogue))

    def _hear(self, message: session_pb2.CoordinatorMessage, event: Event | None) -> None:
        if isinstance(event, ReceiptAcknowledged):  # before the core lets go of the receipt
            self._claims.judged(message.receipt_ack, event)
        if message.HasField("drain"):
            self.drain(message.drain.why or "the coordinator asks for it")
        elif message.HasField("pause"):
            self._owner.ask(wire.asked_from(message.pause))
        elif message.HasField("coordinators"):
            self._learn(message.coordinators.addresses)
        elif event is not None:
            self.feed(event)

    # --- its owner ---

    def _obey(self, verdict: Verdict) -> None:
        self.feed(Resumed() if verdict.sharing else Paused(verdict.why))

    def drain(self, why: str) -> None:
        """Finish what runs, for as long as the settings allow, then end."""
        count = self.core.busy()
        self._log.info(f"finishing {count} attempt{'s' * (count != 1)}: {why}", action="draining")
        self._reporter.draining(why)
        self.feed(DrainAsked(why, self.settings.drain_timeout_s))

    def stop_asked(self) -> None:
        """The first time: drain. The second: stop at once."""
        self._stops += 1
        self._reporter.stopping()
        if self._stops == 1:
            self.drain("its owner stops it")
            return
        self._log.warning("stopping at once", action="stopped_at_once")
        self._finish()
