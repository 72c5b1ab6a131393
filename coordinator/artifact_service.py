"""The artifact service of the wire: downloads for enrolled workers, uploads of what training made.

What belongs to the catalogue is for every worker. What members uploaded and what training made is for those
alone that hold an attempt whose work names it, for as long as they do.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, BinaryIO, Final

import grpc

from coordinator.artifacts import ArtifactStore, NoSuchArtifact
from coordinator.at_once import AtOnce
from coordinator.core.jobs import WorkerId
from coordinator.training_uploads import TrainingUploads
from coordinator.unwelcome import Unwelcome
from potluck.v1 import artifacts_pb2, artifacts_pb2_grpc

CHUNK_BYTES: Final = 256 << 10
DOWNLOADS_MAX: Final = 4  # at once, for each worker


class ArtifactServicer(artifacts_pb2_grpc.ArtifactServiceServicer):
    """`identify` gives the worker's id from the peer's certificate, or raises Unwelcome.

    `private`: stores of which a worker gets what `named_by` says that its attempts name.
    """

    def __init__(
        self,
        store: ArtifactStore,
        identify: Callable[[Any], Awaitable[WorkerId]],
        *,
        private: Sequence[ArtifactStore] = (),
        named_by: Callable[[WorkerId], AbstractSet[str]] = lambda _: frozenset(),
        uploads: TrainingUploads | None = None,
    ) -> None:
        self._store, self._identify = store, identify
        self._private, self._named_by, self._uploads = private, named_by, uploads
        self._at_once = AtOnce(DOWNLOADS_MAX, "downloads")

    async def Download(  # noqa: N802 -- the RPC's name
        self, request: artifacts_pb2.DownloadRequest, context: Any
    ) -> AsyncIterator[artifacts_pb2.DownloadChunk]:
        """From `offset` on. Who has everything already gets one empty message that says the total."""
        try:
            worker = await self._identify(context)
            with self._at_once.counted(worker), await self._open(worker, request.sha256) as file:
                total, offset = os.fstat(file.fileno()).st_size, request.offset
                if offset > total:
                    raise Unwelcome(
                        grpc.StatusCode.OUT_OF_RANGE, f"it has {total} bytes; {offset} is behind its end"
                    )
                file.seek(offset)
                if offset == total:
                    yield artifacts_pb2.DownloadChunk(offset=offset, total=total)
                while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                    yield artifacts_pb2.DownloadChunk(offset=offset, total=total, data=data)
                    offset += len(data)
        except Unwelcome as verdict:
            await context.abort(verdict.code, verdict.sentence)

    async def Upload(  # noqa: N802 -- the RPC's name
        self, request_iterator: AsyncIterator[artifacts_pb2.UploadRequest], context: Any
    ) -> AsyncIterator[artifacts_pb2.UploadAnswer]:
        try:
            worker = await self._identify(context)
            if self._uploads is None:
                raise Unwelcome(grpc.StatusCode.UNIMPLEMENTED, "nothing is uploaded here")
            async for answer in self._uploads.serve(worker, request_iterator):
                yield answer
        except Unwelcome as verdict:
            await context.abort(verdict.code, verdict.sentence)

    async def _open(self, worker: WorkerId, sha256: str) -> BinaryIO:
        """Whether there is none or none for this worker, it hears the same."""
        named = self._named_by(worker)
        stores = (self._store, *(self._private if sha256 in named else ()))

        def first() -> BinaryIO:
            for store in stores:
                try:
                    return store.open(sha256)
                except NoSuchArtifact as error:
                    missing = error
            raise Unwelcome(grpc.StatusCode.NOT_FOUND, str(missing)) from missing

        return await asyncio.to_thread(first)
