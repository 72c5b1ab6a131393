"""The API over a real pool on a real socket: store, core, ticker and reports as they run, and one worker in the
same process whose answers a test scripts. Only the workers' gRPC is left out."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha512
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import uvicorn
from fixtures_contract import Watched
from fixtures_store import new_database, url_in

from coordinator.api import create_api
from coordinator.api.context import Context
from coordinator.app import rules_of
from coordinator.artifacts import ArtifactStore
from coordinator.ca import CertificateAuthority
from coordinator.clock import SteadyClock
from coordinator.collaborators import context_of
from coordinator.core import entries
from coordinator.core.engine import Engine
from coordinator.core.fleet import Fleet
from coordinator.core.jobs import WorkerId
from coordinator.core.ledger import Book
from coordinator.pool import Pool
from coordinator.records import Issued, Member, Role
from coordinator.reports import WorkerReports
from coordinator.sessions import Sessions, Stream
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.tick import Chain, ReceiptChain, Ticker
from coordinator.tokens import TokenCounter
from coordinator.vocabularies import Vocabularies
from potluck.catalogue import Catalogue
from potluck.v1 import session_pb2, work_pb2

MODEL = "emulator-small"
TEXT = "Hello wörld 🎉!"  # what the worker says unless a test scripts it
CREDIT_LINE = 1_000_000_000
WAIT_S = 20.0
NO_AUTHORITIES = ssl.SSLContext(
    ssl.PROTOCOL_TLS_CLIENT
)  # all is plain here; reading the system's takes a while
SERVED = session_pb2.ServedModel(
    name=MODEL,
    engine="emulator",
    kinds=["chat", "completion", "embedding", "finetune"],
    state=session_pb2.MODEL_STATE_READY,
    slots=64,
    context_tokens=8_192,
    features=["tools", "json_schema", "reasoning", "lora"],
)

# What a script says of an assignment: lists of deltas or frames (numbered here), or the end.
Said = (
    Sequence[work_pb2.Delta]
    | session_pb2.Frame
    | work_pb2.Failure
    | work_pb2.Trained
    | session_pb2.EmbeddingResult
)
Script = Callable[[session_pb2.Assign], AsyncIterator[Said]]


def deltas(*pieces: str, choice: int = 0, reason: str = "stop", ids: bool = False) -> list[work_pb2.Delta]:
    """The pieces of one choice, the last with its finish reason."""
    made, offset = [], 0
    for index, text in enumerate(pieces):
        end = reason if index == len(pieces) - 1 else ""
        made.append(work_pb2.Delta(choice=choice, text_offset=offset, text=text, finish_reason=end))
        if ids:
            made[-1].token_ids.append(index + 1)
        offset += len(text)
    return made


def saying(*pieces: str) -> Script:
    """Every choice of every job gets these pieces, each in a frame of its own; texts to embed get vectors."""

    async def script(assign: session_pb2.Assign) -> AsyncIterator[Said]:
        if assign.work.HasField("embedding"):
            async for said in embedding(assign):
                yield said
            return
        choices = max(1, sampling(assign).choices)
        for frame in zip(*(deltas(*pieces, choice=choice) for choice in range(choices)), strict=True):
            yield frame

    return script


def sampling(assign: session_pb2.Assign) -> work_pb2.Sampling:
    work = assign.work
    return work.chat.sampling if work.HasField("chat") else work.completion.sampling


async def embedding(assign: session_pb2.Assign) -> AsyncIterator[Said]:
    """A vector of four numbers for each input, which tell its place."""
    inputs = assign.work.embedding.inputs
    values = [work_pb2.Embedding(values=[0.1, -0.5, index, 1e-3]) for index in range(len(inputs))]
    yield session_pb2.EmbeddingResult(embeddings=values)


@dataclass
class Bench:
    """The worker's side: what was assigned and cancelled, and the script that answers."""

    script: Script = field(default_factory=lambda: saying("Hello", " wörld 🎉", "!"))
    assigned: list[session_pb2.Assign] = field(default_factory=list)
    cancelled: asyncio.Queue[session_pb2.Cancel] = field(default_factory=asyncio.Queue)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def run(self, worker: WorkerId, stream: Stream, reports: WorkerReports) -> None:
        while True:
            message = await stream.outbox.get()
            if message.HasField("assign"):
                self.assigned.append(message.assign)
                job_id = message.assign.attempt.job_id
                self.tasks[job_id] = asyncio.create_task(self._serve(worker, message.assign, reports))
            elif message.HasField("cancel"):
                if (task := self.tasks.get(message.cancel.attempt.job_id)) is not None:
                    task.cancel()
                self.cancelled.put_nowait(message.cancel)

    async def _serve(self, worker: WorkerId, assign: session_pb2.Assign, reports: WorkerReports) -> None:
        sequence = 0
        async for said in self.script(assign):
            if isinstance(said, work_pb2.Failure):
                result = session_pb2.Result(attempt=assign.attempt, failed=said)
                await reports.receive(worker, session_pb2.WorkerMessage(result=result))
            elif isinstance(said, work_pb2.Trained):
                done = session_pb2.Completed(trained=said)
                result = session_pb2.Result(attempt=assign.attempt, sequence=sequence + 1, completed=done)
                await reports.receive(worker, session_pb2.WorkerMessage(result=result))
            elif isinstance(said, session_pb2.EmbeddingResult):
                done = session_pb2.Completed(embedding=said)
                result = session_pb2.Result(attempt=assign.attempt, completed=done)
                await reports.receive(worker, session_pb2.WorkerMessage(result=result))
            else:
                sequence += 1
                frame = said if isinstance(said, session_pb2.Frame) else session_pb2.Frame(deltas=said)
                frame.attempt.CopyFrom(assign.attempt)
                frame.sequence = sequence
                await reports.receive(worker, session_pb2.WorkerMessage(frame=frame))


@dataclass
class HandClock:
    """The steady clock; `ahead_s` is turned by hand. Only the API reads it, the core has its own.

    `set_right_s`: by how much the machine's own clock was set since the start.
    """

    base: SteadyClock = field(default_factory=SteadyClock)
    ahead_s: float = 0.0
    set_right_s: float = 0.0

    def now(self) -> float:
        return self.base.now() + self.ahead_s

    def wall(self) -> float:
        return self.now() + self.set_right_s


@dataclass
class Stand:
    """All of it. `keys` are by member name: admin, alice (asks) and bob (owns the worker)."""

    url: str
    context: Context
    clock: HandClock
    ticker: Ticker
    bench: Bench
    worker: WorkerId
    members: dict[str, Member]
    keys: dict[str, str]
    http: httpx2.AsyncClient
    clients: dict[str, openai.AsyncOpenAI] = field(default_factory=dict)

    def openai(self, name: str = "alice") -> openai.AsyncOpenAI:
        """The official client of this member, or with this key."""
        if name not in self.clients:
            key = self.keys.get(name, name)
            client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=WAIT_S)
            self.clients[name] = client
        return self.clients[name]

    async def ask(self, method: str, path: str, *, by: str = "alice", **more: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.keys.get(by, by)}", **more.pop("headers", {})}
        return await self.http.request(method, self.url + path, headers=headers, **more)

    async def chat(self, **more: Any) -> httpx2.Response:
        return await self.ask("POST", "/v1/chat/completions", json=chat_body(**more))

    def available(self, name: str = "alice") -> dict[str, Any]:
        return self.context.pool.accounts.balance(self.members[name].account)


def chat_body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "a b c"}], **more}


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """The error object; that it has the OpenAI API's shape is checked on the way."""
    body: dict[str, Any] = response.json()
    error: dict[str, Any] = body["error"]
    assert {"message", "type", "code", "param"} <= error.keys()
    assert error["message"]
    assert error["type"]
    return error


def new_pool(
    store: Store, settings: Settings, counter: TokenCounter, catalogue: Catalogue, clock: SteadyClock
) -> Pool:
    """Core, books and streams, joined as the composition root does it."""
    pool = Pool(
        engine=Engine(rules_of(settings), Book(), Fleet()),
        store=store,
        settings=settings,
        sessions=Sessions(),
        counter=counter,
        vocabularies=Vocabularies(counter, lambda: catalogue, ArtifactStore(settings.folder / "artifacts")),
        catalogue=lambda: catalogue,
        public_key="00",
        sign=lambda message: sha512(message).digest(),
        now=clock.now,
    )
    pool.ticker = Ticker(
        engine=pool.engine,
        store=store,
        chain=Chain(),
        receipts=ReceiptChain(lambda message: message[:64]),
        now=clock.now,
        send=pool.send,
        tell=pool.tell,
        acknowledge=pool.receipts.recorded,
        result_of=pool.answers.close,
        on_trouble=pool.storage_trouble,
    )
    return pool


async def enrol(store: Store, owner: Member, name: str, now: float) -> WorkerId:
    await store.create_join_token(owner.id, digest=name, uses=1, expires_at=now + 60, now=now)
    worker, _ = await store.enrol_worker(
        token_digest=name,
        name=name,
        receipt_key=b"r" * 32,
        tls_key=b"t" * 64,
        issue=lambda _id: Issued(pem=b"", serial="01", not_before=now, not_after=now + 60),
        now=now,
    )
    return worker.id


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Uvicorn on a port that the system chose, as the composition root sets it up."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment,method-assign]  # signals are pytest's
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        while not server.started:  # noqa: ASYNC110 -- uvicorn offers nothing to wait for
            await asyncio.sleep(0)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listening.close()


@contextlib.asynccontextmanager
async def open_stand(folder: Path, database: str = "", **settings: Any) -> AsyncIterator[Stand]:
    """With other settings than the defaults, and maybe on another database than a new one of SQLite."""
    clock, steady = HandClock(), SteadyClock()
    config = Settings(home=folder, http="127.0.0.1:0", grpc="127.0.0.1:7777", emulator=True, **settings)
    catalogue = Catalogue.builtin(emulator=True)
    async with contextlib.AsyncExitStack() as stack:
        if not database:
            await new_database(folder / "potluck.db")
        store = await Store.open(database or url_in(folder), clock.now())
        stack.push_async_callback(store.close)
        counter = TokenCounter(folder / "tokenizers", lambda: catalogue)
        pool = new_pool(store, config, counter, catalogue, steady)
        stack.push_async_callback(pool.vocabularies.close)
        await store.create_own_accounts(CREDIT_LINE)
        for account in (await store.load()).accounts:
            pool.accounts.know(account.id)
        members, keys = {}, {}
        for name, role in (("admin", Role.ADMIN), ("alice", Role.MEMBER), ("bob", Role.MEMBER)):
            members[name], keys[name] = await store.create_member(
                name, role, CREDIT_LINE, "first", clock.now()
            )
            pool.accounts.know(members[name].account)
        for account_id, line in await store.unopened():
            pool.engine.post(entries.opening(account_id, line))
        await pool.ticker.turn()
        worker = await enrol(store, members["bob"], "rig", clock.now())
        reports = WorkerReports(
            engine=pool.engine,
            pool=pool,
            store=store,
            ticker=pool.ticker,
            counter=counter,
            now=steady.now,
            pool_name=config.pool_name,
            catalogue_json=lambda: b"{}",
            receipts=pool.receipts,
        )
        bench, stream = Bench(), pool.sessions.open(worker)
        hardware = session_pb2.Hardware(memory_bytes=2**33)
        hello = session_pb2.Hello(protocol=1, models=[SERVED], slots=64, hardware=hardware)
        stream.greet(reports.hello(await reports.enrolled(worker), hello))
        for coroutine in (pool.ticker.run(), bench.run(worker, stream, reports)):
            stack.push_async_callback(_stop, asyncio.create_task(coroutine))
        ca = CertificateAuthority.open(folder, config.pool_name, clock.now())
        context = await context_of(pool, ca, clock.now, lambda: catalogue, clock.wall)
        for service in (context.batches, context.finetunes):
            stack.push_async_callback(service.close)
        watched = Watched(create_api(context))
        url = await stack.enter_async_context(serving(watched))
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=WAIT_S, verify=NO_AUTHORITIES))
        opened = Stand(url, context, clock, pool.ticker, bench, worker, members, keys, http)
        try:
            yield opened
        finally:
            for client in opened.clients.values():
                await client.close()
        assert not watched.faults, "\n".join(sorted(watched.faults))


async def _stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    async with open_stand(tmp_path) as opened:
        yield opened
