"""An engine inside a Ray actor: what runs on the site's nodes. Ray itself is not imported here.

Commands and events cross as bytes, in the framing of the pipe; nothing of ours is ever pickled.
"""

import asyncio
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from potluck.v1 import engine_pb2
from potluck.version import version
from worker.engines import engine, pipe
from worker.engines.runner import Runner, variables


def machine() -> str:
    """Which machine this is; another after a restart."""
    return f"{socket.gethostname()}/{psutil.boot_time():.0f}"


class Mail:
    """Events on their way to the daemon. What waits is bounded by the attempts' own limits on output."""

    def __init__(self) -> None:
        """Inside the running loop."""
        self._loop = asyncio.get_running_loop()
        self._there = asyncio.Event()
        self._lock = threading.Lock()
        self._frames: list[bytes] = []
        self._closed = False

    def put(self, event: engine_pb2.EngineEvent) -> None:
        """On any thread."""
        data = pipe.frame(event)
        with self._lock:
            self._frames.append(data)
            first = len(self._frames) == 1
        if first:
            self._loop.call_soon_threadsafe(self._there.set)

    def close(self) -> None:
        """On any thread. What waits is still taken."""
        self._closed = True
        self._loop.call_soon_threadsafe(self._there.set)

    async def take(self) -> bytes:
        """All frames that wait; empty when closed and nothing does."""
        while True:
            await self._there.wait()
            self._there.clear()
            with self._lock:
                frames, self._frames = self._frames, []
            if frames or self._closed:
                if self._closed:
                    self._there.set()
                return b"".join(frames)


class EngineActor:
    """One engine. The host kills the actor when `serve` has ended, whatever ended it."""

    def __init__(self) -> None:
        self._runner: Runner | None = None
        self._mail: Mail | None = None
        self._unframer = pipe.Unframer(engine_pb2.EngineCommand)

    async def about(self) -> str:
        """JSON: who answers."""
        return json.dumps({"pid": os.getpid(), "machine": machine(), "version": version()})

    async def serve(self, load: bytes) -> AsyncIterator[bytes]:
        """The engine's events, from the first of its loading until it ends."""
        command = engine_pb2.Load.FromString(load)
        directory = Path(tempfile.mkdtemp(prefix="potluck-"))
        os.environ.update(variables(command, directory))  # before the engine's libraries are loaded
        self._mail = mail = Mail()
        runner = Runner(mail.put, mail.close)
        loading = asyncio.create_task(self._load(runner, command))
        try:
            while data := await mail.take():
                yield data
        finally:
            loading.cancel()
            await runner.close()
            shutil.rmtree(directory, ignore_errors=True)

    async def _load(self, runner: Runner, load: engine_pb2.Load) -> None:
        assert self._mail is not None
        if missing := [path for path in load.paths if not os.path.exists(path)]:  # noqa: ASYNC240, PTH110 -- once
            why = (
                f"{missing[0]} is not on {socket.gethostname()}: every node of a site must see the model"
                " cache in the same place, so share the folder (POTLUCK_MODEL_CACHE names it)"
            )
            failure = engine.EngineError("files_missing", why).failure
            self._mail.put(engine_pb2.EngineEvent(load_failed=engine_pb2.LoadFailed(failure=failure)))
        elif await runner.load(load):
            self._runner = runner
            return
        self._mail.close()

    async def tell(self, frames: bytes) -> None:
        """Commands, in the order of the calls: the host makes one at a time."""
        for command in self._unframer.feed(frames):
            if self._mail is not None and (self._runner is None or not self._runner.handle(command)):
                self._mail.close()
