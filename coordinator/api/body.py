"""Reading a request's body: bounded while it arrives, then strict JSON (RFC 8259).

Refused: more bytes than allowed (413), slower than allowed (408), another content type (415), and as 400 what
is no JSON, NaN and Infinity, lone surrogates, the same key twice in an object, nesting beyond `DEPTH_MAX`.
"""

import asyncio
import json
from typing import Any

import orjson
from starlette.requests import Request

from coordinator.api.errors import ApiError
from potluck.jsonl import deeper_than

DEPTH_MAX = 32
BODY_S_MAX = 60.0
# A client that is still writing does not read: what it sends too much is read and dropped, up to a limit.
DRAIN_FACTOR_MAX = 8
DRAIN_S_MAX = 10.0
BUSY_S = 2.0


class Bodies:
    """The bytes of all bodies that are being read just now: many at once must not fill the memory."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max, self.bytes = bytes_max, 0

    def take(self, size: int) -> None:
        """Raises ApiError 503 if there is no room for so much more."""
        if self.bytes + size > self.bytes_max:
            message = (
                "So many requests arrive that the coordinator has no room for this one. Try again shortly."
            )
            raise ApiError(503, "coordinator_busy", message, retry_after_s=BUSY_S, close=True)
        self.bytes += size


async def read_json(request: Request, bytes_max: int) -> dict[str, Any]:
    """The JSON object in the request's body."""
    kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, "unsupported_media_type", "Send JSON with the header `Content-Type: application/json`."
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(
            415, "unsupported_encoding", "Send the body uncompressed: no content encoding is read."
        )
    return parse_object(await read_bytes(request, bytes_max))


async def read_bytes(request: Request, bytes_max: int) -> bytes:
    """The whole body. The limit holds while the bytes come in, whatever Content-Length says."""
    declared = request.headers.get("content-length", "")
    length = int(declared) if declared.isascii() and declared.isdecimal() and len(declared) < 19 else 0
    if length > bytes_max:
        if "expect" not in request.headers:
            await drain(request, bytes_max * DRAIN_FACTOR_MAX)
        raise _too_large(bytes_max)
    try:
        async with asyncio.timeout(BODY_S_MAX):
            return await _read(request, bytes_max)
    except TimeoutError:
        message = f"The body did not arrive within {BODY_S_MAX:.0f} seconds."
        raise ApiError(408, "request_timeout", message, close=True) from None


async def _read(request: Request, bytes_max: int) -> bytes:
    bodies: Bodies = request.app.state.bodies
    chunks: list[bytes] = []
    size = 0
    try:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                gone = "The connection closed before the body was complete."
                raise ApiError(400, "client_disconnected", gone)
            chunk = message.get("body", b"")
            if size + len(chunk) > bytes_max:
                if message.get("more_body", False):
                    await drain(request, bytes_max * DRAIN_FACTOR_MAX)
                raise _too_large(bytes_max)
            bodies.take(len(chunk))
            size += len(chunk)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    finally:
        bodies.bytes -= size


async def drain(request: Request, bytes_max: int) -> None:
    """Closing with unread bytes resets the connection, and the client would never see the 413."""
    left = bytes_max
    try:
        async with asyncio.timeout(DRAIN_S_MAX):
            while left > 0:
                message = await request.receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _too_large(bytes_max: int) -> ApiError:
    message = f"The body is larger than {bytes_max:,} bytes, this pool's limit. Send less at once."
    return ApiError(413, "request_too_large", message, close=True)


def parse_object(raw: bytes) -> dict[str, Any]:
    """Strict JSON, whose outermost value is an object."""
    try:
        value = orjson.loads(raw)  # refuses NaN, Infinity, lone surrogates, invalid UTF-8
    except orjson.JSONDecodeError as error:
        message = f"The body is not valid JSON: {error}."
        raise ApiError(400, "invalid_json", message) from None
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_json", "The body must be a JSON object: {...}.")
    # The cheap test first: nesting that deep needs that many brackets.
    if raw.count(b"[") + raw.count(b"{") > DEPTH_MAX and deeper_than(value, DEPTH_MAX):
        raise ApiError(400, "invalid_json", f"The body is nested deeper than {DEPTH_MAX} levels.")
    _refuse_duplicates(raw)
    return value


def _refuse_duplicates(raw: bytes) -> None:
    """Parsers disagree on which of two equal keys counts, so neither does here (orjson takes the last)."""
    try:
        json.loads(raw, object_pairs_hook=_unique, parse_int=_nothing, parse_float=_nothing)
    except _DuplicateKeyError as error:
        raise ApiError(
            400, "invalid_json", f"The key {error.args[0]!r} stands twice in one object."
        ) from None


class _DuplicateKeyError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise _DuplicateKeyError(key[:64])
        seen.add(key)


def _nothing(_text: str) -> None:
    """Numbers do not matter here, and a long one must not cost time."""
