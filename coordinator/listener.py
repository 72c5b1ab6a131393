"""HTTP on a socket that listens already, until told to stop: of who leads the pool, and of who waits."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from coordinator.connections import Doors, Guarded
from coordinator.settings import Settings, SettingsError

GRACE_S: Final = 10.0  # for running answers when the coordinator is told to stop
HANDSHAKE_S: Final = 10.0  # of TLS
UNSENT_BYTES: Final = (
    64 * 1024
)  # that the kernel takes for a client that does not read, beside what is under way


class _Server(uvicorn.Server):
    """Signals are the composition root's business."""

    def __init__(self, config: uvicorn.Config, doors: Doors) -> None:
        super().__init__(config)
        self.doors = doors
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, of sockets that listen, and with a limit to how long a handshake may take."""
        await self.lifespan.startup()
        loop, config = asyncio.get_running_loop(), self.config
        handshake_s = None if config.ssl is None else HANDSHAKE_S

        def connected() -> Guarded:
            return Guarded(config, self.server_state, self.lifespan.state, self.doors)

        self.servers = [
            await loop.create_server(
                connected,
                sock=sock,
                ssl=config.ssl,
                backlog=config.backlog,
                ssl_handshake_timeout=handshake_s,
            )
            for sock in sockets or ()
        ]
        self.started = True
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listener:
    """`task` ends when the server does; it fails with it."""

    def __init__(self, server: _Server, task: "asyncio.Task[None]") -> None:
        self._server, self.task = server, task

    @classmethod
    async def open(
        cls,
        settings: Settings,
        app: ASGIApp,
        listening: socket.socket,
        refused: Callable[[str], None] = lambda _: None,
    ) -> "Listener":
        """`refused` counts whom the listener itself does not let in, or cuts off.

        Raises SettingsError if the TLS files cannot be used.
        """
        of_address_max = 0 if settings.behind_proxy else settings.address_connections_max
        doors = Doors(settings.connections_max, of_address_max, refused)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # what is accepted here inherits it
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",  # its protocol would take a connection over: no limit holds then, nor is it left
            proxy_headers=False,  # the API reads forwarded headers itself, from a configured proxy only
            timeout_graceful_shutdown=int(GRACE_S),
            timeout_keep_alive=75,
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
        server = _Server(config, doors)
        opened = cls(server, asyncio.create_task(server.serve(sockets=[listening])))
        await server.ready.wait()
        return opened

    async def stop(self) -> None:
        """Lets running answers end, for as long as the grace lasts."""
        self._server.should_exit = True
        await asyncio.gather(self.task, return_exceptions=True)
