"""What training made goes up to the pool's artifact store, over the same mutual TLS as the session.

A call that breaks off is begun again, ever more slowly, where the coordinator says that it stopped: for as
long as the attempt is this worker's, which is not decided here. What more calls will not mend is a failure.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import grpc
import grpc.aio
import structlog

from potluck.fetch import Interrupted
from potluck.v1 import artifacts_pb2, work_pb2
from worker import wire
from worker.artifacts import ArtifactClient
from worker.messages import AttemptId, Failure, Fault
from worker.session import Backoff

CHUNK_BYTES: Final = 512 << 10
ANSWER_S_MAX: Final = 60.0
FULL_S_MAX: Final = 600.0  # of a coordinator without room, before another attempt has to do it once more
MISMATCHES_MAX: Final = 3

log = structlog.get_logger("worker.uploads")

_FINAL: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: "the pool does not take it",
    grpc.StatusCode.UNAUTHENTICATED: "the pool does not let this worker in",
    grpc.StatusCode.PERMISSION_DENIED: "the pool does not let this worker in",
    grpc.StatusCode.UNIMPLEMENTED: "the pool takes no uploads: its coordinator is of another version",
}


class UploadFailed(Exception):  # noqa: N818 -- named for what happened
    """It will not arrive; `failure` is the attempt's."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Uploader(Protocol):
    async def upload(
        self, attempt: AttemptId, path: Path, artifact: work_pb2.Artifact, arrived: Callable[[int], None]
    ) -> None:
        """Returns when the pool has the file; `arrived` hears how many bytes of it are there.

        Raises UploadFailed.
        """


class _Refused(Exception):  # noqa: N818 -- named for what happened
    """The coordinator ended the call."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(slots=True)
class Patience:
    """What one file's refusals come to: None is to be tried again."""

    full_since: float | None = None
    mismatches: int = 0

    def judge(self, code: grpc.StatusCode, sentence: str, now: float) -> Failure | None:
        if code in _FINAL:
            return Failure(Fault.WORKER, "upload_failed", f"{_FINAL[code]}: {sentence}")
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return Failure(Fault.NONE, "attempt_over", sentence)
        if code is grpc.StatusCode.DATA_LOSS:
            self.mismatches += 1
            if self.mismatches >= MISMATCHES_MAX:
                return Failure(Fault.WORKER, "upload_failed", f"it arrives damaged: {sentence}")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self.full_since = now if self.full_since is None else self.full_since
            if now - self.full_since >= FULL_S_MAX:
                return Failure(Fault.NONE, "pool_full", sentence)
        return None


@dataclass(slots=True)
class Uploads:
    """An Uploader over the daemon's own connection."""

    client: ArtifactClient
    backoff: Callable[[], Backoff] = field(default=Backoff)

    async def upload(
        self, attempt: AttemptId, path: Path, artifact: work_pb2.Artifact, arrived: Callable[[int], None]
    ) -> None:
        backoff, patience, furthest = self.backoff(), Patience(), 0

        def further(offset: int) -> None:
            nonlocal furthest
            if offset > furthest:
                furthest, patience.full_since = offset, None
                backoff.reset()
            arrived(offset)

        while True:
            try:
                await self._once(attempt, path, artifact, further)
            except _Refused as refused:
                failure = patience.judge(refused.code, str(refused), asyncio.get_running_loop().time())
                if failure is not None:
                    raise UploadFailed(failure) from None
                why = f"{refused.code.name}: {refused}"
            except Interrupted as broken:
                why = str(broken)
            except OSError as error:
                lost = f"{path.name} cannot be read: {error.strerror}"
                raise UploadFailed(Failure(Fault.WORKER, "upload_failed", lost)) from error
            else:
                return
            log.info("an upload broke off", action="upload_broke", job=attempt.job_id, why=why)
            await asyncio.sleep(backoff.next_s())

    async def _once(
        self, attempt: AttemptId, path: Path, artifact: work_pb2.Artifact, further: Callable[[int], None]
    ) -> None:
        """One call. Raises _Refused, Interrupted, OSError."""
        async with self.client.connected() as stub:
            call: _Call = stub.Upload()
            begin = artifacts_pb2.UploadBegin(
                attempt=wire.attempt_to(attempt), sha256=artifact.sha256, bytes=artifact.bytes
            )
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    await call.write(artifacts_pb2.UploadRequest(begin=begin))
                    offset = (await _answer(call)).offset
                further(offset)
                await _send(call, path, offset, further)
                async with asyncio.timeout(ANSWER_S_MAX):
                    await call.done_writing()
                    if not (await _answer(call)).whole:
                        raise Interrupted("the coordinator did not say that it has all of it")
            except TimeoutError:
                raise Interrupted(f"the coordinator did not answer within {ANSWER_S_MAX:.0f} s") from None
            except grpc.aio.AioRpcError as error:
                raise _Refused(error.code(), error.details() or "") from None
            except asyncio.InvalidStateError:  # grpc.aio's answer to a write after the end of the call
                raise _Refused(await call.code(), await call.details() or "") from None
            finally:
                call.cancel()


_Call = grpc.aio.StreamStreamCall[artifacts_pb2.UploadRequest, artifacts_pb2.UploadAnswer]


async def _send(call: _Call, path: Path, offset: int, further: Callable[[int], None]) -> None:
    """What is written went out, not yet in: flow control keeps it close behind."""
    with await asyncio.to_thread(path.open, "rb") as file:
        file.seek(offset)
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            async with asyncio.timeout(ANSWER_S_MAX):
                await call.write(artifacts_pb2.UploadRequest(data=data))
            offset += len(data)
            further(offset)


async def _answer(call: _Call) -> artifacts_pb2.UploadAnswer:
    """Raises AioRpcError, or _Refused if the call ended without a word."""
    answer = await call.read()
    if not isinstance(answer, artifacts_pb2.UploadAnswer):
        raise _Refused(await call.code(), await call.details() or "the call ended")
    return answer
