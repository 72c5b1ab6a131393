"""The two files that a batch leaves: answers and errors, line by line in the input's order, as the OpenAI API
writes them.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import orjson

from coordinator.batches.batch import Failure
from coordinator.core.jobs import Job, JobState

PIECE_BYTES: Final = 256 << 10
NOT_DONE: Final = {
    JobState.CANCELLED: ("batch_cancelled", "The batch was cancelled before this line was done."),
}
LINE_CANCELLED: Final = ("line_cancelled", "This line was cancelled by itself before it was done.")
EXPIRED: Final = ("batch_expired", "The batch's completion window ended before this line was done.")


def answered(job: Job, custom_id: str, result: bytes) -> bytes:
    """A line of the output file. `result` is the route's own answer."""
    response = {"status_code": 200, "request_id": job.id, "body": orjson.Fragment(result)}
    return _line(f"batch_req_{job.id}", custom_id, response, None)


def failed(line_id: str, custom_id: str, failure: Failure) -> bytes:
    """A line of the error file: what the request would have been answered with on its own."""
    error = {"message": failure.message, "type": _type(failure.status), "code": failure.code, "param": None}
    response = {"status_code": failure.status, "request_id": line_id, "body": {"error": error}}
    return _line(f"batch_req_{line_id}", custom_id, response, None)


def not_done(line_id: str, custom_id: str, state: JobState, *, alone: bool) -> bytes:
    """A line of the error file: it was never asked, or not to its end. `alone`: the others went on."""
    code, message = NOT_DONE.get(state, EXPIRED)
    if alone and state is JobState.CANCELLED:
        code, message = LINE_CANCELLED
    return _line(f"batch_req_{line_id}", custom_id, None, {"code": code, "message": message})


def failure_of(job: Job) -> Failure:
    """Of a part that ended without an answer."""
    return Failure(job.part, 503, job.code or "job_failed", job.why or "It left no answer.")


async def in_pieces(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """For the artifact store, which syncs and counts by pieces."""
    held = bytearray()
    async for line in lines:
        held += line
        while len(held) >= PIECE_BYTES:
            yield bytes(held[:PIECE_BYTES])
            del held[:PIECE_BYTES]
    if held:
        yield bytes(held)


def _line(line_id: str, custom_id: str, response: Mapping[str, Any] | None, error: Any) -> bytes:
    return orjson.dumps({"id": line_id, "custom_id": custom_id, "response": response, "error": error}) + b"\n"


def _type(status: int) -> str:
    return "invalid_request_error" if status < 500 else "server_error"
