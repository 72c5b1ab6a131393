"""A coordinator for one worker: real grpc.aio with real mutual TLS and a real HTTP door, no decisions.

It acknowledges what comes, remembers all of it, and does what a test tells it to. Waiting is by event, never
by sleeping: `until` looks again whenever something came.
"""

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from potluck import chain
from potluck.catalogue import Catalogue, ModelEntry, ModelShape, Variant
from potluck.identity import JoinToken, WorkerIdentity, fingerprint_of, renewal_message
from potluck.receipts import ReceiptBody, verify
from potluck.v1 import artifacts_pb2, artifacts_pb2_grpc, session_pb2, session_pb2_grpc, work_pb2
from worker.daemon import Daemon
from worker.membership import Certificate, Membership
from worker.rules import Caps, Idle, Sharing
from worker.settings import Places, Settings

WAIT_S = 20.0
SIGNING = Ed25519PrivateKey.generate()  # by which the pool signs
EMULATOR = ModelEntry(
    name="emulator-small",
    family="emulator",
    licence="none",
    kinds=("chat", "completion", "embedding"),
    context_tokens=8192,
    parameters=1_000_000,
    shape=ModelShape(active_parameters=1_000_000, head_parameters=1000, layers=1, heads=1, d_qk=64, d_v=64),
    variants=(Variant(format="none", engines=("emulator",), memory_bytes=0),),
)
Key = tuple[str, int]


def signed(
    subject: str,
    public_key: EllipticCurvePublicKey,
    signer: EllipticCurvePrivateKey,
    *,
    issuer: str = "fake pool",
    ca: bool = False,
    dns: str = "",
    start: datetime | None = None,
    days: float = 7.0,
) -> bytes:
    begin = start or datetime.now(UTC) - timedelta(minutes=5)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if dns:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(dns)]), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)


class FakeCa:
    def __init__(self, pool: str = "fake pool") -> None:
        self.pool = pool
        self.key = generate_private_key(SECP256R1())
        self.pem = signed(pool, self.key.public_key(), self.key, issuer=pool, ca=True, days=30)

    @property
    def token(self) -> JoinToken:
        return JoinToken.create(fingerprint_of(self.pem))

    def certify(self, public_key: EllipticCurvePublicKey, **times: Any) -> bytes:
        return signed("wrk_fake", public_key, self.key, issuer=self.pool, **times)

    def server(self) -> tuple[bytes, bytes]:
        key = generate_private_key(SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem, signed("x", key.public_key(), self.key, issuer=self.pool, dns="coordinator.potluck")


@dataclass(eq=False)
class Connection:
    hello: session_pb2.Hello
    outbox: asyncio.Queue[session_pb2.CoordinatorMessage | None] = field(default_factory=asyncio.Queue)

    def send(self, **body: Any) -> None:
        self.outbox.put_nowait(session_pb2.CoordinatorMessage(**body))


@dataclass
class Told:
    """All that came about one attempt."""

    accepted: int = 0
    refused: work_pb2.Failure | None = None
    sequence: int = 0
    text: str = ""
    frames: int = 0
    repeated: int = 0
    prompts: int = 0
    steps: list[int] = field(default_factory=list)  # of a training
    result: session_pb2.Result | None = None


class FakeCoordinator(session_pb2_grpc.WorkerServiceServicer):
    def __init__(self, ca: FakeCa, *, port: int = 0) -> None:
        self.ca, self.port = ca, port
        self.store = FakeStore()
        self.connections: list[Connection] = []
        self.live: Connection | None = None
        self.told: dict[Key, Told] = {}
        self.heartbeats: list[session_pb2.Heartbeat] = []
        self.progress: list[session_pb2.Progress] = []
        self.receipts: dict[Key, ReceiptBody] = {}
        self.receipts_seen = 0
        self.chain = (0, chain.GENESIS)
        self.fenced: set[Key] = set()
        self.acknowledges = True
        self.acknowledges_receipts = True
        self.refuses: tuple[grpc.StatusCode, str] | None = None
        self.protocol = 1
        self.catalogue = Catalogue((EMULATOR,)).to_wire()
        self.receipt_key: bytes | None = None
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        key, certificate = self.ca.server()
        self._server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
                ("grpc.keepalive_permit_without_calls", 1),
            )
        )
        session_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)
        artifacts_pb2_grpc.add_ArtifactServiceServicer_to_server(self.store, self._server)
        credentials = grpc.ssl_server_credentials([(key, certificate)], self.ca.pem, require_client_auth=True)
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def Session(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override] # noqa: N802 -- aio's form of the RPC
        if self.refuses is not None:
            await context.abort(*self.refuses)
        first = await anext(request_iterator)
        connection = Connection(first.hello)
        self.connections.append(connection)
        self.live = connection
        said = {(r.attempt.job_id, r.attempt.number) for r in first.hello.running}
        resume = [
            session_pb2.Resume(attempt=attempt(*key), acknowledged_sequence=self.told[key].sequence)
            for key in said - self.fenced
            if key in self.told
        ]
        await context.write(
            session_pb2.CoordinatorMessage(
                welcome=session_pb2.Welcome(
                    protocol=self.protocol,
                    worker_id="wrk_fake",
                    pool=self.ca.pool,
                    version="0",
                    resume=resume,
                    heartbeat_busy_ms=200,
                    heartbeat_idle_ms=1000,
                    frame_bytes_max=65_536,
                    catalogue=self.catalogue,
                    bundles=True,
                )
            )
        )
        await self._notify()
        writer = asyncio.create_task(self._write(connection, context))
        reader = asyncio.create_task(self._read(connection, request_iterator))
        try:
            await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writer, reader):
                task.cancel()
            if self.live is connection:
                self.live = None
            await asyncio.gather(writer, reader, return_exceptions=True)
            await self._notify()

    async def _write(self, connection: Connection, context: Any) -> None:
        while (message := await connection.outbox.get()) is not None:
            await context.write(message)

    async def _read(self, connection: Connection, requests: Any) -> None:
        async for message in requests:
            self._receive(connection, message)
            await self._notify()

    def _receive(self, connection: Connection, message: session_pb2.WorkerMessage) -> None:
        match message.WhichOneof("body"):
            case "accepted":
                self._told(message.accepted.attempt).accepted += 1
            case "refused":
                self._told(message.refused.attempt).refused = message.refused.reason
            case "heartbeat":
                self.heartbeats.append(message.heartbeat)
            case "progress":
                self.progress.append(message.progress)
            case "frame":
                self._frame(connection, message.frame)
            case "bundle":
                for one in message.bundle.messages:
                    self._receive(connection, one)
            case "result":
                if self._fresh(connection, message.result):
                    self._told(message.result.attempt).result = message.result
            case "receipt":
                self._receipt(connection, message.receipt)

    def _frame(self, connection: Connection, frame: session_pb2.Frame) -> None:
        told = self._told(frame.attempt)
        if self._fresh(connection, frame):
            told.frames += 1
            told.prompts += frame.HasField("prompt")
            told.steps += [step.step for step in frame.steps]
            for delta in frame.deltas:
                assert delta.text_offset == len(told.text), "text comes without gaps"
                told.text += delta.text

    def _fresh(self, connection: Connection, message: session_pb2.Frame | session_pb2.Result) -> bool:
        told = self._told(message.attempt)
        fresh = message.sequence > told.sequence
        told.repeated += not fresh
        if fresh:
            assert message.sequence == told.sequence + 1, "sequences have no gaps"
            told.sequence = message.sequence
        if self.acknowledges:
            connection.send(ack=session_pb2.Ack(attempt=message.attempt, sequence=told.sequence))
        return fresh

    def _receipt(self, connection: Connection, receipt: session_pb2.Receipt) -> None:
        body = ReceiptBody.decode(receipt.body)
        assert self.receipt_key is None or verify(self.receipt_key, receipt.body, receipt.signature)
        self.receipts_seen += 1
        self.receipts[body.job_id, body.attempt] = body
        if self.acknowledges_receipts:
            connection.send(receipt_ack=self._countersigned(body, receipt))

    def _countersigned(self, body: ReceiptBody, receipt: session_pb2.Receipt) -> session_pb2.ReceiptAck:
        """In its place in the chain, as the pool's key signs it."""
        number, previous, at = self.chain[0] + 1, self.chain[1], "2027-01-15T08:00:00.000Z"
        covered = chain.receipt_bytes(
            number=number,
            at=at,
            worker=body.worker_id,
            body=receipt.body,
            signature=receipt.signature,
            state="matched",
            previous=previous,
        )
        countersignature = SIGNING.sign(chain.countersigned(chain.hash_of(covered)))
        self.chain = (number, chain.receipt_hash(covered, countersignature))
        return session_pb2.ReceiptAck(
            attempt=attempt(body.job_id, body.attempt),
            state="matched",
            number=number,
            at=at,
            previous=previous,
            hash=self.chain[1],
            countersignature=countersignature,
        )

    def _told(self, at: work_pb2.Attempt) -> Told:
        return self.told.setdefault((at.job_id, at.number), Told())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # --- what a test tells it to do ---

    async def until(self, holds: Callable[[], object], wait_s: float = WAIT_S) -> None:
        async with asyncio.timeout(wait_s), self._changed:
            await self._changed.wait_for(lambda: bool(holds()))

    async def ready(self, wait_s: float = WAIT_S) -> None:
        """The worker is connected and its model loaded."""
        await self.until(lambda: self.live is not None and self.heartbeats and self._is_ready(), wait_s)

    def _is_ready(self) -> bool:
        models = self.heartbeats[-1].models
        return bool(models) and all(m.state == session_pb2.MODEL_STATE_READY for m in models)

    def assign(self, job_id: str, number: int = 1, *, tokens: int = 20, model: str = EMULATOR.name) -> Told:
        assert self.live is not None
        assign = assignment(job_id, number, tokens=tokens, model=model)
        self.live.send(assign=assign)
        return self._told(assign.attempt)

    def assign_training(
        self, work: work_pb2.TrainingWork, job_id: str = "job_t", *, model: str = EMULATOR.name
    ) -> Told:
        assert self.live is not None
        at, training = attempt(job_id, 1), work_pb2.Work(training=work)
        self.live.send(assign=session_pb2.Assign(attempt=at, model=model, work=training, member="ada"))
        return self._told(at)

    def assign_together(self, job_ids: Sequence[str], *others: session_pb2.CoordinatorMessage) -> list[Told]:
        """In one bundle with other messages."""
        assert self.live is not None
        assigns = [assignment(job_id) for job_id in job_ids]
        messages = [*(session_pb2.CoordinatorMessage(assign=assign) for assign in assigns), *others]
        self.live.send(bundle=session_pb2.CoordinatorBundle(messages=messages))
        return [self._told(assign.attempt) for assign in assigns]

    def cancel(self, job_id: str, number: int = 1) -> None:
        assert self.live is not None
        self.live.send(cancel=session_pb2.Cancel(attempt=attempt(job_id, number), why="the member left"))

    def drop(self) -> None:
        """Ends the stream at once; the worker may come back."""
        assert self.live is not None
        self.live.outbox.put_nowait(None)
        self.live = None


def assignment(
    job_id: str, number: int = 1, *, tokens: int = 20, model: str = EMULATOR.name
) -> session_pb2.Assign:
    sampling = work_pb2.Sampling(temperature=0, top_p=1, seed=7, max_tokens=tokens, choices=1)
    messages = [work_pb2.ChatMessage(role="user", content="a secret question")]
    work = work_pb2.Work(chat=work_pb2.ChatWork(messages=messages, sampling=sampling))
    return session_pb2.Assign(attempt=attempt(job_id, number), model=model, work=work, member="ada")


def attempt(job_id: str, number: int) -> work_pb2.Attempt:
    return work_pb2.Attempt(job_id=job_id, number=number)


class FakeStore(artifacts_pb2_grpc.ArtifactServiceServicer):
    """Artifacts by digest; breaks off every download after so many bytes, if told to.

    `verdicts`: what ends the next uploads, each when so many bytes of its file are here.
    """

    def __init__(self) -> None:
        self.artifacts: dict[str, bytes] = {}
        self.break_after = 1 << 40
        self.offsets: list[int] = []
        self.coming: dict[str, bytearray] = {}
        self.begun: list[tuple[artifacts_pb2.UploadBegin, int]] = []  # and from which offset
        self.verdicts: list[tuple[int, grpc.StatusCode, str]] = []

    async def Upload(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802 -- aio's form of the RPC
        begin = (await anext(request_iterator)).begin
        here = self.coming.setdefault(begin.sha256, bytearray())
        self.begun.append((begin, len(here)))
        until, *verdict = self.verdicts.pop(0) if self.verdicts else (1 << 40,)
        if len(here) >= until:
            await context.abort(*verdict)
        yield artifacts_pb2.UploadAnswer(offset=len(here))
        async for request in request_iterator:
            here += request.data
            if len(here) >= until:
                await context.abort(*verdict)
        assert (sha256(here).hexdigest(), len(here)) == (begin.sha256, begin.bytes)
        self.artifacts[begin.sha256] = bytes(here)
        yield artifacts_pb2.UploadAnswer(offset=len(here), whole=True)

    async def Download(self, request: Any, context: Any) -> Any:  # noqa: N802 -- aio's form of the RPC
        data = self.artifacts.get(request.sha256)
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such artifact")
            return
        self.offsets.append(request.offset)
        for offset in range(request.offset, len(data), 1000):
            if offset - request.offset >= self.break_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broke off")
            chunk = data[offset : offset + 1000]
            yield artifacts_pb2.DownloadChunk(offset=offset, total=len(data), data=chunk)


class FakeDoor:
    """The two HTTPS routes, over plain HTTP on the loopback; answers as told."""

    def __init__(self, ca: FakeCa, grpc_port: int = 1) -> None:
        self.ca, self.grpc_port = ca, grpc_port
        self.answer: tuple[int, Any] | None = None  # instead of the right one
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.url = ""
        self.receipt_key = b""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        length = next(
            int(v.partition(":")[2]) for v in head.split("\r\n") if v.lower().startswith("content-length")
        )
        body = json.loads(await reader.readexactly(length))
        self.requests.append((path, body))
        status, answer = self.answer or (200, self._right(path, body))
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(data))
        )
        writer.write(data)
        await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    def _right(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        public_key = x509.load_pem_x509_csr(body["csr"].encode()).public_key()
        assert isinstance(public_key, EllipticCurvePublicKey)
        fresh = {"certificate": self.ca.certify(public_key).decode(), "ca": self.ca.pem.decode()}
        if path == "/pool/v1/renew":
            message = renewal_message(worker_id=body["worker_id"], csr=body["csr"], at=body["at"])
            assert verify(self.receipt_key, message, base64.b64decode(body["signature"]))
            return fresh
        assert path == "/pool/v1/enrol"
        self.receipt_key = base64.b64decode(body["receipt_key"])
        named = {"worker_id": "wrk_fake", "name": body["name"], "member": "ada", "pool": self.ca.pool}
        named["public_key"] = SIGNING.public_key().public_bytes_raw().hex()
        return {**named, **fresh, "grpc": f"127.0.0.1:{self.grpc_port}"}


def join_by_hand(
    places: Places, ca: FakeCa, *, port: int, url: str = "http://127.0.0.1:9", **times: Any
) -> bytes:
    """What `potluck worker join` leaves; returns the public receipt key."""
    identity = WorkerIdentity.create(places.worker)
    Certificate(ca.certify(identity.tls_key.public_key(), **times), ca.pem).save(places.worker)
    Membership(
        worker_id="wrk_fake",
        name="attic",
        member="ada",
        pool=ca.pool,
        grpc=f"127.0.0.1:{port}",
        url=url,
        public_key=SIGNING.public_key().public_bytes_raw().hex(),
    ).save(places.worker)
    return identity.receipt_public_key()


def places_in(folder: Path) -> Places:
    return Places(worker=folder / "worker", cache=folder / "cache" / "models", machine=folder / "machine")


def emulator_settings(**changes: Any) -> Settings:
    """Whatever the machine that runs the test is otherwise used for."""
    quick = {"ttft_ms": "1", "tpot_ms": "2"} if changes.get("engine", "emulator") == "emulator" else {}
    options = quick | changes.pop("engine_options", {})
    owner = {
        "sharing": Sharing(on_battery=True),
        "idle": Idle(gpu_alone=False, fullscreen=False),
        "caps": Caps(gpu_temperature_c=0),
    }
    chosen = {"engine": "emulator", "models": (EMULATOR.name,), "engine_options": options, "threads": 1}
    return Settings.model_validate(chosen | owner | changes)


@contextlib.asynccontextmanager
async def coordinating() -> AsyncIterator[FakeCoordinator]:
    coordinator = FakeCoordinator(FakeCa())
    await coordinator.start()
    try:
        yield coordinator
    finally:
        await coordinator.stop()


@contextlib.asynccontextmanager
async def opened(door: FakeDoor) -> AsyncIterator[FakeDoor]:
    await door.start()
    try:
        yield door
    finally:
        await door.stop()


@contextlib.asynccontextmanager
async def working(coordinator: FakeCoordinator, folder: Path, **changes: Any) -> AsyncIterator[Daemon]:
    """A daemon of this process with a real engine process, connected to the coordinator."""
    places = places_in(folder)
    if not places.worker.exists():
        coordinator.receipt_key = join_by_hand(places, coordinator.ca, port=coordinator.port)
    daemon = Daemon(settings=emulator_settings(**changes), places=places)
    task = asyncio.create_task(daemon.run())
    try:
        yield daemon
    finally:
        daemon.stop_asked()
        daemon.stop_asked()
        await asyncio.wait_for(task, WAIT_S)
