"""The composition root: everything is made here, once, and put away in the reverse order."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from fastapi import FastAPI

from coordinator.api import create_api
from coordinator.api.context import Context
from coordinator.artifact_service import ArtifactServicer
from coordinator.audit_log.restart import facts_of, note_restart
from coordinator.bootstrap import ensure_first_start
from coordinator.ca import CertificateAuthority
from coordinator.check import glance
from coordinator.chores import Sweeper, keep_tidy, tidy
from coordinator.clock import SteadyClock
from coordinator.collaborators import context_of
from coordinator.core import entries
from coordinator.core.engine import Engine
from coordinator.core.fleet import Fleet, Worker
from coordinator.core.jobs import WHOLES, Kind
from coordinator.core.ledger import Book
from coordinator.core.pricing import Tariff
from coordinator.core.rules import Rules
from coordinator.core.standing import HOUR_S, Proof
from coordinator.dashboard.rows import SignedIn
from coordinator.files import Files
from coordinator.lately import line_of, recall
from coordinator.listener import GRACE_S, Listener
from coordinator.lock import FileLock
from coordinator.models import Models
from coordinator.peer import identify
from coordinator.pool import Pool
from coordinator.ports import PortTaken, bound_to, listening_on, port_sentence
from coordinator.records import Loaded
from coordinator.reports import WorkerReports
from coordinator.sessions import Sessions, WorkerService
from coordinator.settings import Settings
from coordinator.standby import open_in_turn
from coordinator.store import Store
from coordinator.store_errors import StoreError
from coordinator.texts import StoredTexts
from coordinator.tick import Chain, ReceiptChain, Ticker
from coordinator.tokens import TokenCounter
from coordinator.traces import traces_of
from coordinator.training_uploads import TrainingUploads
from coordinator.vocabularies import Vocabularies
from potluck.catalogue import Catalogue
from potluck.v1 import artifacts_pb2_grpc, session_pb2_grpc, work_pb2

log = structlog.get_logger(__name__)

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
CALLS_MAX = 64  # at once on one connection: its session, downloads and uploads
CONNECTIONS_RESERVE = 256  # beyond the sessions: they hear why they are not welcome
LOCK_FILE = "coordinator.lock"
STREAM_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a second coordinator on the port is refused instead of sharing it
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.server_handshake_timeout_ms", 20_000),  # whoever connects and shows no certificate is cut off
    ("grpc.max_connection_idle_ms", 300_000),  # a connection without a call
    ("grpc.max_concurrent_streams", CALLS_MAX),
]


@dataclass(slots=True)
class Coordinator:
    """A running coordinator. `http` and `grpc` are the addresses really bound."""

    settings: Settings
    store: Store
    pool: Pool
    ticker: Ticker
    context: Context
    api: FastAPI
    http: str
    grpc: str
    new_admin_key: str | None  # the file's path, at the first start only
    stopping: asyncio.Event
    failed: asyncio.Future[None]

    async def wait(self) -> None:
        """Until told to stop, or until a part of it failed (raises then)."""
        stop = asyncio.ensure_future(self.stopping.wait())
        stop.add_done_callback(lambda _: None if self.failed.done() else self.failed.set_result(None))
        try:
            await self.failed
        finally:
            stop.cancel()


@contextlib.asynccontextmanager
async def coordinator(
    settings: Settings, *, force: bool = False, on_standby: Callable[[str], None] = lambda _leader: None
) -> AsyncIterator[Coordinator]:
    """Start a coordinator; leaving the block drains and stops it. `force`: also if its books are wrong.

    Where another one leads the pool, it waits for its turn first: `on_standby` is told the leader's URL.
    Raises PortTaken, AlreadyRunning, LeadershipLost, StoreError (BooksWrong), CertificateError, KeyFileError,
    ModelsError or SettingsError, all with sentences.
    """
    clock = SteadyClock()
    async with contextlib.AsyncExitStack() as stack:
        if settings.books_in_a_file:
            stack.enter_context(home_lock(settings))
        http_socket = stack.enter_context(listening_on(settings.http, "--http"))
        with bound_to(settings.grpc, "--grpc"):
            pass  # said now: gRPC knows no reasons, and after this the first key is made
        store = await open_in_turn(settings, clock.now(), http_socket, on_standby)
        stack.push_async_callback(store.close)
        await glance(store, force=force)
        first = await ensure_first_start(store, settings, clock.now())
        ca = CertificateAuthority.open(
            settings.home, settings.pool_name, clock.wall(), settings.certificate_days
        )
        models = await Models.open(store, settings)
        catalogue = models.catalogue
        counter = TokenCounter(settings.folder / "tokenizers", lambda: catalogue)
        vocabularies = Vocabularies(counter, lambda: catalogue, models.artifacts)
        stack.push_async_callback(vocabularies.close)
        pool, ticker = await _pool(settings, store, ca, vocabularies, catalogue, clock)
        stack.push_async_callback(asyncio.to_thread, pool.traces.close)
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if store.leadership is not None:
            store.leadership.lost.add_done_callback(lambda lost: _fail_with(failed, lost.result()))
            store.leadership.on_others = lambda: pool.sessions.tell_all(store.coordinators())
        context = await context_of(pool, ca, clock.now, lambda: catalogue, clock.wall)
        facts = facts_of(settings, catalogue, ca.fingerprint())
        await note_restart(context.audit_log, store, facts, clock.now())
        api = create_api(context)
        await ticker.turn()  # holds that a crash left open are returned before anybody is let in
        stack.push_async_callback(_background(ticker.run(), failed))
        await _go_on(stack, context, failed)
        context.listening.grpc = grpc_address = await _serve_grpc(
            stack, settings, store, ca, pool, context.files, models, clock
        )
        refused = pool.sessions.refused = context.metrics.refused
        http_address = await _serve_http(stack, settings, api, http_socket, failed, refused)
        running = Coordinator(
            settings=settings,
            store=store,
            pool=pool,
            ticker=ticker,
            context=context,
            api=api,
            http=http_address,
            grpc=grpc_address,
            new_admin_key=first,
            stopping=asyncio.Event(),
            failed=failed,
        )
        # The last of all: what it logs at once comes after what whoever starts the pool is told.
        stack.push_async_callback(_background(context.heads.run(), failed))
        try:
            yield running
        finally:
            context.closing.set()
            await pool.drain(GRACE_S)
            await ticker.turn()


async def _go_on(stack: contextlib.AsyncExitStack, context: Context, failed: "asyncio.Future[None]") -> None:
    """With all that the pool does by itself, wherever it was."""
    sweepers = _sweepers(context)
    await tidy(context.pool, sweepers)
    stack.push_async_callback(_background(keep_tidy(context.pool, sweepers), failed))
    stack.push_async_callback(_background(context.pulse.run(), failed))
    stack.push_async_callback(_background(context.lateness.run(), failed))
    stack.push_async_callback(_background(context.webhooks.run(), failed))
    stack.push_async_callback(context.presence.close)
    stack.push_async_callback(context.community.meter.close)
    stack.push_async_callback(_background(context.community.meter.run(), failed))
    stack.push_async_callback(_background(context.presence.run(), failed))
    await context.batches.resume()
    stack.push_async_callback(context.batches.close)
    await context.finetunes.resume()
    stack.push_async_callback(context.finetunes.close)


def _sweepers(context: Context) -> Sequence[Sweeper]:
    signed_in = SignedIn(context.store, context.clock.now)
    texts = StoredTexts(context.store, context.settings.file_days, context.clock.now)
    return context.uploads, context.files, context.finetunes, context.webhooks, signed_in, texts


def rules_of(settings: Settings) -> Rules:
    """What of the settings the core needs."""
    return Rules(
        tariff=Tariff(settings.prompt_weight_permille, settings.fee_permille),
        proof=Proof(settings.trust == "strangers", settings.proof_jobs, settings.proof_hours * HOUR_S),
        wait_s=settings.wait_for_worker_s,
        crowd_s=settings.interactive_wait_s,
    )


async def _pool(
    settings: Settings,
    store: Store,
    ca: CertificateAuthority,
    vocabularies: Vocabularies,
    catalogue: Catalogue,
    clock: SteadyClock,
) -> tuple[Pool, Ticker]:
    loaded = await store.load()
    book = Book({a.id: a for a in loaded.accounts}, {e.id: e for e in loaded.entries})
    pool = Pool(
        engine=Engine(rules_of(settings), book, Fleet(), line=line_of(settings)),
        store=store,
        settings=settings,
        sessions=Sessions(sessions_max=settings.sessions_max),
        counter=vocabularies.counter,
        vocabularies=vocabularies,
        catalogue=lambda: catalogue,
        public_key=ca.public_key.hex(),
        sign=ca.sign,
        now=clock.now,
        traces=traces_of(),
    )
    pool.budgets = await store.budgets(loaded.open_jobs, clock.now())
    pool.ticker = Ticker(
        engine=pool.engine,
        store=store,
        chain=Chain(loaded.last_number, loaded.last_hash),
        receipts=ReceiptChain(ca.sign, loaded.last_receipt_number, loaded.last_receipt_hash),
        now=clock.now,
        send=pool.send,
        tell=pool.tell,
        acknowledge=pool.receipts.recorded,
        result_of=pool.answers.close,
        on_trouble=pool.storage_trouble,
    )
    await _remember(pool, loaded)
    return pool, pool.ticker


async def _remember(pool: Pool, loaded: Loaded) -> None:
    """Members' names, enrolled workers with what they earned, and the jobs that a restart cut off."""
    pool.earned.recall(await pool.store.earned())
    await pool.pauses.recall()
    for member in await pool.store.members():
        pool.names[member.id] = member.name
    for row in await pool.store.workers():
        worker = Worker(row.id, row.name, row.member, row.account, standing=loaded.standings[row.id])
        pool.engine.fleet.enrol(worker)
        if row.revoked_at is not None:
            pool.engine.fleet.remove(row.id)
    for worker in list(pool.engine.fleet.workers.values()):
        if worker.standing.held and not pool.engine.rules.proof.needed:
            pool.engine.prove(worker.id, pool.now(), "this is a pool of friends now")
    await recall(pool.engine.line, pool.store, pool.now())
    for account, line in await pool.store.unopened():
        pool.engine.post(entries.opening(account, line))
    for job in loaded.open_jobs:
        request = loaded.requests.get(job.id)
        if job.kind in WHOLES and job.whole is None:
            pool.engine.restore_whole(job)
        elif job.kind is Kind.FINETUNE:  # its whole asks for the same steps again
            pool.engine.abandon(job, pool.now())
        elif job.stored and request is not None and pool.catalogue().get(job.model) is not None:
            pool.restore(job, work_pb2.Work.FromString(request))
        else:
            pool.engine.abandon(job, pool.now())


async def _serve_grpc(
    stack: contextlib.AsyncExitStack,
    settings: Settings,
    store: Store,
    ca: CertificateAuthority,
    pool: Pool,
    files: Files,
    models: Models,
    clock: SteadyClock,
) -> str:
    """The workers' door: mutual TLS on the pool's own CA, whatever the address is called."""
    who = identify(store)
    reports = WorkerReports(
        engine=pool.engine,
        pool=pool,
        store=store,
        ticker=pool.ticker,
        counter=pool.counter,
        now=clock.now,
        pool_name=settings.pool_name,
        catalogue_json=models.catalogue.to_wire,
        receipts=pool.receipts,
        coordinators=store.coordinators,
        url=store.url,
    )
    most = ("grpc.max_allowed_incoming_connections", settings.sessions_max + CONNECTIONS_RESERVE)
    server = grpc.aio.server(options=[*STREAM_OPTIONS, most])
    stack.push_async_callback(reports.close)
    session_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerService(pool.sessions, reports, who), server)
    made = pool.training_store.artifacts
    await asyncio.to_thread(made.sweep)
    artifacts = ArtifactServicer(
        models.artifacts,
        who,
        private=(made, files.artifacts),
        named_by=pool.named_by,
        uploads=TrainingUploads(pool.training_store, reports.uploading),
    )
    artifacts_pb2_grpc.add_ArtifactServiceServicer_to_server(artifacts, server)
    certificate = ca.server_certificate(clock.wall())
    credentials = grpc.ssl_server_credentials(
        [(certificate.key_pem, certificate.pem)],
        root_certificates=ca.certificate_pem,
        require_client_auth=True,
    )
    try:
        port = server.add_secure_port(settings.grpc, credentials)
    except RuntimeError:
        taken = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))  # since we looked
        raise PortTaken(port_sentence(settings.grpc, "--grpc", taken)) from None
    await server.start()
    stack.push_async_callback(server.stop, 1.0)
    stack.callback(pool.sessions.end_all, "the coordinator is restarting")
    return f"{settings.grpc.rpartition(':')[0]}:{port}"


async def _serve_http(
    stack: contextlib.AsyncExitStack,
    settings: Settings,
    api: FastAPI,
    listening: socket.socket,
    failed: "asyncio.Future[None]",
    refused: Callable[[str], None],
) -> str:
    listener = await Listener.open(settings, api, listening, refused)
    listener.task.add_done_callback(lambda t: _fail(failed, t))
    stack.push_async_callback(listener.stop)
    host, port = listening.getsockname()[:2]
    return f"{host}:{port}"


def _background(
    coroutine: Coroutine[Any, Any, None], failed: "asyncio.Future[None]"
) -> Callable[[], Awaitable[None]]:
    """Run it until the returned function is awaited; if it fails, the coordinator does."""
    task = asyncio.create_task(coroutine)
    task.add_done_callback(lambda t: _fail(failed, t))

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    return stop


def _fail(failed: "asyncio.Future[None]", task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _fail_with(failed, error)


def _fail_with(failed: "asyncio.Future[None]", error: BaseException) -> None:
    if not failed.done():
        failed.set_exception(error)


def home_lock(settings: Settings) -> FileLock:
    """One coordinator, or one tool, for each home; with PostgreSQL it is the leader's row that tells."""
    try:
        return FileLock.acquire(settings.folder / LOCK_FILE)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"the folder {settings.folder} cannot be written to: {reason}") from error
