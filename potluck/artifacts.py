"""The pool's artifact store as a worker downloads from it, for `potluck.fetch`."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Final

import grpc

from potluck.download import Interrupted, SourceFailed
from potluck.v1 import artifacts_pb2, artifacts_pb2_grpc

DOWNLOAD_S: Final = 24 * 3600.0  # of one call; a longer one goes on in the next
# What another try can mend: the coordinator restarts, is busy, or the connection is gone.
_PASSING: Final = frozenset({
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.ABORTED,
})  # fmt: skip


class PoolArtifacts:
    """An ArtifactSource over the worker's channel to its coordinator."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = artifacts_pb2_grpc.ArtifactServiceStub(channel)

    async def download(self, sha256: str, offset: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on. Raises Interrupted to be asked again, SourceFailed to end."""
        call = self._stub.Download(
            artifacts_pb2.DownloadRequest(sha256=sha256, offset=offset), timeout=DOWNLOAD_S
        )
        try:
            async for chunk in call:
                if chunk.offset != offset:
                    raise Interrupted(f"bytes at {chunk.offset} where {offset} is next")
                offset += len(chunk.data)
                yield chunk.data
        except grpc.aio.AioRpcError as error:
            if error.code() in _PASSING:
                raise Interrupted(f"the coordinator: {error.details()}") from error
            raise SourceFailed(
                f"The pool does not give the file {sha256[:12]}…: {error.details()}."
                " Ask whoever runs the pool."
            ) from error
        finally:
            with suppress(grpc.aio.UsageError):
                call.cancel()  # a consumer that stops early must not leave the stream open
