"""Files out of the coordinator's own artifact store, over the same mutual TLS as the session."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

import grpc
import grpc.aio

from potluck.fetch import FetchError, Interrupted, SourceFailed
from potluck.v1 import artifacts_pb2, artifacts_pb2_grpc
from worker.addresses import Addresses
from worker.errors import WorkerError
from worker.renewal import Renewal
from worker.session import CHANNEL_OPTIONS

CHUNK_S_MAX: Final = 60.0
DOWNLOADS_MAX: Final = 4  # at once: so many the coordinator gives to one worker, and it refuses more

_FINAL: Final = {
    grpc.StatusCode.NOT_FOUND: "the pool's artifact store does not have it",
    grpc.StatusCode.UNIMPLEMENTED: "the pool has no artifact store: its coordinator is of another version",
    grpc.StatusCode.UNAUTHENTICATED: "the pool does not let this worker in",
    grpc.StatusCode.PERMISSION_DENIED: "the pool does not let this worker in",
    grpc.StatusCode.INVALID_ARGUMENT: "the pool does not understand the request",
    grpc.StatusCode.OUT_OF_RANGE: "the pool's file is shorter than the catalogue says",
}


class ArtifactClient:
    """An artifact source for `potluck.fetch`. A connection is made for each download and closed after it.

    More downloads than the coordinator gives at once wait here for each other.
    """

    def __init__(self, addresses: Addresses, tls_key: bytes, renewal: Renewal) -> None:
        self._addresses, self._tls_key, self._renewal = addresses, tls_key, renewal
        self._turn = asyncio.Semaphore(DOWNLOADS_MAX)

    async def download(self, sha256: str, offset: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on. Raises Interrupted to be asked again, FetchError to end."""
        async with self._turn, aclosing(self._download(sha256, offset)) as chunks:
            async for data in chunks:
                yield data

    @asynccontextmanager
    async def connected(self) -> "AsyncIterator[artifacts_pb2_grpc.ArtifactServiceAsyncStub]":
        """A connection of its own. Raises Interrupted where the certificate cannot be renewed just now."""
        try:
            certificate = await self._renewal.ensure()
        except WorkerError as error:
            raise Interrupted(str(error)) from None
        credentials = grpc.ssl_channel_credentials(certificate.ca, self._tls_key, certificate.certificate)
        async with grpc.aio.secure_channel(
            self._addresses.current, credentials, options=list(CHANNEL_OPTIONS)
        ) as channel:
            yield artifacts_pb2_grpc.ArtifactServiceStub(channel)

    async def _download(self, sha256: str, offset: int) -> AsyncGenerator[bytes, None]:
        async with self.connected() as stub:
            call = stub.Download(artifacts_pb2.DownloadRequest(sha256=sha256, offset=offset))
            try:
                expected = offset
                while isinstance(chunk := await _next(call), artifacts_pb2.DownloadChunk):
                    if chunk.offset != expected:
                        raise SourceFailed("the pool's artifact store sent another part than was asked for.")
                    expected += len(chunk.data)
                    yield chunk.data
            except grpc.aio.AioRpcError as error:
                raise _explained(error) from None
            finally:
                call.cancel()


async def _next(
    call: "grpc.aio.UnaryStreamCall[artifacts_pb2.DownloadRequest, artifacts_pb2.DownloadChunk]",
) -> object:
    try:
        async with asyncio.timeout(CHUNK_S_MAX):
            return await call.read()
    except TimeoutError:
        raise Interrupted(f"nothing came for {CHUNK_S_MAX:.0f} s") from None


def _explained(error: grpc.aio.AioRpcError) -> FetchError | Interrupted:
    why = _FINAL.get(error.code())
    if why is not None:
        return SourceFailed(f"The file cannot be had: {why}.")
    return Interrupted(f"the coordinator broke off ({error.code().name})")
