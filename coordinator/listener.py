"""HTTP on a socket that listens already, until told to stop: of who leads the pool, and of who waits."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from coordinator.settings import Settings, SettingsError

GRACE_S: Final = 10.0  # for running answers when the coordinator is told to stop


class _Server(uvicorn.Server):
    """Signals are the composition root's business."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listener:
    """`task` ends when the server does; it fails with it."""

    def __init__(self, server: _Server, task: "asyncio.Task[None]") -> None:
        self._server, self.task = server, task

    @classmethod
    async def open(cls, settings: Settings, app: ASGIApp, listening: socket.socket) -> "Listener":
        """Raises SettingsError if the TLS files cannot be used."""
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            proxy_headers=False,  # the API reads forwarded headers itself, from a configured proxy only
            timeout_graceful_shutdown=int(GRACE_S),
            timeout_keep_alive=75,
            limit_concurrency=settings.connections_max,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
        )
        try:
            config.load()
        except (ssl.SSLError, OSError) as error:
            reason = error.strerror or str(error)
            raise SettingsError(
                f"the TLS files {settings.tls_cert} and {settings.tls_key} cannot be used: {reason}. Give a"
                " certificate chain and its private key, both PEM, to --tls-cert and --tls-key."
            ) from error
        server = _Server(config)
        opened = cls(server, asyncio.create_task(server.serve(sockets=[listening])))
        await server.ready.wait()
        return opened

    async def stop(self) -> None:
        """Lets running answers end, for as long as the grace lasts."""
        self._server.should_exit = True
        await asyncio.gather(self.task, return_exceptions=True)
