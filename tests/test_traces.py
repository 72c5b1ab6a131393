"""One trace from a member's request to the engine, over real processes, as a real OTLP receiver gets it; also when a worker dies
in the middle, and never with what was asked or answered."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fixtures_pool import RealPool
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from potluck.tracing import Tracing

MODEL = "emulator-small"
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"  # of the standard's own example
QUESTION = "Is zanzibar secret?"


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    trace: str
    id: str
    parent: str
    kind: int
    began: int
    ended: int
    failed: bool
    told: dict[str, Any]


@dataclass
class Receiver:
    """A collector's OTLP/HTTP side: it keeps what it gets."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    raw: bytes = b""
    news: threading.Condition = field(default_factory=threading.Condition)

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self.news:
            self.raw += body
            for resource in request.resource_spans:
                service = told(resource.resource.attributes)["service.name"]
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    self.spans.append(
                        Span(
                            service=service,
                            name=span.name,
                            trace=span.trace_id.hex(),
                            id=span.span_id.hex(),
                            parent=span.parent_span_id.hex(),
                            kind=span.kind,
                            began=span.start_time_unix_nano,
                            ended=span.end_time_unix_nano,
                            failed=span.status.code == span.status.STATUS_CODE_ERROR,
                            told=told(span.attributes),
                        )
                    )
            self.news.notify_all()

    def of(self, trace: str, *names: str) -> list[Span]:
        """In the order in which they began."""
        found = (span for span in self.spans if span.trace == trace and span.name in names)
        return sorted(found, key=lambda span: span.began)

    def until(self, condition: Callable[[], Any]) -> Any:
        with self.news:
            assert self.news.wait_for(condition, 60), [(s.trace, s.name, s.told) for s in self.spans]
            return condition()


def told(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            made.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class calls it so
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def traced_pool(tmp_path: Path, receiver: Receiver) -> Iterator[RealPool]:
    pool = RealPool(tmp_path)
    pool.variables |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",  # ms
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",  # which would tell more than may be told
    }
    pool.start_coordinator()
    try:
        yield pool
    finally:
        pool.close()


def ask(pool: RealPool, **more: Any) -> httpx2.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 30}
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    answer = pool.member("carol").api("POST", "/v1/chat/completions", json={**body, **more}, headers=headers)
    return answer.raise_for_status()


@pytest.mark.processes
def test_one_trace_from_the_request_to_the_engine(traced_pool: RealPool, receiver: Receiver) -> None:
    """Each span is in the one that caused it; the member's own trace goes on."""
    traced_pool.add_emulator("rig", "bob", ttft_ms=20, tpot_ms=5)
    answer = ask(traced_pool)
    job_id = answer.headers["x-potluck-job-id"]

    def there() -> bool:
        names = {span.name for span in receiver.spans if span.trace == TRACE}
        return {"POST /v1/chat/completions", "job", "attempt", "serve"} <= names

    receiver.until(there)
    [request] = receiver.of(TRACE, "POST /v1/chat/completions")
    [job], [attempt], [serve] = (receiver.of(TRACE, name) for name in ("job", "attempt", "serve"))
    assert [span.parent for span in (request, job, attempt, serve)] == [
        CALLER,
        request.id,
        job.id,
        attempt.id,
    ]
    engine = receiver.of(TRACE, "engine.load", "engine.prefill", "engine.decode")
    assert [(span.name, span.parent) for span in engine] == [
        ("engine.load", serve.id),
        ("engine.prefill", serve.id),
        ("engine.decode", serve.id),
    ]
    load, prefill, decode = engine
    assert (
        serve.began <= load.began <= load.ended <= prefill.began < prefill.ended <= decode.began < serve.ended
    )
    assert {span.service for span in (request, job, attempt)} == {"potluck-coordinator"}
    assert {span.service for span in (serve, *engine)} == {"potluck-worker"}
    assert len([span for span in receiver.spans if span.trace == TRACE]) == 7
    assert request.told["http.route"] == "/v1/chat/completions"
    assert request.told["http.response.status_code"] == 200
    assert {span.told["potluck.job.id"] for span in (job, attempt, serve)} == {job_id}
    usage = answer.json()["usage"]
    assert job.told["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 30
    assert job.told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert attempt.told["potluck.attempt.state"] == "succeeded"
    assert not any(span.failed for span in receiver.spans if span.trace == TRACE)
    assert b"zanzibar" not in receiver.raw
    text = answer.json()["choices"][0]["message"]["content"]
    assert text.split()[-1].encode() not in receiver.raw
    assert not any(part.encode() in receiver.raw for part in (traced_pool.member("carol").key, "carol"))


@pytest.mark.processes
def test_an_answer_that_goes_on_elsewhere_stays_one_trace(traced_pool: RealPool, receiver: Receiver) -> None:
    """kill -9 of the worker in mid-answer: two attempts in one job, the first lost, the second with its engine."""
    for name, owner in (("rig1", "bob"), ("rig2", "dave")):
        traced_pool.add_emulator(name, owner, tpot_ms=20)
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 60,
        "stream": True,
    }
    headers = {
        "authorization": f"Bearer {traced_pool.member('carol').key}",
        "traceparent": f"00-{TRACE}-{CALLER}-01",
    }
    killed = ""
    with (
        httpx2.Client(timeout=60, verify=False) as client,
        client.stream("POST", f"{traced_pool.url}/v1/chat/completions", json=body, headers=headers) as answer,
    ):
        job_id = answer.headers["x-potluck-job-id"]
        for line in answer.iter_lines():
            if not killed and '"content":' in line:
                attempt = traced_pool.job(job_id)["attempts"][-1]
                rows = traced_pool.admin.api("GET", "/pool/v1/workers").json()
                killed = next(row["name"] for row in rows if row["id"] == attempt["worker"])
                traced_pool.workers[killed].kill()
    receiver.until(lambda: receiver.of(TRACE, "job") and receiver.of(TRACE, "serve"))
    receiver.until(lambda: receiver.of(TRACE, "POST /v1/chat/completions"))
    [job], [serve] = receiver.of(TRACE, "job"), receiver.of(TRACE, "serve")
    first, second = receiver.of(TRACE, "attempt")
    assert [(span.parent, span.told["potluck.attempt.number"]) for span in (first, second)] == [
        (job.id, 1),
        (job.id, 2),
    ]
    assert (first.told["potluck.attempt.state"], first.failed) == ("lost", True)
    assert (second.told["potluck.attempt.state"], second.failed) == ("succeeded", False)
    assert first.told["potluck.worker.id"] != second.told["potluck.worker.id"]
    assert serve.parent == second.id
    decode = receiver.of(TRACE, "engine.decode")
    assert [span.parent for span in decode] == [serve.id]
    assert job.told["gen_ai.usage.output_tokens"] == 60


@pytest.mark.processes
def test_what_nobody_serves_and_what_is_asked_of_pages(traced_pool: RealPool, receiver: Receiver) -> None:
    """A request without a trace begins one; a refusal is told by its status alone; pages and probes are not traced."""
    for path in ("/healthz", "/", "/sign-in"):
        traced_pool.request("GET", path, traced_pool.admin.key)
    wrong = {"traceparent": "00-zanzibar-zanzibar-01"}
    missing = traced_pool.admin.api("GET", "/pool/v1/jobs/job_zanzibar", headers=wrong)
    assert missing.status_code == 404

    def found() -> list[Span]:
        return [span for span in receiver.spans if span.name == "GET /pool/v1/jobs/{job_id}"]

    [span] = receiver.until(found)
    assert (span.parent, span.told["http.response.status_code"], span.failed) == ("", 404, False)
    assert not any(s.told.get("http.route") in {"/", "/healthz", "/sign-in"} for s in receiver.spans)
    assert b"zanzibar" not in receiver.raw


@pytest.mark.processes
def test_the_parts_of_a_batch_belong_to_the_request_for_it(traced_pool: RealPool, receiver: Receiver) -> None:
    traced_pool.add_emulator("rig", "bob")
    carol = traced_pool.member("carol")
    asked = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 3}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": asked}
    lines = "\n".join(json.dumps({**line, "custom_id": f"{number}"}) for number in range(3))
    client = carol.openai()
    file = client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
    client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_headers={"traceparent": f"00-{TRACE}-{CALLER}-01"},
    )
    receiver.until(lambda: len(receiver.of(TRACE, "job")) == 3 and len(receiver.of(TRACE, "serve")) == 3)
    [request] = receiver.of(TRACE, "POST /v1/batches")
    assert {span.parent for span in receiver.of(TRACE, "job")} == {request.id}


def test_where_nobody_collects_nothing_is_even_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert Tracing.open("x") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert Tracing.open("x") is None
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    looked = "import sys, coordinator.app, worker.daemon; assert 'opentelemetry.sdk' not in sys.modules"
    subprocess.run([sys.executable, "-c", looked], check=True)


def test_without_the_extra_it_is_said_that_traces_are_wanted() -> None:
    told = (
        "import os, sys; sys.modules['opentelemetry.sdk'] = None;"
        "os.environ['OTEL_EXPORTER_OTLP_ENDPOINT'] = 'http://127.0.0.1:1';"
        "from potluck.tracing import Tracing; assert Tracing.open('x') is None"
    )
    done = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True)
    assert "pip install 'potluck[otel]'" in done.stdout + done.stderr
