"""Whatever is asked, the API answers as /openapi.json says: never with a fault of its own, never with a status, a
content type or a shape that is not described; with no key, a wrong one, a member's and an admin's.

Schemathesis makes the requests out of the description: the bounds of every parameter, what lies beyond them, wrong
types, other methods, and whatever Hypothesis thinks of. Ids of what there is, which nobody could guess, stand beside
what a parameter may be. `POTLUCK_CONTRACT_EXAMPLES=500 pytest tests/test_api_contract.py` looks longer than CI does.
"""

import asyncio
import copy
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fixtures_api import MODEL, Stand, chat_body, open_stand
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

WAIT_S = 120.0
EXAMPLES = int(os.environ.get("POTLUCK_CONTRACT_EXAMPLES", "8"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
    allow_header_conformance,
    negative_data_rejection,  # what the description forbids is refused
]
TRAINING = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 16
LINE = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": chat_body(max_tokens=2)}
TEXTS = {"model": MODEL, "input": ["a", "b c"]}
GOOD: dict[str, dict[str, Any]] = {  # what chance would hardly make
    "ChatRequest": chat_body(max_tokens=2, logprobs=True, top_logprobs=2),
    "CompletionRequest": {"model": MODEL, "prompt": ["a", "b"], "max_tokens": 2, "echo": True},
    "EmbeddingRequest": TEXTS,
    "JobRequest": {"kind": "embedding", "request": TEXTS},
    "UploadRequest": {"filename": "a.jsonl", "purpose": "batch", "bytes": 4, "mime_type": "text/plain"},
}
STRANGERS = {"no key": None, "wrong key": "sk-potluck-wrong"}


@dataclass
class Asker:
    """Whose key goes with each request, and the pool that is asked: one for each, so that the order is none."""

    name: str
    url: str
    key: str | None
    known: dict[str, list[Any]]

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}


async def populated(stand: Stand, by: str) -> dict[str, list[Any]]:
    """What there is, by the names of the parameters that ask for it."""

    async def made(path: str, field: str = "id", **more: Any) -> Any:
        answer = await stand.ask("POST", path, by=by, **more)
        assert answer.is_success, answer.text
        return answer.json()[field]

    file = await made("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", TRAINING)})
    lines = ("batch.jsonl", json.dumps(LINE).encode())
    batch_file = await made("/v1/files", data={"purpose": "batch"}, files={"file": lines})
    upload = {"purpose": "batch", "filename": "b", "bytes": 4, "mime_type": "text/plain"}
    batch = {"input_file_id": batch_file, "endpoint": LINE["url"]}
    job = {"kind": "chat", "request": chat_body(max_tokens=2)}
    hook = {"name": "hook", "url": "https://pool.example.org/", "event_types": ["batch.completed"]}
    return {
        "model": [MODEL],
        "file_id": [file],
        "training_file": [file],
        "input_file_id": [batch_file],
        "upload_id": [await made("/v1/uploads", json=upload)],
        "batch_id": [await made("/v1/batches", json=batch)],
        "finetune_id": [await made("/v1/fine_tuning/jobs", json={"model": MODEL, "training_file": file})],
        "job_id": [await made("/pool/v1/jobs", json=job)],
        "endpoint_id": [await made("/v1/webhook_endpoints", json=hook)],
        "worker_id": [stand.worker],
        "token_id": [await made("/pool/v1/join-tokens", json={})],
        "invite_id": [await made("/pool/v1/invites", json={"credit_line": 1})],
        "token": [await made("/pool/v1/invites", "token", json={"credit_line": 1})],
        "key_id": [await made("/pool/v1/keys", json={"name": "spare"})],
        "team": [await made("/pool/v1/teams", json={"name": "cooks"})],
        "member": ["bob"],
        "to": ["bob"],
    }


@pytest.fixture(scope="module")
def asker(request: pytest.FixtureRequest) -> Iterator[Asker]:
    """A pool with something of everything, in a loop of its own: Schemathesis asks without one."""
    name = request.param
    member = "alice" if name in STRANGERS else name
    ready: Future[tuple[Asker, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        ends = asyncio.Event()
        with tempfile.TemporaryDirectory() as folder:
            async with open_stand(Path(folder), requests_per_minute=2**31) as stand:
                known = await populated(stand, member)
                key = STRANGERS.get(name, stand.keys[member])
                ready.set_result((Asker(name, stand.url, key, known), asyncio.get_running_loop(), ends))
                await ends.wait()

    done: Future[None] = Future()

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # said where the test sees it
            (done if ready.done() else ready).set_exception(error)
        else:
            done.set_result(None)

    thread = threading.Thread(target=work)
    thread.start()
    found, loop, ends = ready.result(timeout=60)
    yield found
    loop.call_soon_threadsafe(ends.set)
    thread.join(timeout=60)
    done.result(timeout=1)


@pytest.fixture(scope="module")
def api(asker: Asker) -> schemathesis.BaseSchema:
    config = schemathesis.Config.from_dict(
        {
            "seed": 1,
            "suppress-health-check": ["all"],  # they measure time, and a busy machine has none
            "request-timeout": WAIT_S,
            "max-stream-events": 20,
            "generation": {"deterministic": True, "max-examples": 2 if asker.name in STRANGERS else EXAMPLES},
            # All bounds of everything, once: what is wrong with a request is the same for everybody.
            "phases": {"coverage": {"enabled": asker.name == "admin"}},
        }
    )
    loaded = schemathesis.openapi.from_url(f"{asker.url}/openapi.json", config=config)
    described = with_known(loaded.raw_schema, asker.known)
    schema = schemathesis.openapi.from_dict(described, config=config)
    schema.config.update(base_url=asker.url)
    return schema


def with_known(described: dict[str, Any], known: dict[str, list[Any]]) -> dict[str, Any]:
    """Beside what a parameter may be, what there is; and bodies with which a route can do its work."""
    described = copy.deepcopy(described)
    for operations in described["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if (values := known.get(parameter["name"])) is not None:
                    parameter["schema"] = {"anyOf": [{"enum": values}, parameter["schema"]]}
            for body in operation.get("requestBody", {}).get("content", {}).values():
                if (good := GOOD.get(body["schema"].get("$ref", "").rpartition("/")[2])) is not None:
                    body["example"] = good
    for schema in described["components"]["schemas"].values():
        properties = schema.get("properties", {})
        for name in properties.keys() & known.keys():
            properties[name] = {"anyOf": [{"enum": known[name]}, properties[name]]}
    return described


contract = schemathesis.pytest.from_fixture("api")


@pytest.mark.parametrize("asker", [*STRANGERS, "alice", "admin"], indirect=True)
@contract.parametrize()
def test_every_answer_is_described(case: schemathesis.Case[Any], asker: Asker) -> None:
    case.call_and_validate(headers=asker.headers, checks=CHECKS)
