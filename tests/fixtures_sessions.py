"""A whole coordinator in this process, and workers written by hand that can say anything at all.

Enrolment is real HTTP, sessions are real gRPC under mutual TLS, receipts are really signed. Only the clock may
be turned ahead. A worker's tokens are the emulator's: id n is a space and its proquint.
"""

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import httpx2
import openai
import pytest
from fixtures_contract import Watched
from fixtures_store import new_database

from coordinator import app
from coordinator.api import Context, create_api
from coordinator.clock import SteadyClock
from coordinator.core.fleet import Worker
from coordinator.core.jobs import JobId, WorkerId
from coordinator.settings import Settings
from coordinator.spelling import proquint
from potluck.identity import WorkerIdentity
from potluck.receipts import ReceiptBody
from potluck.v1 import artifacts_pb2, artifacts_pb2_grpc, session_pb2, work_pb2

MODEL = "emulator-small"
WAIT_S = 20.0
TOKENS = 6  # of every answer here
ANSWER = "".join(f" {proquint(n)}" for n in range(TOKENS))
METHOD = "/potluck.v1.WorkerService/Session"
OPTIONS = [
    ("grpc.ssl_target_name_override", "coordinator.potluck"),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", 64 << 20),
]
SERVED = session_pb2.ServedModel(
    name=MODEL,
    engine="emulator",
    kinds=["chat", "completion", "embedding"],
    state=session_pb2.MODEL_STATE_READY,
    slots=8,
    context_tokens=8_192,
)

Up = session_pb2.WorkerMessage | bytes


class HandClock(SteadyClock):
    """The coordinator's clock; `ahead_s` is turned by hand."""

    ahead_s = 0.0

    def now(self) -> float:
        return super().now() + self.ahead_s


def delta(start: int, stop: int, *, choice: int = 0, reason: str = "", **more: Any) -> work_pb2.Delta:
    """The tokens `start` to `stop` of the answer, where they belong."""
    given = {
        "choice": choice,
        "text_offset": len("".join(f" {proquint(n)}" for n in range(start))),
        "text": "".join(f" {proquint(n)}" for n in range(start, stop)),
        "token_ids": range(start, stop),
        "finish_reason": reason,
        **more,
    }
    return work_pb2.Delta(**given)


def frame(
    assign: session_pb2.Assign, sequence: int, *deltas: work_pb2.Delta, **more: Any
) -> session_pb2.WorkerMessage:
    said = session_pb2.Frame(attempt=assign.attempt, sequence=sequence, deltas=deltas, **more)
    return session_pb2.WorkerMessage(frame=said)


def result(assign: session_pb2.Assign, sequence: int = 1, **outcome: Any) -> session_pb2.WorkerMessage:
    said = session_pb2.Result(attempt=assign.attempt, sequence=sequence, **outcome)
    return session_pb2.WorkerMessage(result=said)


def vectors(assign: session_pb2.Assign, *values: Sequence[float], **more: Any) -> session_pb2.WorkerMessage:
    embeddings = [work_pb2.Embedding(values=v) for v in values]
    embedding = session_pb2.EmbeddingResult(embeddings=embeddings, **more)
    return result(assign, completed=session_pb2.Completed(embedding=embedding))


@dataclass
class RawWorker:
    """An enrolled worker; its stream is written and read by hand."""

    house: "House"
    name: str
    identity: WorkerIdentity
    id: WorkerId
    ca: bytes
    certificate: bytes
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    channel: grpc.aio.Channel | None = None
    call: Any = None
    welcome: session_pb2.Welcome | None = None

    def open(self) -> None:
        """A new connection, on which nothing was said yet."""
        credentials = grpc.ssl_channel_credentials(self.ca, self.identity.tls_key_pem(), self.certificate)
        channel = grpc.aio.secure_channel(self.house.running.grpc, credentials, options=OPTIONS)
        self.channel = channel
        self.call = channel.stream_stream(
            METHOD, response_deserializer=session_pb2.CoordinatorMessage.FromString
        )()

    async def connect(self, **hello: Any) -> session_pb2.Welcome:
        self.open()
        said = {"protocol": 1, "models": [SERVED], "slots": 8, **hello}
        await self.send(session_pb2.WorkerMessage(hello=session_pb2.Hello(**said)))
        self.welcome = (await self.read()).welcome
        assert self.welcome.worker_id == self.id
        return self.welcome

    async def send(self, *messages: Up) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else message.SerializeToString()
            await self.call.write(data)

    async def read(self) -> session_pb2.CoordinatorMessage:
        message = await asyncio.wait_for(self.call.read(), WAIT_S)
        assert isinstance(message, session_pb2.CoordinatorMessage), await self.end()
        return message

    async def until(self, field_name: str) -> Any:
        """The next message of this kind; what comes before it is passed over."""
        while (message := await self.read()).WhichOneof("body") != field_name:
            pass
        return getattr(message, field_name)

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ended, once it has; what came before is read, or the end would not come."""
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while isinstance(await self.call.read(), session_pb2.CoordinatorMessage):
                    pass
        code = await asyncio.wait_for(self.call.code(), WAIT_S)
        return code, await self.call.details() or ""

    async def flood(self, message: Up, times: int) -> None:
        """Until all was sent or the stream was cut off."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for _ in range(times):
                await self.send(message)

    async def upload(self, attempt: work_pb2.Attempt, data: bytes) -> artifacts_pb2.UploadAnswer:
        """Bytes that this attempt made, over the session's connection. Raises AioRpcError."""
        assert self.channel is not None
        call = artifacts_pb2_grpc.ArtifactServiceStub(self.channel).Upload()
        sha256 = hashlib.sha256(data).hexdigest()
        begin = artifacts_pb2.UploadBegin(attempt=attempt, sha256=sha256, bytes=len(data))
        await call.write(artifacts_pb2.UploadRequest(begin=begin))
        answers = aiter(call)
        offset = (await asyncio.wait_for(anext(answers), WAIT_S)).offset
        for start in range(offset, len(data), 65_536):
            await call.write(artifacts_pb2.UploadRequest(data=data[start : start + 65_536]))
        await call.done_writing()
        return await asyncio.wait_for(anext(answers), WAIT_S)

    async def download(self, sha256: str) -> bytes:
        """Raises AioRpcError."""
        assert self.channel is not None
        stub: Any = artifacts_pb2_grpc.ArtifactServiceStub(self.channel)
        call = stub.Download(artifacts_pb2.DownloadRequest(sha256=sha256))
        return b"".join([chunk.data async for chunk in call])

    async def close(self) -> None:
        if self.channel is not None:
            self.call.cancel()
            await self.channel.close()
            self.channel = None

    async def serve(self) -> None:
        """As an honest worker does: from what was delivered already to the end, result, receipt."""
        while True:
            message = await self.call.read()
            if not isinstance(message, session_pb2.CoordinatorMessage):
                return
            if message.HasField("assign"):
                await self.answer(message.assign)

    async def answer(self, assign: session_pb2.Assign) -> None:
        if assign.work.HasField("embedding"):
            await self.send(vectors(assign, *([1.0, 0.5] for _ in assign.work.embedding.inputs)))
            return
        work = assign.work.chat if assign.work.HasField("chat") else assign.work.completion
        delivered = {d.choice: d for d in assign.continuation.delivered}
        own, deltas = 0, []
        for choice in range(max(1, work.sampling.choices)):
            known = delivered.get(choice)
            if known is not None and known.finish_reason:
                continue
            begun = 0 if known is None else known.tokens
            deltas.append(delta(begun, work.sampling.max_tokens, choice=choice, reason="length"))
            own += work.sampling.max_tokens - begun
        await self.send(
            session_pb2.WorkerMessage(accepted=session_pb2.Accepted(attempt=assign.attempt)),
            frame(assign, 1, *deltas),
            result(assign, 2, completed=session_pb2.Completed()),
            self.receipt(assign.attempt, own),
        )

    def serving(self) -> None:
        self.tasks.append(asyncio.create_task(self.serve()))

    def receipt(
        self, of: work_pb2.Attempt, tokens: int, *, signer: WorkerIdentity | None = None, **changes: Any
    ) -> session_pb2.WorkerMessage:
        body = ReceiptBody(
            job_id=of.job_id,
            attempt=of.number,
            worker_id=self.id,
            model=MODEL,
            engine="emulator",
            prompt_tokens=1,
            output_tokens=tokens,
            started_at=1,
            ended_at=2,
            output_sha256=hashlib.sha256(b"").hexdigest(),
        )
        data = replace(body, **changes).encode()
        signature = (signer or self.identity).sign(data)
        return session_pb2.WorkerMessage(receipt=session_pb2.Receipt(body=data, signature=signature))

    async def heard(self) -> None:
        """Until the pool has heard it since now, by its clock."""
        now = self.house.clock.now()
        await self.house.eventually(lambda: self.seen.heard_at >= now - 1, f"a word of {self.name}")

    @property
    def seen(self) -> Worker:
        """As the pool sees it."""
        return self.house.running.pool.engine.fleet.workers[self.id]


@dataclass
class House:
    """The coordinator, its members (admin, alice who asks, bob who owns the workers) and their workers."""

    settings: Settings
    clock: HandClock
    running: app.Coordinator
    http: httpx2.AsyncClient
    keys: dict[str, str] = field(default_factory=dict)
    workers: list[RawWorker] = field(default_factory=list)
    clients: list[openai.AsyncOpenAI] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.running.http}"

    async def api(self, method: str, path: str, by: str = "admin", **more: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.keys[by]}"}
        return await self.http.request(method, self.url + path, headers=headers, **more)

    async def get(self, path: str, by: str = "admin") -> Any:
        return (await self.api("GET", path, by)).raise_for_status().json()

    async def member(self, name: str, **more: Any) -> None:
        answer = await self.api("POST", "/pool/v1/members", json={"name": name, **more})
        self.keys[name] = answer.raise_for_status().json()["key"]

    def openai(self, by: str = "alice") -> openai.AsyncOpenAI:
        client = openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=self.keys[by], max_retries=0, timeout=WAIT_S
        )
        self.clients.append(client)
        return client

    async def token(self, by: str = "bob", **more: Any) -> str:
        answer = await self.api("POST", "/pool/v1/join-tokens", by, json=more)
        token: str = answer.raise_for_status().json()["token"]
        return token

    async def enrol(self, token: str, name: str, identity: WorkerIdentity) -> httpx2.Response:
        key = base64.b64encode(identity.receipt_public_key()).decode()
        body = {"token": token, "name": name, "csr": identity.csr().decode(), "receipt_key": key}
        return await self.http.post(f"{self.url}/pool/v1/enrol", json=body)

    async def join(self, name: str, by: str = "bob") -> RawWorker:
        identity = WorkerIdentity.generate()
        answer = (await self.enrol(await self.token(by), name, identity)).raise_for_status().json()
        worker = RawWorker(
            self,
            name,
            identity,
            WorkerId(answer["worker_id"]),
            answer["ca"].encode(),
            answer["certificate"].encode(),
        )
        self.workers.append(worker)
        return worker

    async def honest(self, name: str = "honest", by: str = "bob") -> RawWorker:
        worker = await self.join(name, by)
        await worker.connect()
        worker.serving()
        return worker

    def ask(self, by: str = "alice", **more: Any) -> "asyncio.Task[Any]":
        """A chat of TOKENS tokens, under way."""
        messages: Any = [{"role": "user", "content": "a b c"}]
        asked = {"model": MODEL, "messages": messages, "max_tokens": TOKENS, **more}
        return asyncio.create_task(self.openai(by).chat.completions.create(**asked))

    def embed(self, *texts: str) -> "asyncio.Task[Any]":
        return asyncio.create_task(
            self.openai().embeddings.create(model=MODEL, input=list(texts), encoding_format="float")
        )

    async def settled(self) -> None:
        """Nothing is held and nothing was made or lost."""
        balance = await self.get("/pool/v1/balance", "alice")
        assert balance["reserved"] == 0
        assert (await self.get("/pool/v1/status"))["ledger_sum"] == 0

    async def job(self, job_id: str) -> Any:
        return await self.get(f"/pool/v1/jobs/{job_id}")

    async def eventually(self, condition: Callable[[], bool], what: str) -> None:
        """Until something holds that nobody announces."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.running.ticker.wake()
                await asyncio.sleep(0)
        assert condition(), what

    def no_longer(self, job_id: str) -> bool:
        return JobId(job_id) not in self.running.pool.engine.lives

    async def close(self) -> None:
        for worker in self.workers:
            for task in worker.tasks:
                task.cancel()
            await asyncio.gather(*worker.tasks, return_exceptions=True)
            worker.tasks.clear()
            await worker.close()
        for client in self.clients:
            await client.close()


@contextlib.asynccontextmanager
async def open_house(
    folder: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str] | None = None, **more: Any
) -> AsyncIterator[House]:
    """With other settings than usual, or again on the folder of one that ended (with its `keys`)."""
    clock = HandClock()
    monkeypatch.setattr(app, "SteadyClock", lambda: clock)
    monkeypatch.setattr(app, "GRACE_S", 1.0)
    watched: list[Watched] = []

    def watching(context: Context) -> Watched:
        watched.append(Watched(create_api(context)))
        return watched[-1]

    monkeypatch.setattr(app, "create_api", watching)
    settings = Settings(home=folder, http="127.0.0.1:0", grpc="127.0.0.1:0", emulator=True, **more)
    if not keys:
        await new_database(settings.folder / "potluck.db")
    async with app.coordinator(settings) as running, httpx2.AsyncClient(timeout=WAIT_S) as http:
        house = House(settings, clock, running, http)
        key = (folder / "coordinator" / "admin.key").read_text(encoding="utf-8").strip()
        house.keys = {**(keys or {}), "admin": key}
        if not keys:
            await house.member("alice")
            await house.member("bob")
        try:
            yield house
        finally:
            await house.close()
    assert not watched[0].faults, "\n".join(sorted(watched[0].faults))


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    async with open_house(tmp_path, monkeypatch) as opened:
        yield opened
