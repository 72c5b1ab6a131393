"""Uploads of what training made, from the workers that hold its attempts: the conversation of one call.

`UploadBegin` up, the offset down, the bytes up, the end of the stream up, `whole` down. A call that breaks
off is begun again. What arrives is a sign of life of the attempt.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

import grpc
import structlog
from google.protobuf.message import DecodeError

from coordinator import translate
from coordinator.artifacts import (
    ArtifactError,
    ArtifactMismatch,
    ArtifactTooLarge,
    NoSuchArtifact,
    StoreFull,
)
from coordinator.at_once import AtOnce
from coordinator.core.jobs import JobId, WorkerId
from coordinator.training_store import Holder, Incomplete, Over, TrainingStore
from coordinator.unwelcome import Unwelcome
from potluck.v1 import artifacts_pb2

UPLOADS_MAX: Final = 4  # at once, for each worker: streams that broke are noticed late
MESSAGE_S_MAX: Final = 60.0  # between two messages of a stream

log = structlog.get_logger(__name__)

_CODES: Final = {
    NoSuchArtifact: grpc.StatusCode.INVALID_ARGUMENT,
    ArtifactTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    ArtifactMismatch: grpc.StatusCode.DATA_LOSS,
    StoreFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Over: grpc.StatusCode.FAILED_PRECONDITION,
    Incomplete: grpc.StatusCode.ABORTED,
}

Messages = AsyncIterator[artifacts_pb2.UploadRequest]


@dataclass(slots=True)
class TrainingUploads:
    """`alive`: the worker was heard about an attempt; whether it still holds it."""

    store: TrainingStore
    alive: Callable[[WorkerId, JobId, int], bool]
    at_once: AtOnce = field(default_factory=lambda: AtOnce(UPLOADS_MAX, "uploads"))

    async def serve(self, worker: WorkerId, messages: Messages) -> AsyncIterator[artifacts_pb2.UploadAnswer]:
        """One call. Raises Unwelcome."""
        try:
            with self.at_once.counted(worker):
                first = await _next(messages)
                if first is None or first.WhichOneof("body") != "begin":
                    raise Unwelcome(grpc.StatusCode.INVALID_ARGUMENT, "an upload starts with UploadBegin")
                holder = Holder(worker, *translate.fence(first.begin.attempt))
                self._check(holder)
                upload, turn = await self.store.begin(holder, first.begin.sha256, first.begin.bytes)
                yield artifacts_pb2.UploadAnswer(offset=upload.size_bytes)
                while (message := await _next(messages)) is not None:
                    if not message.data:
                        raise Unwelcome(grpc.StatusCode.INVALID_ARGUMENT, "a message without bytes")
                    self._check(holder)
                    await self.store.append(upload, turn, message.data)
                self._check(holder)
                await self.store.finish(upload, turn)
                yield artifacts_pb2.UploadAnswer(offset=upload.size_bytes, whole=True)
        except ArtifactError as error:
            raise Unwelcome(_CODES[type(error)], str(error)) from error
        except OSError as error:
            log.warning("an upload could not be kept", action="upload_failed", why=str(error))
            why = f"the coordinator cannot keep it: {error.strerror or type(error).__name__}"
            raise Unwelcome(grpc.StatusCode.RESOURCE_EXHAUSTED, why) from error

    def _check(self, holder: Holder) -> None:
        if not self.alive(*holder):
            self.store.prune(lambda *other: Holder(*other) != holder)
            raise Over("this worker does not hold the attempt")


async def _next(messages: Messages) -> artifacts_pb2.UploadRequest | None:
    """None: the worker has sent all. Raises Unwelcome."""
    try:
        async with asyncio.timeout(MESSAGE_S_MAX):
            return await anext(messages)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        why = f"nothing came for {MESSAGE_S_MAX:.0f} s"
        raise Unwelcome(grpc.StatusCode.DEADLINE_EXCEEDED, why) from None
    except DecodeError:
        raise Unwelcome(grpc.StatusCode.INVALID_ARGUMENT, "a message that cannot be read") from None
