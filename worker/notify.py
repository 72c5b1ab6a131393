"""What a service manager is told: ready, stopping, alive, and what goes on (sd_notify(3)).

A datagram to the socket that it names; without one, nothing happens. The names are taken out of the
environment, or engine processes would speak for the daemon.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

STATUS_CHARS_MAX: Final = 200


class Notifier:
    """`watchdog_s`: within what time a sign of life is expected; 0: none is."""

    def __init__(
        self, address: str = "", *, watchdog_s: float = 0.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.watchdog_s, self._now = watchdog_s, now
        self._address = f"\0{address[1:]}" if address.startswith("@") else address  # "@": no file (Linux)
        self._alive_at = now()
        self._status = ""

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> "Notifier":
        address, usec = environ.pop("NOTIFY_SOCKET", ""), environ.pop("WATCHDOG_USEC", "")
        ours = environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        return cls(address, watchdog_s=int(usec) / 1e6 if usec.isdecimal() and ours else 0.0)

    def ready(self) -> None:
        self._say("READY=1")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def status(self, text: str) -> None:
        """In words, for `systemctl status`; said once."""
        line = "".join(c if c.isprintable() else " " for c in text[:STATUS_CHARS_MAX])
        if line != self._status:
            self._status = line
            self._say(f"STATUS={line}")

    def alive(self) -> None:
        """To be called often; a sign of life is given twice in each interval."""
        if self.watchdog_s and self._now() - self._alive_at >= self.watchdog_s / 2:
            self._alive_at = self._now()
            self._say("WATCHDOG=1")

    def _say(self, text: str) -> None:
        """A manager that does not read, or is gone, holds nobody up."""
        if not self._address or not hasattr(socket, "AF_UNIX"):
            return
        with (
            contextlib.suppress(OSError, ValueError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as way,
        ):
            way.setblocking(False)
            way.sendto(text.encode(), self._address)
