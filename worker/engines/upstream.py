"""HTTP to one server of the owner's: a handful of paths, no redirects, a bound on all that comes back."""

import json
from collections.abc import AsyncGenerator
from typing import Any, Final, NoReturn

import httpx2

from potluck.v1 import work_pb2
from worker.bridges import Bridge
from worker.engines.engine import EngineError, JobError

PATHS: Final = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/health"}
)
CONNECT_S_MAX: Final = 10.0
ANSWER_BYTES_MAX: Final = 64 << 20
LINE_BYTES_MAX: Final = 1 << 20
REASON_CHARS_MAX: Final = 300
CONNECTIONS_MAX: Final = 256


class Upstream:
    """`ask` and `stream` raise JobError for what the server refuses, EngineError where it is at fault."""

    def __init__(self, bridge: Bridge, key: str, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self._url = bridge.url
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(bridge.answer_timeout_s, connect=CONNECT_S_MAX),
            limits=httpx2.Limits(max_connections=CONNECTIONS_MAX),
            follow_redirects=False,
            trust_env=False,  # no proxy sees prompts
            transport=transport,
        )

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """One whole answer, as JSON."""
        data = bytearray()
        async for piece in self._pieces(path, body):
            data += piece
            if len(data) > ANSWER_BYTES_MAX:
                raise EngineError(
                    "bridge_answer", f"the server answered with more than {ANSWER_BYTES_MAX} bytes"
                )
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise EngineError("bridge_answer", "the server's answer is no JSON") from None

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a stream (text/event-stream, WHATWG HTML 9.2), until `[DONE]`."""
        total, line = 0, bytearray()
        async for piece in self._pieces(path, body):
            total += len(piece)
            line += piece
            *whole, rest = bytes(line).split(b"\n")
            line = bytearray(rest)
            if len(line) > LINE_BYTES_MAX or total > ANSWER_BYTES_MAX:
                raise EngineError("bridge_answer", "the server sends more than an answer can be")
            for item in whole:
                if not item.startswith(b"data:"):
                    continue
                if (data := item[5:].strip()) == b"[DONE]":
                    return
                yield _event(data)

    async def _pieces(self, path: str, body: dict[str, Any] | None) -> AsyncGenerator[bytes, None]:
        assert path in PATHS, "no other path is ever asked for"
        method = "GET" if body is None else "POST"
        try:
            async with self._client.stream(method, self._url + path, json=body) as response:
                if response.status_code != 200:
                    await _refused(response)
                async for piece in response.aiter_bytes():
                    yield piece
        except httpx2.HTTPError as error:
            raise EngineError(
                "bridge_down", f"the server at {self._url} does not answer: {error!r}"
            ) from error

    async def close(self) -> None:
        await self._client.aclose()


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise EngineError("bridge_answer", "an event of the server is no JSON") from None
    if not isinstance(event, dict):
        raise EngineError("bridge_answer", "an event of the server is no object")
    if error := event.get("error"):
        raise EngineError("bridge_failed", f"the server failed: {_message(error)}")
    return event


async def _refused(response: httpx2.Response) -> NoReturn:
    """Whose fault a status is: a request that nobody can do, or this server."""
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > LINE_BYTES_MAX:
            break
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        said = None
    message = _message(said.get("error", said) if isinstance(said, dict) else "") or "without a reason"
    status = response.status_code
    if status in (400, 413, 422):
        if "context" in message.lower() or "exceed" in message.lower():
            raise JobError("context_too_long", f"the server refused the request: {message}")
        raise JobError("invalid_request", f"the server refused the request: {message}")
    if status in (429, 503):
        raise EngineError("bridge_busy", f"the server is busy ({status})", fault=work_pb2.FAULT_NONE)
    raise EngineError("bridge_failed", f"the server answered {status}: {message}")


def _message(error: Any) -> str:
    """Words only: lists of details may quote the prompt."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return " ".join(error.split())[:REASON_CHARS_MAX] if isinstance(error, str) else ""
