"""The network between a worker and the coordinator, as a proxy that can go dead, crawl, or break connections."""

import json
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fixtures_pool import RealPool, free_port

CHUNK = 65_536
UP, DOWN = "up", "down"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what is closed is reset


@dataclass
class Proxy:
    """Of one worker. A direction that is dead passes nothing on, and closes nothing either."""

    target: int
    port: int = field(default_factory=free_port)
    bytes_per_s: int = 0  # 0: as fast as it comes

    def __post_init__(self) -> None:
        self._open = {UP: threading.Event(), DOWN: threading.Event()}
        self._slow = threading.Event()  # never set: whoever waits for it waits for a time
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self.heal()
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, *directions: str) -> None:
        for direction in directions:
            self._open[direction].clear()

    def heal(self) -> None:
        self.bytes_per_s = 0
        for gate in self._open.values():
            gate.set()

    def reset(self) -> None:
        """Both ends hear of it, at once."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for end in (end for pair in pairs for end in pair):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._server.close()
        self.heal()
        self.reset()

    def _accept(self) -> None:
        with suppress(OSError):  # until it is closed
            while True:
                near, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
        except OSError:
            near.close()  # nobody listens there now
            return
        far.settimeout(None)
        with self._lock:
            self._pairs.add((near, far))
        threading.Thread(target=self._pump, args=(near, far, UP), daemon=True).start()
        self._pump(far, near, DOWN)

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                self._open[direction].wait()
                if speed := self.bytes_per_s:
                    self._slow.wait(len(data) / speed)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def between(pool: RealPool, name: str) -> Proxy:
    """For a worker that has joined and is not started yet: its stream goes through it."""
    membership = pool.folder / name / "worker" / "membership.json"
    proxy = Proxy(pool.grpc_port)
    known: dict[str, Any] = json.loads(membership.read_text(encoding="utf-8"))
    there = known["grpc"].replace(f":{pool.grpc_port}", f":{proxy.port}")
    assert there != known["grpc"], "its stream goes through the proxy"
    membership.write_text(json.dumps(known | {"grpc": there}), encoding="utf-8")
    return proxy
