"""Every parser of bytes from outside, in one table: what it is given, and the errors by which it may refuse them.

The rule: it returns or raises one of these, in bounded time and memory, and nothing else. `tests/test_fuzz.py`
tries each a little with every run of the tests, `scripts/fuzz` for as long as you like. What was found stays in
`FOUND`. A new parser of outside bytes gets its line here.
"""

import asyncio
import atexit
import contextlib
import copy
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fuzz_seeds
import httpx2
from google.protobuf.message import DecodeError
from starlette.requests import Request

from coordinator import translate
from coordinator.api.app import SCHEMAS
from coordinator.api.body import parse_object
from coordinator.api.errors import ApiError
from coordinator.api.multipart import Form
from coordinator.api.pool_enrolment import EnrolRequest
from coordinator.api.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from coordinator.api.schema import validated
from coordinator.ca import CsrError, _key_of_csr
from coordinator.core.reading import Format, Reader
from coordinator.oidc.provider import ProviderDown, object_of
from coordinator.settings import SettingsError
from coordinator.settings import _read as read_pool_settings
from potluck import credits as amounts
from potluck import deltas, gguf, jsonl, lora, tensors, training_data, transport
from potluck.catalogue import Catalogue, CatalogueError
from potluck.client import ClientFile
from potluck.errors import PotluckError
from potluck.identity import JoinToken, TokenError
from potluck.proof import lines as proof
from potluck.proof.verify import read_head, verify
from potluck.receipts import ReceiptBody, ReceiptError
from potluck.shape import ShapeError, shape_of_config
from potluck.signed import Receipt
from potluck.v1 import engine_pb2, session_pb2, work_pb2
from worker import speeds, wire
from worker.asked import AskedPause
from worker.bridges import Bridge
from worker.cores import _threads
from worker.engines.engine import EngineError, JobError
from worker.engines.pipe import PipeError, Unframer, frame
from worker.engines.structure import _schema
from worker.engines.template import ChatTemplate
from worker.engines.upstream import Upstream
from worker.enrol import _accepted, _answer
from worker.errors import CertificateRefused, NotJoined, WorkerError
from worker.hours import Window
from worker.membership import Certificate, Membership
from worker.processor import from_cpuinfo
from worker.settings import Settings
from worker.state import STATE_FILE, WorkerState
from worker.wish import FILE as WISH_FILE
from worker.wish import Wish

ISSUER = fuzz_seeds.Issuer()
AT_NOW = datetime.fromtimestamp(fuzz_seeds.NOW, UTC)
FOLDER = Path(tempfile.mkdtemp(prefix="potluck-fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
NAMES = ("look", "f")
REQUEST = httpx2.Request("GET", "http://pool.test")


@dataclass(frozen=True, slots=True)
class Target:
    """`seeds`: bytes that the parser takes once they are sealed, from which others are made. `seal`: what puts the
    right length, hash or signature to bytes that were changed, or it would refuse them for that alone.
    """

    parse: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    seal: Callable[[bytes], bytes] = bytes


def text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    """Of a parser whose caller has a text already."""
    return lambda data: parse(data.decode("utf-8", "replace"))


def file(name: str, parse: Callable[[Path], object]) -> Callable[[bytes], object]:
    def of_file(data: bytes) -> object:
        path = FOLDER / name
        path.write_bytes(data)
        return parse(path)

    return of_file


def in_folder(name: str, parse: Callable[[Path], object]) -> Callable[[bytes], object]:
    return file(name, lambda path: parse(path.parent))


# -- what takes more than one call ------------------------------------------------------------------------


def worker_message(data: bytes) -> None:
    """As the coordinator reads one: what it keeps of a machine, its models, its rules and its output."""
    said = session_pb2.WorkerMessage.FromString(data)
    parts = [said, *said.bundle.messages]
    for part in parts:
        for of in (part.hello, part.heartbeat):
            translate.served(of.models, lambda _: True)
            translate.guests(of.sharing)
        translate.hardware(part.hello.hardware)
        translate.load(part.heartbeat.load)
        translate.moment(part.heartbeat.next_change_ms, 0.0)
        for one in (part.frame, *part.frames.frames):
            translate.fence(one.attempt)
            translate.pieces(one.deltas)
            translate.form(one.prompt)


def coordinator_message(data: bytes) -> None:
    said = session_pb2.CoordinatorMessage.FromString(data)
    for one in (said, *said.bundle.messages):
        wire.event_from(one)
        wire.asked_from(one.pause)
    wire.connected_from(said.welcome)


def engine_frames(data: bytes) -> None:
    unframer = Unframer(engine_pb2.EngineEvent)
    for at in range(0, len(data), 7):
        for event in unframer.feed(data[at : at + 7]):
            wire.engine_event_from(event)
    unframer.finish()


def jsonl_lines(data: bytes) -> None:
    list(jsonl.read(jsonl.split([data[:9], data[9:]], line_bytes_max=4_096), line_bytes_max=4_096))


def examples(data: bytes) -> None:
    training_data.problems(jsonl.split([data]))


def adapter(data: bytes) -> None:
    lora.decode(data)


def answer_text(data: bytes) -> None:
    """What a model wrote, as reasoning and calls of tools, cut anywhere."""
    said = data.decode("utf-8", "replace")[:20_000]
    for dialect in ("hermes", "mistral", "llama3", "deepseek", ""):
        for opened in (False, True):
            reader = Reader("job_1", 0, Format(reasoning="think", opened=opened, tools=dialect), NAMES)
            for at in range(0, len(said), 5):
                reader.feed(said[at : at + 5])
            reader.finish()


def server_events(data: bytes) -> None:
    """An answer's stream, as the SDK reads it."""
    response = httpx2.Response(
        200, headers={"content-type": "text/event-stream"}, content=data, request=REQUEST
    )
    list(transport._events(httpx2.EventSource(response)))


def bridge_events(data: bytes) -> None:
    """The same, of a server of the owner's."""

    async def run() -> None:
        answers = httpx2.MockTransport(lambda _: httpx2.Response(200, content=data))
        upstream = Upstream(Bridge(url="http://127.0.0.1:9/v1", model="m"), "", transport=answers)
        try:
            async for _ in upstream.stream("/v1/chat/completions", {}):
                pass
        finally:
            await upstream.close()

    asyncio.run(run())


def pool_answer(data: bytes) -> None:
    response = httpx2.Response(200, content=data, request=REQUEST)
    transport.decoded(response)


def pool_error(data: bytes) -> None:
    transport._error(httpx2.Response(500, content=data), data)


def enrolment_answer(data: bytes) -> None:
    answer = _answer(fuzz_seeds.URL, httpx2.Response(200, content=data), data)
    membership, _ = _accepted(answer, fuzz_seeds.URL, ISSUER.token, ISSUER.identity, AT_NOW)
    membership.save(FOLDER)


def enrolment_refusal(data: bytes) -> None:
    """Whatever it says, it is one of the worker's errors."""
    for status in (302, 409, 500):
        try:
            _answer(fuzz_seeds.URL, httpx2.Response(status, content=data), data)
        except WorkerError as error:
            str(error)
        else:
            raise AssertionError(f"HTTP {status} was taken for an answer")


def form(data: bytes) -> None:
    head, body = data[:64], data[64:]
    pieces = [body[:100], body[100:]]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def run() -> None:
        kind = head.strip(b"\0").decode("latin-1")
        headers = [(b"content-type", kind.encode("latin-1"))]
        made = Form(Request({"type": "http", "method": "POST", "headers": headers}, receive))
        await made.begin()
        async for _ in made.file():
            pass

    asyncio.run(run())


def any_body(data: bytes) -> None:
    """Of every route that takes JSON."""
    value = parse_object(data)
    for schema in SCHEMAS:
        with contextlib.suppress(ApiError):
            validated(schema, copy.deepcopy(value))


def schema_of(body: type[Any]) -> Callable[[bytes], object]:
    return lambda data: validated(body, parse_object(data))


def certificate(data: bytes) -> None:
    Certificate(*fuzz_seeds.certificate_and_ca(data)).check(ISSUER.identity.tls_key.public_key(), AT_NOW)


LINES: dict[str, Callable[[int, dict[str, Any]], object]] = {
    "pool": proof.pool_of, "worker": proof.worker_of, "entry": proof.entry_of, "receipt": proof.receipt_of,
    "head": lambda number, value: proof.head_of("head", number, value),
}  # fmt: skip


def export_line(data: bytes) -> None:
    value = proof.object_of(1, data)
    kind = value.get("type")
    LINES[kind if isinstance(kind, str) and kind in LINES else "pool"](1, value)


def saved_head(path: Path) -> None:
    head, _ = read_head(path)
    _ = head.signed


def chat_template(data: bytes) -> None:
    """A template out of a model's file, which is a program; and arguments that another model wrote."""
    source, _, arguments = data.decode("utf-8", "replace").partition("\n---\n")
    call = work_pb2.ToolCall(id="a", name="f", arguments=arguments)
    message = work_pb2.ChatMessage(role="assistant", content="b", tool_calls=[call])
    tool = work_pb2.Tool(name="f", parameters=arguments)
    chat = work_pb2.ChatWork(messages=[message], tools=[tool])
    ChatTemplate(source, bos="", eos="", now=lambda: datetime.now(UTC)).render(chat)


def worker_settings(path: Path) -> None:
    target = path.parent / "worker.toml"
    path.replace(target)
    Settings.load(flags={}, environ={}, folder=target.parent)


# -- seeds ------------------------------------------------------------------------------------------------


def _gguf() -> bytes:
    def word(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    metadata = [
        word("general.architecture") + struct.pack("<I", 8) + word("llama"),
        word("llama.block_count") + struct.pack("<II", 4, 2),
        word("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + word("a") + word("b"),
    ]
    tensor = word("token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 2, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, len(metadata)) + b"".join(metadata) + tensor


CHAT = b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "stream": true, "stop": ["a"]}'
EXAMPLE = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
EVENTS = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n'
RECEIPT = ReceiptBody(
    job_id="job_1", attempt=1, worker_id="w", model="m", engine="emulator", prompt_tokens=1,
    output_tokens=2, started_at=0, ended_at=1, output_sha256="00" * 32,
).encode()  # fmt: skip
AT = work_pb2.Attempt(job_id="job_1", number=1)
DELTA = work_pb2.Delta(text="a", token_ids=[1], finish_reason="stop")
FRAME = session_pb2.WorkerMessage(frame=session_pb2.Frame(attempt=AT, sequence=1, deltas=[DELTA]))
HELLO = session_pb2.WorkerMessage(
    hello=session_pb2.Hello(
        protocol=1, models=[session_pb2.ServedModel(name="m", kinds=["chat"], slots=1)], slots=1
    )
)
ASSIGN = session_pb2.CoordinatorMessage(assign=session_pb2.Assign(attempt=AT, model="m"))
CALLS = (
    b'<think>so</think><tool_call>\n{"name": "f", "arguments": {"a": [1]}}\n</tool_call>',
    b'[TOOL_CALLS][{"name": "f", "arguments": {"a": "]"}}]',
    b'{"name": "f", "parameters": {}}',
    b"<tool_call><function=f><parameter=a>1</parameter></function></tool_call>",
)
FORM = (
    b"multipart/form-data; boundary=x".ljust(64, b"\0")
    + b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    + b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nb\r\n--x--\r\n'
)
TEMPLATE = (
    b"{% for m in messages %}{{ m.role }}{{ m.content }}{% for c in m.tool_calls %}"
    b'{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}\n---\n{"type": "object", "properties": {}}'
)
MEMBERSHIP = b'{"worker_id": "w", "name": "n", "member": "m", "pool": "p", "grpc": "a:1", "url": "u"}'

TARGETS: dict[str, Target] = {
    "worker message": Target(
        worker_message, (DecodeError,), (FRAME.SerializeToString(), HELLO.SerializeToString())
    ),
    "coordinator message": Target(
        coordinator_message, (DecodeError, wire.WireError), (ASSIGN.SerializeToString(),)
    ),
    "engine pipe": Target(
        engine_frames,
        (PipeError, wire.WireError),
        (frame(engine_pb2.EngineEvent(output=engine_pb2.Output(attempt=AT, deltas=[DELTA]))),),
    ),
    "join token": Target(text(JoinToken.parse), (TokenError,), (str(JoinToken.create("0" * 64)).encode(),)),
    "request for a certificate": Target(_key_of_csr, (CsrError,), (ISSUER.wish,), ISSUER.asked),
    "certificate": Target(certificate, (CertificateRefused,), (ISSUER.fields,), ISSUER.sealed),
    "receipt": Target(ReceiptBody.decode, (ReceiptError,), (RECEIPT,)),
    "receipt shown": Target(
        text(lambda body: Receipt(number=1, attempt=1, worker="w", state="", body=body).claimed_tokens),
        (),
        (RECEIPT,),
    ),
    "JSON lines": Target(jsonl_lines, (), (EXAMPLE * 2,)),
    "training examples": Target(
        examples, (), (EXAMPLE, b'{"prompt": "a", "completion": "b"}\n', b'{"input": {"messages": []}}')
    ),
    "catalogue": Target(Catalogue.parse, (CatalogueError,), (Catalogue.builtin(emulator=True).to_wire(),)),
    "catalogue of a pool": Target(
        Catalogue.from_wire, (CatalogueError,), (Catalogue.builtin(emulator=True).to_wire(),)
    ),
    "GGUF": Target(file("a.gguf", gguf.read_header), (gguf.GgufError,), (_gguf(),)),
    "safetensors": Target(tensors.read, (tensors.TensorsError,), fuzz_seeds.adapters(), fuzz_seeds.measured),
    "adapter": Target(adapter, (lora.LoraError,), fuzz_seeds.adapters(), fuzz_seeds.measured),
    "delta": Target(deltas.decode, (deltas.DeltaError,), fuzz_seeds.changes(), fuzz_seeds.measured),
    "config.json": Target(
        lambda data: shape_of_config(parse_object(data)), (ShapeError, ApiError), fuzz_seeds.CONFIGS
    ),
    "line of an export": Target(export_line, (proof.Fault,), fuzz_seeds.export_lines()),
    "export": Target(
        file("export.jsonl", lambda path: verify(path, processes=1)),
        (proof.Fault,),
        (fuzz_seeds.EXPORT_FILE.read_bytes(),),
        fuzz_seeds.chained,
    ),
    "text of a model": Target(answer_text, (), CALLS),
    "events of an answer": Target(server_events, (PotluckError, httpx2.SSEError), (EVENTS,)),
    "events of a bridge": Target(bridge_events, (EngineError, JobError), (EVENTS,)),
    "answer of a pool": Target(pool_answer, (PotluckError,), (b'{"data": []}',)),
    "error of a pool": Target(
        pool_error, (), (b'{"error": {"message": "a", "type": "b", "code": "c", "param": null}}',)
    ),
    "answer to an enrolment": Target(enrolment_answer, (WorkerError,), (ISSUER.answer(),)),
    "refusal of an enrolment": Target(
        enrolment_refusal, (), (b'{"error": {"code": "join_token_used", "message": "a"}}',)
    ),
    "form": Target(form, (ApiError,), (FORM,)),
    "body": Target(parse_object, (ApiError,), (CHAT,)),
    "chat request": Target(schema_of(ChatRequest), (ApiError,), (CHAT,)),
    "completion request": Target(
        schema_of(CompletionRequest), (ApiError,), (b'{"model": "m", "prompt": [1, 2], "n": 2}',)
    ),
    "embedding request": Target(
        schema_of(EmbeddingRequest), (ApiError,), (b'{"model": "m", "input": ["a"]}',)
    ),
    "enrolment": Target(
        schema_of(EnrolRequest),
        (ApiError,),
        (b'{"token": "a", "name": "b", "csr": "c", "receipt_key": "d"}',),
    ),
    "any body": Target(
        any_body,
        (ApiError,),
        (
            b'{"worker_id": "a", "at": 1, "signature": "b", "csr": "c"}',
            b'{"url": "https://a.test/b", "name": "c", "event_types": ["batch.completed"], "custom_id": "1"}',
            b'{"filename": "a", "purpose": "batch", "bytes": 1, "mime_type": "b", "expires_after": {"seconds": 1}}',
            b'{"model": "m", "training_file": "f", "method": {"type": "dpo", "dpo": {"hyperparameters": {}}}}',
        ),
    ),
    "saved head": Target(file("head.json", saved_head), (proof.Fault,), (fuzz_seeds.saved_head(),)),
    "speeds.json": Target(
        file("speeds.json", lambda path: speeds._read(path, 1.0)),
        (),
        (b'{"m": {"prefill": 1.0, "decode": 2, "at": 0}}',),
    ),
    "schema of an answer": Target(
        text(lambda schema: _schema(schema, "tools[0]")),
        (JobError,),
        (b'{"type": "object", "properties": {"a": {"type": "string", "pattern": "a+"}}}',),
    ),
    "chat template": Target(chat_template, (EngineError, JobError), (TEMPLATE,)),
    "worker.toml": Target(
        file("new.toml", worker_settings),
        (WorkerError,),
        (b'models = ["a"]\n[hours]\nevery_day = "1:00-2:00"\n',),
    ),
    "coordinator.toml": Target(
        file("pool.toml", read_pool_settings), (SettingsError,), (b'pool_name = "a"\n',)
    ),
    "client.toml": Target(
        file("client.toml", ClientFile.load), (PotluckError,), (b'[profiles.a]\nurl = "u"\nkey = "k"\n',)
    ),
    "membership.json": Target(in_folder("membership.json", Membership.load), (NotJoined,), (MEMBERSHIP,)),
    "owner.json": Target(in_folder(WISH_FILE, Wish.load), (), (Wish().model_dump_json().encode(),)),
    "asked.json": Target(
        in_folder("asked.json", AskedPause.load), (), (AskedPause().model_dump_json().encode(),)
    ),
    "state.json": Target(
        in_folder(STATE_FILE, WorkerState.load), (), (WorkerState().model_dump_json().encode(),)
    ),
    "lock of a neighbour": Target(_threads, (), (b'{"threads": 2}',)),
    "metadata of a provider": Target(
        lambda data: object_of("https://id.test", data), (ProviderDown,), (b'{"issuer": "https://id.test"}',)
    ),
    "hours": Target(text(Window.parse), (ValueError,), (b"22:00-07:00",)),
    "amount": Target(text(amounts.parse), (amounts.AmountError,), (b"12.5",)),
    "cpuinfo": Target(text(from_cpuinfo), (), (b"model name : a\nflags : avx2\n",)),
}

# What once raised something else, hung or grew: by the parser's name.
EC_KEY, NO_KEY = bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ca3d0201")
VERSION_3, VERSION_11 = bytes.fromhex("a003020102"), bytes.fromhex("a00302010a")
FOUND: dict[str, tuple[bytes, ...]] = {
    "certificate": (
        ISSUER.sealed(ISSUER.fields.replace(VERSION_3, VERSION_11)),
        ISSUER.sealed(ISSUER.fields.replace(EC_KEY, NO_KEY)),
        ISSUER.sealed(ISSUER.fields.replace(ISSUER.point, ISSUER.point[:-1] + b"\0")),  # on no curve
        ISSUER.pem + fuzz_seeds.pem("CERTIFICATE", ISSUER.ca_der.replace(EC_KEY, NO_KEY)),
    ),
    "answer to an enrolment": (
        ISSUER.answer().replace(b"-----BEGIN", b"\\ud800-----BEGIN", 1),
        ISSUER.answer(ca=fuzz_seeds.pem("CERTIFICATE", ISSUER.ca_der.replace(VERSION_3, VERSION_11))),
    ),
    "answer of a pool": (b"[" * 5_000,),
    "error of a pool": (b'{"error": ' + b"[" * 5_000,),
    "events of an answer": (b"data: " + b"[" * 5_000 + b"\n\n",),
    "chat template": (b"{{ " + b"(" * 400 + b" }}", b"{{ m." + b"9" * 5_000 + b" }}"),
    "worker.toml": (b"models = " + b"[" * 5_000, b"threads = " + b"9" * 5_000),
    "coordinator.toml": (b"pool_name = " + b"[" * 5_000, b"queue_jobs_max = " + b"9" * 5_000),
    "speeds.json": (b'{"m": {"prefill": 1' + b"0" * 400 + b', "decode": 2, "at": 0}}',),
    "lock of a neighbour": (b"[" * 4_000,),
    "metadata of a provider": (b"[" * 4_000,),
    "client.toml": (b"default_profile = " + b"[" * 60_000, b"a = " + b"9" * 5_000),
}

DEEP = (b"[", b'{"a":', b'[{"a":', b"(", b"<think>", b"{% if a %}", b"a = [")
BITS = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"1e999", b"-0", b"9" * 5_000, b"NaN", b"null", b"\r\n",
    b"\xe2\x80\xa8", b'"', b"\\", b"]", b"}", b"{}", b"[]", b"\x7f\xff\xff\xff\xff\xff\xff\xff", b"true",
)  # fmt: skip


def mutants(target: Target, rng: random.Random) -> Iterator[bytes]:
    """Without end: the seeds with bytes changed, doubled, cut, mixed, nested, and swapped for odd ones. A fourth of
    them are not sealed after that but before.
    """
    while True:
        before = rng.randrange(4) == 0
        data = bytearray(rng.choice(target.seeds))
        if before:
            data = bytearray(target.seal(bytes(data)))
        for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
            at = rng.randrange(len(data) + 1)
            till = min(len(data), at + rng.choice((1, 2, 4, 16, 64)))
            match rng.randrange(8):
                case 0 if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    del data[at:till]
                case 2:
                    data[at:at] = data[at:till] * rng.choice((1, 2, 50))
                case 3:
                    data[at:at] = rng.choice(BITS)
                case 4:
                    data[at:till] = rng.choice(BITS)
                case 5:
                    other = rng.choice(target.seeds)
                    data[at:till] = other[rng.randrange(len(other) + 1) :][:64]
                case 6:
                    data[at:at] = rng.choice(DEEP) * rng.choice((3, 70, 400, 980, 5_000, 60_000))
                case _:
                    data[at:till] = rng.randbytes(till - at)
        yield bytes(data) if before else target.seal(bytes(data))
