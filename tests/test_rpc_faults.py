"""Every RPC and every route that is asked again: lost, cut off in flight, or with its answer lost, it is done once.

The callers are the real ones (the daemon, its uploads and downloads, `potluck worker join|leave`, the SDK) with
the tries that are theirs; between them and a whole coordinator lies a line that is cut at the message named.
What was done is read off the books, the receipts, the certificates, the files and every table of the database.
"""

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fixtures_faults import Cut, Door, Line, Phase, watch
from fixtures_sessions import ANSWER, MODEL, TOKENS, House, RawWorker, open_house
from fixtures_worker import WAIT_S, emulator_settings, places_in
from google.protobuf.descriptor import FileDescriptor
from test_finetune_parts import trainer
from test_training_reports import ADAPTER, artifact, begun

from coordinator.artifacts import ArtifactStore
from coordinator.core.jobs import JobId, WorkerId
from coordinator.core.live import Live
from potluck import Pool
from potluck.catalogue import Artifact, File
from potluck.fetch import Policy, fetch
from potluck.files import Purpose
from potluck.identity import JoinToken, WorkerIdentity
from potluck.membership import accept_invite
from potluck.v1 import artifacts_pb2, engine_pb2, session_pb2, work_pb2
from worker.addresses import Addresses
from worker.artifacts import ArtifactClient
from worker.daemon import Daemon
from worker.enrol import enrol, leave
from worker.errors import Unreachable
from worker.membership import Certificate, Membership
from worker.messages import AttemptId
from worker.renewal import Renewal
from worker.uploads import Uploads

# Each message of the session's stream with what brings it about; None: it only carries
# others; `by hand`: it has a test of its own.
UP = {
    "hello": "reconnect",
    "heartbeat": "long",
    "accepted": "chat",
    "refused": "by hand",
    "frame": "chat",
    "result": "chat",
    "progress": "by hand",  # of loading and of training
    "receipt": "chat",
    "frames": None,  # of daemons that know no bundles
    "bundle": None,
}
DOWN = {
    "welcome": "reconnect",
    "assign": "chat",
    "ack": "chat",
    "cancel": "cancel",
    "drain": "by hand",
    "receipt_ack": "chat",
    "bundle": None,
    "pause": "paused",
    "coordinators": "addressed",
}
STREAMS = {"WorkerService.Session": UP | DOWN, "ArtifactService.Download": {}, "ArtifactService.Upload": {}}
OWN = {"by hand", None}
CARRIED = [
    (way, kind) for way, table in (("up", UP), ("down", DOWN)) for kind in table if table[kind] not in OWN
]


def test_every_rpc_and_every_message_has_a_case() -> None:
    """What the descriptors name is what stands in the tables above: a new one fails here until it has its case."""
    files: list[FileDescriptor] = [
        module.DESCRIPTOR for module in (session_pb2, artifacts_pb2, engine_pb2, work_pb2)
    ]
    named = {
        f"{service.name}.{method.name}"
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
    }
    assert named == set(STREAMS)
    for message, table in ((session_pb2.WorkerMessage, UP), (session_pb2.CoordinatorMessage, DOWN)):
        assert {one.name for one in message.DESCRIPTOR.oneofs_by_name["body"].fields} == set(table)


# -- the session ------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A daemon behind a line, and what one undisturbed answer said and cost."""

    house: House
    daemon: Daemon
    line: Line
    cut: Cut

    async def ask(self, tokens: int = 24) -> str:
        answer = await self.house.ask(max_tokens=tokens, temperature=0, seed=7)
        assert answer.choices[0].finish_reason == "length"
        return str(answer.choices[0].message.content)

    async def chat(self) -> None:
        await self.ask()

    async def long(self) -> None:
        """Long enough for a heartbeat of a busy worker."""
        asking = asyncio.create_task(self.ask(1_000))
        await asyncio.wait_for(self.cut.done.wait(), WAIT_S)
        await asking

    async def reconnect(self) -> None:
        self.line.cut()
        await asyncio.wait_for(self.cut.done.wait(), WAIT_S)

    async def cancel(self) -> None:
        """The member goes away in mid-answer."""
        stream = await self.house.ask(max_tokens=5_000, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await asyncio.wait_for(self.cut.done.wait(), WAIT_S)
        await self.house.eventually(lambda: not self.daemon.core.busy(), "the engine to stop")

    async def paused(self) -> None:
        """From afar, and back."""
        path = f"/pool/v1/workers/{self.daemon.membership.worker_id}"
        (await self.house.api("POST", f"{path}/pause", "bob", json={})).raise_for_status()
        await self.house.eventually(lambda: bool(self.daemon.core.paused), "the pause")
        (await self.house.api("POST", f"{path}/resume", "bob", json={})).raise_for_status()
        await self.house.eventually(lambda: not self.daemon.core.paused, "the end of the pause")

    async def addressed(self) -> None:
        """Told where the pool is, and, as with every welcome, once more."""
        told, sessions = [self.line.address, "127.0.0.1:9"], self.house.running.pool.sessions
        before = dict(sessions.streams)
        sessions.tell_all(told)
        await asyncio.wait_for(self.cut.done.wait(), WAIT_S)
        await self.house.eventually(
            lambda: any(new.greeted and before.get(who) is not new for who, new in sessions.streams.items()),
            "another stream",
        )
        sessions.tell_all(told)
        await self.house.eventually(
            lambda: list(Membership.load(self.daemon.places.worker).coordinators) == told, "the addresses"
        )

    async def ready(self) -> None:
        """Connected, by both sides' word, and its model loaded."""
        worker = self.house.running.pool.engine.fleet.workers[WorkerId(self.daemon.membership.worker_id)]
        await self.house.eventually(
            lambda: (
                self.daemon.core.connected
                and worker.connected
                and any(model.state == "ready" for model in worker.models.values())
            ),
            "the model to be ready",
        )


@asynccontextmanager
async def scene(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: str) -> AsyncIterator[Scene]:
    async with open_house(folder / "pool", monkeypatch) as house, Line(house.running.grpc) as line:
        cut, places = watch(monkeypatch, line), places_in(folder / "home")
        token = JoinToken.parse(await house.token())
        joined = await enrol(
            url=house.url, token=token, name="rig", folder=places.worker, now=datetime.now(UTC)
        )
        joined.model_copy(update={"grpc": line.address}).save(places.worker)
        daemon = Daemon(settings=emulator_settings(), places=places)
        running = asyncio.create_task(daemon.run())
        try:
            made = Scene(house, daemon, line, cut)
            await made.ready()
            yield made
        finally:
            daemon.stop_asked()
            daemon.stop_asked()
            await asyncio.wait_for(running, WAIT_S)


def counted(house: House) -> dict[str, int]:
    """How many rows each table has."""
    with sqlite3.connect(f"file:{house.settings.folder / 'potluck.db'}?mode=ro", uri=True) as database:
        tables = [
            name
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if name not in LIVING
        ]
        rows = {name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables}
    database.close()
    return rows


PASSING = {
    "stored_requests",
    "stored_results",
}  # of a batch's lines: they go when the batch's file is written
LIVING = {"sightings", "alembic_version", "settings"}  # who was seen when: of no request's making


def receipted(house: House) -> bool:
    rows = counted(house)
    return rows["receipts"] == rows["attempts"]


def more(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


async def at_rest(made: Scene) -> dict[str, int]:
    """Everything has ended and is acknowledged; what the books then say of alice, in rows and amounts."""
    await made.house.eventually(
        lambda: (
            not made.house.running.pool.engine.lives
            and not made.daemon.core.attempts.running()
            and not made.daemon._claims.waiting
            and not list(made.daemon.core.attempts)
        ),
        "everything to end",
    )
    await made.house.running.ticker.committed()
    await made.house.settled()
    return counted(made.house) | {
        f"balance of {who}": (await made.house.get("/pool/v1/balance", who))["balance"]
        for who in ("alice", "bob")
    }


@pytest.mark.parametrize(("way", "kind"), CARRIED)
async def test_a_message_of_the_session_is_acted_on_once(
    way: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same job undisturbed and with each fault costs the same, pays the same and leaves as many rows."""
    table = UP if way == "up" else DOWN
    async with scene(tmp_path, monkeypatch) as made:
        undisturbed = await made.ask()
        begun_at = await at_rest(made)
        assert await made.ask() == undisturbed
        usual = more(begun_at, await at_rest(made))
        assert usual["receipts"] == 1
        for phase in Phase:
            made.cut.arm(kind, phase)
            before = await at_rest(made)
            await getattr(made, str(table[kind]))()
            await asyncio.wait_for(made.cut.done.wait(), WAIT_S)
            await made.ready()
            happened = more(before, await at_rest(made))
            if table[kind] == "chat":
                tries = happened.pop("attempts")  # an assignment that is lost, or whose line is away too long
                assert 0 < happened["receipts"] <= tries, phase
                assert 0 <= happened["postings"] - usual["postings"] < tries, "one for each that delivered"
                same = {name: usual[name] for name in ("receipts", "attempts", "postings")}
                assert happened | same == usual, phase
        before = await at_rest(made)
        assert await made.ask() == undisturbed
        assert more(before, await at_rest(made)) == usual, "nothing is left of the faults"


def idle(rig: RawWorker) -> bool:
    return not rig.seen.running


def prefills(live: Live) -> bool:
    return live.stage == "prefill"


async def test_a_refusal_is_heard_once_and_somebody_else_does_the_job(house: House) -> None:
    """By hand: a daemon refuses only in a race. The worker comes back and says again what it said."""
    for phase in Phase:
        rig = await house.join(f"rig-{phase.value.replace(' ', '-')}")
        await rig.connect()
        before = (await house.get("/pool/v1/balance", "alice"))["balance"]
        asking = house.ask()
        assign = await rig.until("assign")
        helper = await house.honest(f"helper-{rig.name}")  # or who is busy would be asked again after a while
        failure = work_pb2.Failure(fault=work_pb2.FAULT_NONE, code="busy", message="it is busy")
        refusal = session_pb2.WorkerMessage(
            refused=session_pb2.Refused(attempt=assign.attempt, reason=failure)
        )
        job = house.running.pool.engine.lives[JobId(assign.attempt.job_id)].job
        if phase is not Phase.LOST:
            await rig.send(refusal)
        if phase is Phase.ANSWER_LOST:
            await house.eventually(partial(idle, rig), "the refusal to be heard")
        await rig.close()
        welcome = await rig.connect(running=[session_pb2.Running(attempt=assign.attempt)])
        await rig.send(refusal, refusal)
        assert (await asking).choices[0].message.content == ANSWER
        shown = await house.job(job.id)
        assert len(shown["attempts"]) == 2, phase
        assert shown["attempts"][1]["state"] == "succeeded", phase
        if welcome.resume or phase is Phase.ANSWER_LOST:  # else it came back too late, and lost it by that
            assert shown["attempts"][0]["state"] == "refused", phase
        assert helper.seen.successes == 1
        assert rig.seen.faults == 0
        assert before - (await house.get("/pool/v1/balance", "alice"))["balance"] == shown["charge"]
        await house.settled()
        for worker in (rig, helper):
            for task in worker.tasks:
                task.cancel()
            await asyncio.gather(*worker.tasks, return_exceptions=True)
            worker.tasks.clear()
            await worker.close()


async def test_a_sign_of_life_is_none_of_the_answer(house: House) -> None:
    """By hand: said, lost, and said again over a new stream, it changes neither what is answered nor the price."""
    rig = await house.join("rig")
    await rig.connect()
    charges = set()
    for phase in (None, *Phase):
        asking = house.ask()
        assign = await rig.until("assign")
        said = session_pb2.Progress(attempt=assign.attempt, stage="prefill", done=1, total=2)
        progress = session_pb2.WorkerMessage(progress=said)
        live = house.running.pool.engine.lives[JobId(assign.attempt.job_id)]
        if phase not in {None, Phase.LOST}:
            await rig.send(progress)
        if phase is Phase.ANSWER_LOST:
            await house.eventually(partial(prefills, live), "it to be heard")
        if phase is not None:
            await rig.close()
            welcome = await rig.connect(running=[session_pb2.Running(attempt=assign.attempt)])
            await rig.send(progress, progress)
            if not welcome.resume:  # it came back too late, and gets the job once more
                assign = await rig.until("assign")
        await rig.answer(assign)
        assert (await asking).choices[0].message.content == ANSWER
        assert (await rig.until("receipt_ack")).state == "matched"
        shown = await house.job(assign.attempt.job_id)
        assert shown["attempts"][-1]["state"] == "succeeded", phase
        charges.add(shown["charge"])
        await house.settled()
    assert len(charges) == 1


@pytest.mark.parametrize("phase", Phase)
async def test_a_drain_that_is_asked_again_ends_the_daemon_once(
    phase: Phase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked from afar is not kept: lost on its way, it is asked for again."""
    async with scene(tmp_path, monkeypatch) as made:
        made.cut.arm("drain", phase)
        path = f"/pool/v1/workers/{made.daemon.membership.worker_id}/drain"
        (await made.house.api("POST", path, "bob", json={})).raise_for_status()
        await asyncio.wait_for(made.cut.done.wait(), WAIT_S)
        if phase is Phase.LOST:
            await made.ready()
            assert not made.daemon.core.draining
            (await made.house.api("POST", path, "bob", json={})).raise_for_status()
        await asyncio.wait_for(asyncio.shield(made.daemon._finished), WAIT_S)
        await made.house.settled()


# -- artifacts --------------------------------------------------------------------------------------------

DATA = bytes(range(256)) * 4_096


@dataclass
class Known:
    """The certificate of a worker whose stream is written by hand."""

    certificate: Certificate

    async def ensure(self) -> Certificate:
        return self.certificate


def client_of(rig: RawWorker, line: Line) -> ArtifactClient:
    known: Any = Known(Certificate(rig.certificate, rig.ca))
    return ArtifactClient(Addresses(line.address), rig.identity.tls_key_pem(), known)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.mark.parametrize("phase", [Phase.LOST, Phase.IN_FLIGHT])
async def test_a_download_that_is_cut_goes_on_and_leaves_one_file(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: Phase
) -> None:
    sha256 = hashlib.sha256(DATA).hexdigest()
    await ArtifactStore(house.settings.folder / "artifacts").put(pieces(DATA))
    rig, cache = await house.join("rig"), tmp_path / "cache"
    file = File(name="data", sha256=sha256, size_bytes=len(DATA), source=Artifact())
    async with Line(house.running.grpc) as line:
        cut = watch(monkeypatch, line)
        cut.arm("DownloadChunk", phase)
        path = await fetch(file, cache, artifacts=client_of(rig, line), policy=Policy(backoff_s=0.01))
        assert cut.done.is_set()
    assert path.read_bytes() == DATA
    assert [one.name for one in cache.iterdir() if one.stat().st_size == len(DATA)] == [sha256]


@pytest.mark.parametrize("phase", [Phase.LOST, Phase.IN_FLIGHT])
@pytest.mark.parametrize("kind", ["begin", "data", "UploadAnswer"])
async def test_an_upload_that_is_cut_is_taken_once(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, phase: Phase
) -> None:
    """By the daemon's own uploader: begun again, whatever arrived and whichever answer did not."""
    bench = await begun(house)
    (tmp_path / "adapter").write_bytes(ADAPTER)
    attempt = AttemptId(bench.assign.attempt.job_id, bench.assign.attempt.number)
    async with Line(house.running.grpc) as line:
        cut, uploads = watch(monkeypatch, line), Uploads(client_of(bench.rig, line))
        cut.arm(kind, phase)
        for _ in range(2):
            await uploads.upload(attempt, tmp_path / "adapter", artifact(ADAPTER), lambda _: None)
        assert cut.done.is_set()
    store = house.running.pool.training_store
    assert store.path(artifact(ADAPTER).sha256).read_bytes() == ADAPTER
    assert [one.name for one in store.path(artifact(ADAPTER).sha256).parent.iterdir()] == [
        artifact(ADAPTER).sha256
    ]


# -- routes over HTTP -------------------------------------------------------------------------------------

GOOD = b'{"prompt": "2 + 2 =", "completion": " 4"}\n'
LINE = {
    "custom_id": "1",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"model": MODEL, "prompt": "a b c", "max_tokens": TOKENS},
}


@dataclass
class Asking:
    """Somebody at the door, with the SDK; `key` is drawn once for each thing that is asked."""

    house: House
    door: Door
    key: str
    by: str = "alice"

    def __call__(self, what: Callable[[Pool], Any], by: str = "alice") -> Any:
        with Pool(self.door.url, self.house.keys[by], sleep=lambda _: None) as pool:
            return what(pool)

    def uploaded(self, data: bytes, purpose: Purpose) -> str:
        path = self.house.settings.home / f"{self.key}.jsonl"
        path.write_bytes(data)
        with Pool(self.house.url, self.house.keys["alice"]) as pool:
            made: str = pool.files.upload(path, purpose).id
        return made

    def invite(self) -> str:
        with Pool(self.house.url, self.house.keys["alice"]) as pool:
            return pool.invite(credit_line=1_000).token


Act = Callable[[Asking], Callable[[], Any]]


def _transfer(at: Asking) -> Callable[[], Any]:
    return lambda: at(lambda pool: pool.send("bob", 5, idempotency_key=at.key))


def _grant(at: Asking) -> Callable[[], Any]:
    return lambda: at(lambda pool: pool.grant("bob", 5, "for the cake", idempotency_key=at.key), "admin")


def _invite(at: Asking) -> Callable[[], Any]:
    return lambda: at(lambda pool: pool.invite(credit_line=1_000, idempotency_key=at.key))


def _accept(at: Asking) -> Callable[[], Any]:
    token = at.invite()
    return lambda: accept_invite(at.door.url, token, f"new-{at.key}")


def _job(at: Asking) -> Callable[[], Any]:
    request = {"model": MODEL, "prompt": "a b c", "max_tokens": TOKENS}
    return lambda: at(lambda pool: pool.wait(pool.submit("completion", request, idempotency_key=at.key)))


def _batch(at: Asking) -> Callable[[], Any]:
    file = at.uploaded(json.dumps(LINE).encode() + b"\n", "batch")

    def act() -> None:
        at(lambda pool: list(pool.follow_batch(
            pool.create_batch(file, "/v1/completions", idempotency_key=at.key).id
        )))  # fmt: skip

    return act


def _finetune(at: Asking) -> Callable[[], Any]:
    """Begun and cancelled: what is looked at here is that there is one."""
    file = at.uploaded(GOOD * 20, "fine-tune")

    def act() -> None:
        made = at(lambda pool: pool.finetunes.create(MODEL, file, idempotency_key=at.key))
        with Pool(at.house.url, at.house.keys[at.by]) as pool:
            pool.finetunes.cancel(made.id)
            list(pool.finetunes.follow(made.id))

    return act


def _upload(at: Asking) -> Callable[[], Any]:
    path = at.house.settings.home / f"{at.key}.jsonl"
    path.write_bytes(GOOD + f"# {at.key}".encode())
    return lambda: at(lambda pool: pool.files.upload(path, "batch", in_parts=True))


KEYED: dict[str, Act] = {
    "/pool/v1/transfers": _transfer,
    "/pool/v1/grants": _grant,
    "/pool/v1/invites": _invite,
    "/pool/v1/invites/accept": _accept,
    "/pool/v1/jobs": _job,
    "/v1/batches": _batch,
    "/v1/fine_tuning/jobs": _finetune,
    "/v1/uploads": _upload,
}
# Under a key they are done once, too, but an interactive answer is not kept: who asks again is told so.
INTERACTIVE = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"}


async def test_every_route_that_takes_a_key_has_a_case(house: House) -> None:
    described = (await house.http.get(f"{house.url}/openapi.json")).json()
    keyed = {
        path
        for path, methods in described["paths"].items()
        for method in methods.values()
        if any(one["name"] == "Idempotency-Key" for one in method.get("parameters", ()))
    }
    assert keyed == set(KEYED) | INTERACTIVE


GIFT = {"member": "alice", "amount": 1_000, "reason": "something to send"}


@pytest.mark.parametrize("path", KEYED)
async def test_what_is_asked_again_under_its_key_is_done_once(house: House, path: str) -> None:
    """Whatever happens to the first request, as many rows come into every table as without a fault."""
    await (trainer(house) if path == "/v1/fine_tuning/jobs" else house.honest())
    (await house.api("POST", "/pool/v1/grants", json=GIFT)).raise_for_status()
    async with Door(house.url) as door:
        usual: dict[str, int] = {}
        for number, phase in enumerate((None, *Phase)):
            act = await asyncio.to_thread(KEYED[path], Asking(house, door, f"key-{number}"))
            if phase is not None:
                door.arm(path, phase)
            before = counted(house)
            await asyncio.to_thread(act)
            assert door.cuts == (phase is not None)
            await house.eventually(lambda: not house.running.pool.engine.lives, "everything to end")
            if path in {"/pool/v1/jobs", "/v1/batches"}:
                await house.eventually(lambda: receipted(house), "the receipt of every attempt")
            await house.running.ticker.committed()
            happened = more(before, counted(house))
            if path == "/v1/batches":
                happened = {name: rows for name, rows in happened.items() if name not in PASSING}
            if path == "/v1/fine_tuning/jobs":  # how far it came before it was cancelled is no matter here
                happened = {"finetunes": happened["finetunes"]}
            assert happened
            assert phase is None or happened == usual, phase
            usual = happened
        await house.settled()


@pytest.mark.parametrize("phase", Phase)
async def test_interactive_answers_are_charged_once_and_not_given_twice(house: House, phase: Phase) -> None:
    await house.honest()
    headers = {"authorization": f"Bearer {house.keys['alice']}", "idempotency-key": "k"}
    body = {"model": MODEL, "prompt": "a b c", "max_tokens": TOKENS}
    async with Door(house.url) as door:
        door.arm("/v1/completions", phase)
        with pytest.raises(httpx2.HTTPError):
            await house.http.post(f"{door.url}/v1/completions", json=body, headers=headers)
        await house.eventually(lambda: not house.running.pool.engine.lives, "everything to end")
        again = await house.http.post(f"{door.url}/v1/completions", json=body, headers=headers)
    assert again.status_code == (409 if phase is Phase.ANSWER_LOST else 200)
    jobs = (await house.get("/pool/v1/jobs", "alice"))["data"]
    assert len(jobs) == 1
    await house.settled()


@pytest.mark.parametrize("phase", Phase)
async def test_a_worker_enrols_renews_and_leaves_once(house: House, tmp_path: Path, phase: Phase) -> None:
    """As `potluck worker join`, the daemon and `potluck worker leave` ask again: with the same keys."""
    token, now = JoinToken.parse(await house.token()), datetime.now(UTC)

    async def twice(path: str, act: Callable[[], Awaitable[Any]]) -> tuple[Any, dict[str, int]]:
        before = counted(house)
        door.arm(path, phase)
        with pytest.raises(Unreachable):
            await act()
        assert door.cuts == 1
        return await act(), more(before, counted(house))

    async with Door(house.url) as door:
        joined, rows = await twice(
            "/pool/v1/enrol",
            lambda: enrol(url=door.url, token=token, name="rig", folder=tmp_path / "rig", now=now),
        )
        tries = 1 + (phase is Phase.ANSWER_LOST)  # each answer brings a certificate: the first never arrived
        assert rows == {"workers": 1, "certificates": tries, "audit_events": 1}
        identity, certificate = WorkerIdentity.load(tmp_path / "rig"), Certificate.load(tmp_path / "rig")
        renewal = Renewal(
            membership=joined,
            identity=identity,
            certificate=certificate,
            folder=tmp_path / "rig",
            now=lambda: datetime.now(UTC),
        )
        _, rows = await twice("/pool/v1/renew", renewal.renew)
        assert rows == {"certificates": tries}
        assert Certificate.load(tmp_path / "rig") == renewal.certificate != certificate
        _, rows = await twice(
            "/pool/v1/leave", lambda: leave(membership=joined, identity=identity, now=datetime.now(UTC))
        )
        assert rows == {"audit_events": 1}
    [worker] = await house.running.store.workers()
    assert worker.revoked_at is not None
