"""The worker daemon: holds the core, the session, the engines and the journal together, and decides nothing.

`feed` gives an event to the core and carries out what it asks for; everything else here brings events.
"""

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Coroutine
from typing import Any, Final, assert_never

import structlog

from potluck.fetch import Policy as Downloads
from potluck.receipts import sign
from potluck.store import ModelStore
from potluck.throttle import Throttle
from potluck.v1 import session_pb2
from potluck.version import version
from worker import advice, checks, wire
from worker.artifacts import ArtifactClient
from worker.budget import together
from worker.core import Core, Policy
from worker.cores import CoreShare
from worker.earned import Earnings
from worker.errors import WorkerConflict, WorkerError
from worker.evidence import Evidence
from worker.files import disk_bytes
from worker.hosts.process import EngineHost
from worker.journal import ReceiptKeeper, SignedReceipt
from worker.load import Load
from worker.membership import utc_now
from worker.memory import Memory
from worker.messages import (
    Close,
    CloseEngines,
    Completed,
    Congested,
    Disconnected,
    DrainAsked,
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
from worker.models import Choice, catalogue_from, choose
from worker.notify import Notifier
from worker.observe.machine import Machine
from worker.owner import Owner
from worker.policy import Verdict
from worker.probe import Probe, hardware_of
from worker.ray.site import Site
from worker.renewal import Renewal
from worker.rules import guests_of, rules_of, size_bytes
from worker.session import Backoff, Session, SessionLost
from worker.settings import Places, Settings
from worker.signals import stop_signals
from worker.snapshot import WITHDRAWN, Rate, attempt_now, card_now, model_now
from worker.speeds import FILE as SPEEDS_FILE
from worker.speeds import Speeds
from worker.state import State, WorkerState, process_start
from worker.supervisor import Supervisor
from worker.surroundings import Surroundings
from worker.workplace import Workplace

STATE_S: Final = 1.0  # how old the state file may be
CORES_S: Final = 5.0  # how soon a change of the neighbours is noticed
STEADY_S: Final = 10.0  # a connection that lived so long was no failure


class Daemon:
    _site: Site | None = None  # without one, engines are processes of this machine

    def __init__(self, *, settings: Settings, places: Places) -> None:
        """Must be made inside the running loop. Raises WorkerError if this home cannot start a worker."""
        self.settings, self.places = settings, places
        workplace = Workplace(places)
        self.membership = workplace.membership
        self._log = structlog.get_logger("worker").bind(worker=self.membership.name)
        self._identity = workplace.identity
        self._workplace = workplace
        self._loop = asyncio.get_running_loop()
        self._offset = time.time() - self._loop.time()
        self._renewal = Renewal(
            membership=self.membership,
            identity=self._identity,
            certificate=workplace.certificate,
            folder=places.worker,
            now=utc_now,
        )
        if workplace.warning:
            self._log.warning(workplace.warning, action="journal_set_aside")
        self._keeper = ReceiptKeeper(workplace.journal, lambda attempt: self.feed(ReceiptKept(attempt)))
        self._evidence = Evidence(
            places.worker, self.membership.worker_id, bytes.fromhex(self.membership.public_key)
        )
        self._cores = CoreShare(places.machine, threads=settings.threads)
        self._threads = self._cores.threads()
        self._supervisor = Supervisor()
        self._artifacts = ArtifactClient(self.membership.grpc, self._identity.tls_key_pem(), self._renewal)
        guests = guests_of(settings.sharing, self.membership.member)
        self.core = Core(worker_id=self.membership.worker_id, policy=Policy(), guests=guests)
        self._session_id = secrets.token_hex(8)
        self._probe = Probe(places.cache, places.worker)
        self._machine = self._probe.machine()
        self._engines = advice.engines(self._machine)
        self._load = Load(self._probe)
        quota = size_bytes(settings.caps.disk, disk_bytes(places.cache)) if settings.caps.disk else 0
        self._store = ModelStore(places.cache, derived=places.converted, quota_bytes=quota)
        self._downloads = Downloads(
            throttle=Throttle(settings.download_bytes_per_s) if settings.download_bytes_per_s else None
        )
        self._speeds = Speeds(
            places.worker / SPEEDS_FILE, device=advice.room(self._machine).where, now=self.now
        )
        self._site: Site | None = None
        self._session: Session | None = None
        self._catalogue = b""
        self._in_pool: frozenset[str] | None = None  # the models that the pool has, once it said so
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._state: State = "starting"
        self._why = ""
        self._started_at = self.now()
        self._process_started = process_start(os.getpid())
        self._dirty = True
        self._stops = 0
        self._closing = False
        self._served = 0
        self._notify = Notifier.from_environ(os.environ)
        self._rate = Rate()
        self._earnings = Earnings(places.worker, own=self.membership.member)
        self._memory = Memory(self._memory_caps())
        self._owner = self._owner_of(settings)

    def _memory_caps(self) -> dict[str, int]:
        """Bytes that all models together may take, in the machine's memory and on a card."""
        caps, here, card = self.settings.caps, self._machine, advice.card(self._machine)
        memory = min(here.memory_free_bytes, size_bytes(caps.memory, here.memory_bytes))
        if card is None or card.backend == "mps":  # there it is the same memory
            return {"memory": memory}
        return {"memory": memory, "vram": size_bytes(caps.vram, card.memory_bytes)}

    def _place(self, engine: str) -> str:
        """Where an engine keeps its models; the llama.cpp of the published wheels has no use for a card."""
        return "vram" if engine == "torch" and "vram" in self._memory.caps else "memory"

    def _owner_of(self, settings: Settings) -> Owner:
        rules = rules_of(settings.sharing, settings.hours, settings.idle, settings.caps)
        return Owner(
            rules=rules,
            machine=Machine(rules, settings.caps.gpus, has_cards=bool(self._machine.cards)),
            folder=self.places.worker,
            process=(os.getpid(), self._process_started),
            on_verdict=self._obey,
            on_drain=self.drain,
        )

    def _open_site(self) -> None:
        """From now on this worker is all machines of its owner's cluster. Raises WorkerConflict."""
        self._site = Site.open(self.settings, models=lambda: len(self._supervisor.models))
        self._machine = self._site.machine(self._machine)
        self._engines = advice.engines(self._machine)
        self._memory = Memory(self._memory_caps())

    # --- its life ---

    async def run(self) -> None:
        """Returns when drained. Raises WorkerError if going on is of no use."""
        try:
            if self.settings.ray or self.settings.ray_address:
                self._open_site()
            await self._owner.begin()
            for receipt in self._workplace.journal.load():
                self._keeper.receipts[receipt.attempt] = receipt
                self.feed(ReceiptKept(receipt.attempt))
            self._log.info(
                f"{self.membership.name} of {self.membership.member} shares with {self.membership.pool}",
                action="started",
                cores=self._machine.cores,
                threads=self._threads,
                engines=", ".join(self._engines),
                receipts_waiting=len(self._keeper.receipts),
            )
            parts = (
                self._keeper.run(),
                self._connect(),
                self._renewal.run(),
                self._watch(),
                self._owner.run(),
            )
            for coroutine in parts:
                self._go(coroutine)
            with stop_signals(self._loop, self.stop_asked):
                self._notify.ready()
                await self._finished
        finally:
            await self._end()

    def _go(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A part that fails ends the daemon: half a worker would only take attempts and lose them."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._finished.done():
            self._finished.set_exception(error)

    async def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._supervisor.close()
        if self._site is not None:
            self._site.close()
        await self._keeper.close()
        self._speeds.save()
        await self._load.close()
        self._move("stopped", self._why)
        with contextlib.suppress(OSError):
            self._save_state()
        self._cores.release()
        self._workplace.release()

    def now(self) -> float:
        """Seconds since the epoch on a clock that never jumps."""
        return self._loop.time() + self._offset

    def _move(self, state: State, why: str = "") -> None:
        self._notify.status(f"{state}: {why}" if why else state)
        self._state, self._why, self._dirty = state, why, True

    # --- events in, instructions out ---

    def feed(self, event: Event) -> None:
        for instruction in self.core.handle(event, self.now()):
            self._perform(instruction)
        self._dirty = True
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
                if isinstance(instruction, SendResult) and isinstance(instruction.outcome, Completed):
                    self._served += 1
                self._send(wire.message_to(instruction))
            case SendHeartbeat():
                self._beat()
            case SendReceipt(attempt):
                if (receipt := self._keeper.receipts.get(attempt)) is not None:
                    self._send(wire.receipt_to(receipt))
            case SignReceipt(attempt, body):
                self._earnings.claimed(attempt, body)
                encoded = body.encode()
                self._keeper.keep(SignedReceipt(attempt, encoded, sign(self._identity.receipt_key, encoded)))
            case ForgetReceipt(attempt):
                self._keeper.forget(attempt)
            case StartEngine(assigned):
                self._supervisor.start(assigned)  # first: somebody waits for its first token
                self._earnings.started(assigned)
                self._log.info(
                    f"serving {assigned.member}",
                    action="attempt_started",
                    job=assigned.attempt.job_id,
                    attempt=assigned.attempt.number,
                    model=assigned.model,
                )
            case StopEngine(attempt, model, why):
                fields = {"job": attempt.job_id, "attempt": attempt.number}
                self._log.info(f"stopped: {why}", action="attempt_stopped", **fields)
                self._supervisor.stop(attempt, model)
            case CloseEngines(why):
                self._log.info(f"paused: {why}", action="paused")
                self._go(self._supervisor.pause(why))
            case OpenEngines():
                self._log.info("sharing again", action="resumed")
                self._go(self._supervisor.resume())
            case Reconnect(why):
                if self._session is not None:
                    self._session.abandon(why)
            case Close(why):
                self._close(why)
            case _:
                assert_never(instruction)

    def _send(self, message: session_pb2.WorkerMessage) -> None:
        if self._session is not None:
            self._session.send(message)

    def _beat(self) -> None:
        heartbeat = session_pb2.Heartbeat(
            running=self.core.busy(),
            models=self._supervisor.served(),
            draining=bool(self.core.draining),
            state="draining" if self.core.draining else "paused" if self.core.paused else "sharing",
            why=self.core.draining or self.core.paused,
            attempts=wire.running_to(self.core.running()),
            load=self._load.now(),
            next_change_ms=wire.moment_to(self._owner.verdict.next_change),
            sharing=wire.sharing_to(self.settings.sharing),
        )
        self._send(session_pb2.WorkerMessage(heartbeat=heartbeat))
        for progress in self._supervisor.progress():
            self._send(session_pb2.WorkerMessage(progress=progress))

    def _close(self, why: str) -> None:
        self._log.info(f"finished: {why}", action="drained")
        self._move("draining", why)
        self._closing = True
        if self._session is None or not self.core.connected:
            self._finish()
        else:
            self._session.close()

    def _finish(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)

    # --- the connection ---

    async def _connect(self) -> None:
        """Raises WorkerError if the coordinator does not want us."""
        backoff = Backoff()
        while not self._finished.done():
            self._move("draining" if self.core.draining else "connecting", self._why)
            began = self._loop.time()
            try:
                await self._converse()
            except SessionLost as lost:
                self._lost(str(lost))
                if lost.handshake:
                    await self._renewal.after_failed_handshake()
            if self._closing:
                self._finish()
                return
            if self._loop.time() - began >= STEADY_S:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())

    async def _converse(self) -> None:
        """One connection from its beginning to its end; returns after `Close`. Raises SessionLost."""
        try:
            certificate = await self._renewal.ensure()
        except WorkerError as error:
            if error.code == "worker_revoked":
                raise
            raise SessionLost(str(error)) from None
        self._session = Session(
            target=self.membership.grpc,
            certificate=certificate,
            tls_key=self._identity.tls_key_pem(),
            on_welcome=self._welcome,
            on_message=self._hear,
            on_congestion=lambda on: self.feed(Congested(on)),
        )
        try:
            await self._session.run(self._hello())
        finally:
            self._session = None
            self.feed(Disconnected())

    def _hello(self) -> session_pb2.Hello:
        hardware = hardware_of(self._machine)
        hardware.nodes = 1 if self._site is None else self._site.size
        return session_pb2.Hello(
            protocol=wire.PROTOCOL,
            version=version(),
            session_id=self._session_id,
            hardware=hardware,
            models=self._supervisor.served(),
            running=wire.running_to(self.core.running()),
            slots=self.core.policy.attempts_max,  # what each model takes at once stands with the model
            bundles=True,
            sharing=wire.sharing_to(self.settings.sharing),
        )

    def _lost(self, why: str) -> None:
        if self._state != "connecting" or why != self._why:  # once, not with every try
            self._log.warning(f"not connected: {why}", action="disconnected")
        self._move(self._state, why)

    def _welcome(self, welcome: session_pb2.Welcome) -> None:
        if welcome.protocol != wire.PROTOCOL:
            raise WorkerConflict(
                f"the pool speaks protocol {welcome.protocol}, this worker {wire.PROTOCOL}: update this"
                " worker with `pip install --upgrade 'potluck[worker]'`.",
                code="version",
            )
        try:
            connected = wire.connected_from(welcome)
        except wire.WireError as error:
            raise SessionLost(f"the coordinator spoke nonsense: {error}") from None
        self._log.info("connected", action="connected", pool=welcome.pool, version=welcome.version)
        self._move("draining" if self.core.draining else "sharing", self.core.draining)
        self.feed(connected)
        if welcome.catalogue and welcome.catalogue != self._catalogue:
            self._catalogue = welcome.catalogue
            checks.remember(self.places, welcome.catalogue)
            self._go(self._serve(welcome.catalogue))

    def _hear(self, message: session_pb2.CoordinatorMessage) -> None:
        try:
            event = wire.event_from(message)
        except wire.WireError as error:
            self._log.warning("the coordinator spoke nonsense", action="nonsense", why=str(error))
            return
        if isinstance(event, ReceiptAcknowledged):  # before the core lets go of the receipt
            self._evidence.add(message.receipt_ack, self._keeper.receipts.get(event.attempt))
            self._earnings.judged(event.attempt, event.state)
        if message.HasField("drain"):
            self.drain(message.drain.why or "the coordinator asks for it")
        elif event is not None:
            self.feed(event)

    async def _serve(self, data: bytes) -> None:
        """Raises WorkerError if the owner's wishes cannot be met and nothing is served yet."""
        try:
            catalogue, left_out = catalogue_from(data)
            self._in_pool, self._dirty = frozenset(entry.name for entry in catalogue.entries), True
            choices = choose(
                catalogue,
                self.settings,
                engines=self._engines,
                memory_bytes={engine: self._memory.caps[self._place(engine)] for engine in self._engines},
            )
        except WorkerError as error:
            if not self._supervisor.models:
                raise
            self._log.warning(str(error), action="catalogue_refused")
            return
        for sentence in left_out:
            self._log.warning(f"left out of the catalogue: {sentence}", action="catalogue_entry_refused")
        names = ", ".join(f"{choice.entry.name} ({choice.engine})" for choice in choices)
        self._log.info(f"serving {names}", action="models_chosen")
        self._earnings.know(catalogue)
        at_once = max(1, self._together(choices))
        surroundings = Surroundings(
            settings=self.settings,
            store=self._store,
            downloads=self._downloads,
            speeds=self._speeds,
            converted=self.places.converted,
            threads=lambda: max(1, self._threads // at_once),
            emit=self.feed,
            artifacts=self._artifacts,
            memory=self._memory,
            place=self._place,
            start_host=EngineHost.start if self._site is None else self._site.start_host,
        )
        await self._supervisor.serve(choices, surroundings)

    def _together(self, choices: list[Choice]) -> int:
        """How many models can be in memory at once: they share the threads."""
        sizes: dict[str, list[int]] = {place: [] for place in self._memory.caps}
        for choice in choices:
            sizes[self._place(choice.engine)].append(choice.variant.memory_bytes)
        return sum(together(found, self._memory.caps[place]) for place, found in sizes.items() if found)

    # --- its owner ---

    def _obey(self, verdict: Verdict) -> None:
        self.feed(Resumed() if verdict.sharing else Paused(verdict.why))

    def drain(self, why: str) -> None:
        """Finish what runs, for as long as the settings allow, then end."""
        self._log.info(f"finishing {self.core.busy()} attempts: {why}", action="draining")
        self._move("draining", why)
        self.feed(DrainAsked(why, self.settings.drain_timeout_s))

    def stop_asked(self) -> None:
        """The first time: drain. The second: stop at once."""
        self._stops += 1
        self._notify.stopping()
        if self._stops == 1:
            self.drain("its owner stops it")
            return
        self._log.warning("stopping at once", action="stopped_at_once")
        self._finish()

    # --- what can be seen from outside ---

    async def _watch(self) -> None:
        """Keeps the state file fresh and looks at the neighbours."""
        looked_at = self._loop.time()
        while True:
            self._notify.alive()
            if self._dirty or self._rate.moving or self._owner.seen.cards:
                self._dirty = False
                self._save_state()
            if self._loop.time() - looked_at >= CORES_S:
                looked_at = self._loop.time()
                if (threads := self._cores.threads()) != self._threads:
                    self._threads = threads
                    self._supervisor.poke()
            await asyncio.sleep(STATE_S)

    def _save_state(self) -> None:
        try:
            self._earnings.save()
            self._snapshot().save(self.places.worker)
        except OSError as error:
            self._log.warning("the state file cannot be written", action="state_failed", why=str(error))

    def _snapshot(self) -> WorkerState:
        member, verdict = self.membership, self._owner.verdict
        paused = self.core.paused if self._state in {"starting", "connecting", "sharing"} else ""
        now = WorkerState(
            pid=os.getpid(),
            process_started=self._process_started,
            state="paused" if paused else self._state,
            why=paused or self._why,
            next_change=verdict.next_change,
            notes=verdict.notes,
            worker_id=member.worker_id,
            name=member.name,
            pool=member.pool,
            member=member.member,
            started_at=self._started_at,
            updated_at=self.now(),
            attempts_served=self._served,
            tokens_served=self.core.tokens_delivered,
            receipts_waiting=len(self._keeper.receipts),
            receipts_countersigned=self._evidence.kept,
            earned=self._earnings.today(),
        )
        if self._state == "stopped":
            return now
        running = self.core.attempts.values()
        models = tuple(model_now(service, self._in_pool) for service in self._supervisor.models.values())
        update = {
            "threads": self._threads,
            "attempts": tuple(attempt_now(attempt) for attempt in running if not attempt.ended),
            "models": models,
            "tokens_per_s": self._rate.look(self.core.tokens_produced(), self._loop.time()),
            "cards": tuple(card_now(card) for card in self._owner.seen.cards),
        }
        if now.state == "sharing" and models and all(model.state == WITHDRAWN for model in models):
            update["why"] = "nothing that the pool has; `potluck models` lists what to name with --models"
        return now.model_copy(update=update)
